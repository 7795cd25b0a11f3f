//! A stage on another machine.

use std::sync::Arc;
use std::time::Duration;

use kimi_core::batch::Batch;
use kimi_core::stage::{Done, Hidden, LossWatch, StageError, StageOutput, StageRunner, StageSpan, StageTime};
use kimi_net::{Coordinator, ErrorCode, FrameError, Kind, LinkError, Reply};
use tokio::runtime::Handle;

use super::wire;

/// Runs a stage through a link. It has no thread: the link's task hands results on.
pub struct RemoteStage {
    place: Arc<Place>,
    link: Coordinator,
    runtime: Handle,
    /// Steps of this link, which rise whatever the batches are called.
    step: u64,
}

/// What the link's task needs to know of it.
struct Place {
    node: String,
    span: StageSpan,
    hidden_size: usize,
}

impl std::fmt::Debug for RemoteStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteStage")
            .field("node", &self.place.node)
            .field("span", &self.place.span)
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
    ) -> Self {
        Self { place: Arc::new(Place { node, span, hidden_size }), link, runtime, step: 0 }
    }
}

impl Place {
    fn failed(&self, error: &LinkError) -> StageError {
        match error {
            LinkError::Failed(report) if report.code == ErrorCode::StepFailed => {
                self.wrong(format!("on {}: {}", self.node, report.message))
            }
            // Not sent: it is larger than what was assigned.
            LinkError::Frame(FrameError::Invalid { kind: Kind::Forward, .. }) => {
                self.wrong(error.to_string())
            }
            other => self.lost(other),
        }
    }

    fn lost(&self, reason: &LinkError) -> StageError {
        StageError::Lost { node: self.node.clone(), reason: reason.to_string() }
    }

    fn wrong(&self, what: String) -> StageError {
        StageError::Input { span: self.span.clone(), what }
    }

    /// A worker's answer to a step of `rows` tokens.
    fn output(&self, reply: Reply, rows: usize) -> Result<StageOutput, StageError> {
        let hidden = wire::to_hidden(&reply.header, reply.payload, rows, self.hidden_size);
        hidden.map(StageOutput::Hidden).map_err(|what| self.wrong(format!("{} {what}", self.node)))
    }
}

/// Where the time of an answered step went: what the worker did not spend was spent on the way.
fn time(reply: &Reply) -> StageTime {
    let total = reply.timing.send_micros.saturating_add(reply.timing.wait_micros);
    let (queue, compute) = (reply.header.queue_micros, reply.header.compute_micros);
    let wire = total.saturating_sub(queue.saturating_add(compute));
    let [queue, compute, wire] = [queue.min(total), compute.min(total), wire].map(Duration::from_micros);
    StageTime { queue, compute, wire }
}

impl StageRunner for RemoteStage {
    fn span(&self) -> StageSpan {
        self.place.span.clone()
    }

    fn submit(&mut self, batch: Arc<Batch>, input: Option<Hidden>, done: Done) {
        self.step += 1;
        let (place, rows) = (self.place.clone(), batch.tokens());
        let (header, payload) = wire::to_forward(self.step, &batch, &place.span, place.hidden_size, input);
        self.link.submit(header, payload, move |answer| match answer {
            Ok(reply) => {
                let time = time(&reply);
                done.finish(place.output(reply, rows), time);
            }
            Err(error) => done.finish(Err(place.failed(&error)), StageTime::default()),
        });
    }

    fn watch(&mut self, lost: LossWatch) {
        let (place, closed) = (self.place.clone(), self.link.closed());
        self.runtime.spawn(async move {
            let reason = closed.await;
            // Whoever closes the link on this side knows.
            if reason != LinkError::Closed {
                lost(place.lost(&reason));
            }
        });
    }

    fn set_active(&mut self, active: bool) {
        // The end of the link is told elsewhere.
        let _ = self.link.set_active(active);
    }
}
