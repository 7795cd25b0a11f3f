//! What a layer remembers of the tokens before.

use serde::Serialize;

use crate::config::ModelConfig;

/// What a layer keeps of each sequence. The plan counts its bytes, a stage makes room for it, and the assignment of a
/// worker names its kind. All of them match on it, so that a layer with another kind of state, such as the sums of a
/// recurrent layer, is one more member here and a compile error wherever it has to be dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LayerState {
    /// Pages of the latent cache: a row of f32 for each token.
    LatentPages {
        /// Values in a row: the latent and the rotated key.
        width: usize,
    },
}

impl LayerState {
    /// The state of a layer of a model: all have the same kind today.
    pub fn of(config: &ModelConfig, _layer: usize) -> Self {
        Self::LatentPages { width: config.cache_width() }
    }

    /// Its bytes for so many tokens.
    pub fn bytes(self, tokens: usize) -> u64 {
        match self {
            Self::LatentPages { width } => 4_u64.saturating_mul(width as u64).saturating_mul(tokens as u64),
        }
    }
}
