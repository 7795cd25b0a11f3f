//! `config.json` as it comes from the hub, parsed once into values that cannot be wrong.

mod family;
mod read;
mod rope;

use std::fmt;

use kimi_quant::RouterShape;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::text_file::{self, JsonError};
pub(crate) use read::token_ids;
use read::{Keys, wrong};
pub use rope::RopeScaling;

/// Architecture of a Kimi-K2 / DeepSeek-V3 model. Fields are named as the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `kimi_k2`, `deepseek_v3`, or a model that sees and has one of them as its text part: `kimi_k25`, `kimi_vl`.
    pub model_type: String,
    /// Rows of the embedding and of the head, `V`.
    pub vocab_size: usize,
    /// Width of the residual stream, `H`.
    pub hidden_size: usize,
    /// Width of a dense layer's MLP.
    pub intermediate_size: usize,
    /// Width of one expert, `F`.
    pub moe_intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads, `nh`.
    pub num_attention_heads: usize,
    /// Shared experts; they are one MLP of width `n_shared_experts * F`. 0: none.
    pub n_shared_experts: usize,
    /// Routed experts, `E`. 0: every layer is dense.
    pub n_routed_experts: usize,
    /// Experts chosen a token, `k`.
    pub num_experts_per_tok: usize,
    /// Factor on the weights of the chosen experts.
    pub routed_scaling_factor: f32,
    /// Width of the latent, `kl`.
    pub kv_lora_rank: usize,
    /// Width of the compressed query, `ql`; `None` where the query is projected directly.
    pub q_lora_rank: Option<usize>,
    /// Rotated query and key width.
    pub qk_rope_head_dim: usize,
    /// Query and key width without position.
    pub qk_nope_head_dim: usize,
    /// Value width of a head.
    pub v_head_dim: usize,
    /// Whether the weights of the chosen experts are normalised.
    pub norm_topk_prob: bool,
    /// Groups of experts.
    pub n_group: usize,
    /// Groups that stay eligible.
    pub topk_group: usize,
    /// Every how many layers a layer has experts.
    pub moe_layer_freq: usize,
    /// Layers before this one are dense.
    pub first_k_dense_replace: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the block norms and of the final norm. The two inner norms of the attention use
    /// [`ModelConfig::INNER_NORM_EPS`].
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// YaRN, if the context was stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// End-of-sequence ids named in this file; empty if none is.
    pub eos_token_id: Vec<u32>,
    /// How the weights are quantized, as far as the file says.
    pub quantization: Quantization,
}

/// The shortest decimal number that reads back as the same `f32` or `f64`; with an exponent where it would be long.
fn number_text<T: Copy + Into<f64> + fmt::Display + fmt::LowerExp>(value: T) -> String {
    match value.into().abs() {
        size if size == 0.0 || (1e-3..1e9).contains(&size) => value.to_string(),
        _ => format!("{value:e}"),
    }
}

/// What `config.json` says of quantized modules.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Quantization {
    entries: Map<String, Value>,
    hugging_face: Map<String, Value>,
}

/// One module's entry in `quantization`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct QuantEntry {
    /// Bits of a code.
    pub bits: u32,
    /// Weights that share a scale.
    pub group_size: usize,
    /// `affine`, `mxfp4`, `nvfp4` or `mxfp8`; absent in old files, where it is affine.
    #[serde(default = "affine")]
    pub mode: String,
}

fn affine() -> String {
    "affine".to_owned()
}

impl Quantization {
    /// The entry of a module by its path without `.weight`. `None` where the file has none: then the shapes decide.
    pub fn entry(&self, module: &str) -> Option<QuantEntry> {
        self.entries.get(module).and_then(|v| QuantEntry::deserialize(v).ok())
    }

    /// Hugging Face's `quantization_config`, which names its `quant_method`; empty where there is none.
    pub(crate) fn hugging_face(&self) -> &Map<String, Value> {
        &self.hugging_face
    }

    /// Rows and columns of a block of FP8 weights, if the file says so.
    pub(crate) fn block_size(&self) -> Option<[usize; 2]> {
        let groups = self.hugging_face.get("config_groups").and_then(Value::as_object);
        let structures = groups.into_iter().flat_map(Map::values).filter_map(|group| {
            group.get("weights")?.get("block_structure") // compressed-tensors
        });
        let mut all = self.hugging_face.get("weight_block_size").into_iter().chain(structures);
        all.find_map(|v| Deserialize::deserialize(v).ok())
    }
}

/// A `config.json` that can't be used. Who knows which file it was names it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("the file {0}")]
    Json(JsonError),
    /// Another architecture.
    #[error(
        "{what}; kimi runs kimi_k2 and deepseek_v3 (Kimi-K2, Moonlight, DeepSeek-V3), and the text part of kimi_k25 and kimi_vl"
    )]
    Architecture {
        /// What was found.
        what: String,
    },
    /// A key is missing.
    #[error("{0:?} is missing, which {1} needs")]
    Missing(&'static str, String),
    /// A value is of the wrong type or out of range.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value found.
        found: String,
        /// What would do.
        expected: String,
    },
}

impl ModelConfig {
    /// Epsilon of `q_a_layernorm` and `kv_a_layernorm`, whatever the file says.
    pub const INNER_NORM_EPS: f32 = 1e-6;

    /// How experts are chosen.
    pub fn router_shape(&self) -> RouterShape {
        RouterShape {
            chosen: self.num_experts_per_tok,
            groups: self.n_group,
            kept_groups: self.topk_group,
            normalize: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
        }
    }

    /// Parses the bytes of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, what was found and what was expected.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        let root: Map<String, Value> = text_file::from_json(bytes).map_err(ConfigError::Json)?;
        let (model_type, text) = family::text_part(&root)?;
        Keys::new(text, &root, model_type).config()
    }

    /// The values that decide what is computed, by their keys, in a fixed order and spelling: two configs that give the
    /// same list compute the same from the same tensors.
    ///
    /// `tie_word_embeddings` is missing, because a head that is stored overrules it. What a change of the list or of a
    /// spelling needs is a new [`Description::VERSION`](crate::fingerprint::Description::VERSION).
    pub(crate) fn deciding_values(&self) -> Vec<(&'static str, String)> {
        // All fields are named, so that a new one can't be forgotten here.
        let Self {
            model_type: _,
            vocab_size,
            hidden_size,
            intermediate_size,
            moe_intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            n_shared_experts,
            n_routed_experts,
            num_experts_per_tok,
            routed_scaling_factor,
            kv_lora_rank,
            q_lora_rank,
            qk_rope_head_dim,
            qk_nope_head_dim,
            v_head_dim,
            norm_topk_prob,
            n_group,
            topk_group,
            moe_layer_freq,
            first_k_dense_replace,
            max_position_embeddings: _,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: _,
            eos_token_id: _, // says when to stop
            quantization: _, // the weights are read as the shapes say
        } = self;
        let mut values = vec![
            ("vocab_size", vocab_size.to_string()),
            ("hidden_size", hidden_size.to_string()),
            ("intermediate_size", intermediate_size.to_string()),
            ("moe_intermediate_size", moe_intermediate_size.to_string()),
            ("num_hidden_layers", num_hidden_layers.to_string()),
            ("num_attention_heads", num_attention_heads.to_string()),
            ("n_shared_experts", n_shared_experts.to_string()),
            ("n_routed_experts", n_routed_experts.to_string()),
            ("num_experts_per_tok", num_experts_per_tok.to_string()),
            ("routed_scaling_factor", number_text(*routed_scaling_factor)),
            ("kv_lora_rank", kv_lora_rank.to_string()),
            ("q_lora_rank", q_lora_rank.map_or_else(|| "null".to_owned(), |rank| rank.to_string())),
            ("qk_rope_head_dim", qk_rope_head_dim.to_string()),
            ("qk_nope_head_dim", qk_nope_head_dim.to_string()),
            ("v_head_dim", v_head_dim.to_string()),
            ("norm_topk_prob", norm_topk_prob.to_string()),
            ("n_group", n_group.to_string()),
            ("topk_group", topk_group.to_string()),
            ("moe_layer_freq", moe_layer_freq.to_string()),
            ("first_k_dense_replace", first_k_dense_replace.to_string()),
            ("rms_norm_eps", number_text(*rms_norm_eps)),
            ("rope_theta", number_text(*rope_theta)),
        ];
        values.extend(rope_scaling.map_or_else(RopeScaling::no_values, |scaling| scaling.deciding_values()));
        values
    }

    /// Whether a layer has experts.
    pub fn is_moe(&self, layer: usize) -> bool {
        self.n_routed_experts > 0
            && layer >= self.first_k_dense_replace
            && layer.is_multiple_of(self.moe_layer_freq)
    }

    /// Width of a head's query and key.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Values in the latent cache a token and layer: the latent and the rotated key.
    pub fn cache_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}
