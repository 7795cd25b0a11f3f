//! A checkpoint's tensors, unpacked to f32, as burn modules.

use burn::module::Param;
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::{Device, Tensor, TensorData};
use kimi_quant::cpu::dequantize;
use kimi_quant::{LatentProjections, Norm, PackedMatrix};

use super::rotary::attention_scale;
use super::{
    Attention, FeedForward, Layer, LowRankQuery, Mlp, Model, Moe, QueryProjection, ReferenceError, Rotary,
    Router,
};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::model::{self, StoredVector};
use crate::weights::Weights;

impl Model {
    /// Loads a checkpoint onto any burn device.
    ///
    /// # Errors
    /// [`ReferenceError::Weights`] names the module that is missing or does not fit.
    pub fn load_on(checkpoint: &Checkpoint, device: &Device) -> Result<Self, ReferenceError> {
        let (weights, config) = (Weights::new(checkpoint), checkpoint.config());
        let loader = Loader { config, device };
        weights.check_here(&(0..config.num_hidden_layers))?;
        let embedding = loader.matrix(&weights.embedding()?);
        let layers = 0..config.num_hidden_layers;
        let layers =
            layers.map(|i| Ok(loader.layer(&weights.layer(i)?))).collect::<Result<_, ReferenceError>>()?;
        let head = weights.head()?;
        Ok(Self {
            embed_tokens: Embedding { weight: Param::from_tensor(embedding) },
            layers,
            norm: loader.norm(&head.norm),
            lm_head: loader.linear(&head.lm_head),
        })
    }
}

struct Loader<'a> {
    config: &'a ModelConfig,
    device: &'a Device,
}

impl Loader<'_> {
    fn layer(&self, layer: &model::HostLayer) -> Layer {
        Layer {
            input_layernorm: self.norm(&layer.input_norm),
            self_attn: self.attention(&layer.attention),
            post_attention_layernorm: self.norm(&layer.post_norm),
            mlp: match &layer.feed_forward {
                model::FeedForward::Dense(mlp) => FeedForward::Dense(self.mlp(&mlp.gate, &mlp.up, &mlp.down)),
                model::FeedForward::Moe(moe) => FeedForward::Moe(self.moe(moe)),
            },
        }
    }

    fn attention(&self, attention: &model::Attention<PackedMatrix, StoredVector>) -> Attention {
        let c = self.config;
        let (heads, nope, value) = (c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim);
        let (latent_to_key, latent_to_value) = match &attention.latent {
            LatentProjections::Joint(kv_b) => {
                let kv_b = self.matrix(kv_b).reshape([heads, nope + value, c.kv_lora_rank]).swap_dims(1, 2);
                (kv_b.clone().narrow(2, 0, nope), kv_b.narrow(2, nope, value))
            }
            LatentProjections::Split { embed_q, unembed_out } => (
                self.matrix(embed_q).reshape([heads, c.kv_lora_rank, nope]),
                self.matrix(unembed_out).reshape([heads, value, c.kv_lora_rank]).swap_dims(1, 2),
            ),
        };
        Attention {
            query: match &attention.query {
                model::Query::Direct(q) => QueryProjection::Direct(self.linear(q)),
                model::Query::LowRank { a, norm, b } => QueryProjection::LowRank(LowRankQuery {
                    q_a_proj: self.linear(a),
                    q_a_layernorm: self.norm(norm),
                    q_b_proj: self.linear(b),
                }),
            },
            kv_a_proj_with_mqa: self.linear(&attention.kv_a),
            kv_a_layernorm: self.norm(&attention.kv_a_norm),
            latent_to_key: Param::from_tensor(latent_to_key),
            latent_to_value: Param::from_tensor(latent_to_value),
            o_proj: self.linear(&attention.output),
            rotary: Rotary::new(c),
            scale: attention_scale(c),
        }
    }

    fn moe(&self, moe: &model::Moe<PackedMatrix, Vec<PackedMatrix>, StoredVector>) -> Moe {
        let c = self.config;
        let projections = moe.gate.iter().zip(&moe.up).zip(&moe.down);
        Moe {
            gate: Router {
                gate: self.linear(&moe.router.gate),
                e_score_correction_bias: Param::from_tensor(self.vector(&moe.router.bias)),
                num_experts_per_tok: c.num_experts_per_tok,
                n_group: c.n_group,
                topk_group: c.topk_group,
                norm_topk_prob: c.norm_topk_prob,
                routed_scaling_factor: c.routed_scaling_factor.into(),
            },
            experts: projections.map(|((gate, up), down)| self.mlp(gate, up, down)).collect(),
            shared_experts: moe.shared.as_ref().map(|s| self.mlp(&s.gate, &s.up, &s.down)),
        }
    }

    fn mlp(&self, gate: &PackedMatrix, up: &PackedMatrix, down: &PackedMatrix) -> Mlp {
        Mlp { gate_proj: self.linear(gate), up_proj: self.linear(up), down_proj: self.linear(down) }
    }

    /// burn keeps a linear layer's weight as `[in, out]`.
    fn linear(&self, m: &PackedMatrix) -> Linear {
        Linear { weight: Param::from_tensor(self.matrix(m).transpose()), bias: None }
    }

    fn norm(&self, norm: &Norm<StoredVector>) -> RmsNorm {
        RmsNorm { gamma: Param::from_tensor(self.vector(&norm.weight)), epsilon: norm.eps.into() }
    }

    fn matrix(&self, m: &PackedMatrix) -> Tensor<2> {
        Tensor::from_data(TensorData::new(dequantize(m), [m.rows(), m.cols()]), self.device)
    }

    fn vector(&self, vector: &StoredVector) -> Tensor<1> {
        let values = vector.to_vec();
        let width = values.len();
        Tensor::from_data(TensorData::new(values, [width]), self.device)
    }
}
