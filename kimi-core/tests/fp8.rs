//! Checkpoints as Moonshot, DeepSeek and NVIDIA publish them, in FP8 blocks and NVFP4, against the same ones dequantized to
//! F32 by the formats' definitions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod checkpoints;

use std::sync::Arc;

use checkpoints::hub::{VOCABULARY, checkpoint, config, fp8, modelopt, tensors};
use checkpoints::max_abs_err;
use checkpoints::stored::{Rng, Storage, Stored};
use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::ModelBytes;
use kimi_core::stage::{CacheConfig, LoadError, Stage, StageOutput};
use kimi_core::weights::Weights;
use kimi_quant::cpu::Isa;
use kimi_quant::{Backend, Cpu, Format};
use serde_json::json;

const TOKENS: usize = 9;

/// The definition of a float of one sign bit, `exponent` bits with this bias, and `mantissa` bits, without infinities.
fn float(code: u8, exponent: u32, mantissa: u32, bias: i32) -> f64 {
    let fraction = f64::from(code & ((1 << mantissa) - 1)) / f64::from(1u32 << mantissa);
    let power = i32::from(code >> mantissa & ((1 << exponent) - 1));
    let magnitude = match power {
        0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(power - bias),
    };
    if code >> (exponent + mantissa) & 1 == 0 { magnitude } else { -magnitude }
}

fn copy(Stored { name, dtype, shape, data }: &Stored) -> Stored {
    Stored { name: name.clone(), dtype, shape: shape.clone(), data: data.clone() }
}

/// The same tensors with F32 in place of what is quantized.
fn dequantized(tensors: &[Stored]) -> Vec<Stored> {
    let find = |name: &str| tensors.iter().find(|t| t.name == name);
    let numbers = |t: &Stored| -> Vec<f32> {
        let float = t.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        assert_eq!(t.dtype, "F32");
        float.collect()
    };
    let mut plain = Vec::new();
    for t in tensors {
        let module = t.name.strip_suffix(".weight").unwrap_or_default();
        let part = |suffix: &str| find(&format!("{module}.{suffix}"));
        let width = t.shape.last().copied().unwrap_or(1);
        let values: Vec<f64> = if let Some(scales) = part("weight_scale_inv") {
            let (across, scales) = (width.div_ceil(128), numbers(scales));
            let scale = |i: usize| f64::from(scales[i / width / 128 * across + i % width / 128]);
            t.data.iter().enumerate().map(|(i, &code)| scale(i) * float(code, 4, 3, 7)).collect()
        } else if let Some(scales) = part("weight_scale") {
            let global = f64::from(numbers(part("weight_scale_2").unwrap())[0]);
            let codes = t.data.iter().flat_map(|byte| [byte & 15, byte >> 4]).enumerate();
            codes.map(|(i, q)| global * float(scales.data[i / 16], 4, 3, 7) * float(q, 2, 1, 1)).collect()
        } else {
            let quantized = [".weight_scale", ".weight_scale_2", ".weight_scale_inv", ".input_scale"];
            if !quantized.iter().any(|suffix| t.name.ends_with(suffix)) {
                plain.push(copy(t));
            }
            continue;
        };
        let shape = vec![t.shape[0], values.len() / t.shape[0]];
        let data = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        plain.push(Stored { name: t.name.clone(), dtype: "F32", shape, data });
    }
    plain
}

fn load<B: Backend>(checkpoint: &Checkpoint, backend: B) -> Result<Stage<B>, LoadError> {
    let cache = CacheConfig { pages: 3, page_tokens: 4 };
    Stage::load(checkpoint, Arc::new(backend), 0..2, cache, &mut |_| {})
}

/// Logits of a prompt, and of two tokens after it, one by one.
fn logits<B: Backend>(checkpoint: &Checkpoint, backend: B) -> Vec<f32> {
    let mut stage = load(checkpoint, backend).unwrap();
    let mut logits = Vec::new();
    for range in [0..TOKENS - 2, TOKENS - 2..TOKENS - 1, TOKENS - 1..TOKENS] {
        let sequence = SequenceSlice {
            id: SequenceId(1),
            start: range.start as u32,
            tokens: range.map(|i| (i * 31 % VOCABULARY) as u32).collect(),
            pages: vec![2, 0, 1],
            output: Output::AllLogits,
        };
        let batch = Batch { sequences: vec![sequence], ..Default::default() };
        match stage.forward(&batch, None, None).unwrap() {
            StageOutput::Sequences(outputs) => logits.extend(&outputs[0].logits),
            StageOutput::Hidden(_) => panic!("a whole model gives logits"),
        }
    }
    logits
}

#[track_caller]
fn agree(what: &str, found: &[f32], expected: &[f32]) {
    let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = max_abs_err(found, expected);
    println!("{what}: off by {error:e}, largest logit {size}");
    assert!((0.1..20.0).contains(&size) && error <= 1e-4, "{what}: off by {error}, largest logit {size}");
}

/// The checkpoints of this file, by name: quantized, and dequantized.
fn pairs() -> [(&'static str, Checkpoint, Checkpoint); 3] {
    let (blocks, nvfp4) = (Storage::Fp8 { scales: "F32" }, Storage::Modelopt);
    let all = [("fp8", fp8(), blocks, blocks), ("nvfp4", modelopt(), nvfp4, nvfp4)];
    let [fp8, nvfp4] = all;
    let experts = ("nvfp4 experts", modelopt(), Storage::Modelopt, Storage::Float("BF16")); // as nvidia's Kimi-K2.5
    [fp8, nvfp4, experts].map(|(name, quantization, experts, dense)| {
        let (config, tensors) = (config(quantization), tensors(experts, dense));
        (name, checkpoint(&config, &tensors), checkpoint(&config, &dequantized(&tensors)))
    })
}

#[test]
fn the_cpu_computes_what_the_definition_says() {
    for (name, quantized, plain) in pairs() {
        let expected = logits(&plain, Cpu::scalar());
        for isa in Isa::available() {
            let found = logits(&quantized, Cpu::with_isa(isa).unwrap());
            agree(&format!("{name} {}", isa.name()), &found, &expected);
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_gpu_computes_what_the_definition_says() {
    let open = || match kimi_quant::Gpu::new(&kimi_quant::gpu::GpuOptions::default()) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var_os("KIMI_REQUIRE_GPU").is_none() => {
            println!("skipped: no adapter ({e})");
            None
        }
        Err(e) => panic!("{e}"),
    };
    for (name, quantized, plain) in pairs() {
        let Some(gpu) = open() else { return };
        agree(&format!("{name} on a GPU"), &logits(&quantized, gpu), &logits(&plain, Cpu::scalar()));
    }
}

#[test]
fn weights_are_the_bytes_of_the_file() {
    let list = tensors(Storage::Fp8 { scales: "F32" }, Storage::Fp8 { scales: "F32" });
    let checkpoint = checkpoint(&config(fp8()), &list);
    let layer = Weights::new(&checkpoint).layer(0).unwrap();
    let kv_a = &layer.attention.kv_a;
    let format = Format::Fp8 { scales: kimi_quant::FloatType::F32 };
    assert_eq!((kv_a.rows(), kv_a.cols(), kv_a.format()), (104, 160, format));
    let stored = checkpoint.tensor("model.layers.0.self_attn.kv_a_proj_with_mqa.weight").unwrap();
    assert_eq!(kv_a.weight().as_ptr(), stored.data.as_ptr());
    let scales = checkpoint.tensor("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv").unwrap();
    assert_eq!((kv_a.scales().as_ptr(), scales.shape.as_slice()), (scales.data.as_ptr(), &[1, 2][..]));
    // A plan counts them, and nothing of the layer after the last.
    let of_model = |t: &&Stored| !t.name.starts_with("model.layers.2.") && !t.name.ends_with("inv_freq");
    let bytes: usize = list.iter().filter(of_model).map(|t| t.data.len()).sum();
    assert_eq!(ModelBytes::of(&checkpoint).unwrap().weights(&(0..2)), bytes as u64);
    assert_eq!(checkpoint.description().difference(&checkpoint.description()), None);
}

#[test]
fn scales_may_be_bf16_and_have_the_name_of_compressed_tensors() {
    let mut list = tensors(Storage::Fp8 { scales: "BF16" }, Storage::Fp8 { scales: "BF16" });
    let wanted = logits(&checkpoint(&config(fp8()), &list), Cpu::new());
    list.iter_mut().for_each(|t| t.name = t.name.replace("weight_scale_inv", "weight_scale"));
    let quantization = json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
    assert_eq!(logits(&checkpoint(&config(quantization), &list), Cpu::new()), wanted);
}

/// As transformers 5 has them in memory: `up` begins amid a block.
#[test]
fn experts_in_one_tensor_are_read_by_their_blocks() {
    let (width, hidden) = (144, 160);
    let mut list = tensors(Storage::Fp8 { scales: "F32" }, Storage::Fp8 { scales: "F32" });
    let mut plain = dequantized(&list);
    let experts = "model.layers.1.mlp.experts.";
    list.retain(|t| !t.name.starts_with(experts));
    plain.retain(|t| !t.name.starts_with(experts));
    let mut floats = plain.iter().map(copy).collect::<Vec<_>>();
    let mut rng = Rng(5);
    for (name, rows, cols) in [("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)] {
        let mut fused: Vec<Stored> = Vec::new();
        let mut all_values = Vec::new();
        for e in 0..4 {
            let module = format!("{experts}{e}.{name}");
            let own = Storage::Fp8 { scales: "F32" }.matrix(&mut rng, &module, &[rows], cols);
            let values = dequantized(&own).remove(0);
            all_values.extend_from_slice(&values.data);
            match name {
                "gate_up_proj" => {
                    let halves = values.data.chunks(4 * width * cols).map(<[u8]>::to_vec);
                    plain.extend(halves.zip(["gate_proj", "up_proj"]).map(|(data, name)| {
                        let name = format!("{experts}{e}.{name}.weight");
                        Stored { name, dtype: "F32", shape: vec![width, cols], data }
                    }));
                }
                _ => plain.push(values),
            }
            for (i, part) in own.into_iter().enumerate() {
                if let Some(all) = fused.get_mut(i) {
                    all.shape[0] += 1;
                    all.data.extend(part.data);
                } else {
                    let name = format!("{experts}{name}{}", ["", "_scale_inv"][i]);
                    fused.push(Stored { name, shape: [&[1][..], &part.shape].concat(), ..part });
                }
            }
        }
        list.extend(fused);
        let name = format!("{experts}{name}");
        floats.push(Stored { name, dtype: "F32", shape: vec![4, rows, cols], data: all_values });
    }
    let found = |list: &[Stored]| logits(&checkpoint(&config(fp8()), list), Cpu::new());
    let expected = found(&plain);
    agree("fused", &found(&list), &expected);
    assert_eq!(found(&floats), expected);

    let scales = list.iter_mut().find(|t| t.name.ends_with("gate_up_proj_scale_inv")).unwrap();
    scales.shape = vec![4, 6];
    let error = Weights::new(&checkpoint(&config(fp8()), &list)).layer(1).unwrap_err().to_string();
    assert!(error.contains("scale_inv has shape [4, 6], expected [4, 3, 2]"), "{error}");
}

#[test]
fn a_weight_that_is_not_a_number_is_refused_and_named() {
    let damaged = |storage, name: &str, at: usize, with: &[u8]| {
        let mut list = tensors(storage, storage);
        let tensor = list.iter_mut().find(|t| t.name == name).unwrap();
        tensor.data[at..at + with.len()].copy_from_slice(with);
        load(&checkpoint(&config(fp8()), &list), Cpu::new()).map(|_| ()).unwrap_err().to_string()
    };
    let says = |error: String, module: &str, row: usize| {
        let begin = format!("{module}: row {row} has a weight that is not a number");
        assert!(error.starts_with(&begin) && error.contains("download it again"), "{error}");
    };
    let blocks = Storage::Fp8 { scales: "F32" };
    for code in [0x7f, 0xff] {
        let error = damaged(blocks, "model.layers.1.mlp.experts.2.up_proj.weight", 5 * 160 + 7, &[code]);
        says(error, "model.layers.1.mlp.switch_mlp.up_proj (expert 2)", 5);
    }
    let nan = f32::NAN.to_le_bytes();
    let error = damaged(blocks, "model.layers.0.self_attn.kv_b_proj.weight_scale_inv", 4, &nan);
    says(error, "model.layers.0.self_attn.kv_b_proj", 128);
    let error = damaged(Storage::Modelopt, "model.layers.0.mlp.up_proj.weight_scale", 160 / 16 * 3, &[0x7f]);
    says(error, "model.layers.0.mlp.up_proj", 3);
}
