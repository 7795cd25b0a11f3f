//! Tokens chosen from logits that stay on the device.
//!
//! Logits are scanned once for the likeliest tokens and the sum of exponentials, which is all that greedy choices need. For
//! the others a second reading weighs the candidates, and the last step finds the token. Top-k and top-p rule out what
//! comes after a certain logit; it is found digit by digit by counting (shaders/sample_search.wgsl), in four readings more:
//! nothing is sorted, and flat distributions cost no more than peaked ones. 1.5 MB of keys a row of 163,840 logits and
//! their copies stay in a GPU's cache.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::pool::Buffer;
use super::recorder::{Arriving, Dispatch};
use super::shader::{GRID_Y, Op, SAMPLE_CHOOSE, SAMPLE_DIGIT, SAMPLE_SCAN, SAMPLE_WEIGH, Spec};
use super::{Gpu, GpuTensor, upload_words, words};
use crate::backend::check;
use crate::sample::MAX_TOP_LOGPROBS;
use crate::{BackendError, SampleError, SampleRequest, Sampled};

type Result<T> = std::result::Result<T, BackendError>;

const WORKGROUP: usize = 256;
/// Tokens of a thread.
const EACH: usize = 8;
/// Digits of a key, 8 bits each.
const DIGITS: u32 = 4;
/// See shaders/sample.wgsl: what is known of a request, and one histogram.
const SEARCHES: usize = 2 + 6 * (DIGITS as usize + 1);
const HISTOGRAM: usize = 3 * 256;
const BAD_ID: usize = 1;
const NO_MASK: u32 = u32::MAX;
/// Words of a changed logit.
const CHANGE: usize = 4;
/// Words of a result before its likeliest tokens, and which of them is the token.
const RESULT: usize = 6;
const TOKEN: u32 = 2;

/// Chosen tokens on the device, and on their way from it.
pub struct GpuChosen {
    vocabulary: usize,
    /// Of each request how many of the likeliest tokens it asks for.
    tops: Vec<usize>,
    buffer: Arc<Buffer>,
    /// `None` after `finish_sample`, and while timing.
    arriving: Mutex<Option<Arriving>>,
}

impl GpuChosen {
    /// Words of a request's result.
    fn stride(&self) -> usize {
        RESULT + 2 * self.tops.iter().copied().max().unwrap_or(0)
    }

    /// The tokens, and the places in them of those of `requests`.
    ///
    /// # Errors
    /// [`BackendError::Range`] if a request is not there.
    pub(super) fn tokens(&self, requests: &[u32]) -> Result<(&Arc<Buffer>, Vec<u32>)> {
        check::embed_chosen(requests, if self.vocabulary == 0 { 0 } else { self.tops.len() })?;
        let place = |&request: &u32| request * self.stride() as u32 + TOKEN;
        Ok((&self.buffer, requests.iter().map(place).collect()))
    }
}

/// What differs between steps that choose: the constants of all their kernels.
#[derive(Clone, Copy)]
struct Kind {
    /// Some request is not greedy.
    sampled: bool,
    /// Some request has top-k or top-p.
    radix: bool,
    /// Likeliest tokens to report: the largest number that a request asks for.
    tops: usize,
}

/// Requests as the device reads them.
struct Packed {
    requests: Vec<u32>,
    lists: Vec<u32>,
}

impl Gpu {
    /// Records the choice of tokens and starts on it.
    pub(super) fn choose_tokens(
        &self,
        logits: &GpuTensor,
        requests: &[SampleRequest<'_>],
    ) -> Result<GpuChosen> {
        let vocabulary = logits.cols;
        check::sample(logits.size(), requests)?;
        BackendError::check_range("sample", "requests", requests.len(), GRID_Y as usize)?;
        let tops: Vec<usize> =
            requests.iter().map(|r| r.top_logprobs.min(MAX_TOP_LOGPROBS).min(vocabulary)).collect();
        let sampled = |r: &SampleRequest<'_>| r.temperature != 0.0;
        let kind = Kind {
            sampled: requests.iter().any(sampled),
            radix: requests.iter().any(|r| sampled(r) && (r.top_k > 0 || r.top_p < 1.0)),
            tops: tops.iter().copied().max().unwrap_or(0),
        };
        let words = |count: usize| self.recorder.pool.take(4 * (count * requests.len()) as u64, false);
        let buffer = words(RESULT + 2 * kind.tops)?;
        let mut chosen = GpuChosen { vocabulary, tops, buffer, arriving: Mutex::default() };
        if vocabulary == 0 || requests.is_empty() {
            return Ok(chosen);
        }
        let blocks = vocabulary.div_ceil(WORKGROUP * EACH);
        let packed = Packed::new(requests, vocabulary);
        let [lists, asked] = [upload_words(self, &packed.lists)?, upload_words(self, &packed.requests)?];
        let state = upload_words(self, &initial_state(requests.len(), kind))?;
        let [keys, parts, weights] =
            [words(vocabulary)?, words(blocks * (3 + 2 * kind.tops))?, words(2 * blocks)?];
        let scan: [&Buffer; 6] = [&logits.buffer, &keys, &parts, &state, &asked, &lists];
        let run = |op: &'static Op, digit: u32, buffers: &[&Buffer], grid: [usize; 3]| {
            let params = [vocabulary as u32, blocks as u32, kind.tops as u32, digit];
            self.recorder.dispatch(Dispatch { op, spec: kind.spec(op), buffers, params: &params, grid })
        };
        let (rows, each) = ([blocks, requests.len(), 1], [requests.len(), 1, 1]);
        run(&SAMPLE_SCAN, 0, &scan, rows)?;
        if kind.radix {
            (0..DIGITS).try_for_each(|digit| run(&SAMPLE_DIGIT, digit, &[&keys, &state, &asked], rows))?;
        }
        if kind.sampled {
            run(&SAMPLE_WEIGH, 0, &[&keys, &state, &asked, &weights], rows)?;
        }
        let choose: [&Buffer; 6] = [&parts, &keys, &state, &asked, &weights, &chosen.buffer];
        run(&SAMPLE_CHOOSE, 0, &choose, each)?;
        let bytes = 4 * (chosen.stride() * chosen.tops.len()) as u64;
        chosen.arriving = Mutex::new(self.recorder.start_read(&[(&chosen.buffer, 0..bytes)]));
        Ok(chosen)
    }

    /// Waits, and brings choices out.
    pub(super) fn chosen_tokens(
        &self,
        chosen: &GpuChosen,
    ) -> Result<Vec<std::result::Result<Sampled, SampleError>>> {
        let vocabulary = chosen.vocabulary;
        if vocabulary == 0 || chosen.tops.is_empty() {
            return Ok(chosen.tops.iter().map(|_| Err(SampleError::NoLogits)).collect());
        }
        let arriving = chosen.arriving.lock().unwrap_or_else(PoisonError::into_inner).take();
        let twice =
            || BackendError::Device("tokens are brought out once, and not while they are timed".to_owned());
        let read = self.recorder.finish_read(arriving.ok_or_else(twice)?)?;
        let results: Vec<u32> = read.first().map(|b| words(b)).unwrap_or_default();
        let each = results.chunks(chosen.stride()).zip(&chosen.tops);
        Ok(each.map(|(r, n)| result(r, *n, vocabulary)).collect())
    }
}

impl Kind {
    fn spec(self, op: &'static Op) -> Spec {
        let constants = vec![
            ("WORKGROUP", WORKGROUP as u32),
            ("EACH", EACH as u32),
            ("RADIX", self.radix.into()),
            ("SAMPLED", self.sampled.into()),
        ];
        Spec::new(op, constants)
    }
}

impl Packed {
    fn new(requests: &[SampleRequest<'_>], vocabulary: usize) -> Self {
        let mut packed = Self { requests: Vec::with_capacity(12 * requests.len()), lists: Vec::new() };
        requests.iter().for_each(|r| packed.push(r, vocabulary));
        packed
    }

    fn push(&mut self, r: &SampleRequest<'_>, vocabulary: usize) {
        let changes = self.lists.len() as u32;
        let count = self.push_changes(r, vocabulary);
        let mask = self.lists.len() as u32;
        let words = r.allowed.map_or(&[][..], |m| &m.0[..m.0.len().min(vocabulary.div_ceil(32))]);
        self.lists.extend_from_slice(words);
        // Not infinite, so that it leaves the likeliest's 0 a 0.
        let sharpness = if r.temperature == 0.0 { 0.0 } else { (1.0 / r.temperature).min(f32::MAX) };
        let floats = [
            r.repetition_penalty,
            1.0 / r.repetition_penalty,
            sharpness,
            r.top_p,
            if r.min_p > 0.0 { r.min_p.ln() } else { 1.0 },
        ];
        let mask_words = if r.allowed.is_some() { words.len() as u32 } else { NO_MASK };
        self.requests.extend([r.row, changes, count, mask, mask_words]);
        self.requests.extend(floats.map(f32::to_bits));
        self.requests.extend([u32::try_from(r.top_k).unwrap_or(u32::MAX), r.uniform.to_bits()]);
    }

    /// Of each token that a request changes, each once: what to add to its logit, whether the repetition penalty counts it,
    /// what to subtract then. Returns how many there are.
    fn push_changes(&mut self, r: &SampleRequest<'_>, vocabulary: usize) -> u32 {
        let mut biases = BTreeMap::<u32, f32>::new();
        for &(token, bias) in r.logit_bias.iter().filter(|(token, _)| (*token as usize) < vocabulary) {
            *biases.entry(token).or_default() += bias;
        }
        let first = self.lists.len();
        for count in r.counts.iter().filter(|count| (count.token as usize) < vocabulary) {
            let bias = biases.remove(&count.token).unwrap_or_default();
            let penalty = count.penalty(r.presence_penalty, r.frequency_penalty);
            self.lists.extend([count.token, bias.to_bits(), 1, penalty.to_bits()]);
        }
        self.lists.extend(biases.into_iter().flat_map(|(token, bias)| [token, bias.to_bits(), 0, 0]));
        ((self.lists.len() - first) / CHANGE) as u32
    }
}

fn initial_state(requests: usize, kind: Kind) -> Vec<u32> {
    let size = SEARCHES + if kind.radix { DIGITS as usize * HISTOGRAM } else { 0 };
    let mut state = vec![0; size * requests];
    state.iter_mut().skip(BAD_ID).step_by(size).for_each(|id| *id = u32::MAX);
    state
}

/// Reads what shaders/sample_choose.wgsl wrote.
fn result(words: &[u32], tops: usize, vocabulary: usize) -> std::result::Result<Sampled, SampleError> {
    let (&[bad, found, token, logit, largest, sum], likeliest) =
        words.split_first_chunk::<RESULT>().ok_or(SampleError::NoLogits)?;
    if (bad as usize) < vocabulary {
        return Err(SampleError::NotFinite { token: bad as usize, found: f32::from_bits(found).to_string() });
    }
    if token as usize >= vocabulary {
        return Err(SampleError::NothingAllowed { vocabulary });
    }
    let shift = f64::from(f32::from_bits(largest)) + f64::from(f32::from_bits(sum)).ln();
    let logprob = |logit: u32| (f64::from(f32::from_bits(logit)) - shift) as f32;
    let pairs = likeliest.chunks_exact(2).take(tops).filter(|pair| (pair[0] as usize) < vocabulary);
    let top = pairs.map(|pair| (pair[0], logprob(pair[1]))).collect();
    Ok(Sampled { token, logprob: logprob(logit), top })
}
