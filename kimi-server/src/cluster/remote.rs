//! A stage on another machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kimi_core::batch::Batch;
use kimi_core::stage::{Hidden, StageError, StageOutput, StageRunner, StageSpan};
use kimi_net::{Coordinator, ErrorCode, LinkError};
use tokio::runtime::Handle;

use super::wire;

/// Runs a stage through a link. It blocks on the link, so it belongs on a stage's own thread.
pub struct RemoteStage {
    node: String,
    span: StageSpan,
    hidden_size: usize,
    link: Coordinator,
    runtime: Handle,
    /// Steps of this link, which rise whatever the batches are called.
    step: u64,
    meter: Arc<StageMeter>,
}

/// Where a remote stage's time went, summed over its steps.
#[derive(Debug, Default)]
pub struct StageMeter {
    steps: AtomicU64,
    compute_micros: AtomicU64,
    total_micros: AtomicU64,
}

impl StageMeter {
    /// Steps answered.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Time that the worker computed.
    pub fn compute(&self) -> Duration {
        Duration::from_micros(self.compute_micros.load(Ordering::Relaxed))
    }

    /// Time on the wire and in queues.
    pub fn wire(&self) -> Duration {
        Duration::from_micros(self.total_micros.load(Ordering::Relaxed)).saturating_sub(self.compute())
    }

    fn add(&self, compute: u64, total: u64) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.compute_micros.fetch_add(compute, Ordering::Relaxed);
        self.total_micros.fetch_add(total, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for RemoteStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteStage")
            .field("node", &self.node)
            .field("span", &self.span)
            .finish_non_exhaustive()
    }
}

impl RemoteStage {
    /// A stage that its worker has loaded.
    pub(super) fn new(
        node: String,
        span: StageSpan,
        hidden_size: usize,
        link: Coordinator,
        runtime: Handle,
        meter: Arc<StageMeter>,
    ) -> Self {
        Self { node, span, hidden_size, link, runtime, step: 0, meter }
    }

    fn failed(&self, error: &LinkError) -> StageError {
        match error {
            LinkError::Failed(report) if report.code == ErrorCode::StepFailed => StageError::Input {
                span: self.span.clone(),
                what: format!("on {}: {}", self.node, report.message),
            },
            other => {
                let error = StageError::Lost { node: self.node.clone(), reason: other.to_string() };
                // The end of a link is reported where links are watched.
                if self.link.closed_reason().is_none() {
                    tracing::error!("{error}");
                }
                error
            }
        }
    }
}

impl StageRunner for RemoteStage {
    fn span(&self) -> StageSpan {
        self.span.clone()
    }

    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<StageOutput, StageError> {
        self.step += 1;
        let rows = batch.tokens();
        let (header, payload) = wire::to_forward(self.step, batch, &self.span, self.hidden_size, input);
        let reply = self.runtime.block_on(self.link.forward(header, payload)).map_err(|e| self.failed(&e))?;
        self.meter.add(reply.header.compute_micros, reply.timing.send_micros + reply.timing.wait_micros);
        let hidden = wire::to_hidden(&reply.header, reply.payload, rows, self.hidden_size);
        hidden.map(StageOutput::Hidden).map_err(|what| StageError::Input {
            span: self.span.clone(),
            what: format!("{} {what}", self.node),
        })
    }
}
