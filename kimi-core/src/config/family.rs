//! The models that compute as Kimi-K2 does, and those whose names are alike but whose arithmetic is another.

use serde_json::{Map, Value};

use super::ConfigError;

/// Text models.
const TEXT: [&str; 2] = ["kimi_k2", "deepseek_v3"];

/// Models that see: a text model under `text_config`, beside a vision tower that kimi does not read.
const WRAPPED: [&str; 2] = ["kimi_k25", "kimi_vl"];

/// What others are, and what they compute that kimi does not. A name stands for all those that begin with it.
const OTHERS: [(&str, &str); 10] = [
    ("kimi_linear", "Kimi-Linear, most of whose layers have linear attention"),
    ("kimi_k3", "Kimi-K3, a newer architecture"),
    ("deepseek_v2", "DeepSeek-V2, whose router is a softmax"),
    ("deepseek_v32", "DeepSeek-V3.2, whose attention is sparse (it has an indexer)"),
    ("deepseek_v4", "DeepSeek-V4, a newer architecture"),
    ("deepseek_vl", "a DeepSeek-VL"),
    ("glm", "a GLM"),
    ("qwen", "a Qwen"),
    ("llama", "a Llama"),
    ("gpt_oss", "gpt-oss"),
];

/// Keys of configs that call themselves DeepSeek-V3 and compute something else, and what.
const FOREIGN_KEYS: [(&str, &str); 3] = [
    ("index_topk", "DeepSeek-V3.2's sparse attention"),
    ("index_n_heads", "DeepSeek-V3.2's sparse attention"),
    ("linear_attn_config", "Kimi-Linear's linear attention"),
];

/// The model type, and the part of a config that describes the text model.
///
/// # Errors
/// [`ConfigError::Architecture`] names the model.
pub(super) fn text_part(root: &Map<String, Value>) -> Result<(&str, &Map<String, Value>), ConfigError> {
    let type_of = |map: &Map<String, Value>| map.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let model_type = root.get("model_type").and_then(Value::as_str).unwrap_or("");
    let text = if TEXT.contains(&model_type) {
        root
    } else if WRAPPED.contains(&model_type) {
        let text = root.get("text_config").and_then(Value::as_object);
        let text = text.ok_or(ConfigError::Missing("text_config", format!("a {model_type} model")))?;
        match type_of(text) {
            Some(inner) if !TEXT.contains(&inner.as_str()) => {
                let what = format!("text_config.model_type is {inner:?}{}", known_as(&inner));
                return Err(ConfigError::Architecture { what });
            }
            _ => text,
        }
    } else {
        let what = match type_of(root) {
            Some(found) => format!("model_type is {found:?}{}", known_as(&found)),
            None => "model_type is missing".to_owned(),
        };
        return Err(ConfigError::Architecture { what });
    };
    let foreign = FOREIGN_KEYS.iter().find(|(key, _)| text.get(*key).is_some_and(|v| !v.is_null()));
    match foreign {
        Some((key, what)) => {
            let what = format!("model_type is {model_type:?}, but {key} belongs to {what}");
            Err(ConfigError::Architecture { what })
        }
        None => Ok((model_type, text)),
    }
}

/// `, Kimi-Linear, ..` for a model type that is known; the longest name wins.
fn known_as(model_type: &str) -> String {
    let lower = model_type.to_lowercase();
    let known = OTHERS.iter().filter(|(name, _)| lower.starts_with(name)).max_by_key(|(name, _)| name.len());
    known.map(|(_, what)| format!(", {what}")).unwrap_or_default()
}

/// Layers before the first that has experts, as transformers 5 lists them: `mlp_layer_types` is `dense` for the first
/// few, then `sparse`. `None` where there is no list.
///
/// # Errors
/// [`ConfigError::Value`] for another order, and for layers that do not attend to the whole context.
pub(super) fn leading_dense(text: &Map<String, Value>) -> Result<Option<usize>, ConfigError> {
    let list = |key: &str| text.get(key).and_then(Value::as_array);
    if let Some(other) = list("layer_types").and_then(|types| types.iter().find(|t| *t != "full_attention")) {
        return Err(super::wrong("layer_types", other, "full_attention for every layer"));
    }
    let Some(types) = list("mlp_layer_types") else { return Ok(None) };
    let dense = types.iter().take_while(|t| *t == "dense").count();
    match types[dense..].iter().find(|t| *t != "sparse") {
        Some(other) => Err(super::wrong("mlp_layer_types", other, "dense for the first layers, then sparse")),
        None => Ok(Some(dense)),
    }
}
