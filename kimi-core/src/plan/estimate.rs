//! A model's bytes from its sizes alone, for checkpoints that are not here.

use super::ModelBytes;
use super::bytes::{hidden, states};
use crate::config::ModelConfig;

/// Bits of a weight on average, with its share of scales and biases.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AverageBits {
    /// Of the routed experts.
    pub experts: f64,
    /// Of all other matrices but the router, which is always in 16 bits.
    pub other: f64,
}

impl ModelBytes {
    /// Bytes of a model with these sizes, all layers of a kind alike.
    pub fn estimate(config: &ModelConfig, bits: AverageBits) -> Self {
        let c = config;
        let float = |dims: &[usize]| dims.iter().map(|d| *d as f64).product::<f64>();
        let (h, nh) = (c.hidden_size, c.num_attention_heads);
        let bytes = |weights: f64, bits: f64| weights * bits / 8.0;
        let table = bytes(float(&[c.vocab_size, h]), bits.other);
        let query = match c.q_lora_rank {
            None => float(&[nh, c.qk_head_dim(), h]),
            Some(ql) => float(&[ql, h]) + float(&[nh, c.qk_head_dim(), ql]),
        };
        let attention = query
            + float(&[c.cache_width(), h])
            + float(&[nh, c.qk_nope_head_dim + c.v_head_dim, c.kv_lora_rank])
            + float(&[h, nh, c.v_head_dim]);
        let norms = bytes((2 * h + c.q_lora_rank.unwrap_or(0) + c.kv_lora_rank) as f64, 16.0);
        let every = bytes(attention, bits.other) + norms;
        let dense = bytes(float(&[3, c.intermediate_size, h]), bits.other);
        let expert = bytes(float(&[3, c.moe_intermediate_size, h]), bits.experts);
        let beside = bytes(float(&[3, c.n_shared_experts, c.moe_intermediate_size, h]), bits.other)
            + bytes(float(&[c.n_routed_experts, h]), 16.0)
            + bytes(c.n_routed_experts as f64, 32.0);
        let layer = |index: usize, experts: usize| {
            let feed_forward = match c.is_moe(index) {
                true => beside + expert * experts as f64,
                false => dense,
            };
            (every + feed_forward) as u64
        };
        let all = |experts: usize| (0..c.num_hidden_layers).map(|index| layer(index, experts)).collect();
        Self {
            embedding: table as u64,
            layers: all(c.n_routed_experts),
            token_layers: all(c.num_experts_per_tok),
            head: (table + bytes(h as f64, 16.0)) as u64,
            hidden: hidden(config),
            states: states(config).collect(),
        }
    }

    /// Bytes of all weights.
    pub fn total(&self) -> u64 {
        self.weights(&(0..self.layers.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{Synthetic, SyntheticShape};
    use kimi_quant::BitWidth;

    #[test]
    fn an_estimate_is_what_a_model_of_these_sizes_takes() {
        for (shape, layers) in [(SyntheticShape::Tiny, 3), (SyntheticShape::KimiK2, 2)] {
            let config = shape.config(layers, None).unwrap();
            let exact = ModelBytes::of_source(&Synthetic::new(config.clone(), BitWidth::B4)).unwrap();
            let estimate = ModelBytes::estimate(&config, AverageBits { experts: 4.5, other: 4.5 });
            for (found, expected) in estimate.layers.iter().zip(&exact.layers) {
                assert!(found.abs_diff(*expected) <= 1, "{estimate:?} {exact:?}");
            }
            for (found, expected) in estimate.token_layers.iter().zip(&exact.token_layers) {
                assert!(found.abs_diff(*expected) <= 1, "{estimate:?} {exact:?}");
            }
            assert_eq!((estimate.embedding, estimate.head), (exact.embedding, exact.head));
            assert_eq!(estimate.states, exact.states);
        }
    }
}
