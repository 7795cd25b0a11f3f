//! What the last stage returns for a mixed batch, on the CPU and on a GPU if there is one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod checkpoints;

use std::sync::Arc;

use bytes::Bytes;
use checkpoints::random::{fixed, write};
use kimi_core::batch::{Batch, Output, Sampling, SequenceId, SequenceSlice};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::constraint::{Constrained, Constraint};
use kimi_core::sampler::{RawSamplingParams, SampleError, SamplingParams, TokenCounts};
use kimi_core::stage::{CacheConfig, Hidden, SequenceOutput, Stage, StageOutput};
use kimi_quant::{Backend, Cpu};

const TOKENS: usize = 3;

/// Allows the tokens of a mask, whatever came before.
#[derive(Debug)]
struct Only(Arc<[u32]>);

impl Constraint for Only {
    fn accept(&mut self, _: u32) {}

    fn mask(&mut self, _: &[u32]) -> Option<Arc<[u32]>> {
        Some(self.0.clone())
    }
}

fn choice(raw: RawSamplingParams, uniform: f32, allowed: Option<&[u32]>) -> Sampling {
    let params = Arc::new(SamplingParams::new(raw).unwrap());
    let allowed = allowed.map(|words| Constrained::new(Only(Arc::from(words))).mask(&[]));
    let mut counts = TokenCounts::new(&[], &params);
    counts.add(1);
    counts.add(2);
    Sampling { params, counts: Arc::new(counts), uniform, top_logprobs: 3, allowed }
}

fn sampling(raw: RawSamplingParams, uniform: f32, allowed: Option<&[u32]>) -> Output {
    Output::Sample(vec![choice(raw, uniform, allowed)])
}

/// Eight sequences of three tokens through the last stage; the activations of the second are damaged.
fn mixed_batch<B: Backend>(backend: Arc<B>) -> Vec<SequenceOutput> {
    let mut spec = fixed();
    spec.sizes.layers = 3;
    let folder = tempfile::tempdir().unwrap();
    write(&spec, folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let cache = CacheConfig { pages: 8, page_tokens: TOKENS };
    let mut stage = Stage::load(&checkpoint, backend, 1..3, cache, &mut |_| {}).unwrap();
    let hot = RawSamplingParams { temperature: 1.5, top_p: 0.9, presence_penalty: 0.5, ..Default::default() };
    let outputs = [
        sampling(RawSamplingParams::default(), 0.0, None),
        sampling(RawSamplingParams::default(), 0.0, None),
        Output::LastLogits,
        Output::None,
        sampling(hot, 0.7, None),
        Output::AllLogits,
        sampling(RawSamplingParams::default(), 0.0, Some(&[1 << 5])),
        Output::Sample(vec![
            choice(RawSamplingParams::default(), 0.0, Some(&[1 << 4])),
            choice(RawSamplingParams::default(), 0.0, None),
        ]),
    ];
    let slice = |(i, output)| SequenceSlice {
        id: SequenceId(10 + i as u64),
        start: 0,
        tokens: vec![0; TOKENS],
        pages: vec![i as u32],
        output,
    };
    let batch =
        Batch { sequences: outputs.into_iter().enumerate().map(slice).collect(), ..Default::default() };
    let cols = spec.sizes.hidden;
    let value = |row: usize, col: usize| match row / TOKENS {
        1 => f32::NAN,
        // All sequences but the damaged one are the same.
        _ => ((row % TOKENS * 31 + col * 17) % 23) as f32 / 23.0 - 0.5,
    };
    let values = (0..8 * TOKENS).flat_map(|row| (0..cols).map(move |col| value(row, col).to_le_bytes()));
    let data = Bytes::from(values.flatten().collect::<Vec<u8>>());
    let hidden = Hidden { rows: 8 * TOKENS, cols, data };
    match stage.forward(&batch, Some(hidden), None).unwrap() {
        StageOutput::Sequences(outputs) => outputs,
        StageOutput::Hidden(_) => panic!("the last stage returned activations"),
    }
}

fn check(outputs: &[SequenceOutput]) {
    let ids: Vec<u64> = outputs.iter().map(|o| o.id.0).collect();
    assert_eq!(ids, [10, 11, 12, 14, 15, 16, 17]);
    let [greedy, damaged, last, hot, all, only, two] = outputs else { panic!("{outputs:?}") };
    let error = damaged.sampled[0].as_ref().unwrap_err();
    assert!(matches!(error, SampleError::NotFinite { .. }), "{error}");
    assert!(greedy.logits.is_empty() && last.sampled.is_empty() && all.sampled.is_empty());
    assert_eq!(all.logits.len(), TOKENS * last.logits.len());
    assert_eq!(all.logits[2 * last.logits.len()..], last.logits);
    let sampled = greedy.sampled[0].as_ref().unwrap();
    let likeliest = last.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(last.logits[sampled.token as usize], likeliest);
    assert_eq!(sampled.top.len(), 3);
    assert!(hot.sampled[0].is_ok());
    let only = only.sampled[0].as_ref().unwrap();
    assert_eq!((only.token, only.logprob), (5, 0.0));
    assert_ne!(sampled.token, 5);
    let [Ok(masked), Ok(plain)] = &two.sampled[..] else { panic!("{two:?}") };
    assert_eq!((masked.token, masked.logprob), (4, 0.0), "the row before the last has its own mask");
    assert_eq!(plain, sampled);
}

#[test]
fn a_mixed_batch_on_the_cpu() {
    check(&mixed_batch(Arc::new(Cpu::new())));
}

#[cfg(feature = "gpu")]
#[test]
fn a_mixed_batch_on_a_gpu() {
    let gpu = match kimi_quant::Gpu::new(&kimi_quant::gpu::GpuOptions::default()) {
        Ok(gpu) => gpu,
        Err(e) if std::env::var_os("KIMI_REQUIRE_GPU").is_none() => {
            println!("skipped: no adapter ({e})");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let found = mixed_batch(Arc::new(gpu));
    check(&found);
    for (found, expected) in found.iter().zip(mixed_batch(Arc::new(Cpu::new()))) {
        if let ([Ok(found)], [Ok(expected)]) = (&found.sampled[..], &expected.sampled[..]) {
            assert_eq!(found.token, expected.token);
            assert!((found.logprob - expected.logprob).abs() < 1e-4, "{found:?} {expected:?}");
        }
    }
}
