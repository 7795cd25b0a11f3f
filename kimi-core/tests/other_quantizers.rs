//! Checkpoints of quantizers that kimi does not read: the error names the module, the method and what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod checkpoints;

use checkpoints::hub::{self, checkpoint, fp8, modelopt, tensors};
use checkpoints::stored::{Storage, Stored};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::weights::Weights;
use serde_json::{Value, json};

/// Rows and columns of [`MODULE`].
const ROWS: usize = 144;
const COLS: usize = 160;
const MODULE: &str = "model.layers.1.mlp.experts.0.gate_proj";

/// Zeros, whose bytes follow from the type's name.
fn zeros(module: &str, (suffix, dtype, shape): (&str, &'static str, &[usize])) -> Stored {
    let bytes = match dtype {
        "F32" | "I32" | "U32" => 4,
        "BF16" | "F16" => 2,
        _ => 1,
    };
    let data = vec![0; shape.iter().product::<usize>() * bytes];
    Stored { name: format!("{module}.{suffix}"), dtype, shape: shape.to_vec(), data }
}

type Part<'a> = (&'a str, &'static str, &'a [usize]);

/// A checkpoint in bf16 but for one module, which has these tensors.
fn list(module: &str, parts: &[Part<'_>]) -> Vec<Stored> {
    let bf16 = Storage::Float("BF16");
    let mut list = tensors(bf16, bf16);
    list.retain(|t| !t.name.starts_with(&format!("{module}.")));
    list.extend(parts.iter().map(|part| zeros(module, *part)));
    list
}

fn error_of(checkpoint: &Checkpoint) -> String {
    let weights = Weights::new(checkpoint);
    (0..2).find_map(|layer| weights.layer(layer).err()).expect("an error").to_string()
}

fn error(module: &str, parts: &[Part<'_>], quantization: Value) -> String {
    let error = error_of(&checkpoint(&hub::config(quantization), &list(module, parts)));
    assert!(error.starts_with(&format!("{module}: ")), "{error}");
    error
}

#[track_caller]
fn says(error: &str, all: &[&str]) {
    for part in all {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// Tensors of [`MODULE`], `quantization_config`, and what the error says.
#[track_caller]
fn named(parts: &[Part<'_>], quantization: Value, all: &[&str]) {
    let method = quantization["quant_method"].as_str().map(|m| format!("quant_method {m:?}"));
    let error = error(MODULE, parts, quantization);
    says(&error, all);
    says(&error, &["kimi does not read that", "mlx_lm.convert"]);
    says(&error, &[&method.unwrap_or_default()]);
}

#[test]
fn methods_with_tensors_of_their_own_are_named() {
    let method = |name: &str| json!({"quant_method": name, "bits": 4});
    let awq: [Part<'_>; 3] = [
        ("qweight", "I32", &[COLS, ROWS / 8]),
        ("qzeros", "I32", &[COLS / 32, ROWS / 8]),
        ("scales", "F16", &[COLS / 32, ROWS]),
    ];
    named(&awq, method("awq"), &["AWQ", "qweight I32 [160, 18]"]);
    let gptq = [&awq[..], &[("g_idx", "I32", &[COLS])]].concat();
    named(&gptq, method("gptq"), &["GPTQ", "g_idx"]);
    let bnb4: [Part<'_>; 4] = [
        ("weight", "U8", &[ROWS * COLS / 2, 1]),
        ("weight.absmax", "U8", &[360]),
        ("weight.quant_map", "F32", &[16]),
        ("weight.quant_state.bitsandbytes__nf4", "U8", &[80]),
    ];
    named(&bnb4, method("bitsandbytes"), &["bitsandbytes 4-bit", "weight.absmax"]);
    let bnb8: [Part<'_>; 2] = [("weight", "I8", &[ROWS, COLS]), ("SCB", "F32", &[ROWS])];
    named(&bnb8, method("bitsandbytes"), &["bitsandbytes 8-bit"]);
    named(
        &[("W_q", "U8", &[72, COLS]), ("scale", "F16", &[1]), ("zero", "F16", &[1])],
        method("hqq"),
        &["HQQ"],
    );
    named(
        &[("weight._data", "I8", &[ROWS, COLS]), ("weight._scale", "F32", &[1])],
        method("quanto"),
        &["quanto"],
    );
    let torchao: [Part<'_>; 2] = [("_weight_qdata", "I8", &[ROWS, COLS]), ("_weight_scale", "F32", &[ROWS])];
    named(&torchao, method("torchao"), &["torchao"]);
    let aqlm: [Part<'_>; 2] = [("codes", "I8", &[ROWS, 20, 1]), ("codebooks", "F16", &[1, 256, 1, 8])];
    named(&aqlm, method("aqlm"), &["AQLM"]);
    // One that nobody knows yet.
    let eetq: [Part<'_>; 2] = [("weight", "I8", &[COLS, ROWS]), ("weight_scales", "F16", &[ROWS])];
    named(&eetq, method("eetq"), &["is stored as eetq", "weight_scales F16 [144]"]);
    named(&[("trellis", "I32", &[9, 10, 64])], method("exl3"), &["is stored as exl3", "trellis I32"]);
    named(&eetq, Value::Null, &["is stored as something unknown", "weight I8 [160, 144]"]);
    // In a model that sees as well: below another name, and the method in the text's config.
    let mut wrapped = list(MODULE, &awq);
    wrapped.iter_mut().for_each(|t| t.name = format!("language_model.{}", t.name));
    let config = json!({"model_type": "kimi_k25", "text_config": hub::config(method("awq"))});
    says(&error_of(&checkpoint(&config, &wrapped)), &[MODULE, "AWQ", "quant_method \"awq\""]);
    // The latent projection, which may have two names, is called by the one that is there.
    says(&error("model.layers.0.self_attn.kv_b_proj", &awq, method("awq")), &["AWQ"]);
}

#[test]
fn other_kinds_of_fp8_are_named() {
    let weight: Part<'_> = ("weight", "F8_E4M3", &[ROWS, COLS]);
    let compressed = |format: &str| json!({"quant_method": "compressed-tensors", "format": format});
    let algorithm = json!({"quant_method": "modelopt", "quant_algo": "FP8"});
    let scalar = [weight, ("weight_scale", "F32", &[][..]), ("input_scale", "F32", &[])];
    named(&scalar, algorithm, &["FP8 with one scale a tensor", "quant_algo \"FP8\""]);
    let one = [weight, ("weight_scale", "BF16", &[1][..])];
    named(
        &one,
        compressed("float-quantized"),
        &["FP8 with one scale a tensor", "format \"float-quantized\""],
    );
    let channel = [weight, ("weight_scale", "BF16", &[ROWS, 1][..])];
    named(&channel, compressed("float-quantized"), &["FP8 with a scale a channel"]);
    named(&channel, json!({"quant_method": "fbgemm_fp8"}), &["FP8 with a scale a channel"]);
    named(&[weight], fp8(), &["FP8 without scales"]);
    let e5m2 = [("weight", "F8_E5M2", &[ROWS, COLS][..]), ("weight_scale_inv", "F32", &[2, 2])];
    named(&e5m2, fp8(), &["e5m2"]);

    let blocks = [weight, ("weight_scale_inv", "F32", &[2, 2][..])];
    let mut other = fp8();
    other["weight_block_size"] = json!([64, 128]);
    says(
        &error(MODULE, &blocks, other),
        &["blocks of [64, 128] by config.json", "blocks of [128, 128]", "mlx_lm.convert"],
    );
    let mut other = compressed("float-quantized");
    other["config_groups"]["group_0"]["weights"] =
        json!({"strategy": "block", "block_structure": [100, 128]});
    let renamed = [weight, ("weight_scale", "F32", &[2, 2][..])];
    says(&error(MODULE, &renamed, other), &["blocks of [100, 128]", "mlx_lm.convert"]);
    let shape = [weight, ("weight_scale_inv", "F32", &[3, 2][..])];
    says(&error(MODULE, &shape, fp8()), &["weight_scale_inv has shape [3, 2], expected [2, 2]", "128x128"]);
    let exponents = [weight, ("weight_scale_inv", "F8_E8M0", &[2, 2][..])];
    named(&exponents, fp8(), &["FP8 with powers of two for scales", "F8_E8M0"]);
    let mxfp8 = [weight, ("weight_scale", "U8", &[ROWS, COLS / 32][..])];
    named(&mxfp8, json!({"quant_method": "modelopt", "quant_algo": "MXFP8"}), &["FP8 with powers of two"]);
    let narrow = [("weight", "F8_E4M3", &[ROWS, COLS - 1][..]), ("weight_scale_inv", "F32", &[2, 2])];
    says(&error(MODULE, &narrow, fp8()), &["weight has shape [144, 159], expected [144, 160]"]);
    let bf16 = [("weight", "BF16", &[ROWS, COLS][..]), ("weight_scale_inv", "F32", &[2, 2])];
    says(&error(MODULE, &bf16, fp8()), &["has weight_scale_inv", "F8_E4M3", "BF16"]);
}

#[test]
fn other_compressed_tensors_are_named() {
    let config = |format: &str| json!({"quant_method": "compressed-tensors", "format": format});
    let packed: Part<'_> = ("weight_packed", "I32", &[ROWS, COLS / 8]);
    let scale: Part<'_> = ("weight_scale", "BF16", &[ROWS, COLS / 32]);
    let shape: Part<'_> = ("weight_shape", "I32", &[2]);
    let named_as = |parts: &[Part<'_>], format: &str, what: &str| {
        named(parts, config(format), &[&format!("is stored as {what}"), &format!("format {format:?}")]);
    };
    let zero = ("weight_zero_point", "I32", &[ROWS / 8, COLS / 32][..]);
    named_as(&[packed, scale, shape, zero], "pack-quantized", "compressed-tensors with zero points");
    let order = ("weight_g_idx", "I32", &[COLS][..]);
    named_as(&[packed, scale, order], "pack-quantized", "compressed-tensors with columns in another order");
    let channel = ("weight_scale", "BF16", &[ROWS, 1][..]);
    named_as(&[packed, channel], "pack-quantized", "compressed-tensors with one scale a channel");
    let eight = ("weight_packed", "I32", &[ROWS, COLS / 4][..]);
    named_as(&[eight, scale], "pack-quantized", "compressed-tensors of another width than 4 bits");
    let bytes = ("weight_packed", "U8", &[ROWS, COLS / 2][..]);
    let small = ("weight_scale", "F8_E4M3", &[ROWS, COLS / 16][..]);
    let global = ("weight_global_scale", "F32", &[1][..]);
    named_as(&[bytes, small, global], "nvfp4-pack-quantized", "compressed-tensors NVFP4");
    let powers = ("weight_scale", "U8", &[ROWS, COLS / 32][..]);
    named_as(&[bytes, powers], "mxfp4-pack-quantized", "compressed-tensors MXFP4");
    named_as(&[("weight", "I8", &[ROWS, COLS]), channel], "int-quantized", "INT8");
}

#[test]
fn modelopt_is_read_only_as_far_as_it_is_understood() {
    let parts: [Part<'_>; 3] = [
        ("weight", "U8", &[ROWS, COLS / 2]),
        ("weight_scale", "F8_E4M3", &[ROWS, COLS / 16]),
        ("weight_scale_2", "F32", &[]),
    ];
    let read = checkpoint(&hub::config(modelopt()), &list(MODULE, &parts));
    // Not that expert alone: all of a layer must be alike.
    says(&error_of(&read), &["experts.1.gate_proj", "expert 0 of this layer as nvfp4"]);

    let awq = [&parts[..], &[("pre_quant_scale", "BF16", &[COLS])]].concat();
    named(
        &awq,
        json!({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}),
        &["AWQ", "quant_algo \"NVFP4_AWQ\""],
    );
    says(&error(MODULE, &parts[..2], modelopt()), &["no tensor", "weight_scale_2"]);
    let wide = [parts[0], ("weight_scale", "F8_E4M3", &[ROWS, COLS / 32]), parts[2]];
    says(&error(MODULE, &wide, modelopt()), &["weight_scale has shape [144, 5], expected [144, 10]"]);
    let several = [parts[0], parts[1], ("weight_scale_2", "F32", &[2])];
    says(&error(MODULE, &several, modelopt()), &["weight_scale_2 has shape [2], expected one F32"]);
}

#[test]
fn modelopts_own_file_is_read_where_the_config_says_nothing() {
    let fp8 = [("weight", "F8_E4M3", &[ROWS, COLS][..]), ("weight_scale", "F32", &[])];
    let folder = hub::write(&hub::config(Value::Null), &list(MODULE, &fp8));
    let json = json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}});
    std::fs::write(folder.path().join("hf_quant_config.json"), json.to_string()).unwrap();
    let error = error_of(&Checkpoint::open(folder.path()).unwrap());
    says(&error, &["FP8 with one scale a tensor", "hf_quant_config.json says modelopt, quant_algo \"FP8\""]);
}

#[test]
fn a_global_scale_belongs_to_nvfp4() {
    let parts = [("weight", "BF16", &[ROWS, COLS][..]), ("global_scale", "F32", &[])];
    says(&error(MODULE, &parts, Value::Null), &["is bf16", "global_scale", "nvfp4"]);
    let parts = [
        ("weight", "U32", &[ROWS, COLS / 8][..]),
        ("scales", "U8", &[ROWS, COLS / 16]),
        ("global_scale", "F32", &[2]),
    ];
    says(&error(MODULE, &parts, Value::Null), &["global_scale has shape [2], expected [1]"]);
}
