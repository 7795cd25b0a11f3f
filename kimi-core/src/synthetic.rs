//! Models of random weights, for measurements: the shapes of the real one, and no file.

use bytes::Bytes;
use kimi_quant::{BitWidth, FloatType, Format, LatentProjections, Norm, PackedMatrix, RandomWeights, Router};
use serde_json::json;

use crate::config::{ConfigError, ModelConfig};
use crate::model::{Attention, FeedForward, Head, HostHead, HostLayer, Layer, Mlp, Moe, Query, StoredVector};
use crate::source::ModelSource;
use crate::weights::WeightError;

/// Weights that share a scale.
const GROUP: usize = 64;

/// Matrices of one layer, or more: so far apart are the seeds of two layers.
const SEEDS: usize = 1 << 14;

/// Which model's shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyntheticShape {
    /// Kimi-K2: 384 experts of 2048x7168, 8 of them chosen.
    KimiK2,
    /// The same architecture in a megabyte, for tests.
    Tiny,
}

impl SyntheticShape {
    /// Layers of the whole model.
    pub fn layers(self) -> usize {
        match self {
            Self::KimiK2 => 61,
            Self::Tiny => 3,
        }
    }

    /// Its config with another number of layers or experts.
    ///
    /// # Errors
    /// [`ConfigError`] if a number is out of range, such as fewer experts than are chosen.
    pub fn config(self, layers: usize, experts: Option<usize>) -> Result<ModelConfig, ConfigError> {
        let common = json!({
            "model_type": "kimi_k2", "num_hidden_layers": layers, "first_k_dense_replace": 1,
            "n_shared_experts": 1, "routed_scaling_factor": 2.827, "rms_norm_eps": 1e-6, "rope_theta": 50000.0,
            "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
            "max_position_embeddings": 131072,
        });
        let sizes = match self {
            Self::KimiK2 => json!({
                "vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 18432,
                "moe_intermediate_size": 2048, "n_routed_experts": experts.unwrap_or(384),
                "num_experts_per_tok": 8, "num_attention_heads": 64, "kv_lora_rank": 512, "q_lora_rank": 1536,
                "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            }),
            Self::Tiny => json!({
                "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
                "moe_intermediate_size": 64, "n_routed_experts": experts.unwrap_or(8),
                "num_experts_per_tok": 4, "num_attention_heads": 4, "kv_lora_rank": 64, "q_lora_rank": 64,
                "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
            }),
        };
        let mut whole = common;
        if let (Some(whole), Some(sizes)) = (whole.as_object_mut(), sizes.as_object()) {
            whole.extend(sizes.clone());
        }
        ModelConfig::from_json(whole.to_string().as_bytes())
    }
}

/// A model of random weights: the router in bf16, all other matrices affine, in groups of 64. Its matrices are cut from
/// one block of the size of the largest, so that the model takes no more memory than that. The same on every machine.
#[derive(Debug)]
pub struct Synthetic {
    config: ModelConfig,
    format: Format,
    random: RandomWeights,
}

impl Synthetic {
    /// With the sizes of `config`, in `bits` bits.
    pub fn new(config: ModelConfig, bits: BitWidth) -> Self {
        let c = &config;
        let mlp = c.intermediate_size.max(c.moe_intermediate_size * c.n_shared_experts.max(1));
        let heads = c.num_attention_heads * c.qk_head_dim().max(c.qk_nope_head_dim + c.v_head_dim);
        let widest = c.hidden_size.max(c.q_lora_rank.unwrap_or(0)).max(c.kv_lora_rank);
        let largest = (c.vocab_size.max(mlp) * c.hidden_size).max(heads * widest);
        let bytes = largest * bits.bits() / 8;
        let random = RandomWeights::new(bytes + bytes.clamp(1 << 16, 64 << 20)); // room to begin elsewhere
        Self { config, format: Format::Affine { bits, group: GROUP, scales: FloatType::Bf16 }, random }
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, seed: usize) -> Result<PackedMatrix, WeightError> {
        self.stored(name, rows, cols, self.format, seed)
    }

    fn stored(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        format: Format,
        seed: usize,
    ) -> Result<PackedMatrix, WeightError> {
        let made = self.random.matrix(rows, cols, format, seed);
        made.map_err(|cause| WeightError::Format { module: name.to_owned(), cause })
    }

    fn norm(&self, width: usize, eps: f32) -> Norm<StoredVector> {
        let data: Bytes = [0x80, 0x3f].repeat(width).into(); // ones
        Norm { weight: StoredVector { data, float: FloatType::Bf16 }, eps }
    }

    fn attention(&self, seed: usize) -> Result<Attention<PackedMatrix, StoredVector>, WeightError> {
        let c = &self.config;
        let (h, nh, kl) = (c.hidden_size, c.num_attention_heads, c.kv_lora_rank);
        let inner = |width| self.norm(width, ModelConfig::INNER_NORM_EPS);
        let query = match c.q_lora_rank {
            None => Query::Direct(self.matrix("q_proj", nh * c.qk_head_dim(), h, seed)?),
            Some(ql) => Query::LowRank {
                a: self.matrix("q_a_proj", ql, h, seed)?,
                norm: inner(ql),
                b: self.matrix("q_b_proj", nh * c.qk_head_dim(), ql, seed + 1)?,
            },
        };
        let kv_b = self.matrix("kv_b_proj", nh * (c.qk_nope_head_dim + c.v_head_dim), kl, seed + 3)?;
        Ok(Attention {
            query,
            kv_a: self.matrix("kv_a_proj_with_mqa", kl + c.qk_rope_head_dim, h, seed + 2)?,
            kv_a_norm: inner(kl),
            latent: LatentProjections::Joint(kv_b),
            output: self.matrix("o_proj", h, nh * c.v_head_dim, seed + 4)?,
        })
    }

    fn mlp(&self, width: usize, seed: usize) -> Result<Mlp<PackedMatrix>, WeightError> {
        let h = self.config.hidden_size;
        Ok(Mlp {
            gate: self.matrix("gate_proj", width, h, seed)?,
            up: self.matrix("up_proj", width, h, seed + 1)?,
            down: self.matrix("down_proj", h, width, seed + 2)?,
        })
    }

    fn moe(&self, seed: usize) -> Result<Moe<PackedMatrix, Vec<PackedMatrix>, StoredVector>, WeightError> {
        let c = &self.config;
        let (h, f, e) = (c.hidden_size, c.moe_intermediate_size, c.n_routed_experts);
        let experts = |rows, cols, first: usize| {
            (0..e)
                .map(|i| self.matrix("switch_mlp", rows, cols, first + 3 * i))
                .collect::<Result<Vec<_>, _>>()
        };
        let router = Router {
            gate: self.stored("mlp.gate", e, h, Format::Float(FloatType::Bf16), seed)?,
            bias: StoredVector { data: vec![0; 4 * e].into(), float: FloatType::F32 },
            shape: c.router_shape(),
        };
        let shared = match c.n_shared_experts {
            0 => None,
            n => Some(self.mlp(n * f, seed + 1)?),
        };
        let first = seed + 4;
        Ok(Moe {
            router,
            gate: experts(f, h, first)?,
            up: experts(f, h, first + 1)?,
            down: experts(h, f, first + 2)?,
            shared,
        })
    }
}

impl ModelSource for Synthetic {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<PackedMatrix, WeightError> {
        self.matrix("embed_tokens", self.config.vocab_size, self.config.hidden_size, 1)
    }

    fn layer(&self, index: usize) -> Result<HostLayer, WeightError> {
        let c = &self.config;
        let seed = (index + 1) * SEEDS;
        Ok(Layer {
            input_norm: self.norm(c.hidden_size, c.rms_norm_eps),
            attention: self.attention(seed)?,
            post_norm: self.norm(c.hidden_size, c.rms_norm_eps),
            feed_forward: match c.is_moe(index) {
                true => FeedForward::Moe(self.moe(seed + 8)?),
                false => FeedForward::Dense(self.mlp(c.intermediate_size, seed + 8)?),
            },
        })
    }

    fn head(&self) -> Result<HostHead, WeightError> {
        let c = &self.config;
        let lm_head = self.matrix("lm_head", c.vocab_size, c.hidden_size, 2)?;
        Ok(Head { norm: self.norm(c.hidden_size, c.rms_norm_eps), lm_head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ModelBytes;

    #[test]
    fn kimi_k2_has_its_real_size() {
        let config = SyntheticShape::KimiK2.config(2, Some(8)).unwrap();
        let model = Synthetic::new(config, BitWidth::B4);
        let bytes = ModelBytes::of_source(&model).unwrap();
        // 4.5 bits a weight: 163,840 x 7168; attention 101 M weights, dense MLP 396 M.
        assert_eq!(bytes.embedding, 163_840 * 7168 / 16 * 9);
        assert!((0.27e9..0.29e9).contains(&(bytes.layers[0] as f64)), "{bytes:?}");
    }

    #[test]
    fn fewer_experts_than_are_chosen_are_refused() {
        let error = SyntheticShape::Tiny.config(1, Some(3)).unwrap_err().to_string();
        assert!(error.contains("num_experts_per_tok"), "{error}");
    }
}
