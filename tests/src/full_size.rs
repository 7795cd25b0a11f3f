//! Writes a checkpoint with the names, shapes and bit mix of the real Kimi-K2 at 3.985 bits, as sparse files: 504 GB
//! by their headers, a few megabytes on the disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

const LAYERS: usize = 61;
const HIDDEN: usize = 7168;
const EXPERTS: usize = 384;
const GROUP: usize = 64;
/// Layers whose gate and up projections have 4 bits as their down projections have; the others have 3.
const WIDE_LAYERS: usize = 8;
/// Roughly what mlx-lm puts into a shard.
const SHARD_BYTES: u64 = 5 << 30;

/// A tensor to be written.
struct Planned {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
}

/// Writes the checkpoint into `folder` and returns the bytes of its tensors.
///
/// # Errors
/// If the disk refuses; the file system must know sparse files.
pub fn write(folder: &Path) -> io::Result<u64> {
    let mut model = Model::default();
    model.build();
    let total = model.tensors.iter().map(|t| t.bytes).sum();
    model.write(folder, total)?;
    Ok(total)
}

#[derive(Default)]
struct Model {
    tensors: Vec<Planned>,
    quantization: Map<String, Value>,
}

impl Model {
    fn build(&mut self) {
        self.quantization.extend([("group_size".to_owned(), json!(GROUP)), ("bits".to_owned(), json!(4))]);
        self.quantized("model.embed_tokens", &[163_840], HIDDEN, 3);
        for layer in 0..LAYERS {
            self.layer(&format!("model.layers.{layer}"), layer);
        }
        self.float("model.norm.weight", "BF16", &[HIDDEN]);
        self.quantized("lm_head", &[163_840], HIDDEN, 6);
    }

    fn layer(&mut self, path: &str, layer: usize) {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            self.float(&format!("{path}.{norm}.weight"), "BF16", &[HIDDEN]);
        }
        let attention = format!("{path}.self_attn");
        self.quantized(&format!("{attention}.q_a_proj"), &[1536], HIDDEN, 4);
        self.float(&format!("{attention}.q_a_layernorm.weight"), "BF16", &[1536]);
        self.quantized(&format!("{attention}.q_b_proj"), &[64 * 192], 1536, 4);
        self.quantized(&format!("{attention}.kv_a_proj_with_mqa"), &[576], HIDDEN, 4);
        self.float(&format!("{attention}.kv_a_layernorm.weight"), "BF16", &[512]);
        self.quantized(&format!("{attention}.kv_b_proj"), &[64 * 256], 512, 4);
        self.quantized(&format!("{attention}.o_proj"), &[HIDDEN], 64 * 128, 4);
        if layer == 0 {
            self.mlp(&format!("{path}.mlp"), &[], 18_432, 4, 4);
            return;
        }
        self.float(&format!("{path}.mlp.gate.weight"), "BF16", &[EXPERTS, HIDDEN]);
        self.float(&format!("{path}.mlp.gate.e_score_correction_bias"), "F32", &[EXPERTS]);
        let narrow = if layer <= WIDE_LAYERS { 4 } else { 3 };
        self.mlp(&format!("{path}.mlp.switch_mlp"), &[EXPERTS], 2048, narrow, 4);
        self.mlp(&format!("{path}.mlp.shared_experts"), &[], 2048, 4, 4);
    }

    fn mlp(&mut self, path: &str, stack: &[usize], width: usize, gate_up: usize, down: usize) {
        for name in ["gate_proj", "up_proj"] {
            self.quantized(&format!("{path}.{name}"), &[stack, &[width]].concat(), HIDDEN, gate_up);
        }
        self.quantized(&format!("{path}.down_proj"), &[stack, &[HIDDEN]].concat(), width, down);
    }

    fn quantized(&mut self, module: &str, leading: &[usize], cols: usize, bits: usize) {
        let shape = |last: usize| [leading, &[last]].concat();
        self.float(&format!("{module}.weight"), "U32", &shape(cols * bits / 32));
        self.float(&format!("{module}.scales"), "BF16", &shape(cols / GROUP));
        self.float(&format!("{module}.biases"), "BF16", &shape(cols / GROUP));
        self.quantization.insert(module.to_owned(), json!({"group_size": GROUP, "bits": bits}));
    }

    fn float(&mut self, name: &str, dtype: &'static str, shape: &[usize]) {
        let size = if dtype == "BF16" { 2 } else { 4 };
        let bytes = size * shape.iter().map(|&n| n as u64).product::<u64>();
        self.tensors.push(Planned { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes });
    }

    fn write(&self, folder: &Path, total: u64) -> io::Result<()> {
        let mut shards: Vec<Vec<&Planned>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in &self.tensors {
            if filled > 0 && filled + tensor.bytes > SHARD_BYTES {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += tensor.bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        let mut weight_map = Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
            write_shard(&folder.join(&name), shard)?;
            weight_map.extend(shard.iter().map(|t| (t.name.clone(), json!(name))));
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
        std::fs::write(folder.join("config.json"), self.config().to_string())
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2",
            "attention_bias": false, "bos_token_id": 163584, "eos_token_id": 163585,
            "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 18432,
            "kv_lora_rank": 512, "max_position_embeddings": 131072, "moe_intermediate_size": 2048,
            "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
            "norm_topk_prob": true, "num_attention_heads": 64, "num_experts_per_tok": 8,
            "num_hidden_layers": LAYERS, "num_key_value_heads": 64, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "routed_scaling_factor": 2.827,
            "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
            "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 1, "topk_method": "noaux_tc",
            "v_head_dim": 128, "vocab_size": 163840,
            "quantization": self.quantization, "quantization_config": self.quantization,
        })
    }
}

fn write_shard(path: &Path, tensors: &[&Planned]) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
    let mut end = 0;
    for t in tensors {
        let start = end;
        end += t.bytes;
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [start, end]});
        header.insert(t.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.set_len(8 + header.len() as u64 + end) // the rest is a hole that reads as zeros
}
