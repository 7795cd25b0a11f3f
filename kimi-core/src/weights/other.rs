//! What kimi does not read, by its name, and what to do about it.

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::stored::leading;
use super::{WeightError, Weights};
use crate::checkpoint::Tensor;

/// What to do instead.
const ADVICE: &str = "kimi does not read that. Take the checkpoint that it was made from (bf16, or FP8 in blocks of 128x128), \
                      or convert that one with mlx_lm.convert";

/// Names that other methods give to what is a weight here.
pub(super) const WEIGHTS: [&str; 5] = ["qweight", "W_q", "weight._data", "_weight_qdata", "codebooks"];

/// Methods, and the tensors that a module has where one was used. The first that has them all is it.
const METHODS: [(&str, &[&str]); 9] = [
    ("GPTQ", &["qweight", "g_idx"]),
    ("AWQ", &["qweight", "qzeros"]),
    ("bitsandbytes 4-bit", &["weight.absmax"]),
    ("bitsandbytes 4-bit", &["weight.quant_map"]),
    ("bitsandbytes 8-bit", &["SCB"]),
    ("HQQ", &["W_q"]),
    ("quanto", &["weight._data"]),
    ("torchao", &["_weight_qdata"]),
    ("AQLM", &["codebooks"]),
];

/// Says what a module's tensors are; `None` if it has none.
pub(super) fn refusal(weights: &Weights<'_>, module: &str) -> Option<WeightError> {
    let module_dot = format!("{module}.");
    let begin = weights.names.stored(&module_dot);
    let tensors = weights.checkpoint.tensors().filter_map(|(name, t)| Some((name.strip_prefix(&*begin)?, t)));
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_unstable_by_key(|(name, _)| *name);
    if tensors.is_empty() {
        return None;
    }
    let list: Vec<_> =
        tensors.iter().map(|(name, t)| format!("{name} {:?} {:?}", t.dtype, t.shape)).collect();
    let config = said(weights).map(|said| format!("; {said}")).unwrap_or_default();
    let what = format!("is stored as {} ({}){config}. {ADVICE}", method(weights, &tensors), list.join(", "));
    Some(WeightError::Unsupported { module: module.to_owned(), what })
}

/// Name of the method by which a module's tensors were made.
fn method(weights: &Weights<'_>, tensors: &[(&str, &Tensor)]) -> String {
    let find = |suffix: &str| tensors.iter().find(|(name, _)| *name == suffix).map(|(_, tensor)| *tensor);
    let found = METHODS.iter().find(|(_, marks)| marks.iter().all(|mark| find(mark).is_some()));
    if let Some((name, _)) = found {
        return (*name).to_owned();
    }
    if let Some(packed) = find("weight_packed") {
        return format!("compressed-tensors {}", compressed(packed, &find));
    }
    let scale = find("weight_scale_inv").or_else(|| find("weight_scale"));
    match (find("weight").map(|weight| (weight.dtype, leading(weight))), scale) {
        (Some((Dtype::F8_E4M3 | Dtype::F8_E5M2, _)), None) => "FP8 without scales".to_owned(),
        (Some((Dtype::F8_E5M2, _)), Some(_)) => "FP8 of the kind e5m2".to_owned(),
        (Some((Dtype::F8_E4M3, _)), Some(Tensor { dtype: Dtype::U8 | Dtype::F8_E8M0, .. })) => {
            "FP8 with powers of two for scales".to_owned()
        }
        (Some((Dtype::F8_E4M3, rows)), Some(scale)) => match scale.shape.iter().product::<usize>() {
            1 => "FP8 with one scale a tensor".to_owned(),
            n if n == rows => "FP8 with a scale a channel".to_owned(),
            _ => "FP8 with scales of another shape than blocks of 128x128 have".to_owned(),
        },
        (Some((Dtype::U8, _)), Some(_)) if find("pre_quant_scale").is_some() => {
            "NVFP4 with AWQ's scales for the input".to_owned()
        }
        (Some((Dtype::I8, _)), Some(_)) => "INT8".to_owned(),
        _ => match quant_method(weights).as_deref() {
            Some(name) => name.to_owned(),
            None => "something unknown".to_owned(),
        },
    }
}

/// What kind of `weight_packed` is there.
fn compressed<'a>(packed: &Tensor, find: &impl Fn(&str) -> Option<&'a Tensor>) -> String {
    if find("weight_global_scale").is_some() {
        return "NVFP4".to_owned();
    }
    if packed.dtype == Dtype::U8 {
        return "MXFP4".to_owned();
    }
    for (part, what) in
        [("weight_zero_point", "with zero points"), ("weight_g_idx", "with columns in another order")]
    {
        if find(part).is_some() {
            return what.to_owned();
        }
    }
    match find("weight_scale") {
        Some(scale) if scale.shape.last() == Some(&1) => "with one scale a channel".to_owned(),
        _ => "of another width than 4 bits, or groups that are none of 8, 16, 32, 64 and 128".to_owned(),
    }
}

/// `quant_method` of config.json, or of modelopt's own file.
fn quant_method(weights: &Weights<'_>) -> Option<String> {
    let config = weights.config.quantization.hugging_face();
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
    text("quant_method").or_else(|| Some(modelopt(weights)?.0))
}

/// What the checkpoint's files say of the method.
fn said(weights: &Weights<'_>) -> Option<String> {
    let config = weights.config.quantization.hugging_face();
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if let Some(method) = text("quant_method") {
        let more = ["format", "quant_algo", "quant_type", "fmt"];
        let more = more.into_iter().filter_map(|key| Some(format!(", {key} {:?}", text(key)?)));
        return Some(format!("config.json says quant_method {method:?}{}", more.collect::<String>()));
    }
    let (producer, algorithm) = modelopt(weights)?;
    Some(format!("hf_quant_config.json says {producer}, quant_algo {algorithm:?}"))
}

/// Producer and algorithm by `hf_quant_config.json`, which modelopt writes.
fn modelopt(weights: &Weights<'_>) -> Option<(String, String)> {
    let bytes = weights.checkpoint.file("hf_quant_config.json").ok()??;
    let json: Map<String, Value> = serde_json::from_slice(&bytes).ok()?;
    let text = |object: &str, key: &str| Some(json.get(object)?.get(key)?.as_str()?.to_owned());
    Some((
        text("producer", "name").unwrap_or_else(|| "modelopt".to_owned()),
        text("quantization", "quant_algo")?,
    ))
}
