//! No request waits for a compiler: after [`Stage::make_kernels`] every kernel that serving needs is there.
//!
//! Without an adapter nothing is tested, unless `KIMI_REQUIRE_GPU` is set.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/adapter.rs"]
mod adapter;

use std::sync::Arc;

use adapter::gpu;
use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::device::LoadedStage;
use kimi_core::engine::{Engine, EngineConfig, Request, TokenEvent};
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{CacheConfig, Stage, TOKEN_BUDGET};
use kimi_core::synthetic::{Synthetic, SyntheticShape};
use kimi_quant::gpu::GpuOptions;
use kimi_quant::{BitWidth, Gpu};

const CACHE: CacheConfig = CacheConfig { pages: 700, page_tokens: 64 };

fn model() -> Synthetic {
    Synthetic::new(SyntheticShape::Tiny.config(3, None).unwrap(), BitWidth::B4)
}

/// A stage whose kernels are made, and how many there are.
fn ready(gpu: &Arc<Gpu>) -> (Stage<Gpu>, usize) {
    let mut stage = Stage::load_from(&model(), gpu.clone(), 0..3, CACHE, &mut |_| {}).unwrap();
    let (there, mut told) = (gpu.kernels(), Vec::new());
    stage.make_kernels(TOKEN_BUDGET, &mut |made, total| told.push((made, total))).unwrap();
    let made = gpu.kernels();
    // Those that a device is examined with at its start are there already.
    let missing = made - there;
    assert_eq!(told, (0..=missing).map(|i| (i, missing)).collect::<Vec<_>>());
    (stage, made)
}

/// A step as the scheduler may make it: streams that decode or verify guesses at their places in their contexts, and chunks of
/// prompts beside them.
fn batch(random: &mut impl FnMut(usize) -> usize) -> Batch {
    let (streams, chunks) = (random(65), random(4));
    let mut room = 1 + random(TOKEN_BUDGET);
    let mut sequences = Vec::new();
    for i in 0..(streams + chunks).max(1) {
        let wanted = if i < streams { [1, 1, 1, 4, 9][random(5)] } else { 1 + random(TOKEN_BUDGET) };
        let tokens = wanted.min(room);
        room -= tokens;
        if tokens == 0 {
            break;
        }
        let longest = [1, 100, 4096, CACHE.tokens() - TOKEN_BUDGET][random(4)];
        let context = random(longest);
        let output = if i < streams { Output::AllLogits } else { Output::LastLogits };
        sequences.push(SequenceSlice {
            id: SequenceId(i as u64),
            start: context as u32,
            tokens: vec![7; tokens],
            pages: vec![0; (context + tokens).div_ceil(CACHE.page_tokens)],
            output,
        });
    }
    Batch { sequences, ..Batch::default() }
}

#[test]
fn every_batch_from_1_to_64_streams_finds_its_kernels() {
    let Some(gpu) = gpu() else { return };
    let (mut stage, made) = ready(&gpu);
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let twin = gpu.rehearsal();
    for _ in 0..3000 {
        stage.rehearse(&twin, &batch(&mut random)).unwrap();
    }
    gpu.make_kernels(&twin, &mut |_, missing| assert_eq!(missing, 0, "kernels were missing")).unwrap();
    assert_eq!((gpu.kernels(), gpu.kernels_made_in_steps()), (made, 0));
    // It would have been seen: kernels for batches of up to 4 tokens do not do for all.
    let few = Arc::new(Gpu::new(&GpuOptions::default()).unwrap());
    let mut stage = Stage::load_from(&model(), few.clone(), 0..3, CACHE, &mut |_| {}).unwrap();
    stage.make_kernels(4, &mut |_, _| {}).unwrap();
    let twin = few.rehearsal();
    stage.rehearse(&twin, &batch(&mut |below| below - 1)).unwrap();
    let mut missing = 0;
    few.make_kernels(&twin, &mut |_, n| missing = n).unwrap();
    assert!(missing > 0);
}

/// Requests of one round: as many streams at once, prompts of many lengths, tokens chosen in every way.
fn requests(streams: usize) -> Vec<Request> {
    let choices = [(0.0, 1.0, 0), (0.8, 1.0, 0), (0.8, 0.9, 0), (1.0, 1.0, 20)];
    let request = |i: usize| {
        let (temperature, top_p, top_k) = choices[i % choices.len()];
        let raw = RawSamplingParams { temperature, top_p, top_k, ..RawSamplingParams::default() };
        let length = [1, 3, 20, 65, 140][i % 5];
        Request {
            prompt: (0..length).map(|t| (t * 31 + i as u32 * 7 + streams as u32) % 500).collect(),
            params: SamplingParams::new(raw).unwrap(),
            max_tokens: Some(3 + i as u32 % 5),
            ..Request::default()
        }
    };
    (0..streams).map(request).collect()
}

#[test]
fn no_request_waits_for_a_compiler() {
    let Some(gpu) = gpu() else { return };
    let (stage, made) = ready(&gpu);
    let config = EngineConfig { max_sequences: 64, ..EngineConfig::new(512, 4096, CACHE) };
    let runner = LoadedStage::new(stage, false).unwrap().runner;
    let engine = Engine::start(vec![runner], config).unwrap();
    // Software compiles a kernel when it runs it first: few rounds.
    for streams in [1, 64] {
        let answers: Vec<_> = requests(streams).into_iter().map(|r| engine.generate(r).unwrap()).collect();
        for event in answers.into_iter().flatten() {
            assert!(!matches!(event, TokenEvent::Failed { .. }), "{event:?}");
        }
        assert_eq!(gpu.kernels_made_in_steps(), 0, "{streams} streams needed more");
    }
    assert_eq!(gpu.kernels(), made);
}
