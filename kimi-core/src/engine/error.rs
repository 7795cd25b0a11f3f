//! Why a request, or the engine, could not go on.

use std::time::Duration;

use super::RequestError;
use crate::page_store::PageStoreError;
use crate::pipeline::PipelineError;
use crate::scheduler::SequenceError;

/// Why the engine could not do what a valid request asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The engine has stopped for good.
    #[error("the engine is down: {reason}")]
    Down {
        /// What stopped it.
        reason: String,
    },
    /// A stage is lost, and was not replaced in time. Requests are taken again when it is there.
    #[error("{reason}; no other came within {} s", after.as_secs_f64())]
    StageLost {
        /// What was seen of the stage.
        reason: String,
        /// [`EngineConfig::recovery`](super::EngineConfig::recovery).
        after: Duration,
    },
    /// Too many requests.
    #[error("{limit} requests run or wait already, which is the limit; try again later")]
    Busy {
        /// [`EngineConfig::max_requests`](super::EngineConfig::max_requests).
        limit: usize,
    },
    /// The sequence of this request failed; others may go on.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// A size in the configuration is too small.
    #[error("engine configuration: {name} is {found}, expected at least {min}")]
    Config {
        /// Field of [`EngineConfig`](super::EngineConfig).
        name: &'static str,
        /// Its value.
        found: usize,
        /// The smallest value that works.
        min: usize,
    },
    /// The operating system gave no thread.
    #[error("can't start the engine's thread: {reason}")]
    Thread {
        /// What the system said.
        reason: String,
    },
    /// The stages do not make up a model, or a replacement does not fit.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Pages can't be kept on a disk.
    #[error(transparent)]
    PageStore(#[from] PageStoreError),
}

/// Why [`Engine::submit`](super::Engine::submit) refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// The request is at fault.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine is at fault.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
