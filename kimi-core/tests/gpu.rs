//! A whole stage on the GPU against recorded logits and greedy tokens of mlx-lm, on whatever adapter there is.
//!
//! Without an adapter nothing is tested, unless `KIMI_REQUIRE_GPU` is set; without the goldens neither.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/adapter.rs"]
mod adapter;
mod checkpoints;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use adapter::gpu;
use checkpoints::golden::Golden;
use checkpoints::{max_abs_err, shared};
use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::engine::{Engine, EngineConfig, Request, TokenEvent};
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{
    CacheConfig, Compute, Finish, Hidden, Stage, StageError, StageOutput, StageRunner, StageSpan, StageThread,
};
use kimi_quant::Gpu;
use kimi_quant::gpu::GpuOptions;

const TOLERANCE: f32 = 2e-3;
const PAGE_TOKENS: usize = 16;

/// A model cut into stages, all on one device.
struct Model {
    stages: Vec<Stage<Gpu>>,
    pages: usize,
}

impl Model {
    fn load(folder: &Path, gpu: &Arc<Gpu>, parts: usize, tokens: usize) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let layers = checkpoint.config().num_hidden_layers;
        let parts = parts.min(layers);
        let pages = tokens.div_ceil(PAGE_TOKENS) + 1;
        let cache = CacheConfig { pages, page_tokens: PAGE_TOKENS };
        let ranges = (0..parts).map(|i| i * layers / parts..(i + 1) * layers / parts);
        let stages = ranges.map(|r| Stage::load(&checkpoint, gpu.clone(), r, cache, &mut |_| {}).unwrap());
        Self { stages: stages.collect(), pages }
    }

    /// Logits of all tokens, or of the last one.
    fn feed(&mut self, start: usize, tokens: &[u32], all: bool) -> Vec<f32> {
        let slice = SequenceSlice {
            id: SequenceId(1),
            start: start as u32,
            tokens: tokens.to_vec(),
            pages: (0..self.pages as u32).rev().collect(),
            output: if all { Output::AllLogits } else { Output::LastLogits },
        };
        let batch = Batch { sequences: vec![slice], ..Default::default() };
        let mut input = None;
        for stage in &mut self.stages {
            match stage.forward(&batch, input.take(), None).unwrap() {
                StageOutput::Hidden(hidden) => input = Some(hidden),
                StageOutput::Sequences(mut sequences) => return sequences.remove(0).logits,
            }
        }
        panic!("the last stage returned activations");
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |b, (i, &x)| if x > b.1 { (i, x) } else { b });
    best.0 as u32
}

/// With `warm`, stages have computed something before.
fn verify(model: &Path, golden: &Path, parts: usize, warm: bool) {
    let Some(gpu) = gpu() else { return };
    let golden = Golden::open(golden);
    let mut cases: Vec<String> =
        golden.names().iter().filter_map(|n| n.strip_suffix(".ids").map(str::to_owned)).collect();
    cases.sort_by_key(|case| golden.ids(&format!("{case}.ids")).len());
    assert!(!cases.is_empty());
    let lengths = cases
        .iter()
        .map(|case| golden.ids(&format!("{case}.ids")).len() + golden.ids(&format!("{case}.greedy")).len());
    let mut engine = Model::load(model, &gpu, parts, lengths.max().unwrap());
    if warm {
        engine.stages.iter_mut().for_each(|stage| stage.warm_up().unwrap());
    }
    for case in cases {
        let what = format!("{} {case} in {parts} stages", model.display());
        let ids = golden.ids(&format!("{case}.ids"));
        let (logits, greedy) =
            (golden.floats(&format!("{case}.logits")), golden.ids(&format!("{case}.greedy")));
        let config = Checkpoint::open(model).unwrap().config().clone();
        let vocab = config.vocab_size;
        let all = logits.len() > vocab;
        let found = engine.feed(0, &ids, all);
        let error = max_abs_err(&found, &logits);
        println!("{what}: at once {error:e}");
        assert!(error <= TOLERANCE, "{what}: off by {error}");

        let mut next = argmax(&found[found.len() - vocab..]);
        for (i, &wanted) in greedy.iter().enumerate() {
            assert_eq!(next, wanted, "{what}: greedy token {i}");
            next = argmax(&engine.feed(ids.len() + i, &[next], false));
        }

        if !gpu.adapter().is_hardware() && ids.len() > 512 {
            continue; // minutes; the greedy tokens have shown decoding at that length
        }
        let mut stepwise = Vec::new();
        for (i, id) in ids.iter().enumerate().take(if all { 80 } else { usize::MAX }) {
            let one = engine.feed(i, &[*id], false);
            if all || i + 1 == ids.len() {
                stepwise.extend(one);
            }
        }
        let error = max_abs_err(&stepwise, &logits[..stepwise.len()]);
        println!("{what}: token by token {error:e}");
        assert!(error <= TOLERANCE, "{what}: token by token off by {error}");
    }
}

fn oracle(model: &str, golden: &str) {
    let (Some(folder), Some(golden)) =
        (shared(&format!("oracle/tiny/{model}")), shared(&format!("oracle/verify/{golden}.safetensors")))
    else {
        return;
    };
    verify(&folder, &golden, 2, false);
}

#[test]
fn new_layout() {
    oracle("a_new", "a_new");
}

#[test]
fn layout_of_2025() {
    oracle("b_old", "b_old");
}

#[test]
fn no_entries_in_config() {
    oracle("c_noentries", "a_new");
}

#[test]
fn hugging_face_bf16() {
    oracle("d_hf_bf16", "d_hf_bf16");
}

/// A stage that may be told not to run ahead, and that counts the batches that follow others.
struct Counted {
    stage: Stage<Gpu>,
    ahead: bool,
    followed: Arc<AtomicUsize>,
}

impl Compute for Counted {
    fn span(&self) -> StageSpan {
        self.stage.span()
    }

    fn queues(&self) -> bool {
        true
    }

    fn chains(&self) -> bool {
        self.ahead && self.stage.chains()
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        self.followed.fetch_add(batch.follows.is_some().into(), Ordering::Relaxed);
        self.stage.start(batch, input)
    }
}

/// Answers to requests one after the other, then to all of them at once; and how many batches followed others.
fn answers(gpu: &Arc<Gpu>, requests: &[Request], ahead: bool) -> (Vec<Vec<u32>>, Vec<Vec<u32>>, usize) {
    let model = Model::load(&tiny(), gpu, 1, 512);
    let vocabulary = Checkpoint::open(tiny()).unwrap().config().vocab_size as u32;
    let cache = CacheConfig { pages: model.pages, page_tokens: PAGE_TOKENS };
    let followed = Arc::new(AtomicUsize::new(0));
    let on_thread = |stage| -> Box<dyn StageRunner> {
        let counted = Counted { stage, ahead, followed: followed.clone() };
        Box::new(StageThread::spawn(Box::new(counted), true).unwrap())
    };
    let stages = model.stages.into_iter().map(on_thread).collect();
    let engine = Engine::start(stages, EngineConfig::new(vocabulary, 512, cache)).unwrap();
    let answer = |events: &mut dyn Iterator<Item = TokenEvent>| {
        let token = |event| match event {
            TokenEvent::Token { id, .. } => Some(id),
            TokenEvent::Failed { error } => panic!("{error}"),
            _ => None,
        };
        events.filter_map(token).collect::<Vec<_>>()
    };
    let alone = requests.iter().map(|r| answer(&mut engine.generate(r.clone()).unwrap())).collect();
    let mut running: Vec<_> = requests.iter().map(|r| engine.generate(r.clone()).unwrap()).collect();
    let together = running.iter_mut().map(|events| answer(events)).collect();
    assert!(engine.shutdown(Duration::from_secs(60)), "a batch is still computed");
    (alone, together, followed.load(Ordering::Relaxed))
}

#[test]
fn an_engine_that_runs_ahead_gives_the_same_answers() {
    let Some(gpu) = gpu() else { return };
    let params = |temperature, seed, presence_penalty| {
        let raw = RawSamplingParams { temperature, seed: Some(seed), presence_penalty, ..Default::default() };
        SamplingParams::new(raw).unwrap()
    };
    let request = |i: u32, params, max_tokens| Request {
        prompt: (0..3 + 5 * i).map(|t| 40 + (7 * t + i) % 50).collect(),
        params,
        max_tokens: Some(max_tokens),
        ..Request::default()
    };
    let mut requests = vec![
        request(0, params(0.0, 0, 0.0), 40),
        request(1, params(1.0, 7, 0.0), 25),
        request(2, params(0.7, 8, 0.0), 33),
        request(3, params(0.7, 9, 0.5), 12), // can't be followed
    ];
    let (plain, _, none) = answers(&gpu, &requests, false);
    // One that ends before the batch that follows is done.
    let stop = plain[2][plain[2].len() / 2];
    requests.push(Request { stop_ids: vec![stop], ..requests[2].clone() });
    let (mut expected, until) = (plain.clone(), plain[2].iter().position(|&id| id == stop).unwrap());
    expected.push(plain[2][..until].to_vec());
    let (alone, together, followed) = answers(&gpu, &requests, true);
    assert_eq!(none, 0);
    assert!(followed > 60, "{followed} batches followed another");
    assert_eq!(alone, expected);
    assert_eq!(together, expected);
}

#[test]
fn a_lost_gpu_is_replaced_in_the_middle_of_an_answer() {
    let Some(gpu) = gpu() else { return };
    let load = |gpu: &Arc<Gpu>| Model::load(&tiny(), gpu, 2, 512);
    let on_thread =
        |stage| -> Box<dyn StageRunner> { Box::new(StageThread::spawn(Box::new(stage), false).unwrap()) };
    let request = Request { prompt: (40..60).collect(), max_tokens: Some(40), ..Request::default() };
    let vocabulary = Checkpoint::open(tiny()).unwrap().config().vocab_size as u32;
    let start = |model: Model| {
        let config =
            EngineConfig::new(vocabulary, 512, CacheConfig { pages: model.pages, page_tokens: PAGE_TOKENS });
        let config = EngineConfig { recovery: Duration::from_secs(60), ..config };
        Engine::start(model.stages.into_iter().map(on_thread).collect(), config).unwrap()
    };
    let ids = |events: &mut dyn Iterator<Item = TokenEvent>| -> Vec<u32> {
        let id = |event| match event {
            TokenEvent::Token { id, .. } => Some(id),
            TokenEvent::Failed { error } => panic!("{error}"),
            TokenEvent::Finished { .. } => None,
        };
        events.filter_map(id).collect()
    };
    let expected = ids(&mut start(load(&gpu)).generate(request.clone()).unwrap());

    // The first stage is on a device that is lost; the second one stays where it is.
    let lost = Arc::new(Gpu::new(&GpuOptions::default()).unwrap());
    let mut model = load(&gpu);
    model.stages[0] = load(&lost).stages.remove(0);
    let engine = start(model);
    let (again, other) = (load(&gpu).stages.remove(0), Arc::new(std::sync::Mutex::new(None)));
    *other.lock().unwrap() = Some(again);
    engine
        .recover_with(move |loss| {
            assert_eq!(loss.stage, 0);
            Ok(on_thread(other.lock().unwrap().take().expect("it is lost once")))
        })
        .unwrap();
    let mut tokens = engine.generate(request).unwrap();
    let mut answer = ids(&mut tokens.by_ref().take(10));
    lost.destroy();
    answer.extend(ids(&mut tokens));
    assert_eq!(answer, expected);
    assert_eq!(engine.stats().losses, 1);
    assert!(engine.shutdown(Duration::from_secs(60)));
}

#[test]
fn a_chunk_of_a_prompt_is_waited_for() {
    let Some(gpu) = gpu() else { return };
    let mut stage = Model::load(&tiny(), &gpu, 1, 64).stages.remove(0);
    let slice = SequenceSlice {
        id: SequenceId(1),
        start: 0,
        tokens: vec![50; 20],
        pages: vec![0, 1],
        output: Output::None,
    };
    let batch = Batch { sequences: vec![slice], ..Default::default() };
    assert!(matches!(stage.run(&batch, None).unwrap(), StageOutput::Sequences(none) if none.is_empty()));
    gpu.destroy();
    assert!(stage.run(&batch, None).unwrap_err().is_lost(), "it can't tell without waiting");
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/kimi-tiny")
}

#[test]
fn kimi_tiny() {
    let folder = tiny();
    verify(&folder, &folder.join("golden.safetensors"), 2, true);
}
