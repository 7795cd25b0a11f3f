//! What a worker is to hold.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Fingerprint, MAX_TEXT, MessageError, at_most, ensure};

/// The stage that a worker is to become; never the last one, which the coordinator holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// Name of the model, as both sides look it up.
    pub model: String,
    /// The coordinator's checkpoint: the worker's must be the same.
    pub fingerprint: Fingerprint,
    /// Layers, the end not included.
    pub layers: Range<u32>,
    /// Whether the stage embeds the tokens.
    pub first: bool,
    /// Pages of the latent cache.
    pub cache_pages: u32,
    /// Tokens in a page.
    pub page_tokens: u32,
}

impl Assign {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        at_most("bytes in model", self.model.len(), MAX_TEXT)?;
        ensure(self.layers.start < self.layers.end, "the layer range is empty")?;
        ensure(self.cache_pages > 0 && self.page_tokens > 0, "the cache has no pages or no tokens in a page")
    }
}

/// How far loading is. When all bytes are in place, the device is still to be warmed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Bytes of weights in place.
    pub loaded_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
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
