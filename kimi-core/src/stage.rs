//! A stage: a range of layers with their cache pages.

use std::ops::Range;

use bytes::Bytes;

use crate::batch::{Batch, SequenceId};
use crate::sampler::Sampled;

/// Which part of the model a stage holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSpan {
    /// Layers, counted from the embedding.
    pub layers: Range<usize>,
    /// Whether it holds the embedding: its input is the batch's tokens.
    pub first: bool,
    /// Whether it holds the final norm, the head and the sampler: its output is tokens.
    pub last: bool,
}

/// Activations between two stages: f32, little-endian, `[rows, cols]`, a row a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// Tokens.
    pub rows: usize,
    /// Hidden size.
    pub cols: usize,
    /// `4 * rows * cols` bytes.
    pub data: Bytes,
}

/// What a stage returns.
#[derive(Debug, Clone, PartialEq)]
pub enum StageOutput {
    /// Input of the next stage.
    Hidden(Hidden),
    /// From the last stage: one entry for each sequence whose output is not `None`, in the batch's order.
    Sequences(Vec<SequenceOutput>),
}

/// What the last stage returns for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOutput {
    /// Whose.
    pub id: SequenceId,
    /// The sampled token, if one was asked for.
    pub sampled: Option<Sampled>,
    /// Logits `[rows, V]`, if they were asked for.
    pub logits: Vec<f32>,
}

/// Runs batches through one stage, wherever it is: in this process or on another machine.
///
/// Batches arrive in the order of their steps. A runner lives on a thread of its own, so `run` may block.
pub trait StageRunner: Send {
    /// The part of the model it holds.
    fn span(&self) -> StageSpan;

    /// Computes one batch. `input` is `None` for the first stage and the previous stage's output for any other.
    ///
    /// # Errors
    /// [`StageError`]; [`StageError::Lost`] means that the stage will not come back by itself.
    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<StageOutput, StageError>;
}

/// Why a stage did not compute a batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StageError {
    /// The batch or its input does not fit the stage: a mistake of the caller.
    #[error("stage {first}-{last}: {what}", first = span.layers.start, last = span.layers.end.saturating_sub(1))]
    Input {
        /// The stage.
        span: StageSpan,
        /// What does not fit, with the values found and expected.
        what: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] kimi_quant::BackendError),
    /// Sampling failed.
    #[error(transparent)]
    Sample(#[from] crate::sampler::SampleError),
    /// The stage's machine is gone.
    #[error("the stage on {node} is lost: {reason}")]
    Lost {
        /// Name of the node.
        node: String,
        /// What was seen.
        reason: String,
    },
}
