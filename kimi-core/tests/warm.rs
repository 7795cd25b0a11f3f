//! An answer that begins with pages of an earlier one is the same as one that begins with none, on a real model.
#![cfg(feature = "tiny")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use kimi_core::Checkpoint;
use kimi_core::engine::{Engine, EngineConfig, Request, TokenEvent, Usage};
use kimi_core::page_store::PageStoreConfig;
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{CacheConfig, Stage, StageRunner, StageThread};
use kimi_quant::{Backend, Cpu};

const CACHE: CacheConfig = CacheConfig { pages: 64, page_tokens: 16 };

fn start<B: Backend>(backend: &Arc<B>, stages: usize, prefix_cache: bool) -> Engine {
    start_with(backend, stages, prefix_cache, None)
}

fn start_with<B: Backend>(
    backend: &Arc<B>,
    stages: usize,
    prefix_cache: bool,
    page_store: Option<PageStoreConfig>,
) -> Engine {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let (layers, vocabulary) = (checkpoint.config().num_hidden_layers, checkpoint.config().vocab_size as u32);
    let stages = (0..stages).map(|i| -> Box<dyn StageRunner> {
        let layers = i * layers / stages..(i + 1) * layers / stages;
        let stage = Stage::load(&checkpoint, backend.clone(), layers, CACHE, &mut |_| {}).unwrap();
        Box::new(StageThread::spawn(Box::new(stage), false).unwrap())
    });
    let config = EngineConfig { prefix_cache, page_store, ..EngineConfig::new(vocabulary, 1024, CACHE) };
    Engine::start(stages.collect(), config).unwrap()
}

/// Tokens with their log-probabilities, and what they took.
fn answer(engine: &Engine, prompt: &[u32], temperature: f32) -> (Vec<u32>, Vec<f32>, Usage) {
    let raw = RawSamplingParams { temperature, seed: Some(5), ..Default::default() };
    let params = SamplingParams::new(raw).unwrap();
    let request = Request {
        prompt: prompt.to_vec(),
        params,
        max_tokens: Some(40),
        ignore_eos: true,
        ..Request::default()
    };
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    for event in engine.generate(request).unwrap() {
        match event {
            TokenEvent::Token { id, logprob, .. } => {
                tokens.push(id);
                logprobs.push(logprob);
            }
            TokenEvent::Finished { usage, .. } => return (tokens, logprobs, usage),
            TokenEvent::Failed { error } => panic!("{error}"),
        }
    }
    panic!("no end")
}

/// Two turns of a chat, the second with and without the pages of the first. Returns the largest difference of
/// log-probabilities.
fn second_turn<B: Backend>(backend: &Arc<B>, stages: usize, temperature: f32) -> f32 {
    let (cold, warm) = (start(backend, stages, false), start(backend, stages, true));
    let mut prompt: Vec<u32> = (0..300).map(|i| 300 + (i * 37) % 3000).collect();
    let first = answer(&cold, &prompt, temperature);
    assert_eq!(answer(&warm, &prompt, temperature).0, first.0);
    prompt.extend(&first.0);
    prompt.extend([301, 302, 303]);
    let expected = answer(&cold, &prompt, temperature);
    let before = warm.stats().prompt_tokens_computed;
    let found = answer(&warm, &prompt, temperature);
    assert_eq!(found.0, expected.0, "{stages} stages, temperature {temperature}");
    // The first turn has computed 339 tokens, which is 21 full pages.
    assert_eq!((expected.2.cached_tokens, found.2.cached_tokens), (0, 336));
    assert_eq!(warm.stats().prompt_tokens_computed - before, 343 - 336);
    found.1.iter().zip(&expected.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A prompt before and after a restart. Returns the largest difference of log-probabilities.
fn restart<B: Backend>(backend: &Arc<B>, stages: usize) -> f32 {
    let folder = tempfile::tempdir().unwrap();
    let config = PageStoreConfig { folder: folder.path().to_owned(), max_bytes: 1 << 30, model: [1; 32] };
    let prompt: Vec<u32> = (0..300).map(|i| 300 + (i * 37) % 3000).collect();
    let before = start_with(backend, stages, true, Some(config.clone()));
    let expected = answer(&before, &prompt, 0.0);
    assert!(before.shutdown(Duration::from_secs(60)));
    let after = start_with(backend, stages, true, Some(config));
    let found = answer(&after, &prompt, 0.0);
    assert_eq!(found.0, expected.0, "{stages} stages");
    assert_eq!((expected.2.cached_tokens, found.2.cached_tokens), (0, 288));
    assert_eq!(after.stats().prompt_tokens_computed, 12);
    found.1.iter().zip(&expected.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_warm_second_turn_on_the_cpu() {
    let backend = Arc::new(Cpu::new());
    for stages in [1, 2] {
        assert_eq!(restart(&backend, stages), 0.0, "pages come back bit for bit");
    }
    for (stages, temperature) in [(1, 0.0), (2, 0.0), (2, 0.9)] {
        let difference = second_turn(&backend, stages, temperature);
        assert_eq!(difference, 0.0, "a row of a batch does not depend on the others");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_warm_second_turn_on_a_gpu() {
    let gpu = match kimi_quant::Gpu::new(&kimi_quant::gpu::GpuOptions::default()) {
        Ok(gpu) => Arc::new(gpu),
        Err(e) if std::env::var_os("KIMI_REQUIRE_GPU").is_none() => {
            return println!("skipped: no adapter ({e})");
        }
        Err(e) => panic!("{e}"),
    };
    // Kernels for one token and for many round differently.
    for stages in [1, 2] {
        let difference = second_turn(&gpu, stages, 0.0);
        assert!(difference < 2e-3, "{difference}");
        let difference = restart(&gpu, stages);
        assert!(difference < 2e-3, "{difference}");
    }
}
