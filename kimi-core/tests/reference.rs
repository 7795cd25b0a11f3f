//! The reference model against mlx-lm's values, and the engine against the reference on random checkpoints.
#![cfg(feature = "reference")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

mod checkpoints;

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use checkpoints::golden::Golden;
use checkpoints::random::{Spec, fixed, spec, write};
use checkpoints::stored::Rng;
use checkpoints::{max_abs_err, shared};
use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::reference::{Cache, Model};
use kimi_core::stage::{CacheConfig, Stage, StageOutput};
use kimi_quant::Cpu;
use kimi_quant::cpu::Isa;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

/// A choice of experts closer than this may differ by rounding: such a case says nothing.
const AMBIGUOUS: f32 = 1e-4;

/// Logits of all cases and greedy continuations of one checkpoint against mlx-lm's.
fn agrees_with_mlx(folder: &str, golden: &str, config: Option<&str>) {
    let (Some(folder), Some(golden)) =
        (shared(&format!("oracle/tiny/{folder}")), shared(&format!("oracle/verify/{golden}.safetensors")))
    else {
        return;
    };
    let mut checkpoint = Checkpoint::open(&folder).unwrap();
    if let Some(config) = config {
        checkpoint = checkpoint.with_config_json(&std::fs::read(folder.join(config)).unwrap()).unwrap();
    }
    let (model, golden) = (Model::load(&checkpoint).unwrap(), Golden::open(&golden));
    for case in ["p1", "p7", "p64", "p300"] {
        let ids = golden.ids(&format!("{case}.ids"));
        let (logits, expected) = (model.forward(&ids).unwrap(), golden.floats(&format!("{case}.logits")));
        let err = max_abs_err(&logits[logits.len() - expected.len()..], &expected);
        println!("{} {case}: max_abs_err {err:.1e}", folder.display());
        assert!(err <= 1e-3, "{case}: {err}");
    }
    for (case, tokens) in [("p1", 64), ("p7", 64), ("p64", 16)] {
        let expected = &golden.ids(&format!("{case}.greedy"))[..tokens];
        assert_eq!(model.greedy(&golden.ids(&format!("{case}.ids")), tokens).unwrap(), expected, "{case}");
    }
}

#[test]
fn agrees_with_mlx_on_the_new_layout() {
    agrees_with_mlx("a_new", "a_new", None);
}

#[test]
fn agrees_with_mlx_on_kv_b_proj() {
    agrees_with_mlx("b_old", "b_old", None);
}

#[test]
fn agrees_with_mlx_on_kv_b_proj_without_entries() {
    agrees_with_mlx("b_old", "b_old", Some("config.noentries.json"));
}

#[test]
fn agrees_with_mlx_on_shapes_alone() {
    agrees_with_mlx("c_noentries", "a_new", None);
}

#[test]
fn agrees_with_mlx_on_hugging_face_bf16() {
    agrees_with_mlx("d_hf_bf16", "d_hf_bf16", None);
}

/// The embedded checkpoint, whose goldens are part of the repository.
#[test]
fn agrees_with_mlx_on_kimi_tiny() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/kimi-tiny");
    let golden = Golden::open(&folder.join("golden.safetensors"));
    let model = Model::load(&Checkpoint::open(&folder).unwrap()).unwrap();
    let names = golden.names();
    let cases: Vec<_> = names.iter().filter_map(|n| n.strip_suffix(".ids")).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let ids = golden.ids(&format!("{case}.ids"));
        let (logits, expected) = (model.forward(&ids).unwrap(), golden.floats(&format!("{case}.logits")));
        let err = max_abs_err(&logits[logits.len() - expected.len()..], &expected);
        assert!(err <= 1e-3, "{case}: {err}");
        let greedy = golden.ids(&format!("{case}.greedy"));
        assert_eq!(model.greedy(&ids, greedy.len()).unwrap(), greedy, "{case}");
    }
}

/// Hidden states and chosen experts, layer by layer.
#[test]
fn every_layer_agrees_with_mlx() {
    for (folder, golden) in
        [("a_new", "a_new.f32"), ("b_old", "b_old__lm0291.f32"), ("d_hf_bf16", "d_hf_bf16.f32")]
    {
        let (Some(path), Some(ids), Some(golden)) = (
            shared(&format!("oracle/tiny/{folder}")),
            shared(&format!("oracle/verify/{folder}.safetensors")),
            shared(&format!("oracle/golden/{golden}.safetensors")),
        ) else {
            return;
        };
        let model = Model::load(&Checkpoint::open(path).unwrap()).unwrap();
        let (ids, golden) = (Golden::open(&ids).ids("p64.ids"), Golden::open(&golden));
        let found = model.activations(&ids, &mut Cache::new()).unwrap();
        for (l, (hidden, choices)) in found.layers.iter().zip(&found.choices).enumerate() {
            let expected = golden.floats(&format!("p64.layer{l}.out"));
            let err = max_abs_err(&hidden.clone().try_into_vec_as().unwrap(), &expected);
            assert!(err <= 1e-3, "{folder} layer {l}: {err}");
            if choices.is_empty() {
                assert_eq!(l, 0, "only the first layer is dense");
                continue;
            }
            let experts = golden.ids(&format!("p64.layer{l}.expert_idx"));
            let weights = golden.floats(&format!("p64.layer{l}.expert_w"));
            for (t, choice) in choices.iter().enumerate() {
                let row = 4 * t..4 * t + 4;
                let mut expected: Vec<_> =
                    experts[row.clone()].iter().copied().zip(weights[row].to_vec()).collect();
                let mut found: Vec<_> =
                    choice.experts.iter().map(|&e| e as u32).zip(choice.weights.clone()).collect();
                expected.sort_by_key(|(e, _)| *e);
                found.sort_by_key(|(e, _)| *e);
                for ((e, w), (found_e, found_w)) in expected.into_iter().zip(found) {
                    assert_eq!(e, found_e, "{folder} layer {l} token {t}");
                    assert!((w - found_w).abs() <= 1e-4, "{folder} layer {l} token {t}: {w} {found_w}");
                }
            }
        }
    }
}

/// How the engine runs a sequence: its stages, its instruction set, and the batches that its tokens come in.
#[derive(Debug, Clone)]
struct Run {
    cuts: Vec<usize>,
    prompt: usize,
    chunk: usize,
    decoded: usize,
    page_tokens: usize,
    isa: Isa,
}

fn run() -> impl Strategy<Value = Run> {
    let cuts = prop::collection::vec(1..4usize, 0..=2);
    let isa = prop::sample::select(Isa::available());
    (cuts, 1..=9usize, 1..=9usize, 0..=4usize, 1..=5usize, isa).prop_map(
        |(cuts, prompt, chunk, decoded, page_tokens, isa)| Run {
            cuts,
            prompt,
            chunk,
            decoded,
            page_tokens,
            isa,
        },
    )
}

impl Run {
    fn tokens(&self) -> usize {
        self.prompt + self.decoded
    }

    /// Layer ranges of the stages.
    fn stages(&self, layers: usize) -> Vec<Range<usize>> {
        let mut ends: Vec<usize> =
            self.cuts.iter().copied().filter(|c| *c < layers).chain([0, layers]).collect();
        ends.sort_unstable();
        ends.dedup();
        ends.windows(2).map(|w| w[0]..w[1]).collect()
    }

    /// Positions of each batch: chunks of the prompt, then token by token.
    fn batches(&self) -> Vec<Range<usize>> {
        let prompt = (0..self.prompt).step_by(self.chunk).map(|a| a..(a + self.chunk).min(self.prompt));
        prompt.chain((self.prompt..self.tokens()).map(|a| a..a + 1)).collect()
    }

    /// The engine's logits of all tokens.
    fn engine(&self, checkpoint: &Checkpoint, ids: &[u32]) -> Vec<f32> {
        let pages = ids.len().div_ceil(self.page_tokens);
        let cache = CacheConfig { pages: pages + 1, page_tokens: self.page_tokens };
        let load = |layers| {
            Stage::load(checkpoint, Arc::new(Cpu::with_isa(self.isa).unwrap()), layers, cache, &mut |_| {})
                .unwrap()
        };
        let mut stages: Vec<_> =
            self.stages(checkpoint.config().num_hidden_layers).into_iter().map(load).collect();
        let pages: Vec<u32> = (1..=pages as u32).rev().collect();
        let mut logits = Vec::new();
        for (step, range) in self.batches().into_iter().enumerate() {
            let sequence = SequenceSlice {
                id: SequenceId(7),
                start: range.start as u32,
                tokens: ids[range].to_vec(),
                pages: pages.clone(),
                output: Output::AllLogits,
            };
            let batch = Batch { step: step as u64, sequences: vec![sequence], follows: None };
            let mut hidden = None;
            for stage in &mut stages {
                match stage.forward(&batch, hidden.take(), None).unwrap() {
                    StageOutput::Hidden(h) => hidden = Some(h),
                    StageOutput::Sequences(outputs) => logits.extend(&outputs[0].logits),
                }
            }
        }
        logits
    }
}

/// What a random case showed.
struct Comparison {
    /// The closest choice of experts.
    margin: f32,
    /// Largest logit.
    size: f32,
    /// Of the engine.
    error: f32,
    /// Of the reference's own cached decoding.
    cached_error: f32,
}

fn compare(spec: &Spec, run: &Run, folder: &Path) -> Comparison {
    write(spec, folder);
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut rng = Rng(!spec.seed);
    let ids: Vec<u32> = (0..run.tokens()).map(|_| rng.below(spec.sizes.vocabulary) as u32).collect();

    let model = Model::load(&checkpoint).unwrap();
    let whole = model.activations(&ids, &mut Cache::new()).unwrap();
    let expected: Vec<f32> = whole.logits.try_into_vec_as().unwrap();
    let mut cache = Cache::new();
    let mut cached: Vec<f32> = Vec::new();
    for range in run.batches() {
        let part = model.activations(&ids[range], &mut cache).unwrap();
        cached.extend(part.logits.try_into_vec_as::<f32>().unwrap());
    }
    Comparison {
        margin: whole.choices.iter().flatten().map(|c| c.margin).fold(f32::INFINITY, f32::min),
        size: expected.iter().fold(0.0, |m, v| m.max(v.abs())),
        error: max_abs_err(&run.engine(&checkpoint, &ids), &expected),
        cached_error: max_abs_err(&cached, &expected),
    }
}

/// Every option of the config, every layout, every storage format, 1 to 3 stages, prefill in chunks and decoding.
#[test]
fn engine_agrees_with_the_reference_on_random_checkpoints() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 64, ..Default::default() };
    let (compared, ambiguous, worst) = (Cell::new(0), Cell::new(0), Cell::new(0.0f32));
    let result = TestRunner::new(config).run(&(spec(), run()), |(spec, run)| {
        let folder = tempfile::tempdir().unwrap();
        let found = compare(&spec, &run, folder.path());
        if found.margin < AMBIGUOUS {
            println!(
                "skipped: a choice of experts is decided by {:.1e} (seed {:#x})",
                found.margin, spec.seed
            );
            ambiguous.set(ambiguous.get() + 1);
            return Ok(());
        }
        let Comparison { size, error, cached_error, .. } = found;
        if !(0.05..20.0).contains(&size) || error > 1e-4 || cached_error > 1e-4 {
            let what = format!(
                "largest logit {size}, error of the engine {error}, of cached decoding {cached_error}"
            );
            return Err(TestCaseError::fail(what));
        }
        compared.set(compared.get() + 1);
        worst.set(worst.get().max(error));
        Ok(())
    });
    let (compared, ambiguous) = (compared.get(), ambiguous.get());
    println!("{compared} compared, worst error {:.1e}; {ambiguous} skipped as ambiguous", worst.get());
    result.unwrap_or_else(|e| panic!("{e}"));
    assert!(compared > ambiguous, "too few cases say anything");
}

#[test]
fn bad_input_is_an_error() {
    let spec = fixed();
    let folder = tempfile::tempdir().unwrap();
    write(&spec, folder.path());
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    let vocabulary = spec.sizes.vocabulary as u32;
    let error = model.forward(&[0, vocabulary]).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("token id {vocabulary} is not in the vocabulary; ids go from 0 to {}", vocabulary - 1)
    );
    assert!(model.greedy(&[], 3).unwrap_err().to_string().contains("prompt is empty"));
    assert!(model.forward(&[]).unwrap().is_empty());
}
