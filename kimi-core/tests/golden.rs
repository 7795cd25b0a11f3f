//! The engine against mlx-lm, layer by layer: hidden states, chosen experts, cache contents, logits.
//!
//! The goldens lie in `shared/oracle` beside the checkout (or where `KIMI_SHARED` says); without them nothing is tested.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

mod checkpoints;

use std::sync::Arc;

use checkpoints::golden::Golden;
use checkpoints::shared;

use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::model::{Point, Trace};
use kimi_core::stage::{CacheConfig, Hidden, Stage, StageOutput};
use kimi_quant::{Backend, Cpu};

const CACHE: CacheConfig = CacheConfig { pages: 8, page_tokens: 16 };

#[derive(Default)]
struct Seen {
    after_attention: Vec<f32>,
    routing: Option<(Vec<u32>, Vec<f32>)>,
}

impl Trace<Cpu> for Seen {
    fn hidden(&mut self, _: usize, point: Point, x: &<Cpu as Backend>::Tensor) {
        if point == Point::AfterAttention {
            self.after_attention = Cpu::new().download(x).unwrap();
        }
    }

    fn routing(&mut self, _: usize, routing: &<Cpu as Backend>::Routing) {
        self.routing = Some(Cpu::new().download_routing(routing).unwrap());
    }
}

fn batch(tokens: &[u32], output: Output) -> Batch {
    // Pages out of order, so that a page table that is not followed shows.
    let pages = vec![5, 2, 7, 0, 3, 1, 4, 6];
    let slice = SequenceSlice { id: SequenceId(1), start: 0, tokens: tokens.to_vec(), pages, output };
    Batch { sequences: vec![slice], ..Default::default() }
}

fn hidden(values: &[f32], cols: usize) -> Hidden {
    Hidden { rows: values.len() / cols, cols, data: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}, allowed {tolerance}");
    assert!(found.iter().all(|v| v.is_finite()), "{what}: not finite");
}

/// Every layer by itself, fed with mlx-lm's own input to it.
fn layers(model: &str, golden: &str, split_layout: bool) {
    let Some(oracle) = shared("oracle") else { return };
    let checkpoint = Checkpoint::open(oracle.join("tiny").join(model)).unwrap();
    let golden = Golden::open(&oracle.join("golden").join(golden));
    let verify = if model == "c_noentries" { "a_new" } else { model };
    let prompts = Golden::open(&oracle.join("verify").join(format!("{verify}.safetensors")));
    let config = checkpoint.config().clone();
    let (h, backend) = (config.hidden_size, Arc::new(Cpu::new()));
    for prompt in ["p7", "p64"] {
        let ids = prompts.ids(&format!("{prompt}.ids"));
        let batch = batch(&ids, Output::AllLogits);
        let mut input = golden.floats(&format!("{prompt}.embed"));
        for l in 0..config.num_hidden_layers {
            let what = |part: &str| format!("{model} {prompt} layer {l} {part}");
            let name = |part: &str| format!("{prompt}.layer{l}.{part}");
            // A one-layer stage; the first and the last one are wrapped by embedding and head.
            let mut stage = Stage::load(&checkpoint, backend.clone(), l..l + 1, CACHE, &mut |_| {}).unwrap();
            let mut seen = Seen::default();
            let given = (l > 0).then(|| hidden(&input, h));
            let output = stage.forward(&batch, given, Some(&mut seen)).unwrap();
            let expected = golden.floats(&name("out"));
            match output {
                StageOutput::Hidden(out) => {
                    let out: Vec<f32> =
                        out.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                    close(&what("out"), &out, &expected, 2e-4);
                }
                StageOutput::Sequences(out) => {
                    close(&what("logits"), &out[0].logits, &golden.floats(&format!("{prompt}.logits")), 1e-3);
                }
            }
            if prompt == "p7" {
                let attention: Vec<f32> =
                    seen.after_attention.iter().zip(&input).map(|(y, x)| y - x).collect();
                close(&what("attention"), &attention, &golden.floats(&name("attn_out")), 1e-4);
                check_cache(
                    &what("cache"),
                    &stage,
                    &batch,
                    &golden,
                    &name,
                    split_layout,
                    config.kv_lora_rank,
                );
            }
            if config.is_moe(l) {
                let (ids, weights) = sorted(seen.routing.unwrap(), config.num_experts_per_tok);
                assert_eq!(ids, golden.ids(&name("expert_idx")), "{}", what("experts"));
                close(&what("expert weights"), &weights, &golden.floats(&name("expert_w")), 1e-4);
            }
            input = expected;
        }
    }
}

/// Experts of each token in ascending order, as the goldens have them.
fn sorted((ids, weights): (Vec<u32>, Vec<f32>), k: usize) -> (Vec<u32>, Vec<f32>) {
    let mut pairs: Vec<(u32, f32)> = ids.into_iter().zip(weights).collect();
    pairs.chunks_mut(k).for_each(|token| token.sort_by_key(|(id, _)| *id));
    pairs.into_iter().unzip()
}

fn check_cache(
    what: &str,
    stage: &Stage<Cpu>,
    batch: &Batch,
    golden: &Golden,
    name: &dyn Fn(&str) -> String,
    split_layout: bool,
    latent: usize,
) {
    let layout = batch.layout(CACHE.page_tokens).unwrap();
    let entries = stage.backend().download_cache(stage.cache(0).unwrap(), &layout).unwrap();
    let width = entries.len() / layout.len();
    let part = |from: usize, to: usize| -> Vec<f32> {
        entries.chunks_exact(width).flat_map(|e| e[from..to].to_vec()).collect()
    };
    if split_layout {
        close(what, &part(0, latent), &golden.floats(&name("cache_keys")), 1e-4);
        close(what, &part(latent, width), &golden.floats(&name("cache_values")), 1e-4);
    } else {
        // mlx-lm of 2025 caches expanded keys [nh, T, nope + rope]; the rotated part is the same in every head.
        let keys = golden.floats(&name("cache_keys"));
        let (nope, rope) = (64, width - latent);
        let rotated: Vec<f32> =
            keys.chunks_exact(nope + rope).take(layout.len()).flat_map(|k| k[nope..].to_vec()).collect();
        close(what, &part(latent, width), &rotated, 1e-4);
    }
}

#[test]
fn new_layout() {
    layers("a_new", "a_new.f32.safetensors", true);
}

#[test]
fn layout_of_2025() {
    layers("b_old", "b_old__lm0291.f32.safetensors", false);
}

#[test]
fn no_entries_in_config() {
    layers("c_noentries", "a_new.f32.safetensors", true);
}

#[test]
fn hugging_face_bf16() {
    layers("d_hf_bf16", "d_hf_bf16.f32.safetensors", true);
}
