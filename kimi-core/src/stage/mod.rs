//! A stage: a range of layers with their cache pages.
//!
//! | module | holds |
//! |---|---|
//! | this one | the contract: what goes into a stage, what comes out, what can go wrong |
//! | `load` | a stage from a checkpoint, if it fits the device |
//! | `local` | running it on a device of this machine |
//! | `pages` | copying pages out of its cache and into it |
//! | `measure` | what only measurements and a first start need |
//! | `rehearse` | kernels of every batch, made before the first one |
//! | `thread` | the threads that such a stage computes on, so that nobody else waits for it |

mod load;
mod local;
mod measure;
mod pages;
mod rehearse;
mod started;
mod thread;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{Batch, PageId, SequenceId};
use crate::sampler::{SampleError, Sampled};

pub use load::{CacheConfig, LoadError, LoadStep, device_bytes};
pub use local::{SMALL_WEIGHTS, Stage};
use pages::no_pages;
pub use pages::{PageForm, PageReader, PageWriter};
pub use thread::StageThread;

/// Most new tokens in a batch unless told otherwise.
pub const TOKEN_BUDGET: usize = 512;

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
    /// The sampled tokens, as many as were asked for, or why there is none: a sequence fails alone.
    pub sampled: Vec<Result<Sampled, SampleError>>,
    /// Logits `[rows, V]`, if they were asked for.
    pub logits: Vec<f32>,
}

/// Where a step's time went in one stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTime {
    /// Behind the steps before it, where the stage is.
    pub queue: Duration,
    /// Computing in this process, or handing work to a device; time behind the step before it on the same device not counted.
    pub compute: Duration,
    /// Waiting for a device that has all of the step's work; 0 where the CPU computes.
    pub device: Duration,
    /// Choosing tokens; 0 where the device does that too.
    pub sampling: Duration,
    /// Between this process and the stage's machine, both ways; 0 where the stage is in this process.
    pub wire: Duration,
}

impl StageTime {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.queue + self.busy() + self.wire
    }

    /// What the stage and its device work on the step.
    pub fn busy(&self) -> Duration {
        self.compute + self.device + self.sampling
    }
}

impl std::ops::AddAssign for StageTime {
    fn add_assign(&mut self, other: Self) {
        self.queue += other.queue;
        self.compute += other.compute;
        self.device += other.device;
        self.sampling += other.sampling;
        self.wire += other.wire;
    }
}

/// What became of a submitted batch.
pub type StageResult = Result<StageOutput, StageError>;

/// Takes the result of a submitted batch, exactly once, on any thread. What it calls does not block.
///
/// Dropping it reports that the stage has stopped, so that nobody waits for a stage that forgot a batch.
pub struct Done(Option<Box<dyn FnOnce(StageResult, StageTime) + Send>>);

impl Done {
    /// Calls `deliver` with the result.
    pub fn new(deliver: impl FnOnce(StageResult, StageTime) + Send + 'static) -> Self {
        Self(Some(Box::new(deliver)))
    }

    /// Hands the result on.
    pub fn finish(mut self, result: StageResult, time: StageTime) {
        if let Some(deliver) = self.0.take() {
            deliver(result, time);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(deliver) = self.0.take() {
            deliver(Err(StageError::Stopped), StageTime::default());
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done")
    }
}

/// Is told that a stage is lost, while it computes or while it is idle.
pub type LossWatch = Box<dyn FnOnce(StageError) + Send>;

/// One stage, wherever it is: on a device of this process ([`StageThread`]) or on another machine.
///
/// Batches are submitted in the order of their steps, and computed in it. None of the functions waits, but
/// [`Self::submit`] for short steps where [`Self::compute_here`] allows it.
pub trait StageRunner: Send {
    /// The part of the model it holds.
    fn span(&self) -> StageSpan;

    /// Whether it can prepare a batch while it computes the one before it, so that one more in flight is of use.
    fn queues(&self) -> bool {
        false
    }

    /// Whether it takes batches that follow another ([`Batch::follows`]): it samples tokens where it embeds them, so that
    /// they need not be known to anyone else in between.
    fn chains(&self) -> bool {
        false
    }

    /// Hands a batch over. `input` is `None` for the first stage and the previous stage's output for any other. Results
    /// come in the order of the batches; [`StageError::is_lost`] tells whether the stage will come back by itself.
    fn submit(&mut self, batch: Arc<Batch>, input: Option<Hidden>, done: Done);

    /// Lets short steps be computed within [`Self::submit`]: for a caller that would only wait for them, and spares two
    /// hand-overs between threads so. A stage that is elsewhere, or on a device that queues, changes nothing.
    fn compute_here(&mut self) {}

    /// Tells `lost` if the stage is lost, even if it has nothing to compute. Called once, before any batch.
    fn watch(&mut self, _lost: LossWatch) {}

    /// Whether sequences are running, so that a device which idles between its steps should keep its clock up.
    fn set_active(&mut self, _active: bool) {}

    /// Has `count` rise with every layer that is begun from now on, so that others can tell slow from stuck.
    fn count_progress(&mut self, _count: Arc<AtomicU64>) {}

    /// What a page of its cache looks like outside of it; `None` where pages can't be copied: on another machine, say.
    fn page_form(&self) -> Option<PageForm> {
        None
    }

    /// Copies a page out, behind the batches that were handed over before.
    fn read_page(&mut self, _page: PageId, done: PageReader) {
        done(Err(no_pages(self.span())));
    }

    /// Puts bytes into a page, behind the batches that were handed over before and ahead of those that come after.
    fn write_page(&mut self, _page: PageId, _bytes: Bytes, done: PageWriter) {
        done(Err(no_pages(self.span())));
    }
}

/// The end of a batch that was started: waits for its output.
pub type Finish = Box<dyn FnOnce() -> StageResult + Send>;

/// A stage that computes in this process, on a thread that may block. [`StageThread`] makes it a [`StageRunner`].
pub trait Compute: Send {
    /// See [`StageRunner::span`].
    fn span(&self) -> StageSpan;

    /// See [`StageRunner::queues`].
    fn queues(&self) -> bool {
        false
    }

    /// See [`StageRunner::chains`].
    fn chains(&self) -> bool {
        false
    }

    /// Called once, on the stage's thread and before anything else: brings into memory what the first step would wait for, if
    /// that takes a few milliseconds. The cache may hold anything afterwards.
    fn prepare(&mut self) {}

    /// Whether a step takes as long as its tokens say, so that a short one may be computed by whoever submits it, see
    /// [`StageRunner::compute_here`]: it never waits for anything but its own arithmetic and memory.
    fn steady(&self) -> bool {
        false
    }

    /// Starts on a batch; what it returns may be called on another thread, while the next batch is started.
    ///
    /// # Errors
    /// [`StageError`].
    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError>;

    /// Computes one batch.
    ///
    /// # Errors
    /// [`StageError`].
    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> StageResult {
        self.start(batch, input)?()
    }

    /// How much of the last [`Self::start`] went into choosing tokens.
    fn sampling_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Gives an idle device a moment of work, so that its clock stays up. Errors show at the next batch.
    fn nudge(&mut self) {}

    /// See [`StageRunner::count_progress`].
    fn count_progress(&mut self, _count: Arc<AtomicU64>) {}

    /// See [`StageRunner::page_form`].
    fn page_form(&self) -> Option<PageForm> {
        None
    }

    /// The bytes of a page, once all that was started before is computed.
    ///
    /// # Errors
    /// [`StageError`].
    fn read_page(&mut self, _page: PageId) -> Result<Bytes, StageError> {
        Err(no_pages(self.span()))
    }

    /// Puts bytes into a page, for all that is started from now on.
    ///
    /// # Errors
    /// [`StageError`].
    fn write_page(&mut self, _page: PageId, _bytes: &[u8]) -> Result<(), StageError> {
        Err(no_pages(self.span()))
    }
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
    /// The stage has ended by itself, or forgot the batch.
    #[error("a stage of the pipeline has stopped; start the model again")]
    Stopped,
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
        matches!(self, Self::Lost { .. } | Self::Stopped | Self::Backend(kimi_quant::BackendError::Device(_)))
    }
}
