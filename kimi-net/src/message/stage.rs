//! What a worker is to hold.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{
    ELEMENT_BYTES, Fingerprint, Forward, MAX_DESCRIPTION, MAX_PER_SEQUENCE, MAX_TEXT, MessageError, at_most,
    ensure,
};

/// The stage that a worker is to become; never the last one, which the coordinator holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// Name of the model, as both sides look it up.
    pub model: String,
    /// The coordinator's checkpoint: the worker's must be the same.
    pub fingerprint: Fingerprint,
    /// What that fingerprint is of, as the two programs encode it: for saying what differs.
    pub description: Vec<u8>,
    /// Layers, the end not included.
    pub layers: Range<u32>,
    /// Whether the stage embeds the tokens.
    pub first: bool,
    /// How precisely the stage computes its products.
    pub precision: Precision,
    /// What the layers keep of the tokens before.
    pub state: LayerState,
    /// Pages of the latent cache.
    pub cache_pages: u32,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// New tokens of one step, of all its sequences together: the coordinator's token budget.
    pub max_tokens: u32,
    /// Width of the model's hidden state.
    pub hidden_size: u32,
    /// Names what the caches hold: a coordinator draws another number for caches that it takes for empty.
    pub session: u64,
    /// Go on with the caches of [`Self::session`] after the connection was lost. A worker that does not have them any more
    /// says so ([`ErrorCode::CacheLost`](super::ErrorCode::CacheLost)) and loads nothing.
    pub resume: bool,
}

/// How precisely products are computed: the same for all stages of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// As f32.
    Exact,
    /// With activations rounded to 14 bits and a sign, on a CPU whose kernels gain from it; elsewhere as f32.
    Close,
    /// With rounded activations, where the device has kernels that gain from it.
    Fast,
    /// The fastest that the worker's release takes for close enough on its device.
    Auto,
}

/// What a layer keeps of each sequence; another kind would bring sizes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    /// Pages of the latent cache: [`Assign::cache_pages`].
    LatentPages,
}

impl Assign {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        at_most("bytes in model", self.model.len(), MAX_TEXT)?;
        at_most("bytes in description", self.description.len(), MAX_DESCRIPTION)?;
        ensure(self.layers.start < self.layers.end, "the layer range is empty")?;
        match self.state {
            LayerState::LatentPages => ensure(
                self.cache_pages > 0 && self.page_tokens > 0,
                "the cache has no pages or no tokens in a page",
            )?,
        }
        ensure(self.max_tokens > 0 && self.hidden_size > 0, "steps have no tokens or no width")?;
        at_most("tokens of a step", self.max_tokens as usize, MAX_PER_SEQUENCE)
    }

    /// What this stage's steps must keep to.
    pub fn step_bounds(&self) -> StepBounds {
        let Assign { max_tokens, hidden_size, cache_pages, .. } = *self;
        StepBounds { max_tokens, hidden_size, cache_pages }
    }
}

/// What an [`Assign`] says of its stage's steps; see its fields. Both sides hold steps against it, the worker before it
/// allocates a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBounds {
    /// [`Assign::max_tokens`].
    pub max_tokens: u32,
    /// [`Assign::hidden_size`].
    pub hidden_size: u32,
    /// [`Assign::cache_pages`].
    pub cache_pages: u32,
}

impl StepBounds {
    /// Bytes of the largest hidden state, in either direction.
    pub fn max_payload(&self) -> u64 {
        let values = u64::from(self.max_tokens) * u64::from(self.hidden_size);
        values.saturating_mul(ELEMENT_BYTES)
    }

    /// Holds a step, itself free of contradictions, against the bounds.
    pub(crate) fn check(&self, forward: &Forward) -> Result<(), MessageError> {
        // No sequence is without tokens, so that this bounds their number too.
        at_most("tokens of a step", forward.rows as usize, self.max_tokens as usize)?;
        forward.sequences.iter().try_for_each(|sequence| {
            at_most("pages of a sequence", sequence.pages.len(), self.cache_pages as usize)
        })
    }
}

/// How far loading is. When all bytes are in place, the device is still to be warmed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Bytes of weights in place.
    pub loaded_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
    /// Kernels of a GPU that are compiled, of how many, once the weights are in place.
    pub kernels: Option<(u32, u32)>,
}

/// The assigned stage can compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Bytes of weights held.
    pub weight_bytes: u64,
    /// Bytes of cache held.
    pub cache_bytes: u64,
    /// Time that loading took, in microseconds.
    pub load_micros: u64,
    /// What computes, for people, such as "cpu avx2 x16".
    pub device: String,
}
