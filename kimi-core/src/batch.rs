//! What one step computes.

use std::sync::Arc;

use kimi_quant::{BackendError, TokenLayout};
use serde::{Deserialize, Serialize};

use crate::sampler::{Draw, SamplingParams, TokenMask};

/// Names a sequence (one running request) for the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SequenceId(pub u64);

/// A page of the latent cache: the same index in every layer of every stage.
pub type PageId = u32;

/// One step: new tokens of several sequences, prefill chunks and decode tokens mixed.
///
/// The coordinator owns the page tables and sends them with each batch; a stage owns only the pages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Counts up by one a batch.
    pub step: u64,
    /// At most one entry a sequence.
    pub sequences: Vec<SequenceSlice>,
    /// Of a batch that is made before the batch before it is done, that batch's step. Each sequence has one token, which
    /// that step chooses; in its place `tokens` holds a 0.
    pub follows: Option<u64>,
}

/// A sequence's share of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceSlice {
    /// Whose tokens these are.
    pub id: SequenceId,
    /// Position of the first new token.
    pub start: u32,
    /// The new tokens, at least one.
    pub tokens: Vec<u32>,
    /// The sequence's whole page table, long enough for the last new token.
    pub pages: Vec<PageId>,
    /// What the last stage returns for it.
    pub output: Output,
}

/// What is wanted of a sequence's tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// Nothing: a prefill chunk that is not the last.
    None,
    /// A token sampled from the last row.
    Sample(Sampling),
    /// The logits of the last row.
    LastLogits,
    /// The logits of every row.
    AllLogits,
}

/// All that sampling one token needs, so that stages keep no sampler state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The request's parameters.
    pub params: Arc<SamplingParams>,
    /// Tokens that the penalties count, oldest first.
    pub history: Vec<u32>,
    /// A random number in `[0, 1)`, drawn by the coordinator.
    pub uniform: f32,
    /// How many most likely tokens to report beside the sampled one.
    pub top_logprobs: u8,
    /// The tokens that may be chosen, as the words of a [`TokenMask`]; `None` for all.
    pub allowed: Option<Arc<[u32]>>,
}

impl Sampling {
    /// What the sampler takes besides logits and parameters.
    pub fn draw(&self) -> Draw<'_> {
        let (history, top_logprobs) = (self.history.as_slice(), self.top_logprobs.into());
        let allowed = self.allowed.as_deref().map(TokenMask);
        Draw { history, uniform: self.uniform, top_logprobs, allowed }
    }
}

impl Batch {
    /// New tokens in the batch, `T`.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.tokens.len()).sum()
    }

    /// The new tokens of all sequences, `[T]`.
    pub fn ids(&self) -> Vec<u32> {
        self.sequences.iter().flat_map(|s| s.tokens.iter().copied()).collect()
    }

    /// Cache slots of the new tokens.
    ///
    /// # Errors
    /// If a page table is too short for its sequence.
    pub fn layout(&self, page_tokens: usize) -> Result<TokenLayout, BackendError> {
        let mut layout = TokenLayout::new(page_tokens);
        for s in &self.sequences {
            layout.push(s.start, s.tokens.len(), &s.pages)?;
        }
        Ok(layout)
    }

    /// Rows of the batch whose logits are wanted, `[S]`, in the order of the sequences.
    pub fn output_rows(&self) -> Vec<u32> {
        let mut rows = Vec::new();
        let mut first = 0u32;
        for s in &self.sequences {
            let next = first + s.tokens.len() as u32;
            match s.output {
                Output::None => {}
                Output::Sample(_) | Output::LastLogits => rows.push(next.saturating_sub(1)),
                Output::AllLogits => rows.extend(first..next),
            }
            first = next;
        }
        rows
    }
}
