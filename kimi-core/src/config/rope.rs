//! How the context was stretched.

use super::number_text;

/// YaRN parameters (Peng et al., 2023), with the defaults of mlx-lm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// How many times the context was stretched.
    pub factor: f64,
    /// Rotations above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by the factor.
    pub beta_slow: f64,
    /// Numerator of the input's factor.
    pub mscale: f64,
    /// Denominator of the input's factor, and the source of the attention's extra scale.
    pub mscale_all_dim: f64,
    /// Context before stretching.
    pub original_max_position_embeddings: usize,
    /// Whether frequencies are ramped. mlx-lm applies the attention's extra scale even where they are not.
    pub ramp: bool,
}

impl RopeScaling {
    /// As `ModelConfig::deciding_values`. Without a ramp, only the attention's extra scale is left, if there is one.
    pub(super) fn deciding_values(self) -> Vec<(&'static str, String)> {
        let Self {
            factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            original_max_position_embeddings,
            ramp,
        } = self;
        let scales_attention = mscale_all_dim != 0.0 && factor > 1.0;
        if !ramp && !scales_attention {
            return Self::no_values();
        }
        let mut values = vec![
            ("rope_scaling.type", if ramp { "yarn" } else { "default" }.to_owned()),
            ("rope_scaling.factor", number_text(factor)),
            ("rope_scaling.mscale_all_dim", number_text(mscale_all_dim)),
        ];
        if ramp {
            values.extend([
                ("rope_scaling.beta_fast", number_text(beta_fast)),
                ("rope_scaling.beta_slow", number_text(beta_slow)),
                ("rope_scaling.mscale", number_text(mscale)),
                (
                    "rope_scaling.original_max_position_embeddings",
                    original_max_position_embeddings.to_string(),
                ),
            ]);
        }
        values
    }

    /// The values of a context that was not stretched.
    pub(super) fn no_values() -> Vec<(&'static str, String)> {
        vec![("rope_scaling.type", "default".to_owned())]
    }
}
