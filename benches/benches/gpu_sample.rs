//! How long the GPU backend takes to choose tokens from logits: greedy, at a temperature, with top-p and top-k, with
//! penalties and a mask, for one and for eight sequences of Kimi-K2's vocabulary.
//!
//! `cargo bench --features gpu --bench gpu_sample` prints the table; `-- --as-metal[=CHIP]` with the
//! kernels and sizes of one of Apple's; `--quick` shrinks everything for a software adapter.
//! Device time of whole steps, several in a row; the host's is beside it, as it records the step.

use std::time::Instant;

use kimi_benches::gpu_options;
use kimi_quant::{Backend, Gpu, SampleRequest, TokenCount, TokenMask};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let (vocabulary, steps) = if quick { (10_000_usize, 2) } else { (163_840, 50) };
    let gpu = Gpu::new(&gpu_options()?)?;
    println!("{}; {vocabulary} tokens", gpu.name());
    println!("{:<42} {:>9} {:>10} {:>10}", "", "sequences", "us", "host us");
    let mask = vec![0xffff_fff0; vocabulary.div_ceil(32)];
    let counts: Vec<_> = (0..64).map(|i| TokenCount { token: i * 37, in_answer: i % 3 }).collect();
    let greedy = SampleRequest::greedy(0);
    let hot = SampleRequest { temperature: 0.8, uniform: 0.6, ..greedy };
    let filtered = SampleRequest { top_p: 0.95, top_k: 50, ..hot };
    let penalized = SampleRequest {
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        counts: &counts,
        ..filtered
    };
    let kinds = [
        ("greedy", greedy),
        ("greedy, 20 logprobs", SampleRequest { top_logprobs: 20, ..greedy }),
        ("temperature", hot),
        ("temperature, top-p 0.95", SampleRequest { top_p: 0.95, ..hot }),
        ("temperature, top-p 0.95, top-k 50", filtered),
        ("the same, penalties", penalized),
        ("the same, mask", SampleRequest { allowed: Some(TokenMask(&mask)), ..penalized }),
    ];
    for sequences in [1, 8] {
        for (shape, values) in
            [("peaked", peaked(sequences * vocabulary)), ("flat", flat(sequences * vocabulary))]
        {
            let logits = gpu.upload(sequences, vocabulary, &values)?;
            for (name, request) in &kinds {
                let requests: Vec<_> =
                    (0..sequences as u32).map(|row| SampleRequest { row, ..*request }).collect();
                let (device, host) = time(&gpu, steps, || gpu.start_sample(&logits, &requests).map(drop))?;
                println!("{:<42} {sequences:>9} {device:>10.1} {host:>10.1}", format!("{name} ({shape})"));
            }
        }
    }
    Ok(())
}

/// Microseconds of a step, on the device (of everything where it has no clock) and for recording it: the best of three
/// rounds after a first one.
fn time(
    gpu: &Gpu,
    steps: usize,
    step: impl Fn() -> Result<(), kimi_quant::BackendError>,
) -> Outcome<(f64, f64)> {
    let mut best = (f64::INFINITY, f64::INFINITY);
    for round in 0..4 {
        let start = Instant::now();
        let mut recorded = 0.0;
        let on_device = gpu.timed(|| {
            let start = Instant::now();
            (0..steps).try_for_each(|_| step())?;
            recorded = start.elapsed().as_secs_f64();
            Ok(())
        })?;
        let seconds = on_device.map_or(start.elapsed().as_secs_f64(), |ns| ns * 1e-9);
        if round > 0 {
            best = (best.0.min(seconds), best.1.min(recorded));
        }
    }
    let each = 1e6 / steps as f64;
    Ok((best.0 * each, best.1 * each))
}

/// Like a language model's: most tokens far below a few.
fn peaked(count: usize) -> Vec<f32> {
    let spread = |u: f32| 4.0 * (1.0 - u).max(1e-6).ln().abs() - 8.0;
    random(count).map(spread).collect()
}

fn flat(count: usize) -> Vec<f32> {
    random(count).map(|u| 1e-3 * u).collect()
}

/// Uniform in 0..1.
fn random(count: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count).map(move |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 24) as f32
    })
}
