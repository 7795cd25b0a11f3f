//! Checkpoints whose tensors have other names than Kimi-K2's own: the same model is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![cfg(feature = "tiny")]

use std::path::Path;

use kimi_core::Checkpoint;
use kimi_core::model::Part;
use kimi_core::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/kimi-tiny");

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// kimi-tiny's tensors, changed, in a folder with its config.
fn rewritten(change: impl FnOnce(Vec<Tensor>) -> Vec<Tensor>) -> TempDir {
    let file = std::fs::read(Path::new(ASSETS).join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&file).unwrap();
    let tensors = all.iter().map(|(name, t)| Tensor {
        name: name.to_owned(),
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        data: t.data().to_vec(),
    });
    let tensors = change(tensors.collect());
    let views =
        tensors.iter().map(|t| (&t.name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    std::fs::copy(Path::new(ASSETS).join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

#[test]
fn wherever_a_wrapper_puts_them() {
    let fingerprint = Checkpoint::kimi_tiny().unwrap().fingerprint();
    for (body, head) in [
        ("model.", "lm_head"),
        ("language_model.model.", "language_model.lm_head"),
        ("language_model.model.", "lm_head"),
        ("model.language_model.", "lm_head"),
        ("model.language_model.", "model.lm_head"),
        ("language_model.", "lm_head"),
        ("language_model.", "language_model.lm_head"),
        ("model.model.", "model.lm_head"),
        ("", "lm_head"),
    ] {
        let folder = rewritten(|mut tensors| {
            for t in &mut tensors {
                t.name = match t.name.strip_prefix("model.") {
                    Some(rest) => format!("{body}{rest}"),
                    None => t.name.replacen("lm_head", head, 1),
                };
            }
            tensors
        });
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.fingerprint(), fingerprint, "{body}* and {head}");
    }
}

#[test]
fn a_missing_name_comes_with_those_that_are_there() {
    let folder = rewritten(|mut tensors| {
        tensors.iter_mut().for_each(|t| t.name = t.name.replace("self_attn.o_proj", "attn.o_proj"));
        tensors
    });
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = Weights::new(&checkpoint).layer(0).unwrap_err().to_string();
    for part in
        ["no tensor model.layers.0.self_attn.o_proj.weight", "such as model.layers.0.attn.o_proj.biases"]
    {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// The stored bytes of all matrices of layer 1, by name.
fn matrices(folder: &TempDir) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut found = Vec::new();
    Weights::new(&checkpoint).layer(1).unwrap().visit(&mut |name, part| {
        if let Part::Matrices(list) = part {
            let bytes = list.iter().flat_map(|m| [m.weight(), m.scales(), m.biases()].map(|b| b.to_vec()));
            found.push((name.to_owned(), bytes.flatten().collect()));
        }
    });
    found
}

#[test]
fn experts_as_transformers_5_fuses_them() {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let config = checkpoint.config();
    let (e, f, h) = (config.n_routed_experts, config.moe_intermediate_size, config.hidden_size);
    let value = |expert: usize, row: usize, col: usize| (expert * 7 + row * 3 + col % 11) as f32;
    let bytes = |rows: std::ops::Range<usize>, cols: usize, expert: usize| {
        let values = rows.flat_map(move |row| (0..cols).map(move |col| value(expert, row, col)));
        values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
    };
    let path = "model.layers.1.mlp";
    let tensor =
        |name: String, shape: &[usize], data| Tensor { name, dtype: Dtype::F32, shape: shape.to_vec(), data };
    let others = |tensors: Vec<Tensor>| {
        let keep = tensors.into_iter().filter(|t| !t.name.starts_with(&format!("{path}.switch_mlp")));
        keep.collect::<Vec<_>>()
    };
    // Rows 0..f are gate's, f..2f up's.
    let single = rewritten(|tensors| {
        let mut tensors = others(tensors);
        for i in 0..e {
            let name = |part: &str| format!("{path}.experts.{i}.{part}_proj.weight");
            tensors.push(tensor(name("gate"), &[f, h], bytes(0..f, h, i)));
            tensors.push(tensor(name("up"), &[f, h], bytes(f..2 * f, h, i)));
            tensors.push(tensor(name("down"), &[h, f], bytes(0..h, f, i)));
        }
        tensors
    });
    let fused = |transposed: bool| {
        rewritten(|tensors| {
            let mut tensors = others(tensors);
            let gate_up = (0..e).flat_map(|i| bytes(0..2 * f, h, i)).collect();
            let shape = if transposed { [e, h, 2 * f] } else { [e, 2 * f, h] };
            tensors.push(tensor(format!("{path}.experts.gate_up_proj"), &shape, gate_up));
            let down = (0..e).flat_map(|i| bytes(0..h, f, i)).collect();
            tensors.push(tensor(format!("{path}.experts.down_proj"), &[e, h, f], down));
            tensors
        })
    };
    assert!(matrices(&single).iter().any(|(_, values)| values.len() == 4 * e * f * h));
    assert!(matrices(&fused(false)) == matrices(&single));
    let wrong = fused(true);
    let checkpoint = Checkpoint::open(wrong.path()).unwrap();
    let error = Weights::new(&checkpoint).layer(1).unwrap_err().to_string();
    assert!(error.contains("gate_up_proj") && error.contains(&format!("[{e}, {}, {h}]", 2 * f)), "{error}");
}
