//! Damaged and mismatched checkpoints: each gives an error that says what was found, and none panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![cfg(feature = "tiny")]

use std::path::Path;

use kimi_core::Checkpoint;
use kimi_core::weights::Weights;
use tempfile::TempDir;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/kimi-tiny");
const SHARD: &str = "model.safetensors";

/// A copy of the embedded checkpoint to be damaged.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", SHARD, "model.safetensors.index.json"] {
        std::fs::copy(Path::new(ASSETS).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn edit(folder: &TempDir, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = folder.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(path, change(bytes)).unwrap();
}

fn edit_text(folder: &TempDir, file: &str, change: impl FnOnce(String) -> String) {
    edit(folder, file, |bytes| change(String::from_utf8(bytes).unwrap()).into_bytes());
}

fn open_error(folder: &TempDir) -> String {
    Checkpoint::open(folder.path()).unwrap_err().to_string()
}

/// Replaces a shard by one of this header and as many zero bytes of data.
fn write_shard(folder: &TempDir, header: &str, data: usize) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    std::fs::write(folder.path().join(SHARD), file).unwrap();
    std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn truncated_shard() {
    let folder = copy();
    edit(&folder, SHARD, |bytes| bytes[..bytes.len() - 100].to_vec());
    says(&open_error(&folder), &[SHARD, "damaged", "Download it again"]);
    edit(&folder, SHARD, |_| vec![1, 2, 3]);
    says(&open_error(&folder), &["3 bytes", "damaged"]);
    edit(&folder, SHARD, |_| Vec::new());
    says(&open_error(&folder), &["0 bytes", "damaged"]);
}

#[test]
fn header_of_an_exabyte() {
    let folder = copy();
    edit(&folder, SHARD, |mut bytes| {
        bytes[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        bytes
    });
    says(&open_error(&folder), &["header", "1152921504606846976"]);
}

#[test]
fn overlapping_tensors() {
    let folder = copy();
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    write_shard(&folder, header, 6);
    says(&open_error(&folder), &["damaged", "offset"]);
}

#[test]
fn hole_between_tensors_and_bytes_after_them() {
    let hole = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}"#;
    let one = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    for (header, data) in [(hole, 10), (one, 9)] {
        let folder = copy();
        write_shard(&folder, header, data);
        says(&open_error(&folder), &["damaged"]);
    }
}

#[test]
fn the_same_name_twice() {
    let folder = copy();
    let entry = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    write_shard(&folder, &format!("{{{entry},{entry}}}"), 4);
    says(&open_error(&folder), &["\"a\" twice"]);
}

#[test]
fn shape_times_size_overflows() {
    let folder = copy();
    let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#;
    write_shard(&folder, header, 4);
    says(&open_error(&folder), &["damaged"]);
}

#[test]
fn missing_shard() {
    let folder = copy();
    std::fs::remove_file(folder.path().join(SHARD)).unwrap();
    says(&open_error(&folder), &[SHARD, "missing", "tensors"]);
}

#[test]
fn index_that_points_elsewhere() {
    let folder = copy();
    let outside = folder.path().parent().unwrap().join("outside.safetensors");
    edit_text(&folder, "model.safetensors.index.json", |t| t.replace(SHARD, "../outside.safetensors"));
    says(&open_error(&folder), &["../outside.safetensors", "not the name of a file"]);
    assert!(!outside.exists());
}

#[test]
fn index_that_promises_too_much() {
    let folder = copy();
    edit_text(&folder, "model.safetensors.index.json", |t| {
        t.replace("model.norm.weight", "model.norm.weigh")
    });
    says(&open_error(&folder), &["model.norm.weigh", "does not list it"]);
}

#[test]
fn nothing_there() {
    let folder = tempfile::tempdir().unwrap();
    says(&open_error(&folder), &["config.json"]);
    says(&Checkpoint::open("/nowhere/at all").unwrap_err().to_string(), &["/nowhere/at all", "config.json"]);
}

#[test]
fn config_of_another_model_or_out_of_range() {
    let table = [
        (r#""model_type": "kimi_k2""#, r#""model_type": "llama""#, "llama"),
        (r#""num_hidden_layers": "#, r#""num_hidden_layers": -"#, "num_hidden_layers"),
        (r#""vocab_size": "#, r#""vocab_size": 1e9, "x": "#, "vocab_size"),
        (r#""n_group": 1"#, r#""n_group": 7"#, "n_group"),
        (r#""hidden_act": "silu""#, r#""hidden_act": "gelu""#, "hidden_act"),
        (r#""kv_lora_rank""#, r#""kv_lora_rang""#, "kv_lora_rank"),
        ("{", "[", "JSON"),
    ];
    for (from, to, expected) in table {
        let folder = copy();
        edit_text(&folder, "config.json", |t| {
            assert!(t.contains(from), "the embedded config has no {from}");
            t.replacen(from, to, 1)
        });
        says(&open_error(&folder), &[expected]);
    }
}

/// The weights do not fit the config: found only when they are looked at.
fn weight_error(change: impl FnOnce(String) -> String) -> String {
    let folder = copy();
    edit_text(&folder, "config.json", change);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let weights = Weights::new(&checkpoint);
    let layers = (0..checkpoint.config().num_hidden_layers).find_map(|l| weights.layer(l).err());
    layers.or_else(|| weights.embedding().err()).expect("an error").to_string()
}

#[test]
fn shape_that_fits_no_width() {
    let error = weight_error(|t| {
        let config: serde_json::Value = serde_json::from_str(&t).unwrap();
        let hidden = config["hidden_size"].as_u64().unwrap();
        t.replace(&format!("\"hidden_size\": {hidden}"), &format!("\"hidden_size\": {}", hidden + 96))
    });
    says(&error, &["model.layers.0", "expected"]);
}

#[test]
fn entry_that_contradicts_the_tensors() {
    let folder = copy();
    edit_text(&folder, "config.json", |t| {
        let mut config: serde_json::Value = serde_json::from_str(&t).unwrap();
        config["quantization"]["model.embed_tokens"] = serde_json::json!({"bits": 8, "group_size": 64});
        config.to_string()
    });
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = Weights::new(&checkpoint).embedding().unwrap_err().to_string();
    says(&error, &["model.embed_tokens", "8-bit", "stored"]);
}

#[test]
fn more_layers_than_the_checkpoint_has() {
    let error = weight_error(|t| {
        let config: serde_json::Value = serde_json::from_str(&t).unwrap();
        let layers = config["num_hidden_layers"].as_u64().unwrap();
        t.replace(
            &format!("\"num_hidden_layers\": {layers}"),
            &format!("\"num_hidden_layers\": {}", layers + 1),
        )
    });
    says(&error, &["no tensor", "input_layernorm"]);
}
