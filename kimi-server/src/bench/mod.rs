//! How fast a model computes on a device: decode, prefill, several sequences, and every operation, beside the read
//! bandwidth, which is measured in turn with each of them.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | what is measured of a device: its clock, its memory |
//! | [`timed`] | a backend that notes every call: its weights and its time |
//! | [`steps`] | the batches, and how they are timed |
//! | [`report`] | the figures, as a table and as JSON |

pub mod device;
mod median;
pub mod report;
pub mod steps;
pub mod timed;

use std::sync::Arc;
use std::time::Instant;

use kimi_core::chat_model::PAGE_TOKENS;
use kimi_core::plan::ModelBytes;
use kimi_core::source::ModelSource;
use kimi_core::stage::{CacheConfig, Stage, device_bytes};

use device::Measured;
use median::median;
use report::{Load, Memory, Report};
use steps::{Kind, Steps};
use timed::Timed;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Tokens in the cache when a token is decoded.
    pub context: usize,
    /// Tokens of a prefill.
    pub prompt: usize,
    /// Sequences decoded at once.
    pub sequences: usize,
}

impl Workload {
    /// Pages of one sequence.
    fn pages_each(&self) -> usize {
        (self.context + 1).max(self.prompt).div_ceil(PAGE_TOKENS)
    }

    /// The cache that it takes.
    pub fn cache(&self) -> CacheConfig {
        CacheConfig { pages: self.pages_each() * self.sequences, page_tokens: PAGE_TOKENS }
    }
}

/// The most of `bytes`' layers, up to `max`, that fit `available` bytes with their cache; at least one.
pub fn fitting_layers(bytes: &ModelBytes, cache: CacheConfig, available: u64, max: usize) -> usize {
    let fits = |layers: &usize| {
        let ends = bytes.embedding + bytes.head;
        let weights = ends + bytes.layers.iter().take(*layers).sum::<u64>();
        device_bytes(weights, bytes.cache(&(0..*layers), cache.tokens())) <= available
    };
    (1..=max.min(bytes.layers.len())).take_while(fits).last().unwrap_or(1)
}

/// Loads a model onto a device and measures it. `model` names it in the report; `say` hears what is being done.
///
/// # Errors
/// If it does not fit, by how much; or if the device fails.
pub fn measure<B: Measured>(
    backend: B,
    source: &dyn ModelSource,
    model: String,
    workload: Workload,
    say: &dyn Fn(String),
) -> anyhow::Result<Report> {
    let cache = workload.cache();
    let (layers, device) = (source.config().num_hidden_layers, backend.name());
    let bytes = ModelBytes::of_source(source)?;
    let weight_bytes = bytes.weights(&(0..layers));
    let cache_bytes = bytes.cache(&(0..layers), cache.tokens());
    steps::check_fits(&backend, layers, weight_bytes, cache_bytes)?;
    let mut meter = backend.meter();
    let first = backend.read_bandwidth(&mut meter)?;
    say(format!("{device} reads {:.0} GB/s; loading {layers} layers", first / 1e9));
    let start = Instant::now();
    let backend = Arc::new(Timed::new(backend));
    let stage = Stage::load_from(source, backend.clone(), 0..layers, cache, &mut |_| {})?;
    backend.inner().wait()?;
    let copied = backend.inner().copies_weights().then_some(weight_bytes);
    let load = Load::new(copied, start.elapsed());
    say(format!("{load}; decode"));
    let mut steps = Steps::new(stage, backend.clone(), source.config(), workload, meter);
    let decode = steps.measure(Kind::Decode)?;
    let several = workload.sequences > 1;
    if several {
        say(format!("{:.2} ms a token; {} sequences", decode.median_ms, workload.sequences));
    }
    let batch = several.then(|| steps.measure(Kind::Sequences)).transpose()?;
    say(format!("prefill of {} tokens", workload.prompt));
    let prefill = steps.measure(Kind::Prefill)?;
    let phases = [Some(&decode), batch.as_ref(), Some(&prefill)].into_iter().flatten();
    let read_gb_per_second = median(phases.map(|phase| phase.read_gb_per_second).collect());
    Ok(Report {
        model,
        backend: B::KIND,
        device,
        layers,
        context_tokens: workload.context,
        read_gb_per_second: read_gb_per_second.unwrap_or(first / 1e9),
        load,
        memory: Memory::new(weight_bytes, cache_bytes, backend.inner().allocated_bytes()),
        sequences_speedup: batch.as_ref().map(|b| b.tokens_per_second / decode.tokens_per_second),
        decode,
        prefill,
        sequences: batch,
    })
}
