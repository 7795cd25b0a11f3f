//! Rotary frequencies with YaRN (Peng et al., 2023; DeepSeek-V3's variant).

use std::f64::consts::PI;

use kimi_quant::Rope;

use crate::config::{ModelConfig, RopeScaling};

/// The rotary embedding of a model.
///
/// A pair's wavelength `base^(2i/d)` is kept where it turns more than `beta_fast` times in the original context,
/// multiplied by `factor` where it turns less than `beta_slow` times, and blended in between.
pub fn rope(config: &ModelConfig) -> Rope {
    let dims = config.qk_rope_head_dim;
    let wavelengths = (0..dims / 2).map(|i| config.rope_theta.powf(2.0 * i as f64 / dims as f64));
    match config.rope_scaling.filter(|s| s.ramp) {
        None => Rope { inv_freq: wavelengths.map(|w| 1.0 / w as f32).collect(), mscale: 1.0 },
        Some(s) => {
            let ramp = Ramp::new(&s, config.rope_theta, dims);
            let inv_freq = wavelengths.enumerate().map(|(i, w)| 1.0 / ramp.stretch(i, w) as f32).collect();
            let mscale = mscale(s.factor, s.mscale) / mscale(s.factor, s.mscale_all_dim);
            Rope { inv_freq, mscale: mscale as f32 }
        }
    }
}

/// Scale of the attention scores: `(nope + rope)^-0.5`, times the square of YaRN's mscale.
pub fn softmax_scale(config: &ModelConfig) -> f32 {
    let scale = (config.qk_head_dim() as f64).powf(-0.5);
    let stretched = config.rope_scaling.filter(|s| s.mscale_all_dim != 0.0);
    let m = stretched.map_or(1.0, |s| mscale(s.factor, s.mscale_all_dim));
    (scale * m * m) as f32
}

fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// Where, among the pairs, frequencies go from kept to stretched.
struct Ramp {
    low: f64,
    high: f64,
    factor: f64,
}

impl Ramp {
    fn new(s: &RopeScaling, base: f64, dims: usize) -> Self {
        let original = s.original_max_position_embeddings as f64;
        let pair_of = |turns: f64| dims as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let low = pair_of(s.beta_fast).floor().max(0.0);
        let mut high = pair_of(s.beta_slow).ceil().min(dims as f64 - 1.0);
        if low == high {
            high += 0.001; // Kimi-K2: beta_fast = beta_slow
        }
        Self { low, high, factor: s.factor }
    }

    fn stretch(&self, i: usize, wavelength: f64) -> f64 {
        let kept = 1.0 - ((i as f64 - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        let stretched = self.factor * wavelength;
        stretched * wavelength / (stretched * kept + wavelength * (1.0 - kept))
    }
}
