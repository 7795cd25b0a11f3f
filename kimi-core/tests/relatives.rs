//! Models that compute as Kimi-K2 does under other names, and those that do not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod checkpoints;

use std::sync::Arc;

use checkpoints::random::{Spec, fixed, write};
use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::config::ModelConfig;
use kimi_core::stage::{CacheConfig, Stage, StageOutput};
use kimi_core::weights::Weights;
use kimi_quant::Cpu;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Moonlight in small: queries without compression, no YaRN, two shared experts.
fn moonlight() -> Spec {
    let mut spec = fixed();
    spec.sizes.layers = 3;
    spec.heads.q_lora = None;
    spec.rope.theta = 50_000.0;
    spec.rope.scaling = Value::Null;
    let experts = &mut spec.experts;
    (experts.routed, experts.chosen, experts.shared, experts.factor) = (8, 6, 2, 2.446);
    (experts.groups, experts.kept_groups, experts.dense_first, experts.frequency) = (1, 1, 1, 1);
    spec.layout.tied = false;
    spec.layout.wrapper = None;
    spec
}

fn open(spec: &Spec) -> (Checkpoint, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    write(spec, folder.path());
    (Checkpoint::open(folder.path()).unwrap(), folder)
}

fn config(folder: &TempDir) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap()
}

/// The logits after each of five tokens.
fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let layers = 0..checkpoint.config().num_hidden_layers;
    let cache = CacheConfig { pages: 2, page_tokens: 4 };
    let mut stage = Stage::load(checkpoint, Arc::new(Cpu::new()), layers, cache, &mut |_| {}).unwrap();
    let tokens = vec![1, 5, 2, 7, 3];
    let slice =
        SequenceSlice { id: SequenceId(1), start: 0, tokens, pages: vec![1, 0], output: Output::AllLogits };
    let batch = Batch { step: 0, sequences: vec![slice], follows: None };
    match stage.forward(&batch, None, None).unwrap() {
        StageOutput::Sequences(outputs) => outputs[0].logits.clone(),
        StageOutput::Hidden(_) => panic!("the last stage gives logits"),
    }
}

#[test]
fn a_wrapper_that_sees_changes_nothing() {
    let (plain, _folder) = open(&moonlight());
    assert_eq!(Weights::new(&plain).unread(), None);
    let expected = logits(&plain);
    assert!(expected.iter().all(|x| x.is_finite()) && expected.iter().any(|x| *x != 0.0));
    for (wrapper, projector) in [("kimi_vl", "multi_modal_projector"), ("kimi_k25", "mm_projector")] {
        let mut spec = moonlight();
        spec.layout.wrapper = Some(wrapper);
        let (checkpoint, _folder) = open(&spec);
        assert_eq!(checkpoint.config().model_type, wrapper);
        assert_eq!(logits(&checkpoint), expected, "{wrapper}");
        assert_eq!(checkpoint.fingerprint(), plain.fingerprint(), "{wrapper}");
        let unread = Weights::new(&checkpoint).unread().unwrap();
        assert_eq!(unread.tensors, 2);
        let text = unread.to_string();
        for part in ["2 vision tensors", projector, "vision_tower.*", "are not read: ", "bytes"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}

#[test]
fn a_config_as_transformers_5_writes_it() {
    let (checkpoint, folder) = open(&moonlight());
    let mut new = config(&folder);
    new.remove("first_k_dense_replace");
    new.remove("rope_scaling");
    new.remove("rope_theta");
    let experts = new.remove("n_routed_experts").unwrap();
    let more = json!({
        "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}, "num_local_experts": experts,
        "dtype": "bfloat16", "layer_types": ["full_attention", "full_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"], "head_dim": 4, "qk_head_dim": 99,
        "rope_interleave": true, "attention_dropout": 0.0, "transformers_version": "5.7.0", "id2label": {"0": "x"},
        "use_cache": true, "pretraining_tp": 1, "num_nextn_predict_layers": 0, "ep_size": 1, "seq_aux": true,
    });
    new.extend(more.as_object().unwrap().clone());
    let changed = |key: &str, value: Value| {
        let mut config = new.clone();
        config.insert(key.to_owned(), value);
        ModelConfig::from_json(Value::Object(config).to_string().as_bytes())
    };
    let same =
        checkpoint.clone().with_config_json(Value::Object(new.clone()).to_string().as_bytes()).unwrap();
    assert_eq!(same.config().first_k_dense_replace, 1);
    assert_eq!(same.fingerprint(), checkpoint.fingerprint());
    for (key, value, part) in [
        ("mlp_layer_types", json!(["sparse", "dense", "sparse"]), "mlp_layer_types"),
        ("layer_types", json!(["full_attention", "linear_attention"]), "linear_attention"),
        ("first_k_dense_replace", json!(2), "mlp_layer_types"),
        ("rope_interleave", json!(false), "rope_interleave"),
        ("index_topk", json!(2048), "sparse attention"),
    ] {
        let error = changed(key, value).unwrap_err().to_string();
        assert!(error.contains(part), "{key}: {error}");
    }
}

/// The sizes of the published models, as far as they decide the arithmetic.
#[test]
fn moonlight_and_the_text_part_of_kimi_vl() {
    let text = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 163_840,
        "hidden_size": 2048, "intermediate_size": 11_264, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "routed_scaling_factor": 2.446, "kv_lora_rank": 512, "q_lora_rank": null,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "norm_topk_prob": true, "n_group": 1, "topk_group": 1, "moe_layer_freq": 1,
        "first_k_dense_replace": 1, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 50_000.0,
        "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    let moonlight = ModelConfig::from_json(text.to_string().as_bytes()).unwrap();
    assert_eq!((moonlight.q_lora_rank, moonlight.rope_scaling), (None, None));
    assert!(
        (moonlight.router_shape().scale - 2.446).abs() < 1e-6 && !moonlight.is_moe(0) && moonlight.is_moe(26)
    );
    let wrapped =
        json!({"model_type": "kimi_vl", "text_config": text, "vision_config": {"hidden_size": 1152}});
    let wrapped = ModelConfig::from_json(wrapped.to_string().as_bytes()).unwrap();
    assert_eq!(wrapped, ModelConfig { model_type: "kimi_vl".to_owned(), ..moonlight });
}

#[test]
fn other_architectures_are_named() {
    for (config, parts) in [
        (json!({"model_type": "kimi_linear"}), ["kimi_linear", "linear attention"]),
        (json!({"model_type": "kimi_k3"}), ["kimi_k3", "Kimi-K3"]),
        (json!({"model_type": "deepseek_v2"}), ["deepseek_v2", "softmax"]),
        (json!({"model_type": "deepseek_v32"}), ["deepseek_v32", "indexer"]),
        (json!({"model_type": "deepseek_vl_v2"}), ["deepseek_vl_v2", "DeepSeek-VL"]),
        (json!({"model_type": "qwen3_moe"}), ["qwen3_moe", "a Qwen"]),
        (json!({"model_type": "mamba"}), ["model_type is \"mamba\"", "kimi runs"]),
        (json!({"architectures": ["X"]}), ["model_type is missing", "kimi_k2"]),
        (json!({"model_type": "kimi_vl"}), ["text_config", "missing"]),
        (
            json!({"model_type": "kimi_k25", "text_config": {"model_type": "kimi_linear"}}),
            ["text_config.model_type is \"kimi_linear\"", "linear attention"],
        ),
        (
            json!({"model_type": "kimi_vl", "text_config": {"model_type": "qwen2"}}),
            ["text_config.model_type is \"qwen2\"", "a Qwen"],
        ),
    ] {
        let error = ModelConfig::from_json(config.to_string().as_bytes()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{config}: {part} is not in {error}");
        }
    }
}
