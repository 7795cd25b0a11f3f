//! From the keys of `config.json` to checked values.

use serde_json::{Map, Value};

use super::{ConfigError, ModelConfig, Quantization, RopeScaling, family};

/// Largest size accepted for any one dimension: far above any model, far below overflow.
const MAX_DIM: u64 = 1 << 24;

/// Looks keys up in the text part first, then in the whole file.
pub(super) struct Keys<'a> {
    text: &'a Map<String, Value>,
    root: &'a Map<String, Value>,
    model_type: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(
        text: &'a Map<String, Value>,
        root: &'a Map<String, Value>,
        model_type: &'a str,
    ) -> Self {
        Self { text, root, model_type }
    }
}

impl Keys<'_> {
    const DEFAULT_Q_LORA_RANK: usize = 1536;

    pub(super) fn config(&self) -> Result<ModelConfig, ConfigError> {
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

pub(super) fn wrong(key: &'static str, found: impl ToString, expected: impl ToString) -> ConfigError {
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
