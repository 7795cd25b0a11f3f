//! The bytes of a model's parts, which plans are made of.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::layer_state::LayerState;
use crate::source::ModelSource;
use crate::weights::{WeightError, Weights};

/// Exact stored bytes of a model's parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelBytes {
    /// Embedding: in the first stage.
    pub embedding: u64,
    /// Each layer.
    pub layers: Vec<u64>,
    /// What a token reads of each layer: all but the experts that are not chosen.
    pub token_layers: Vec<u64>,
    /// Final norm and head: in the last stage.
    pub head: u64,
    /// A token's hidden state, as it goes over a link.
    pub hidden: u64,
    /// What each layer keeps of the tokens before.
    pub states: Vec<LayerState>,
}

impl ModelBytes {
    /// Reads a checkpoint's headers.
    ///
    /// # Errors
    /// [`WeightError`] if the tensors do not make the model.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, WeightError> {
        Self::of_source(&Weights::new(checkpoint))
    }

    /// The same of anything that has a model's weights.
    ///
    /// # Errors
    /// [`WeightError`] if they do not make the model.
    pub fn of_source(weights: &dyn ModelSource) -> Result<Self, WeightError> {
        let config = weights.config();
        let head = weights.head()?;
        let (mut layers, mut token_layers) = (Vec::new(), Vec::new());
        for index in 0..config.num_hidden_layers {
            let layer = weights.layer(index)?;
            layers.push(layer.bytes());
            token_layers.push(layer.token_bytes());
        }
        Ok(Self {
            embedding: weights.embedding()?.bytes(),
            layers,
            token_layers,
            head: head.lm_head.bytes() + head.norm.weight.data.len() as u64,
            hidden: hidden(config),
            states: states(config).collect(),
        })
    }

    /// Weight bytes that a token reads of a range of layers, with the head where it belongs. Of the embedding it is a row.
    pub fn token_weights(&self, layers: &Range<usize>) -> u64 {
        let head = if layers.end == self.layers.len() { self.head } else { 0 };
        self.token_layers.get(layers.clone()).map_or(0, |l| l.iter().sum::<u64>()) + head
    }

    /// Weight bytes of a range of layers, with the embedding or the head where they belong.
    pub fn weights(&self, layers: &Range<usize>) -> u64 {
        let ends = if layers.start == 0 { self.embedding } else { 0 }
            + if layers.end == self.layers.len() { self.head } else { 0 };
        self.layers.get(layers.clone()).map_or(0, |l| l.iter().sum::<u64>()) + ends
    }

    /// Cache bytes of a range of layers at a context length.
    pub fn cache(&self, layers: &Range<usize>, context: usize) -> u64 {
        let states = self.states.get(layers.clone()).unwrap_or_default();
        states.iter().fold(0, |sum, state| sum.saturating_add(state.bytes(context)))
    }
}

/// A token's hidden state in f32.
pub(super) fn hidden(config: &ModelConfig) -> u64 {
    (config.hidden_size * size_of::<f32>()) as u64
}

/// The states of all layers.
pub(super) fn states(config: &ModelConfig) -> impl Iterator<Item = LayerState> {
    (0..config.num_hidden_layers).map(|layer| LayerState::of(config, layer))
}

/// Cache bytes of a whole model for so many tokens.
pub fn cache_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    states(config).fold(0, |sum, state| sum.saturating_add(state.bytes(tokens)))
}

/// Bytes in a form for people: decimal units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
        let bytes = self.0 as f64;
        match units.into_iter().find(|(size, _)| bytes >= *size) {
            Some((size, unit)) => write!(f, "{:.1} {unit}", bytes / size),
            None => write!(f, "{} bytes", self.0),
        }
    }
}
