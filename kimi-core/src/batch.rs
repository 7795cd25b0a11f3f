//! What one step computes.

use std::sync::Arc;

use kimi_quant::{BackendError, TokenLayout};

use crate::constraint::Mask;
use crate::sampler::{Draw, SamplingParams, TokenCounts, TokenMask};

/// Names a sequence (one running request) for the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A page of the latent cache: the same index in every layer of every stage.
pub type PageId = u32;

/// One step: new tokens of several sequences, prefill chunks, decode tokens and drafts mixed.
///
/// The coordinator owns the page tables and sends them with each batch; a stage owns only the pages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Counts up by one a batch.
    pub step: u64,
    /// At most one entry a sequence.
    pub sequences: Vec<SequenceSlice>,
    /// The step whose sampled tokens are this batch's input, if it was scheduled before they are known. Each sequence has
    /// one token then, and `tokens` holds a 0 in its place.
    pub follows: Option<u64>,
}

/// A sequence's share of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceSlice {
    /// Whose tokens these are.
    pub id: SequenceId,
    /// Position of the first new token. Slots from here on are written again, whatever was there: so rejected drafts go.
    pub start: u32,
    /// The new tokens, at least one.
    pub tokens: Vec<u32>,
    /// The sequence's whole page table, long enough for the last new token.
    pub pages: Vec<PageId>,
    /// What the last stage returns for it.
    pub output: Output,
}

/// What is wanted of a sequence's tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Nothing: a prefill chunk that is not the last.
    None,
    /// A token sampled from each of the last rows, as many as there are entries: one, or one more than there are drafts.
    Sample(Vec<Sampling>),
    /// The logits of the last row.
    LastLogits,
    /// The logits of every row.
    AllLogits,
}

/// All that sampling one token needs, so that stages keep no sampler state.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// The request's parameters.
    pub params: Arc<SamplingParams>,
    /// Tokens that the penalties count.
    pub counts: Arc<TokenCounts>,
    /// A random number in `[0, 1)`, drawn by the coordinator.
    pub uniform: f32,
    /// How many most likely tokens to report beside the sampled one.
    pub top_logprobs: u8,
    /// The tokens that may be chosen; `None` for all. Needed only where the token is sampled.
    pub allowed: Option<Mask>,
}

impl Sampling {
    /// What the sampler takes besides logits and parameters. Waits for the mask.
    pub fn draw(&self) -> Draw<'_> {
        let (counts, top_logprobs) = (self.counts.as_slice(), self.top_logprobs.into());
        let allowed = self.allowed.as_ref().and_then(Mask::words).map(TokenMask);
        Draw { counts, uniform: self.uniform, top_logprobs, allowed }
    }
}

impl SequenceSlice {
    /// The rows of this slice whose logits are wanted, counted from its first.
    pub fn output_rows(&self) -> std::ops::Range<usize> {
        let count = self.tokens.len();
        match &self.output {
            Output::None => 0..0,
            Output::Sample(choices) => count.saturating_sub(choices.len())..count,
            Output::LastLogits => count.saturating_sub(1)..count,
            Output::AllLogits => 0..count,
        }
    }

    /// The choices asked for; none where logits are wanted, or nothing.
    pub fn choices(&self) -> &[Sampling] {
        match &self.output {
            Output::Sample(choices) => choices,
            _ => &[],
        }
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
            rows.extend(s.output_rows().map(|row| first + row as u32));
            first += s.tokens.len() as u32;
        }
        rows
    }

    /// The masks that its choices wait for.
    pub fn masks(&self) -> impl Iterator<Item = &Mask> {
        self.sequences.iter().flat_map(SequenceSlice::choices).filter_map(|choice| choice.allowed.as_ref())
    }
}
