//! Kimi-K2 as plain [burn] modules in f32: the readable truth that the engine is tested against.
//!
//! It shares nothing with the engine but the reading and unpacking of tensors. Attention has keys and values of
//! every head instead of absorbed projections over a latent cache, experts run one token at a time, and the rotary
//! frequencies are computed here once more. So a mistake in one of the two shows as a difference.
//!
//! Every part is a public [`Module`], to be taken apart and put to other uses: on another device
//! ([`Model::load_on`]), in a training loop, in a larger model. All weights are unpacked to f32, 4 bytes each: this is
//! for small checkpoints, not for the 1T one.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kimi_core::{checkpoint::Checkpoint, reference::Model};
//!
//! let model = Model::load(&Checkpoint::open("a_checkpoint")?)?;
//! println!("{model}");
//! let logits = model.forward(&[1, 2, 3])?; // [3, V]
//! let answer = model.greedy(&[1, 2, 3], 16)?;
//! # Ok(())
//! # }
//! ```
//!
//! Notation: `T` new tokens, `S` all tokens so far, `H` hidden size, `V` vocabulary, `nh` heads, `nope`/`rope` the
//! parts of a head's query and key, `vd` its value width, `ql`/`kl` the widths of the compressed query and of the
//! latent, `E` experts, `k` chosen, `F` their width.

mod attention;
mod feed_forward;
mod load;
mod rotary;

use burn::module::Module;
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::{Device, Int, Tensor, TensorData, TensorReadError};

pub use attention::{Attention, KeyValues, LowRankQuery, QueryProjection};
pub use feed_forward::{Choice, FeedForward, Mlp, Moe, Router};
pub use rotary::Rotary;

use crate::checkpoint::Checkpoint;
use crate::weights::WeightError;

/// Why the reference model did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The checkpoint's tensors do not make the model.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A token that the model does not have.
    #[error("token id {found} is not in the vocabulary; ids go from 0 to {last}")]
    Token {
        /// The id.
        found: u32,
        /// The largest id there is.
        last: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty; greedy decoding continues at least one token")]
    EmptyPrompt,
    /// The device failed.
    #[error("burn's device failed: {0}")]
    Device(#[from] TensorReadError),
}

/// The whole model.
#[derive(Module, Debug)]
pub struct Model {
    /// `[V, H]`.
    pub embed_tokens: Embedding,
    /// One after the other.
    pub layers: Vec<Layer>,
    /// `[H]`.
    pub norm: RmsNorm,
    /// `H` to `V`.
    pub lm_head: Linear,
}

/// One layer: attention, then a feed-forward part, each added to the residual stream.
#[derive(Module, Debug)]
pub struct Layer {
    /// `[H]`.
    pub input_layernorm: RmsNorm,
    /// Multi-head latent attention.
    pub self_attn: Attention,
    /// `[H]`.
    pub post_attention_layernorm: RmsNorm,
    /// Dense in the first layers, experts after them.
    pub mlp: FeedForward,
}

/// What a sequence's earlier tokens left behind: keys and values of every layer. A new one is empty.
///
/// After an error it holds a part of a step and must not be used again.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    layers: Vec<KeyValues>,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }
}

/// All that a forward pass computed, for comparing layer by layer.
#[derive(Debug, Clone)]
pub struct Activations {
    /// The residual stream after each layer, `[T, H]`.
    pub layers: Vec<Tensor<2>>,
    /// The choice of experts of each layer and token; empty for a dense layer.
    pub choices: Vec<Vec<Choice>>,
    /// `[T, V]`.
    pub logits: Tensor<2>,
}

impl Model {
    /// Loads a checkpoint onto burn's CPU device.
    ///
    /// # Errors
    /// [`ReferenceError::Weights`] names the module that is missing or does not fit.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, ReferenceError> {
        Self::load_on(checkpoint, &Device::flex())
    }

    /// Logits of every token of a sequence, `[T, V]` row by row.
    ///
    /// Takes `nh * T * T` scores a layer: meant for hundreds of tokens, not for a million.
    ///
    /// # Errors
    /// [`ReferenceError::Token`] if an id is not in the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Result<Vec<f32>, ReferenceError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.activations(ids, &mut Cache::new())?.logits;
        Ok(logits.try_into_vec_as()?)
    }

    /// Continues a prompt by `n` tokens, always taking the most likely (the lowest id of several).
    ///
    /// # Errors
    /// [`ReferenceError::EmptyPrompt`], [`ReferenceError::Token`].
    pub fn greedy(&self, prompt: &[u32], n: usize) -> Result<Vec<u32>, ReferenceError> {
        if prompt.is_empty() {
            return Err(ReferenceError::EmptyPrompt);
        }
        let mut cache = Cache::new();
        let mut answer: Vec<u32> = Vec::new();
        while answer.len() < n {
            let new = answer.last().map_or(prompt, std::slice::from_ref);
            let logits = self.activations(new, &mut cache)?.logits; // [T, V]
            let last = logits.narrow(0, new.len() - 1, 1).try_into_vec_as::<f32>()?;
            answer.push(first_largest(&last) as u32);
        }
        Ok(answer)
    }

    /// Runs new tokens (at least one) of the sequence that `cache` holds, and appends them to it.
    ///
    /// # Errors
    /// [`ReferenceError::Token`] if an id is not in the vocabulary, [`ReferenceError::EmptyPrompt`] if there is none.
    pub fn activations(&self, ids: &[u32], cache: &mut Cache) -> Result<Activations, ReferenceError> {
        let mut x = self.embed(ids)?; // [T, H]
        cache.layers.resize_with(self.layers.len(), KeyValues::default);
        let (mut layers, mut choices) = (Vec::new(), Vec::new());
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            let choice;
            (x, choice) = layer.forward(x, cache)?;
            layers.push(x.clone());
            choices.push(choice);
        }
        let logits = self.lm_head.forward(self.norm.forward(x));
        Ok(Activations { layers, choices, logits })
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor<2>, ReferenceError> {
        let [vocabulary, _] = self.embed_tokens.weight.dims();
        if ids.is_empty() {
            return Err(ReferenceError::EmptyPrompt);
        }
        if let Some(&found) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ReferenceError::Token { found, last: vocabulary.saturating_sub(1) });
        }
        let values: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let device = self.embed_tokens.weight.device();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(values, [1, ids.len()]), &device);
        Ok(self.embed_tokens.forward(ids).squeeze_dim(0))
    }
}

impl Layer {
    /// `x [T, H]` to `[T, H]`, and the choice of experts of each token if there are any.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(
        &self,
        x: Tensor<2>,
        cache: &mut KeyValues,
    ) -> Result<(Tensor<2>, Vec<Choice>), TensorReadError> {
        let attended = self.self_attn.forward(self.input_layernorm.forward(x.clone()), cache);
        let x = x + attended;
        let (y, choices) = self.mlp.forward(self.post_attention_layernorm.forward(x.clone()))?;
        Ok((x + y, choices))
    }
}

/// Index of the largest value, the first of several; 0 for none.
fn first_largest(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}
