//! `config.json` as it comes from the hub, parsed once into values that cannot be wrong.

mod family;

use std::fmt;

use kimi_quant::RouterShape;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::text_file::{self, JsonError};

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

/// YaRN parameters (Peng et al., 2023), with the defaults of mlx-lm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// How many times the context was stretched.
    pub factor: f64,
    /// Rotations above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by the factor.
    pub beta_slow: f64,
    /// Numerator of the input's factor.
    pub mscale: f64,
    /// Denominator of the input's factor, and the source of the attention's extra scale.
    pub mscale_all_dim: f64,
    /// Context before stretching.
    pub original_max_position_embeddings: usize,
    /// Whether frequencies are ramped. mlx-lm applies the attention's extra scale even where they are not.
    pub ramp: bool,
}

impl RopeScaling {
    /// As [`ModelConfig::deciding_values`]. Without a ramp, only the attention's extra scale is left, if there is one.
    fn deciding_values(self) -> Vec<(&'static str, String)> {
        let Self {
            factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            original_max_position_embeddings,
            ramp,
        } = self;
        let scales_attention = mscale_all_dim != 0.0 && factor > 1.0;
        if !ramp && !scales_attention {
            return Self::no_values();
        }
        let mut values = vec![
            ("rope_scaling.type", if ramp { "yarn" } else { "default" }.to_owned()),
            ("rope_scaling.factor", number_text(factor)),
            ("rope_scaling.mscale_all_dim", number_text(mscale_all_dim)),
        ];
        if ramp {
            values.extend([
                ("rope_scaling.beta_fast", number_text(beta_fast)),
                ("rope_scaling.beta_slow", number_text(beta_slow)),
                ("rope_scaling.mscale", number_text(mscale)),
                (
                    "rope_scaling.original_max_position_embeddings",
                    original_max_position_embeddings.to_string(),
                ),
            ]);
        }
        values
    }

    /// The values of a context that was not stretched.
    fn no_values() -> Vec<(&'static str, String)> {
        vec![("rope_scaling.type", "default".to_owned())]
    }
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

/// Largest size accepted for any one dimension: far above any model, far below overflow.
const MAX_DIM: u64 = 1 << 24;

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
        Keys { text, root: &root, model_type }.config()
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

/// Looks keys up in the text part first, then in the whole file.
struct Keys<'a> {
    text: &'a Map<String, Value>,
    root: &'a Map<String, Value>,
    model_type: &'a str,
}

impl Keys<'_> {
    const DEFAULT_Q_LORA_RANK: usize = 1536;

    fn config(&self) -> Result<ModelConfig, ConfigError> {
        self.fixed("hidden_act", "silu")?;
        self.fixed("scoring_func", "sigmoid")?;
        self.fixed("topk_method", "noaux_tc")?;
        for (key, wanted) in [("attention_bias", false), ("rope_interleave", true)] {
            if self.value(key).and_then(Value::as_bool) == Some(!wanted) {
                return Err(wrong(key, !wanted, wanted));
            }
        }
        let config = ModelConfig {
            model_type: self.model_type.to_owned(),
            vocab_size: self.size("vocab_size")?,
            hidden_size: self.size("hidden_size")?,
            intermediate_size: self.size("intermediate_size")?,
            moe_intermediate_size: self.size_or("moe_intermediate_size", 0)?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads: self.size("num_attention_heads")?,
            n_shared_experts: self.size_or("n_shared_experts", 0)?,
            n_routed_experts: match self.size_or("n_routed_experts", 0)? {
                0 => self.size_or("num_local_experts", 0)?, // transformers 5's other name
                n => n,
            },
            num_experts_per_tok: self.size_or("num_experts_per_tok", 0)?,
            routed_scaling_factor: self.number_or("routed_scaling_factor", 1.0)? as f32,
            kv_lora_rank: self.size("kv_lora_rank")?,
            q_lora_rank: match self.value("q_lora_rank") {
                None => Some(Self::DEFAULT_Q_LORA_RANK), // as in mlx-lm
                Some(Value::Null) => None,
                Some(_) => Some(self.size("q_lora_rank")?),
            },
            qk_rope_head_dim: self.size("qk_rope_head_dim")?,
            qk_nope_head_dim: self.size("qk_nope_head_dim")?,
            v_head_dim: self.size("v_head_dim")?,
            norm_topk_prob: self.flag_or("norm_topk_prob", true)?,
            n_group: self.size_or("n_group", 1)?.max(1),
            topk_group: self.size_or("topk_group", 1)?.max(1),
            moe_layer_freq: self.size_or("moe_layer_freq", 1)?.max(1),
            first_k_dense_replace: self.first_k_dense_replace()?,
            max_position_embeddings: self.size_or("max_position_embeddings", 2048)?,
            rms_norm_eps: self.number_or("rms_norm_eps", 1e-6)? as f32,
            rope_theta: self.rope_theta()?,
            rope_scaling: self.rope_scaling()?,
            tie_word_embeddings: self.flag_or("tie_word_embeddings", false)?,
            eos_token_id: self.eos()?,
            quantization: self.quantization(),
        };
        check(&config)?;
        Ok(config)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.text.get(key).or_else(|| self.root.get(key))
    }

    fn fixed(&self, key: &'static str, only: &str) -> Result<(), ConfigError> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(s)) if s == only => Ok(()),
            Some(other) => Err(wrong(key, other, only)),
        }
    }

    fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        let value = self
            .value(key)
            .ok_or_else(|| ConfigError::Missing(key, format!("a {} model", self.model_type)))?;
        match value.as_u64() {
            Some(n) if (1..=MAX_DIM).contains(&n) => Ok(n as usize),
            _ => Err(wrong(key, value, format!("a whole number from 1 to {MAX_DIM}"))),
        }
    }

    fn size_or(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => match v.as_u64() {
                Some(n) if n <= MAX_DIM => Ok(n as usize),
                _ => Err(wrong(key, v, format!("a whole number from 0 to {MAX_DIM}"))),
            },
        }
    }

    fn number_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        number(self.value(key), key, default)
    }

    fn flag_or(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| wrong(key, v, "true or false")),
        }
    }

    fn first_k_dense_replace(&self) -> Result<usize, ConfigError> {
        let listed = family::leading_dense(self.text)?;
        let said = self.size_or("first_k_dense_replace", listed.unwrap_or(0))?;
        match listed {
            Some(listed) if listed != said => {
                Err(wrong("first_k_dense_replace", said, format!("{listed}, as mlp_layer_types says")))
            }
            _ => Ok(said),
        }
    }

    /// Newer transformers write `rope_parameters`, with `rope_theta` inside.
    fn rope_object(&self) -> Option<&Map<String, Value>> {
        let of = |key| self.value(key).and_then(Value::as_object);
        of("rope_scaling").or_else(|| of("rope_parameters"))
    }

    fn rope_theta(&self) -> Result<f64, ConfigError> {
        let inner = self.rope_object().and_then(|r| r.get("rope_theta"));
        let outer = self.value("rope_theta").filter(|v| !v.is_null());
        let theta = number(outer.or(inner), "rope_theta", 10_000.0)?;
        if theta > 1.0 { Ok(theta) } else { Err(wrong("rope_theta", theta, "a number above 1")) }
    }

    fn rope_scaling(&self) -> Result<Option<RopeScaling>, ConfigError> {
        let Some(rope) = self.rope_object() else { return Ok(None) };
        let kind = rope.get("type").or_else(|| rope.get("rope_type")).and_then(Value::as_str);
        let ramp = match kind.unwrap_or("default") {
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => true,
            "default" => false,
            other => return Err(wrong("rope_scaling.type", format!("{other:?}"), "yarn or default")),
        };
        if ramp && rope.get("factor").is_none_or(Value::is_null) {
            // mlx-lm and transformers refuse it too. With a factor of 1 the logits would be far off, without a word.
            return Err(ConfigError::Missing("rope_scaling.factor", "yarn".to_owned()));
        }
        let get = |key: &'static str, default| number(rope.get(key), key, default);
        let scaling = RopeScaling {
            factor: get("factor", 1.0)?,
            beta_fast: get("beta_fast", 32.0)?,
            beta_slow: get("beta_slow", 1.0)?,
            mscale: get("mscale", 1.0)?,
            mscale_all_dim: get("mscale_all_dim", 0.0)?,
            original_max_position_embeddings: get("original_max_position_embeddings", 4096.0)? as usize,
            ramp,
        };
        for (key, value) in
            [("factor", scaling.factor), ("beta_fast", scaling.beta_fast), ("beta_slow", scaling.beta_slow)]
        {
            if value <= 0.0 {
                return Err(wrong(key, value, "a number above 0"));
            }
        }
        if scaling.original_max_position_embeddings == 0 {
            return Err(wrong("original_max_position_embeddings", 0, "at least 1"));
        }
        Ok(Some(scaling))
    }

    fn eos(&self) -> Result<Vec<u32>, ConfigError> {
        let mut ids = Vec::new();
        for object in [self.text, self.root] {
            ids.extend(token_ids(object.get("eos_token_id"))?);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn quantization(&self) -> Quantization {
        let of = |key| self.root.get(key).or_else(|| self.text.get(key)).and_then(Value::as_object);
        // `quantization_config` with a `quant_method` is Hugging Face's; the tensors' names say the same.
        let mlx = of("quantization")
            .or_else(|| of("quantization_config").filter(|q| !q.contains_key("quant_method")));
        let other = of("quantization_config").filter(|q| q.contains_key("quant_method"));
        let [entries, hugging_face] = [mlx, other].map(|map| map.cloned().unwrap_or_default());
        Quantization { entries, hugging_face }
    }
}

/// Reads `eos_token_id`: a number, a list of numbers, or nothing.
///
/// # Errors
/// [`ConfigError::Value`] for anything else.
pub(crate) fn token_ids(value: Option<&Value>) -> Result<Vec<u32>, ConfigError> {
    let one = |v: &Value| {
        let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
        id.ok_or_else(|| wrong("eos_token_id", v, "a token id or a list of token ids"))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(v) => Ok(vec![one(v)?]),
    }
}

fn number(value: Option<&Value>, key: &'static str, default: f64) -> Result<f64, ConfigError> {
    match value {
        None | Some(Value::Null) => Ok(default),
        Some(v) => v.as_f64().filter(|n| n.is_finite()).ok_or_else(|| wrong(key, v, "a finite number")),
    }
}

fn wrong(key: &'static str, found: impl ToString, expected: impl ToString) -> ConfigError {
    ConfigError::Value { key, found: found.to_string(), expected: expected.to_string() }
}

/// Relations between the values.
fn check(c: &ModelConfig) -> Result<(), ConfigError> {
    if !c.qk_rope_head_dim.is_multiple_of(2) {
        return Err(wrong("qk_rope_head_dim", c.qk_rope_head_dim, "an even number"));
    }
    if c.rms_norm_eps < 0.0 {
        return Err(wrong("rms_norm_eps", c.rms_norm_eps, "0 or more"));
    }
    if c.n_routed_experts == 0 {
        return Ok(());
    }
    if c.moe_intermediate_size == 0 {
        return Err(wrong("moe_intermediate_size", 0, "the width of an expert"));
    }
    if c.num_experts_per_tok == 0 || c.num_experts_per_tok > c.n_routed_experts {
        let expected = format!("1 to n_routed_experts ({})", c.n_routed_experts);
        return Err(wrong("num_experts_per_tok", c.num_experts_per_tok, expected));
    }
    if !c.n_routed_experts.is_multiple_of(c.n_group) {
        let expected = format!("a divisor of n_routed_experts ({})", c.n_routed_experts);
        return Err(wrong("n_group", c.n_group, expected));
    }
    if c.topk_group > c.n_group {
        return Err(wrong("topk_group", c.topk_group, format!("at most n_group ({})", c.n_group)));
    }
    if c.n_group > 1 && c.n_routed_experts / c.n_group < 2 {
        return Err(wrong("n_group", c.n_group, "groups of at least 2 experts"));
    }
    Ok(())
}
