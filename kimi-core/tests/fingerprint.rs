//! What changes a checkpoint's fingerprint, what does not, and that the difference is named.
#![allow(clippy::unwrap_used)] // a test may
#![cfg(feature = "tiny")]

use std::path::Path;

use kimi_core::Checkpoint;
use kimi_core::fingerprint::Description;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/kimi-tiny");
const SHARD: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn tiny() -> Checkpoint {
    Checkpoint::kimi_tiny().unwrap()
}

fn config() -> Map<String, Value> {
    serde_json::from_slice(&tiny().file("config.json").unwrap().unwrap()).unwrap()
}

/// kimi-tiny under a changed config.
fn with_config(change: impl FnOnce(&mut Map<String, Value>)) -> Description {
    let mut config = config();
    change(&mut config);
    tiny().with_config_json(Value::Object(config).to_string().as_bytes()).unwrap().description()
}

/// A shard's header, and the bytes after it.
type Parsed = (Map<String, Value>, Vec<u8>);

fn read_shard() -> Parsed {
    let file = std::fs::read(Path::new(ASSETS).join(SHARD)).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data.to_vec())
}

fn write_shard(folder: &TempDir, name: &str, (header, data): &Parsed) {
    let header = Value::Object(header.clone()).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(folder.path().join(name), file).unwrap();
}

/// A folder with this config and nothing else.
fn folder(config: &Map<String, Value>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), Value::Object(config.clone()).to_string()).unwrap();
    folder
}

/// kimi-tiny with a changed shard.
fn with_shard(change: impl FnOnce(&mut Parsed)) -> Description {
    let folder = folder(&config());
    let mut shard = read_shard();
    change(&mut shard);
    write_shard(&folder, SHARD, &shard);
    Checkpoint::open(folder.path()).unwrap().description()
}

#[track_caller]
fn same(theirs: &Description) {
    assert_eq!(tiny().description().difference(theirs), None);
    assert_eq!(tiny().fingerprint(), theirs.fingerprint());
}

#[track_caller]
fn differ(theirs: &Description, part: &str) {
    let ours = tiny().description();
    let text = ours.difference(theirs).unwrap().between("here", "at the coordinator");
    assert!(text.contains(part), "{text:?} does not say {part:?}");
    assert_ne!(ours.fingerprint(), theirs.fingerprint());
    let of_config = text.starts_with("config.json");
    assert_eq!(ours.config_hash() != theirs.config_hash(), of_config, "{text}");
    assert!(of_config || ours.tensors_hash() != theirs.tensors_hash(), "{text}");
}

/// Two releases with the same version must agree. If this fails because the canonical form was changed on purpose,
/// raise `Description::VERSION`.
#[test]
fn kimi_tiny_has_this_fingerprint() {
    let description = tiny().description();
    let hex: String = description.fingerprint().iter().map(|b| format!("{b:02x}")).collect();
    let config: Vec<_> = description.config.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    assert_eq!(
        (description.version, hex.as_str()),
        (1, "d75544cfc8ce1fbfb404a9debd42fdc30cb5185d3f7afc3fa840bbf10809eb64"),
        "{config:#?}"
    );
}

#[test]
fn what_computes_the_same_has_the_same_fingerprint() {
    same(&with_config(|c| *c = c.clone().into_iter().rev().collect()));
    for other in ["deepseek_v3", "kimi_k2"] {
        same(&with_config(|c| c["model_type"] = json!(other)));
    }
    same(&with_config(|c| {
        *c = json!({"model_type": "kimi_k25", "text_config": c}).as_object().unwrap().clone()
    }));
    same(&with_config(|c| c["max_position_embeddings"] = json!(1 << 20)));
    same(&with_config(|c| c["eos_token_id"] = json!([1, 2])));
    same(&with_config(|c| _ = c.insert("use_cache".into(), json!(true))));
    same(&with_config(|c| _ = c.insert("tie_word_embeddings".into(), json!(true)))); // lm_head is stored
    same(&with_config(|c| _ = c.remove("norm_topk_prob"))); // the default
    same(&with_config(|c| c["rope_theta"] = json!(c["rope_theta"].as_f64().unwrap())));
}

#[test]
fn quantization_entries_that_the_shapes_imply_do_not_count() {
    same(&with_config(|c| _ = c.remove("quantization")));
    same(&with_config(|c| _ = c["quantization"].as_object_mut().unwrap().remove("model.embed_tokens")));
    same(&with_config(|c| c["quantization"]["bits"] = json!(8)));
}

#[test]
fn config_values_that_decide_the_computation_are_named() {
    for (key, value) in [
        ("rope_theta", json!(12345.5)),
        ("rms_norm_eps", json!(1e-3)),
        ("routed_scaling_factor", json!(1.25)),
        ("num_experts_per_tok", json!(3)),
    ] {
        let theirs = with_config(|c| c[key] = value.clone());
        differ(&theirs, &format!("config.json: {key} is "));
        differ(&theirs, &format!(" here and {value} at the coordinator"));
    }
    differ(&with_config(|c| c["norm_topk_prob"] = json!(false)), "norm_topk_prob is true here and false");
}

#[test]
fn yarn_is_named() {
    let yarn =
        |factor: f64| json!({"type": "yarn", "factor": factor, "original_max_position_embeddings": 128});
    let of = |factor| with_config(|c| _ = c.insert("rope_scaling".into(), yarn(factor)));
    let text = of(32.0).difference(&of(16.0)).unwrap().to_string();
    assert!(text.contains("rope_scaling.factor is 32 here and 16 on the other machine"), "{text}");
    let none = with_config(|c| _ = c.insert("rope_scaling".into(), Value::Null));
    let text = none.difference(&of(16.0)).unwrap().to_string();
    assert!(text.contains("rope_scaling.type is default here and yarn"), "{text}");
    // Without a ramp and an extra scale, there is nothing to stretch.
    let default = json!({"rope_type": "default", "factor": 7.0});
    let default = with_config(|c| _ = c.insert("rope_scaling".into(), default));
    assert_eq!(none.difference(&default), None);
}

#[test]
fn the_layout_of_the_shards_does_not_count() {
    let folder = folder(&config());
    let (header, data) = read_shard();
    let mut weight_map = Map::new();
    // The even tensors in one shard, the odd ones in the other.
    for (shard, odd) in [("model-2.safetensors", 0), ("model-1.safetensors", 1)] {
        let (mut part, mut bytes) = (Map::new(), Vec::new());
        let tensors = header.iter().filter(|(name, _)| *name != "__metadata__").enumerate();
        for (_, (name, info)) in tensors.filter(|(i, _)| i % 2 == odd) {
            let offset = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
            let start = bytes.len();
            bytes.extend_from_slice(&data[offset(0)..offset(1)]);
            let mut info = info.clone();
            info["data_offsets"] = json!([start, bytes.len()]);
            part.insert(name.clone(), info);
            weight_map.insert(name.clone(), json!(shard));
        }
        write_shard(&folder, shard, &(part, bytes));
    }
    std::fs::write(folder.path().join(INDEX), json!({"weight_map": weight_map}).to_string()).unwrap();
    same(&Checkpoint::open(folder.path()).unwrap().description());
}

/// The header's entry of a tensor.
fn entry<'a>((header, _): &'a mut Parsed, name: &str) -> &'a mut Value {
    header.get_mut(name).unwrap()
}

fn rename(shard: &mut Parsed, name: &str, to: &str) {
    let info = shard.0.remove(name).unwrap();
    shard.0.insert(to.to_owned(), info);
}

#[test]
fn names_with_a_prefix_and_parts_that_are_not_read_do_not_count() {
    same(&with_shard(|(header, _)| {
        let tensors = std::mem::take(header).into_iter().filter(|(name, _)| name != "__metadata__");
        *header = tensors.map(|(name, info)| (format!("language_model.{name}"), info)).collect();
    }));
    for name in ["vision_tower.patch.weight", "model.layers.6.eh_proj.weight"] {
        same(&with_shard(|(header, data)| {
            let range = [data.len(), data.len() + 4];
            data.extend_from_slice(&[1; 4]);
            header.insert(name.into(), json!({"dtype": "F32", "shape": [1], "data_offsets": range}));
        }));
    }
}

#[test]
fn a_changed_tensor_is_named_by_its_group() {
    const NORM: &str = "model.layers.3.input_layernorm.weight";
    let of_layer_3 = "the tensors of model.layers.3 differ here and at the coordinator";
    same(&with_shard(|_| ()));
    differ(&with_shard(|s| entry(s, NORM)["dtype"] = json!("F16")), of_layer_3);
    differ(&with_shard(|s| entry(s, NORM)["shape"] = json!([2, 128])), of_layer_3);
    differ(&with_shard(|s| rename(s, NORM, "model.layers.3.input_norm.weight")), of_layer_3);
    differ(
        &with_shard(|s| entry(s, "lm_head.scales")["dtype"] = json!("F16")),
        "the tensors of lm_head differ",
    );
    differ(&with_shard(|s| entry(s, "model.norm.weight")["dtype"] = json!("F16")), "of model.norm differ");
    let first_byte = |s: &mut Parsed| {
        // The first tensor of a group is always among those that are looked into.
        let at = entry(s, NORM)["data_offsets"][0].as_u64().unwrap() as usize;
        s.1[at] ^= 1;
    };
    differ(&with_shard(first_byte), of_layer_3);
    let moved = with_shard(|s| rename(s, NORM, "model.layers.2.moved.weight"));
    differ(&moved, "the tensors of model.layers.2 and of 1 other group differ");
    let gone = with_shard(|s| rename(s, "model.norm.weight", "model.layers.5.norm.weight"));
    differ(&gone, "the tensors of model.layers.5 and of 1 other group differ");
}

/// 4 bits in groups of 64 and 8 bits in groups of 32 have the same number of words a scale.
#[test]
fn bits_that_shapes_alone_cannot_tell_count() {
    let module = "model.layers.3.self_attn.o_proj";
    let stored = |bits, group_size| {
        with_config(|c| c["quantization"][module] = json!({"bits": bits, "group_size": group_size}))
    };
    same(&stored(4, 64));
    differ(&stored(8, 32), "the tensors of model.layers.3 differ");
    let mxfp4 = json!({"bits": 4, "group_size": 64, "mode": "mxfp4"});
    differ(&with_config(|c| c["quantization"][module] = mxfp4), "the tensors of model.layers.3 differ");
    // Half the inputs, so twice the bits: the same shapes.
    let halved = with_config(|c| c["hidden_size"] = json!(128));
    let text = tiny().description().difference(&halved).unwrap().to_string();
    assert!(text.contains("hidden_size is 256 here and 128"), "{text}");
    assert_ne!(tiny().description().tensors_hash(), halved.tensors_hash());
}

/// One small tensor a layer, under Kimi-K2's config.
fn many_layers(layers: usize) -> Description {
    let mut config = json!({
        "model_type": "kimi_k2", "num_hidden_layers": layers, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "routed_scaling_factor": 2.827, "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "vocab_size": 163840,
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 384,
        "num_experts_per_tok": 8, "num_attention_heads": 64, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    });
    config["rope_scaling"] = json!({"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096});
    let names = (0..layers).map(|layer| format!("model.layers.{layer}.input_layernorm.weight"));
    let ends = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(str::to_owned);
    let header = names
        .chain(ends)
        .enumerate()
        .map(|(i, name)| (name, json!({"dtype": "BF16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]})));
    let folder = folder(config.as_object().unwrap());
    write_shard(&folder, SHARD, &(header.collect(), vec![0; 2 * (layers + 3)]));
    Checkpoint::open(folder.path()).unwrap().description()
}

#[test]
fn descriptions_are_small() {
    for (layers, groups, limit) in [(61, 64, 6 << 10), (2000, 260, Description::MAX_BYTES)] {
        let description = many_layers(layers);
        assert_eq!(description.tensors.len(), groups);
        let bytes = postcard::to_stdvec(&description).unwrap();
        assert!(bytes.len() <= limit, "{layers} layers take {} bytes", bytes.len());
        let back: Description = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back, description);
        assert_eq!(back.fingerprint(), description.fingerprint());
    }
    let text = many_layers(300).difference(&many_layers(301)).unwrap().to_string();
    assert!(text.contains("num_hidden_layers is 300 here and 301"), "{text}");
    assert_ne!(many_layers(300).tensors_hash(), many_layers(301).tensors_hash());
}
