//! Random small checkpoints over every option of the config and every layout and storage format of the tensors.
//!
//! ```ignore
//! proptest!(|(spec in spec())| {
//!     let folder = tempfile::tempdir().unwrap();
//!     write(&spec, folder.path());
//!     let checkpoint = Checkpoint::open(folder.path()).unwrap();
//! });
//! ```

use std::path::Path;

use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use super::stored::{FLOATS, Rng, Storage, Stored, vector, write_shard};

/// What a checkpoint is like; [`write`] makes it.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) sizes: Sizes,
    pub(crate) heads: Heads,
    pub(crate) experts: Experts,
    pub(crate) rope: Rope,
    pub(crate) layout: Layout,
    /// Of all contents and storage formats.
    pub(crate) seed: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) eps: f64,
}

#[derive(Debug, Clone)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) nope: usize,
    pub(crate) rope: usize,
    pub(crate) value: usize,
    pub(crate) latent: usize,
    pub(crate) q_lora: Option<usize>,
}

#[derive(Debug, Clone)]
pub(crate) struct Experts {
    /// 0: no layer has experts.
    pub(crate) routed: usize,
    pub(crate) chosen: usize,
    pub(crate) shared: usize,
    pub(crate) width: usize,
    pub(crate) groups: usize,
    pub(crate) kept_groups: usize,
    pub(crate) dense_first: usize,
    pub(crate) frequency: usize,
    pub(crate) normalize: bool,
    pub(crate) factor: f64,
    /// Correction biases lie within one of this.
    pub(crate) bias: f32,
}

#[derive(Debug, Clone)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    /// The object under `rope_scaling`; null for none.
    pub(crate) scaling: Value,
}

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// `embed_q` and `unembed_out` instead of `kv_b_proj`.
    pub(crate) split_kv_b: bool,
    /// `switch_mlp` instead of `experts.N`.
    pub(crate) stacked: bool,
    /// The model type of a model that sees and has its text part below `language_model.`, if it is one.
    pub(crate) wrapper: Option<&'static str>,
    pub(crate) tied: bool,
    /// Whether config.json lists every module's format.
    pub(crate) entries: bool,
    /// Whether there is an index; it may name the shards as it likes.
    pub(crate) index: bool,
    pub(crate) shards: usize,
}

/// Any checkpoint.
pub(crate) fn spec() -> impl Strategy<Value = Spec> {
    (sizes(), heads(), experts(), rope(), layout(), any::<u64>()).prop_map(
        |(sizes, heads, experts, rope, layout, seed)| Spec { sizes, heads, experts, rope, layout, seed },
    )
}

/// Some checkpoint, the same each time.
pub(crate) fn fixed() -> Spec {
    spec().new_tree(&mut TestRunner::deterministic()).unwrap().current()
}

/// Mostly what packed rows need; sometimes a width that only floats fit.
fn width() -> impl Strategy<Value = usize> {
    prop_oneof![6 => (1..=4usize).prop_map(|n| 32 * n), 1 => 3..=50usize]
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (1..=4usize, width(), width(), 8..=70usize, prop::sample::select(vec![1e-6, 1e-5, 1e-2])).prop_map(
        |(layers, hidden, intermediate, vocabulary, eps)| Sizes {
            layers,
            hidden,
            intermediate,
            vocabulary,
            eps,
        },
    )
}

fn heads() -> impl Strategy<Value = Heads> {
    let nope = prop::sample::select(vec![5, 8, 32, 64, 128]);
    let value = prop::sample::select(vec![3, 8, 16, 32, 64]);
    (1..=4usize, nope, 1..=16usize, value, width(), option::of(width())).prop_map(
        |(heads, nope, pairs, value, latent, q_lora)| Heads {
            heads,
            nope,
            rope: 2 * pairs,
            value,
            latent,
            q_lora,
        },
    )
}

fn experts() -> impl Strategy<Value = Experts> {
    let number = prop_oneof![
        1 => Just((0usize, 1usize)),
        3 => (1..=10usize).prop_map(|e| (e, 1)),
        4 => (2..=4usize, 2..=4usize).prop_map(|(groups, size)| (groups * size, groups)),
    ];
    let choice = number.prop_flat_map(|(e, groups)| (Just((e, groups)), 1..=e.clamp(1, 6), 1..=groups));
    let options = (0..=2usize, width(), 0..=2usize, 1..=2usize, any::<bool>());
    (choice, options, prop::sample::select(vec![1.0, 2.827, 0.5]), prop::sample::select(vec![0.1f32, 1.0]))
        .prop_map(
            |(
                ((routed, groups), chosen, kept_groups),
                (shared, width, dense_first, frequency, normalize),
                factor,
                bias,
            )| {
                Experts {
                    routed,
                    chosen,
                    shared,
                    width,
                    groups,
                    kept_groups,
                    dense_first,
                    frequency,
                    normalize,
                    factor,
                    bias,
                }
            },
        )
}

fn rope() -> impl Strategy<Value = Rope> {
    let theta = prop::sample::select(vec![100.0, 10_000.0, 50_000.0]);
    let key = prop::sample::select(vec!["type", "rope_type"]);
    let kind = prop_oneof![6 => Just("yarn"), 1 => Just("deepseek_yarn"), 1 => Just("default")];
    let betas = prop::sample::select(vec![(1.0, 1.0), (32.0, 1.0), (8.0, 2.0), (1.0, 32.0)]);
    let mscales = prop::sample::select(vec![(1.0, 1.0), (0.707, 1.0), (1.0, 0.0), (1.5, 0.7)]);
    let factor = prop::sample::select(vec![1.0, 4.0, 32.0, 40.0]);
    let original = prop::sample::select(vec![16, 64, 4096]);
    let yarn = (key, kind, betas, mscales, factor, original).prop_map(
        |(key, kind, betas, mscales, factor, original)| {
            json!({
                key: kind, "factor": factor, "original_max_position_embeddings": original,
                "beta_fast": betas.0, "beta_slow": betas.1, "mscale": mscales.0, "mscale_all_dim": mscales.1,
            })
        },
    );
    (theta, prop_oneof![1 => Just(Value::Null), 5 => yarn])
        .prop_map(|(theta, scaling)| Rope { theta, scaling })
}

fn layout() -> impl Strategy<Value = Layout> {
    let wrapper = option::weighted(0.25, prop::sample::select(vec!["kimi_k25", "kimi_vl"]));
    let flags = (any::<bool>(), any::<bool>(), wrapper, prop::bool::weighted(0.25));
    (flags, any::<bool>(), any::<bool>(), 1..=4usize).prop_map(
        |((split_kv_b, stacked, wrapper, tied), entries, index, shards)| Layout {
            split_kv_b,
            stacked,
            wrapper,
            tied,
            entries,
            index,
            shards,
        },
    )
}

/// Writes the checkpoint into a folder.
pub(crate) fn write(spec: &Spec, folder: &Path) {
    let mut tensors = Tensors { spec, rng: Rng(spec.seed), list: Vec::new(), entries: Map::new() };
    tensors.model();
    tensors.vision();
    let Tensors { mut rng, list, entries, .. } = tensors;
    std::fs::write(folder.join("config.json"), config(spec, entries).to_string()).unwrap();
    write_shards(&spec.layout, &mut rng, list, folder);
}

fn write_shards(layout: &Layout, rng: &mut Rng, mut list: Vec<Stored>, folder: &Path) {
    rng.shuffle(&mut list);
    let name = |shard: usize| match layout.index {
        true => format!("part-{}.safetensors", layout.shards - shard),
        false => format!("model-{:05}-of-{:05}.safetensors", shard + 1, layout.shards),
    };
    let mut shards: Vec<Vec<&Stored>> = vec![Vec::new(); layout.shards];
    let mut map = Map::new();
    for tensor in &list {
        let shard = rng.below(layout.shards);
        shards[shard].push(tensor);
        map.insert(tensor.name.clone(), name(shard).into());
    }
    for (shard, tensors) in shards.iter().enumerate() {
        write_shard(&folder.join(name(shard)), tensors, rng.below(8));
    }
    if layout.index {
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

fn config(spec: &Spec, entries: Map<String, Value>) -> Value {
    let Spec { sizes, heads, experts, rope, layout, .. } = spec;
    let mut text = json!({
        "model_type": "kimi_k2", "hidden_act": "silu", "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "num_hidden_layers": sizes.layers, "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocabulary, "rms_norm_eps": sizes.eps, "tie_word_embeddings": layout.tied,
        "num_attention_heads": heads.heads, "qk_nope_head_dim": heads.nope, "qk_rope_head_dim": heads.rope,
        "v_head_dim": heads.value, "kv_lora_rank": heads.latent, "q_lora_rank": heads.q_lora,
        "n_shared_experts": experts.shared, "moe_intermediate_size": experts.width,
        "num_experts_per_tok": experts.chosen, "n_group": experts.groups, "topk_group": experts.kept_groups,
        "first_k_dense_replace": experts.dense_first, "moe_layer_freq": experts.frequency,
        "norm_topk_prob": experts.normalize, "routed_scaling_factor": experts.factor,
        "rope_theta": rope.theta, "rope_scaling": rope.scaling, "max_position_embeddings": 4096,
    });
    text["n_routed_experts"] = if experts.routed == 0 { Value::Null } else { experts.routed.into() };
    let mut root = match layout.wrapper {
        Some(model_type) => {
            text["model_type"] = "deepseek_v3".into();
            json!({"model_type": model_type, "text_config": text, "vision_config": {"hidden_size": 8}})
        }
        None => text,
    };
    if layout.entries {
        root["quantization"] = entries.into();
    }
    root
}

/// Makes the tensors of a model.
struct Tensors<'a> {
    spec: &'a Spec,
    rng: Rng,
    list: Vec<Stored>,
    entries: Map<String, Value>,
}

impl Tensors<'_> {
    fn model(&mut self) {
        let Sizes { layers, hidden, vocabulary, intermediate, .. } = self.spec.sizes;
        self.matrix("model.embed_tokens", &[vocabulary], hidden);
        if !self.spec.layout.tied {
            self.matrix("lm_head", &[vocabulary], hidden);
        }
        self.norm("model.norm", hidden);
        for layer in 0..layers {
            let path = format!("model.layers.{layer}");
            self.norm(&format!("{path}.input_layernorm"), hidden);
            self.norm(&format!("{path}.post_attention_layernorm"), hidden);
            self.attention(&format!("{path}.self_attn"));
            let e = &self.spec.experts;
            match e.routed > 0 && layer >= e.dense_first && layer.is_multiple_of(e.frequency) {
                true => self.experts(&format!("{path}.mlp")),
                false => self.mlp(&format!("{path}.mlp"), intermediate),
            }
        }
    }

    /// What a model that sees has beside its text part.
    fn vision(&mut self) {
        let names = match self.spec.layout.wrapper {
            None => return,
            Some("kimi_vl") => {
                ["vision_tower.encoder.blocks.0.wo.weight", "multi_modal_projector.linear_1.weight"]
            }
            Some(_) => ["vision_tower.encoder.blocks.0.wo.weight", "mm_projector.proj.0.weight"],
        };
        for name in names {
            let tensor = vector(&mut self.rng, name.to_owned(), 10, -1.0, 1.0);
            self.list.push(tensor);
        }
    }

    fn attention(&mut self, path: &str) {
        let (hidden, Heads { heads, nope, rope, value, latent, q_lora }) =
            (self.spec.sizes.hidden, self.spec.heads.clone());
        match q_lora {
            None => self.matrix(&format!("{path}.q_proj"), &[heads * (nope + rope)], hidden),
            Some(q_lora) => {
                self.matrix(&format!("{path}.q_a_proj"), &[q_lora], hidden);
                self.norm(&format!("{path}.q_a_layernorm"), q_lora);
                self.matrix(&format!("{path}.q_b_proj"), &[heads * (nope + rope)], q_lora);
            }
        }
        self.matrix(&format!("{path}.kv_a_proj_with_mqa"), &[latent + rope], hidden);
        self.norm(&format!("{path}.kv_a_layernorm"), latent);
        if self.spec.layout.split_kv_b {
            self.matrix(&format!("{path}.embed_q"), &[heads, latent], nope);
            self.matrix(&format!("{path}.unembed_out"), &[heads, value], latent);
        } else {
            self.matrix(&format!("{path}.kv_b_proj"), &[heads * (nope + value)], latent);
        }
        self.matrix(&format!("{path}.o_proj"), &[hidden], heads * value);
    }

    fn mlp(&mut self, path: &str, width: usize) {
        let hidden = self.spec.sizes.hidden;
        self.matrix(&format!("{path}.gate_proj"), &[width], hidden);
        self.matrix(&format!("{path}.up_proj"), &[width], hidden);
        self.matrix(&format!("{path}.down_proj"), &[hidden], width);
    }

    fn experts(&mut self, path: &str) {
        let (hidden, e) = (self.spec.sizes.hidden, self.spec.experts.clone());
        let gate = Storage::Float(self.rng.pick(&FLOATS));
        self.stored(gate, &format!("{path}.gate"), &[e.routed], hidden);
        let bias = self.prefixed(&format!("{path}.gate.e_score_correction_bias"));
        let bias = vector(&mut self.rng, bias, e.routed, -e.bias, e.bias);
        self.list.push(bias);
        for (name, rows, cols) in
            [("gate_proj", e.width, hidden), ("up_proj", e.width, hidden), ("down_proj", hidden, e.width)]
        {
            let storage = Storage::random(&mut self.rng, cols); // one for all experts of a layer
            if self.spec.layout.stacked {
                self.stored(
                    storage.stacked(cols),
                    &format!("{path}.switch_mlp.{name}"),
                    &[e.routed, rows],
                    cols,
                );
                continue;
            }
            for expert in 0..e.routed {
                self.stored(storage, &format!("{path}.experts.{expert}.{name}"), &[rows], cols);
            }
        }
        if e.shared > 0 {
            self.mlp(&format!("{path}.shared_experts"), e.shared * e.width);
        }
    }

    fn norm(&mut self, module: &str, width: usize) {
        let name = self.prefixed(&format!("{module}.weight"));
        let norm = vector(&mut self.rng, name, width, 0.7, 1.3);
        self.list.push(norm);
    }

    fn matrix(&mut self, module: &str, leading: &[usize], cols: usize) {
        let storage = match (Storage::random(&mut self.rng, cols), leading.len()) {
            (storage, 1) => storage,
            (Storage::Nvfp4 { .. }, _) => Storage::Nvfp4 { global: false }, // of all heads
            (storage, _) => storage.stacked(cols),
        };
        self.stored(storage, module, leading, cols);
    }

    fn stored(&mut self, storage: Storage, module: &str, leading: &[usize], cols: usize) {
        let module = self.prefixed(module);
        self.list.extend(storage.matrix(&mut self.rng, &module, leading, cols));
        if let Some(entry) = storage.entry() {
            self.entries.insert(module, entry);
        }
    }

    fn prefixed(&self, name: &str) -> String {
        format!("{}{name}", if self.spec.layout.wrapper.is_some() { "language_model." } else { "" })
    }
}
