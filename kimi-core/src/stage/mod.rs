//! A stage: a range of layers with their cache pages.
//!
//! | module | holds |
//! |---|---|
//! | this one | the contract: what goes into a stage, what comes out, what can go wrong |
//! | `load` | a stage from a checkpoint, if it fits the device |
//! | `local` | running it on a device of this machine |
//! | `measure` | what only measurements and a first start need |

mod load;
mod local;
mod measure;
mod started;

use std::ops::Range;

use bytes::Bytes;

use crate::batch::{Batch, SequenceId};
use crate::sampler::{SampleError, Sampled};

pub use load::{CacheConfig, LoadError, device_bytes};
pub use local::Stage;

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
    /// The sampled token, if one was asked for, or why there is none: a sequence fails alone.
    pub sampled: Option<Result<Sampled, SampleError>>,
    /// Logits `[rows, V]`, if they were asked for.
    pub logits: Vec<f32>,
}

/// The end of a batch that was started: waits for its output.
pub type Finish = Box<dyn FnOnce() -> Result<StageOutput, StageError> + Send>;

/// Runs batches through one stage, wherever it is: in this process or on another machine.
///
/// Batches arrive in the order of their steps. A runner lives on a thread of its own, so `run` may block.
pub trait StageRunner: Send {
    /// The part of the model it holds.
    fn span(&self) -> StageSpan;

    /// Whether a batch can be started before the one before it is done, and follow it ([`Batch::follows`]).
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Starts on a batch; what it returns may be called on another thread, while the next batch is started.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let output = self.run(batch, input)?;
        Ok(Box::new(move || Ok(output)))
    }

    /// Computes one batch. `input` is `None` for the first stage and the previous stage's output for any other.
    ///
    /// # Errors
    /// [`StageError`]; [`StageError::is_lost`] tells whether the stage will come back by itself.
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
    /// The stage's machine is gone.
    #[error("the stage on {node} is lost: {reason}")]
    Lost {
        /// Name of the node.
        node: String,
        /// What was seen.
        reason: String,
    },
}

impl StageError {
    /// Whether the stage will not come back by itself: its machine or its device is gone.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Backend(kimi_quant::BackendError::Device(_)))
    }
}
