//! How precisely a model is asked to be computed.

use std::fmt;

use kimi_quant::Precision;

/// How precisely products are computed, whatever the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PrecisionChoice {
    /// As f32.
    #[default]
    Exact,
    /// With activations rounded to 14 bits and a sign, on a CPU whose kernels gain from it; elsewhere as f32.
    Close,
    /// With rounded activations, where the device has kernels that gain from it.
    Fast,
    /// The fastest that is at least as close to f32 as mlx-lm's bf16 is, by what was measured of each kind of device
    /// (docs/precision.md).
    Auto,
}

impl PrecisionChoice {
    /// On a CPU.
    pub fn on_cpu(self) -> Precision {
        self.or(Precision::Close)
    }

    /// On a GPU.
    pub fn on_gpu(self) -> Precision {
        self.or(Precision::Fast)
    }

    fn or(self, auto: Precision) -> Precision {
        match self {
            Self::Exact => Precision::Exact,
            Self::Close => Precision::Close,
            Self::Fast => Precision::Fast,
            Self::Auto => auto,
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Close => "close",
            Self::Fast => "fast",
            Self::Auto => "auto",
        })
    }
}
