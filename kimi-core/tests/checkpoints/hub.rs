//! Small checkpoints with the tensors and the config that Moonshot's, DeepSeek's and NVIDIA's have on the hub.

use kimi_core::checkpoint::Checkpoint;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::stored::{Rng, Storage, Stored, write_shard};

/// Rows of the embedding.
pub(crate) const VOCABULARY: usize = 64;

/// Sizes that are no multiples of 128: the last blocks are partial, as those of K2's `kv_a_proj_with_mqa` are.
pub(crate) fn config(quantization: Value) -> Value {
    json!({
        "model_type": "kimi_k2", "num_hidden_layers": 2, "first_k_dense_replace": 1, "hidden_size": 160,
        "intermediate_size": 272, "moe_intermediate_size": 144, "vocab_size": VOCABULARY, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "num_attention_heads": 3, "kv_lora_rank": 96,
        "q_lora_rank": 176, "qk_nope_head_dim": 40, "qk_rope_head_dim": 8, "v_head_dim": 48,
        "routed_scaling_factor": 2.827, "rope_theta": 50000.0, "quantization_config": quantization,
    })
}

/// `quantization_config` of Moonshot's Kimi-K2-Instruct.
pub(crate) fn fp8() -> Value {
    json!({"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]})
}

/// That of modelopt's NVFP4.
pub(crate) fn modelopt() -> Value {
    json!({"quant_method": "modelopt", "quant_algo": "NVFP4"})
}

/// The tensors of the model, with `experts` and `dense` for those of its matrices that are quantized.
pub(crate) fn tensors(experts: Storage, dense: Storage) -> Vec<Stored> {
    let mut rng = Rng(77);
    let mut list = Vec::new();
    let bf16 = Storage::Float("BF16");
    let mut add = |storage: Storage, module: &str, rows: usize, cols: usize| {
        list.extend(storage.matrix(&mut rng, module, &[rows], cols));
    };
    add(bf16, "model.embed_tokens", VOCABULARY, 160);
    add(bf16, "lm_head", VOCABULARY, 160);
    for layer in 0..3 {
        // The last one is of the multi-token prediction, and not of the model.
        let path = format!("model.layers.{layer}");
        let attention = [
            ("q_a_proj", 176, 160),
            ("q_b_proj", 3 * 48, 176),
            ("kv_a_proj_with_mqa", 104, 160),
            ("kv_b_proj", 3 * 88, 96),
            ("o_proj", 160, 3 * 48),
        ];
        for (name, rows, cols) in attention {
            add(dense, &format!("{path}.self_attn.{name}"), rows, cols);
        }
        let mut mlp = |storage, path: &str, width| {
            add(storage, &format!("{path}.gate_proj"), width, 160);
            add(storage, &format!("{path}.up_proj"), width, 160);
            add(storage, &format!("{path}.down_proj"), 160, width);
        };
        if layer == 0 {
            mlp(dense, &format!("{path}.mlp"), 272);
            continue;
        }
        mlp(dense, &format!("{path}.mlp.shared_experts"), 144);
        (0..4).for_each(|e| mlp(experts, &format!("{path}.mlp.experts.{e}"), 144));
        add(bf16, &format!("{path}.mlp.gate"), 4, 160);
    }
    let mut vector = |name: String, dtype, width: usize| {
        let data = (0..width).map(|_| rng.float(0.7, 1.3));
        let data = match dtype {
            "F32" => data.flat_map(f32::to_le_bytes).collect(),
            _ => data.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        };
        list.push(Stored { name, dtype, shape: vec![width], data });
    };
    vector("model.norm.weight".to_owned(), "BF16", 160);
    for layer in 0..2 {
        let path = format!("model.layers.{layer}");
        vector(format!("{path}.input_layernorm.weight"), "BF16", 160);
        vector(format!("{path}.post_attention_layernorm.weight"), "BF16", 160);
        vector(format!("{path}.self_attn.q_a_layernorm.weight"), "BF16", 176);
        vector(format!("{path}.self_attn.kv_a_layernorm.weight"), "BF16", 96);
        vector(format!("{path}.self_attn.rotary_emb.inv_freq"), "F32", 4); // of old transformers; not read
    }
    vector("model.layers.1.mlp.gate.e_score_correction_bias".to_owned(), "F32", 4);
    list
}

pub(crate) fn write(config: &Value, tensors: &[Stored]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let all: Vec<&Stored> = tensors.iter().collect();
    write_shard(&folder.path().join("model.safetensors"), &all, 3);
    folder
}

pub(crate) fn checkpoint(config: &Value, tensors: &[Stored]) -> Checkpoint {
    Checkpoint::open(write(config, tensors).path()).unwrap() // maps outlive the folder's name
}
