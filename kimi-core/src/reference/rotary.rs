//! Rotary embedding of interleaved pairs, with YaRN (Peng et al., 2023; as DeepSeek-V3 and mlx-lm have it).

use std::f64::consts::PI;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use crate::config::{ModelConfig, RopeScaling};

/// Rotates pairs `(2i, 2i + 1)` of a head by an angle that grows with the position.
#[derive(Module, Debug)]
pub struct Rotary {
    /// Radians a position for each pair, `[rope / 2]`.
    #[module(skip)]
    pub frequencies: Vec<f64>,
    /// Factor on the input, YaRN's `mscale / mscale_all_dim`; 1 for Kimi-K2.
    pub magnitude: f64,
}

impl Rotary {
    /// The rotary embedding that a config asks for.
    pub fn new(config: &ModelConfig) -> Self {
        let width = config.qk_rope_head_dim as f64;
        let plain = (0..config.qk_rope_head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / width));
        let Some(yarn) = config.rope_scaling.filter(|s| s.ramp) else {
            return Self { frequencies: plain.collect(), magnitude: 1.0 };
        };
        // The (fractional) pair that turns `turns` times within the original context.
        let pair = |turns: f64| {
            let original = yarn.original_max_position_embeddings as f64;
            width * (original / (2.0 * PI * turns)).ln() / (2.0 * config.rope_theta.ln())
        };
        let first = pair(yarn.beta_fast).floor().max(0.0);
        let last = pair(yarn.beta_slow).ceil().min(width - 1.0);
        let last = if first == last { last + 0.001 } else { last };
        let blend = |(i, frequency): (usize, f64)| {
            let slowed = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            frequency * (1.0 - slowed) + frequency / yarn.factor * slowed
        };
        Self {
            frequencies: plain.enumerate().map(blend).collect(),
            magnitude: mscale(&yarn, yarn.mscale) / mscale(&yarn, yarn.mscale_all_dim),
        }
    }

    /// `x [n, T, rope]`, the tokens from position `start` on, rotated.
    pub fn forward(&self, x: Tensor<3>, start: usize) -> Tensor<3> {
        let [n, tokens, rope] = x.dims();
        let pairs = rope / 2;
        let angles = (start..start + tokens).flat_map(|p| self.frequencies.iter().map(move |f| p as f64 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            angles.map(f64::sin_cos).map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        let device = x.device();
        let factor = |values| Tensor::<4>::from_data(TensorData::new(values, [1, tokens, pairs, 1]), &device);
        let (sin, cos) = (factor(sin), factor(cos)); // [1, T, rope / 2, 1]

        let x = (x * self.magnitude).reshape([n, tokens, pairs, 2]);
        let (a, b) = (x.clone().narrow(3, 0, 1), x.narrow(3, 1, 1));
        let turned_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let turned_b = a * sin + b * cos;
        Tensor::cat(vec![turned_a, turned_b], 3).reshape([n, tokens, rope])
    }
}

/// Factor on the attention scores: `(nope + rope)^-0.5`, times the square of YaRN's magnitude.
pub(super) fn attention_scale(config: &ModelConfig) -> f64 {
    let magnitude = config.rope_scaling.map_or(1.0, |yarn| mscale(&yarn, yarn.mscale_all_dim));
    magnitude * magnitude / (config.qk_head_dim() as f64).sqrt()
}

/// YaRN's growth of magnitudes with the stretched context.
fn mscale(yarn: &RopeScaling, weight: f64) -> f64 {
    if yarn.factor > 1.0 { 1.0 + 0.1 * weight * yarn.factor.ln() } else { 1.0 }
}
