//! Tokens chosen on the GPU against those chosen on the CPU, on whatever adapter there is.
//!
//! Without an adapter nothing is tested, unless `KIMI_REQUIRE_GPU` is set.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use bytes::Bytes;
use common::Random;
use common::device::{gpu, open, spoil};
use kimi_quant::gpu::GpuOptions;
use kimi_quant::sample::filters;
use kimi_quant::{
    Backend, Cpu, FloatType, Format, Gpu, PackedMatrix, SampleError, SampleRequest, Sampled, TokenCount,
    TokenMask,
};

/// A request that owns its lists.
#[derive(Debug, Clone)]
struct Case {
    request: SampleRequest<'static>,
    bias: Vec<(u32, f32)>,
    counts: Vec<TokenCount>,
    mask: Option<Vec<u32>>,
}

impl Case {
    fn greedy(row: usize) -> Self {
        let request = SampleRequest::greedy(row as u32);
        Self { request, bias: Vec::new(), counts: Vec::new(), mask: None }
    }

    /// Any parameters, each of them off half the time.
    fn random(random: &mut Random, row: usize, vocabulary: usize) -> Self {
        let mut case = Self::greedy(row);
        let r = &mut case.request;
        let unit = |random: &mut Random| 0.5 + 0.5 * random.f32();
        let mut on = |one_in: usize| random.below(one_in) == 0;
        let [sampled, p, k, min_p, repeat, presence, frequency, biased, masked] =
            [8, 2, 2, 3, 3, 3, 3, 3, 4].map(&mut on);
        if !sampled {
            r.temperature = [0.01, 0.3, 1.0, 2.0 * unit(random)][random.below(4)];
        }
        if p {
            r.top_p = [0.0, 0.5, 0.95, 0.999_999, unit(random)][random.below(5)];
        }
        if k {
            r.top_k = [1, 2, 40, 1 + random.below(vocabulary), 2 * vocabulary][random.below(5)];
        }
        if min_p {
            r.min_p = [1.0, 0.1, unit(random)][random.below(3)];
        }
        if repeat {
            r.repetition_penalty = [1.3, 2.0, 0.5, 0.1 + 3.0 * unit(random)][random.below(4)];
        }
        if presence {
            r.presence_penalty = [2.0, -0.5, random.f32()][random.below(3)];
        }
        if frequency {
            r.frequency_penalty = [1.0, -0.25, random.f32()][random.below(3)];
        }
        r.uniform = match random.below(16) {
            0 => 0.0,
            1 => 0.999_999_9,
            _ => unit(random).min(0.999_999_9),
        };
        r.top_logprobs = [0, 0, 1, 5, 20, 99][random.below(6)];
        // Some ids are not in the vocabulary, some come twice.
        let ids = vocabulary + vocabulary / 8 + 1;
        if repeat || presence || frequency {
            let count = |random: &mut Random| {
                let in_answer = [0, 1, random.below(5000)][random.below(3)] as u32;
                TokenCount { token: random.below(ids) as u32, in_answer }
            };
            case.counts = (0..[64, 3000][random.below(2)]).map(|_| count(random)).collect();
            case.counts.sort_by_key(|count| count.token);
            case.counts.dedup_by_key(|count| count.token);
        }
        if biased {
            let bias = |random: &mut Random| (random.below(ids) as u32, (20.0 * random.f32()).round() / 4.0);
            case.bias = (0..random.below(300)).map(|_| bias(random)).collect();
            case.bias.sort_by_key(|b| b.0);
            case.bias.dedup_by_key(|b| b.0);
        }
        if masked {
            let words = vocabulary.div_ceil(32);
            let words = [words, words / 2, words + 3][random.below(3)];
            let dense = random.below(3);
            let word = |random: &mut Random| match dense {
                0 => random.u64() as u32,
                1 => u32::from(random.below(40) == 0) << random.below(32),
                _ => !(u32::from(random.below(4) == 0) << random.below(32)),
            };
            case.mask = Some((0..words).map(|_| word(random)).collect());
        }
        case
    }

    fn request(&self) -> SampleRequest<'_> {
        SampleRequest {
            logit_bias: &self.bias,
            counts: &self.counts,
            allowed: self.mask.as_deref().map(TokenMask),
            ..self.request
        }
    }
}

/// Logits of many kinds: peaked, flat, with many ties, of any size.
fn logits(random: &mut Random, vocabulary: usize) -> Vec<f32> {
    let bell = |random: &mut Random| (0..6).map(|_| random.f32()).sum::<f32>();
    let kind = random.below(9);
    let mut values: Vec<f32> = (0..vocabulary)
        .map(|_| match kind {
            0 => 3.0 * bell(random),
            1 => 12.0 * bell(random) - 5.0,
            2 => 1.5,
            3 => (2.0 * bell(random)).round(),
            4 => 1e-3 * random.f32(),
            5 => f32::from_bits(random.u64() as u32 & 0xfeff_ffff),
            6 => [0.0, -0.0, 1.0, -1.0][random.below(4)],
            7 => bell(random).round() / 2.0 + [0.0, 10.0][usize::from(random.below(500) == 0)],
            _ => 2.0 * bell(random) + 15.0,
        })
        .collect();
    if kind == 8 {
        for _ in 0..3 {
            values[random.below(vocabulary)] += 9.0;
        }
    }
    values
}

/// Whether a token is right but for rounding of sums: `uniform` lies on it within `slack`, whichever side of top-p's end
/// the last candidates fall.
fn plausible(logits: &[f32], request: &SampleRequest<'_>, token: u32) -> bool {
    const SLACK: f64 = 4e-6;
    let mut changed = logits.to_vec();
    filters::logit_bias(&mut changed, request.logit_bias);
    filters::repetition_penalty(&mut changed, request.counts, request.repetition_penalty);
    let (presence, frequency) = (request.presence_penalty, request.frequency_penalty);
    filters::answer_penalties(&mut changed, request.counts, presence, frequency);
    if let Some(mask) = request.allowed {
        filters::allow(&mut changed, mask);
    }
    let max = changed[filters::argmax(&changed).unwrap()];
    [0.0, -1e-6, 1e-6].into_iter().any(|shift| {
        let mut kept = changed.clone();
        if request.top_p < 1.0 {
            filters::top_p(&mut kept, request.top_p + shift);
        }
        filters::min_p(&mut kept, request.min_p);
        filters::top_k(&mut kept, request.top_k);
        let weight = |v: f32| (f64::from(v - max) / f64::from(request.temperature)).exp();
        let to: f64 = kept[..token as usize].iter().map(|&v| weight(v)).sum();
        let own = weight(kept[token as usize]);
        let total: f64 = kept.iter().map(|&v| weight(v)).sum();
        let at = f64::from(request.uniform) * total;
        own > 0.0 && (to - SLACK * total..=to + own + SLACK * total).contains(&at)
    })
}

/// Counts of a run of cases.
#[derive(Default)]
struct Tally {
    tokens: usize,
    rounded: usize,
    failed: usize,
}

impl Tally {
    fn compare(
        &mut self,
        case: &Case,
        logits: &[f32],
        found: &Result<Sampled, SampleError>,
        expected: &Result<Sampled, SampleError>,
    ) {
        let (found, expected) = match (found, expected) {
            (Ok(found), Ok(expected)) => (found, expected),
            (Err(found), Err(expected)) => {
                assert_eq!(found, expected);
                self.failed += 1;
                return;
            }
            _ => panic!("found {found:?}, expected {expected:?}: {case:?}"),
        };
        self.tokens += 1;
        let close = |a: f32, b: f32| (a - b).abs() <= 1e-5 + 2e-7 * b.abs();
        let ids = |s: &Sampled| s.top.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(ids(found), ids(expected), "likeliest tokens: {case:?}");
        for (f, e) in found.top.iter().zip(&expected.top) {
            assert!(close(f.1, e.1), "found {f:?}, expected {e:?}: {case:?}");
        }
        if found.token == expected.token {
            let (f, e) = (found.logprob, expected.logprob);
            assert!(close(f, e), "logprob: found {f}, expected {e}: {case:?}");
        } else {
            let request = case.request();
            assert!(request.temperature > 0.0, "greedy: found {found:?}, expected {expected:?}: {case:?}");
            let near = plausible(logits, &request, found.token);
            assert!(near, "found {found:?}, expected {expected:?} of {}: {case:?}", logits.len());
            // At the ends the choice hangs on weights that vanish in the sum.
            self.rounded += usize::from((0.001..0.999).contains(&request.uniform));
        }
    }
}

fn run(gpu: &Gpu, tally: &mut Tally, rows: &[Vec<f32>], cases: &[Case]) {
    let (cpu, vocabulary) = (Cpu::new(), rows[0].len());
    let all = rows.concat();
    let (on_cpu, on_gpu) = (
        cpu.upload(rows.len(), vocabulary, &all).unwrap(),
        gpu.upload(rows.len(), vocabulary, &all).unwrap(),
    );
    let requests: Vec<_> = cases.iter().map(Case::request).collect();
    let tops = requests.iter().map(|r| r.top_logprobs.min(20).min(vocabulary)).max().unwrap_or(0);
    let blocks = vocabulary.div_ceil(2048);
    let widths = [vocabulary, 6 + 2 * tops, 2 * blocks, blocks * (3 + 2 * tops)];
    spoil(gpu, &widths.map(|width| width * cases.len()));
    let expected = cpu.sample(&on_cpu, &requests).unwrap();
    let found = gpu.sample(&on_gpu, &requests).unwrap();
    assert_eq!(found.len(), cases.len());
    for ((case, found), expected) in cases.iter().zip(&found).zip(&expected) {
        tally.compare(case, &rows[case.request.row as usize], found, expected);
    }
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(gpu.download(&on_gpu).unwrap()), bits(all), "the logits stay as they are");
}

/// Batches of random requests over a vocabulary.
fn random_batches(gpu: &Gpu, seed: u64, vocabulary: usize, batches: usize, most: usize) {
    let (mut random, mut tally) = (Random(seed), Tally::default());
    for _ in 0..batches {
        let count = 1 + random.below(most);
        let mut rows: Vec<_> = (0..count).map(|_| logits(&mut random, vocabulary)).collect();
        if random.below(4) == 0 {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
            let row = random.below(count);
            (0..2).for_each(|_| rows[row][random.below(vocabulary)] = bad);
        }
        let rows_of: Vec<_> = (0..count).map(|_| random.below(count)).collect();
        let cases: Vec<_> = rows_of.iter().map(|&row| Case::random(&mut random, row, vocabulary)).collect();
        run(gpu, &mut tally, &rows, &cases);
    }
    let Tally { tokens, rounded, failed } = tally;
    println!("{vocabulary}: {tokens} tokens, {rounded} decided by rounding, {failed} failed alike");
    assert!(100 * rounded <= tokens, "{rounded} of {tokens} tokens differ");
}

#[test]
fn random_requests_choose_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    for (i, vocabulary) in [1, 2, 31, 33, 256, 300, 2047, 2048, 2049, 5000].into_iter().enumerate() {
        random_batches(gpu, 77 + i as u64, vocabulary, 40, 9);
    }
}

#[test]
fn a_whole_vocabulary_and_more_blocks_than_threads() {
    let Some(gpu) = gpu() else { return };
    random_batches(gpu, 5, 163_840, 12, 4);
    random_batches(gpu, 6, 300 * 2048 + 7, 4, 2);
}

#[test]
fn without_subgroups() {
    let Some(gpu) = open(GpuOptions { no_subgroups: true, ..Default::default() }) else { return };
    random_batches(&gpu, 9, 3000, 20, 5);
}

#[test]
fn a_failure_harms_no_other_request() {
    let Some(gpu) = gpu() else { return };
    let mut rows = vec![vec![0.5f32; 4000]; 4];
    rows[0][3000] = 2.0;
    rows[1][2500] = f32::NAN;
    rows[1][3500] = f32::INFINITY;
    rows[3][7] = 9.0;
    let mut cases: Vec<_> = (0..4).map(Case::greedy).collect();
    cases[2].mask = Some(vec![0; 125]);
    cases[3].request.temperature = 1.0;
    cases[3].request.top_k = 1;
    let mut tally = Tally::default();
    run(gpu, &mut tally, &rows, &cases);
    assert_eq!((tally.tokens, tally.failed), (2, 2));
    let logits = gpu.upload(4, 4000, &rows.concat()).unwrap();
    let requests: Vec<_> = cases.iter().map(Case::request).collect();
    let found = gpu.sample(&logits, &requests).unwrap();
    assert_eq!(found[0].as_ref().unwrap().token, 3000);
    assert_eq!(found[1], Err(SampleError::NotFinite { token: 2500, found: "NaN".into() }));
    assert_eq!(found[2], Err(SampleError::NothingAllowed { vocabulary: 4000 }));
    assert_eq!(found[3].as_ref().unwrap().token, 7);
}

#[test]
fn chosen_tokens_are_embedded_before_the_host_knows_them() {
    let Some(gpu) = gpu() else { return };
    let (cpu, mut random, vocabulary, cols) = (Cpu::new(), Random(3), 5000, 96);
    let values: Vec<u8> = (0..vocabulary * cols).flat_map(|_| random.f32().to_le_bytes()).collect();
    let float = Format::Float(FloatType::F32);
    let table =
        PackedMatrix::new(vocabulary, cols, float, values.into(), Bytes::new(), Bytes::new()).unwrap();
    let on_gpu = gpu.load_matrix(table.clone()).unwrap();
    let rows: Vec<f32> = (0..5 * vocabulary).map(|_| random.f32()).collect();
    let logits = gpu.upload(5, vocabulary, &rows).unwrap();
    let nothing = vec![0; vocabulary.div_ceil(32)];
    let requests: Vec<_> = (0..5)
        .map(|row| SampleRequest {
            top_logprobs: row as usize,
            allowed: (row == 3).then_some(TokenMask(&nothing)),
            ..SampleRequest::greedy(4 - row)
        })
        .collect();
    let chosen = gpu.start_sample(&logits, &requests).unwrap();
    let embedded = gpu.embed_chosen(&on_gpu, &chosen, &[4, 3, 0, 4]).unwrap();
    let later = gpu.start_sample(&logits, &requests[..1]).unwrap();
    assert!(gpu.embed_chosen(&on_gpu, &chosen, &[5]).is_err());

    let found = gpu.finish_sample(&chosen).unwrap();
    let expected = cpu.sample(&cpu.upload(5, vocabulary, &rows).unwrap(), &requests).unwrap();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.as_ref().map(|s| s.token), expected.as_ref().map(|s| s.token));
    }
    assert_eq!(found[3], Err(SampleError::NothingAllowed { vocabulary }));
    assert!(gpu.finish_sample(&chosen).is_err(), "they are brought out once");
    assert_eq!(
        gpu.finish_sample(&later).unwrap()[0].as_ref().unwrap().token,
        found[0].as_ref().unwrap().token
    );

    let embedded = gpu.download(&embedded).unwrap();
    let on_cpu = cpu.embed_chosen(&table, &found, &[4, 3, 0, 4]).unwrap();
    for row in [0, 2, 3] {
        assert_eq!(&embedded[row * cols..][..cols], &on_cpu.data()[row * cols..][..cols], "row {row}");
    }
    assert!(embedded[cols..2 * cols].iter().all(|x| x.abs() <= 1.0), "of a failed choice any row");
}

#[test]
fn what_is_not_there_is_refused() {
    let Some(gpu) = gpu() else { return };
    let logits = gpu.upload(2, 3, &[0.0; 6]).unwrap();
    assert!(gpu.sample(&logits, &[SampleRequest::greedy(2)]).is_err());
    assert!(gpu.sample(&logits, &[]).unwrap().is_empty());
    let nothing = gpu.upload(1, 0, &[]).unwrap();
    assert_eq!(gpu.sample(&nothing, &[SampleRequest::greedy(0)]).unwrap(), [Err(SampleError::NoLogits)]);
}
