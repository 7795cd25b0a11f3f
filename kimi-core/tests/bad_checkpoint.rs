//! Damaged and mismatched checkpoints: each gives an error that says what was found, and none panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![cfg(feature = "tiny")]

use kimi_core::checkpoint::{FolderState, folder_state};
use kimi_core::weights::Weights;
use kimi_core::{ChatFiles, Checkpoint};
use tempfile::TempDir;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/kimi-tiny");
const SHARD: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A copy of the embedded checkpoint to be damaged.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(ASSETS).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
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
    std::fs::remove_file(folder.path().join(INDEX)).unwrap();
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
    says(&open_error(&folder), &[SHARD, "is empty"]);
}

#[test]
fn what_stands_in_a_files_place() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n";
    let page = "<!DOCTYPE html><html><head><title>Sign in</title></head></html>";
    for file in
        [SHARD, "config.json", INDEX, "generation_config.json", "tiktoken.model", "tokenizer_config.json"]
    {
        for (content, parts) in [
            (pointer, &["Git LFS pointer", "5.0 GB", "git lfs pull", "hf download"][..]),
            (page, &["web page", "Sign in", "ownload"]),
        ] {
            let folder = copy();
            std::fs::write(folder.path().join(file), content).unwrap();
            let error = match Checkpoint::open(folder.path()) {
                Err(error) => error.to_string(),
                Ok(checkpoint) => ChatFiles::open(&checkpoint).unwrap_err().to_string(),
            };
            says(&error, parts);
            says(&error, &[file]);
        }
    }
}

#[test]
fn a_byte_order_mark_is_no_fault() {
    let folder = copy();
    for file in [
        "config.json",
        INDEX,
        "generation_config.json",
        "tokenizer_config.json",
        "tiktoken.model",
        "chat_template.jinja",
    ] {
        edit(&folder, file, |bytes| [b"\xef\xbb\xbf".to_vec(), bytes].concat());
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let files = ChatFiles::open(&checkpoint).unwrap();
    assert_eq!((checkpoint.warnings(), files.warnings()), (&[][..], &[][..]));
    assert_eq!(checkpoint.fingerprint(), Checkpoint::kimi_tiny().unwrap().fingerprint());
}

#[test]
fn text_in_other_encodings() {
    for (file, content, part) in [
        ("config.json", "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), "UTF-16"),
        ("config.json", br"{\rtf1\ansi {}}".to_vec(), "RTF"),
        ("config.json", "{\u{201c}model_type\u{201d}: 1}".as_bytes().to_vec(), "quot"),
        ("config.json", Vec::new(), "is empty"),
    ] {
        let folder = copy();
        edit(&folder, file, |_| content);
        says(&open_error(&folder), &[file, part]);
    }
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
    says(&open_error(&folder), &[SHARD, "1 of 1", "missing", "tensors", "hf download"]);
    std::fs::remove_file(folder.path().join(INDEX)).unwrap();
    std::fs::write(folder.path().join("model.gguf"), "GGUF").unwrap();
    says(&open_error(&folder), &["no model*.safetensors", "GGUF"]);
}

/// Splits the shard into two that are named as parts of `of`.
fn split(folder: &TempDir, of: usize) {
    let bytes = std::fs::read(folder.path().join(SHARD)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names = tensors.names();
    for (i, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let part = part.iter().map(|name| (*name, tensors.tensor(name).unwrap()));
        let path = folder.path().join(format!("model-{:05}-of-{of:05}.safetensors", i + 1));
        safetensors::serialize_to_file(part, None, &path).unwrap();
    }
    std::fs::remove_file(folder.path().join(SHARD)).unwrap();
}

#[test]
fn parts_without_an_index_say_how_many_they_are() {
    let folder = copy();
    std::fs::remove_file(folder.path().join(INDEX)).unwrap();
    split(&folder, 3);
    std::fs::write(folder.path().join("model-00003-of-00003.safetensors.incomplete"), "").unwrap();
    says(&open_error(&folder), &["1 of 3", "model-00003-of-00003.safetensors", "1 unfinished"]);
    assert!(matches!(folder_state(folder.path()), FolderState::Partial { .. }));
    let folder = copy();
    std::fs::remove_file(folder.path().join(INDEX)).unwrap();
    split(&folder, 2);
    let whole = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(whole.fingerprint(), Checkpoint::kimi_tiny().unwrap().fingerprint());
    assert_eq!(folder_state(folder.path()), FolderState::Whole);
}

#[test]
fn an_index_of_another_build_is_not_used() {
    // It names files that are not there, or tensors that are not in them; the files that are there make the whole model.
    for change in [(SHARD, "model-00001-of-00003.safetensors"), ("model.norm.weight", "model.norm.weigh")] {
        let folder = copy();
        edit_text(&folder, INDEX, |t| t.replace(change.0, change.1));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        says(&checkpoint.warnings().join(""), &[INDEX, "another build", change.1]);
        assert_eq!(checkpoint.fingerprint(), Checkpoint::kimi_tiny().unwrap().fingerprint());
        assert_eq!(checkpoint.bytes(), Checkpoint::kimi_tiny().unwrap().bytes());
    }
    // An incomplete download is none.
    let folder = copy();
    split(&folder, 2);
    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    edit_text(&folder, INDEX, |t| t.replace(SHARD, "model-00002-of-00002.safetensors"));
    says(&open_error(&folder), &["model-00002-of-00002.safetensors", "missing"]);
}

#[test]
fn zeros_at_the_end_and_holes() {
    let folder = copy();
    let mut whole = 0;
    edit(&folder, SHARD, |mut bytes| {
        whole = bytes.len();
        bytes[whole * 3 / 5..].fill(0);
        bytes
    });
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    says(&checkpoint.warnings().join(""), &[SHARD, "zero bytes", "download it again"]);
    assert!(Checkpoint::open(copy().path()).unwrap().warnings().is_empty());
}

#[test]
fn a_shard_that_changes_is_named() {
    use std::io::Write;
    let folder = copy();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.changed_shard(), None);
    // Replaced under its name: what was opened is still there.
    let other = folder.path().join("other");
    std::fs::copy(folder.path().join(SHARD), &other).unwrap();
    std::fs::rename(&other, folder.path().join(SHARD)).unwrap();
    assert_eq!(checkpoint.changed_shard(), None);
    // Written to in place.
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(folder.path().join(SHARD)).unwrap();
    file.write_all(b"more").unwrap();
    says(&checkpoint.changed_shard().unwrap(), &[SHARD, "bytes when it was opened"]);
}

#[test]
fn index_that_points_elsewhere() {
    let folder = copy();
    let outside = folder.path().parent().unwrap().join("outside.safetensors");
    edit_text(&folder, INDEX, |t| t.replace(SHARD, "../outside.safetensors"));
    says(&open_error(&folder), &["../outside.safetensors", "not the name of a file"]);
    assert!(!outside.exists());
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
        ("{", "[", "expected a map"),
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

#[test]
fn yarn_needs_its_factor() {
    let folder = copy();
    edit_text(&folder, "config.json", |t| {
        let mut config: serde_json::Value = serde_json::from_str(&t).unwrap();
        config["rope_scaling"] =
            serde_json::json!({"type": "yarn", "beta_fast": 1.0, "original_max_position_embeddings": 64});
        config.to_string()
    });
    says(&open_error(&folder), &["config.json", "rope_scaling.factor", "missing"]);
}

/// What opening the files for chats says of a copy of kimi-tiny with one of them changed.
fn chat_files(file: &str, change: impl FnOnce(&mut serde_json::Value)) -> Result<ChatFiles, String> {
    let folder = copy();
    edit_text(&folder, file, |t| {
        let mut json = serde_json::from_str(&t).unwrap();
        change(&mut json);
        json.to_string()
    });
    ChatFiles::open(&Checkpoint::open(folder.path()).unwrap()).map_err(|e| e.to_string())
}

#[test]
fn eos_ids_of_ordinary_tokens_do_not_end_answers() {
    let files = chat_files("config.json", |c| c["eos_token_id"] = 11.into()).unwrap();
    assert_eq!(files.stop_ids(), [3841, 3842]);
    says(&files.warnings().join(""), &["eos_token_id", "11", "no control token"]);
    let files =
        chat_files("generation_config.json", |c| c["eos_token_id"] = serde_json::json!([3842, 999_999]))
            .unwrap();
    says(&files.warnings().join(""), &["999999", "outside the vocabulary"]);
}

#[test]
fn special_tokens_that_were_numbered_anew() {
    // As some conversions do: in the order of their ids, without the gaps.
    let renumber = |json: &mut serde_json::Value| {
        let table = json["added_tokens_decoder"].as_object().unwrap();
        let mut ids: Vec<u32> = table.keys().map(|k| k.parse().unwrap()).collect();
        ids.sort_unstable();
        let rest = ids.iter().skip(2).enumerate();
        let moved: serde_json::Map<_, _> =
            rest.map(|(i, id)| ((3840 + i).to_string(), table[&id.to_string()].clone())).collect();
        json["added_tokens_decoder"] = moved.into();
    };
    let error = chat_files("tokenizer_config.json", renumber).unwrap_err();
    says(&error, &["tokenizer_config.json", "3841", "<|im_user|>", "3843", "Moonshot"]);
    let swapped = |json: &mut serde_json::Value| {
        let table = &mut json["added_tokens_decoder"];
        (table["3862"]["content"], table["3863"]["content"]) = ("</think>".into(), "<think>".into());
    };
    let files = chat_files("tokenizer_config.json", swapped).unwrap();
    says(&files.warnings().join(""), &["2 special tokens", "<think>", "3862"]);
}

#[test]
fn no_tokenizer_and_no_template() {
    let folder = copy();
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let files = ChatFiles::open(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    assert_eq!(files.template_source(), kimi_core::chat::TemplateSource::Default);
    says(&files.warnings().join(""), &["no chat template"]);
    let template = serde_json::json!({"chat_template": "{{ messages[0].content }}"});
    std::fs::write(folder.path().join("chat_template.json"), template.to_string()).unwrap();
    let files = ChatFiles::open(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    assert_eq!(files.template_source(), kimi_core::chat::TemplateSource::Json);
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    says(
        &ChatFiles::open(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string(),
        &["template", "compiled"],
    );
    std::fs::rename(folder.path().join("tiktoken.model"), folder.path().join("tokenizer.json")).unwrap();
    let error = ChatFiles::open(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string();
    says(&error, &["no tiktoken.model", "tokenizer.json is not read"]);
}
