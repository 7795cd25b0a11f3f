//! A stage on another machine.
//!
//! A connection may break while the worker and its caches live on. Then a new one is made, and the steps that were not
//! answered are sent again, in their order. A worker that has computed some of them computes them once more: a step writes the
//! same values to the same places of the cache whenever it is computed, so that this changes nothing.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kimi_core::batch::Batch;
use kimi_core::stage::{Done, Hidden, LossWatch, StageError, StageOutput, StageRunner, StageSpan, StageTime};
use kimi_net::{Assign, Coordinator, ErrorCode, FrameError, Kind, LinkError, Reply};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::dialer::{Dialer, Wanted};
use super::patience::{Patience, StepTimes};
use super::routes::RouteError;
use super::status::{ClusterStatus, NodeState};
use super::wire;

/// Between two looks at whether a worker gets on.
const LOOK: Duration = Duration::from_millis(250);
/// Between two attempts to connect again.
const RETRY: Duration = Duration::from_millis(200);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Runs a stage through a link. It has no thread: the link's task hands results on.
pub struct RemoteStage {
    place: Arc<Place>,
    runtime: Handle,
}

/// What a remote stage needs to know of its worker.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) worker: Wanted,
    pub(super) dialer: Dialer,
    /// What the worker was given.
    pub(super) assign: Assign,
    pub(super) span: StageSpan,
    pub(super) patience: Patience,
    pub(super) status: ClusterStatus,
}

/// What the link's task shares with the stage.
struct Place {
    remote: Remote,
    traffic: Mutex<Traffic>,
    /// Wakes who looks after the link when the stage is dropped.
    dropped: Notify,
}

struct Traffic {
    /// `None` while it is made again, and at the end.
    link: Option<Coordinator>,
    /// Why the stage is lost. Nothing is sent any more then.
    end: Option<StageError>,
    /// Steps of this stage, which rise whatever the batches are called.
    step: u64,
    /// Oldest first.
    unanswered: VecDeque<Pending>,
    times: StepTimes,
    /// When the last answer came.
    answered: Instant,
    active: bool,
}

/// A step that was sent and not answered, as it would be sent again.
struct Pending {
    step: u64,
    batch: Arc<Batch>,
    input: Option<Hidden>,
    since: Instant,
    done: Done,
}

/// How a link ended.
enum End {
    /// This side let it go.
    Dropped,
    /// The worker may be there still, with its caches.
    Broken(LinkError),
    /// It is not, or must not be talked to.
    Lost(String),
}

impl std::fmt::Debug for RemoteStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteStage").field("remote", &self.place.remote).finish_non_exhaustive()
    }
}

impl RemoteStage {
    /// A stage that its worker has loaded.
    pub(super) fn new(remote: Remote, link: Coordinator, runtime: Handle) -> Self {
        remote.status.set(&remote.worker.id, NodeState::Ready);
        let traffic = Traffic {
            link: Some(link),
            end: None,
            step: 0,
            unanswered: VecDeque::new(),
            times: StepTimes::default(),
            answered: Instant::now(),
            active: false,
        };
        let place = Place { remote, traffic: Mutex::new(traffic), dropped: Notify::new() };
        Self { place: Arc::new(place), runtime }
    }
}

impl Place {
    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hidden_size(&self) -> usize {
        self.remote.assign.hidden_size as usize
    }

    /// Hands a step to the link. Called under the lock of the traffic, so that steps keep their order.
    fn send(self: &Arc<Self>, link: &Coordinator, pending: &Pending) {
        let (place, step) = (self.clone(), pending.step);
        let Pending { batch, input, .. } = pending;
        let (header, payload) =
            wire::to_forward(step, batch, &self.remote.span, self.hidden_size(), input.clone());
        link.submit(header, payload, move |answer| match answer {
            Ok(reply) => place.answer(step, Ok(reply)),
            Err(
                error @ (LinkError::Failed(_)
                | LinkError::Frame(FrameError::Invalid { kind: Kind::Forward, .. })),
            ) => {
                place.answer(step, Err(error));
            }
            // The link is over, perhaps within this very call: whoever looks after it decides what becomes of the step.
            Err(_) => {}
        });
    }

    fn answer(&self, step: u64, answer: Result<Reply, LinkError>) {
        let mut traffic = self.traffic();
        let Some(at) = traffic.unanswered.iter().position(|pending| pending.step == step) else { return };
        let Some(Pending { batch, done, .. }) = traffic.unanswered.remove(at) else { return };
        traffic.answered = Instant::now();
        if let Ok(reply) = &answer {
            traffic.times.note(batch.tokens(), time(reply).busy());
        }
        drop(traffic);
        match answer {
            Ok(reply) => {
                let time = time(&reply);
                done.finish(self.output(reply, batch.tokens()), time);
            }
            Err(error) => done.finish(Err(self.failed(&error)), StageTime::default()),
        }
    }

    fn failed(&self, error: &LinkError) -> StageError {
        match error {
            LinkError::Failed(report) if report.code == ErrorCode::StepFailed => {
                self.wrong(format!("on {}: {}", self.remote.worker.id, report.message))
            }
            // Not sent: it is larger than what was assigned.
            LinkError::Frame(FrameError::Invalid { kind: Kind::Forward, .. }) => {
                self.wrong(error.to_string())
            }
            other => self.lost(other.to_string()),
        }
    }

    fn lost(&self, reason: String) -> StageError {
        StageError::Lost { node: self.remote.worker.id.clone(), reason }
    }

    fn wrong(&self, what: String) -> StageError {
        StageError::Input { span: self.remote.span.clone(), what }
    }

    /// A worker's answer to a step of `rows` tokens.
    fn output(&self, reply: Reply, rows: usize) -> Result<StageOutput, StageError> {
        let hidden = wire::to_hidden(&reply.header, reply.payload, rows, self.hidden_size());
        hidden
            .map(StageOutput::Hidden)
            .map_err(|what| self.wrong(format!("{} {what}", self.remote.worker.id)))
    }

    fn set_state(&self, state: NodeState) {
        self.remote.status.set(&self.remote.worker.id, state);
    }

    /// Looks after the link until the stage is lost or dropped.
    async fn look_after(self: Arc<Self>, lost: LossWatch) {
        loop {
            let reason = match self.watch_link().await {
                End::Dropped => return,
                End::Broken(reason) => reason,
                End::Lost(reason) => return self.lose(reason, lost),
            };
            tracing::warn!(worker = self.remote.worker.id, %reason, "the connection broke; making it again");
            self.set_state(NodeState::Reconnecting { reason: reason.to_string() });
            match self.reconnect(&reason).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => return self.lose(reason, lost),
            }
            tracing::info!(worker = self.remote.worker.id, "connected again; its caches are there");
            self.set_state(NodeState::Ready);
        }
    }

    /// Waits for the end of the link.
    async fn watch_link(&self) -> End {
        let Some(closed) = self.traffic().link.as_ref().map(Coordinator::closed) else { return End::Dropped };
        let reason = tokio::select! {
            reason = closed => reason,
            time = self.stuck() => {
                let reason = format!(
                    "it answers, but its computing has stood still for {:.1} s in the middle of a step; start `kimi worker` \
                     on it again",
                    time.as_secs_f64()
                );
                self.set_state(NodeState::Stuck { reason: reason.clone() });
                return End::Lost(reason);
            }
            () = self.dropped.notified() => return End::Dropped,
        };
        match reason {
            LinkError::Closed => End::Dropped,
            LinkError::Lost { .. } | LinkError::Io { .. } | LinkError::Silent { .. } => End::Broken(reason),
            LinkError::FrameTimeout { .. } => End::Broken(reason),
            other => {
                if let LinkError::Peer(report) = &other
                    && report.code == ErrorCode::Replaced
                {
                    self.set_state(NodeState::Taken { reason: report.message.clone() });
                }
                End::Lost(other.to_string())
            }
        }
    }

    /// Waits until the worker's computing has stood still for too long, and says for how long.
    async fn stuck(&self) -> Duration {
        loop {
            sleep(LOOK).await;
            let traffic = self.traffic();
            let Some(stats) = traffic.link.as_ref().map(Coordinator::stats) else { continue };
            self.remote.status.set_link(&self.remote.worker.id, stats.clone());
            let Some(oldest) = traffic.unanswered.front() else { continue };
            let moved = stats.progress.map(|(_, at)| at);
            let since = oldest.since.max(traffic.answered).max(moved.unwrap_or(oldest.since));
            let limit = traffic.times.limit(oldest.batch.tokens(), self.remote.patience.step);
            // Only if it has said since that there is no progress: one that says nothing may have lost its connection.
            if stats.answered.is_some_and(|at| at > since + limit) {
                return since.elapsed();
            }
        }
    }

    /// Connects again, and sends what was not answered. False if the stage was dropped meanwhile.
    ///
    /// # Errors
    /// Why the caches are gone, or that it took too long.
    async fn reconnect(self: &Arc<Self>, reason: &LinkError) -> Result<bool, String> {
        let begun = Instant::now();
        loop {
            if self.traffic().end.is_some() {
                return Ok(false);
            }
            // Several routes are measured, which takes longer.
            let limit = if self.remote.worker.others.is_empty() { ATTEMPT } else { 4 * ATTEMPT };
            let attempt = timeout(limit, self.resume());
            let failed = tokio::select! {
                attempt = attempt => match attempt {
                    Ok(Ok(())) => return Ok(true),
                    Ok(Err(RouteError::Link(LinkError::Failed(report)))) => return Err(report.message),
                    Ok(Err(RouteError::Link(LinkError::Io { kind: ErrorKind::ConnectionRefused, .. }))) => {
                        return Err(format!("{reason}; its program has ended"));
                    }
                    Ok(Err(error @ RouteError::OtherNode { .. })) => return Err(error.to_string()),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no answer within {limit:?}"),
                },
                () = self.dropped.notified() => return Ok(false),
            };
            let patience = self.remote.patience.resume;
            if begun.elapsed() > patience {
                return Err(format!(
                    "{reason}; no new connection within {} s: {failed}",
                    patience.as_secs_f64()
                ));
            }
            sleep(RETRY).await;
        }
    }

    async fn resume(self: &Arc<Self>) -> Result<(), RouteError> {
        let link = self.remote.dialer.link(&self.remote.worker).await?;
        let assign = Assign { resume: true, ..self.remote.assign.clone() };
        link.assign(assign, |_| {}).await?;
        let mut traffic = self.traffic();
        if traffic.active {
            link.set_active(true)?;
        }
        let now = Instant::now();
        for pending in &mut traffic.unanswered {
            pending.since = now;
            self.send(&link, pending);
        }
        traffic.link = Some(link);
        Ok(())
    }

    fn lose(&self, reason: String, lost: LossWatch) {
        let error = self.lost(reason.clone());
        let known = self.remote.status.get(&self.remote.worker.id).map(|node| node.state);
        if !matches!(known, Some(NodeState::Taken { .. } | NodeState::Stuck { .. })) {
            self.set_state(NodeState::Lost { reason });
        }
        let unanswered = self.traffic().end(error.clone());
        lost(error.clone());
        for pending in unanswered {
            pending.done.finish(Err(error.clone()), StageTime::default());
        }
    }
}

impl Traffic {
    /// Sends nothing any more. Returns the steps that are not answered.
    fn end(&mut self, error: StageError) -> VecDeque<Pending> {
        self.link = None;
        self.end.get_or_insert(error);
        std::mem::take(&mut self.unanswered)
    }
}

/// Where the time of an answered step went: what the worker did not spend was spent on the way.
fn time(reply: &Reply) -> StageTime {
    let total = reply.timing.send_micros.saturating_add(reply.timing.wait_micros);
    let header = &reply.header;
    let mut left = total;
    let mut share = |micros: u64| {
        let micros = micros.min(left);
        left -= micros;
        Duration::from_micros(micros)
    };
    StageTime {
        queue: share(header.queue_micros),
        compute: share(header.compute_micros),
        device: share(header.device_micros),
        sampling: Duration::ZERO, // only the last stage has tokens to choose
        wire: Duration::from_micros(left),
    }
}

impl StageRunner for RemoteStage {
    fn span(&self) -> StageSpan {
        self.place.remote.span.clone()
    }

    fn submit(&mut self, batch: Arc<Batch>, input: Option<Hidden>, done: Done) {
        let mut traffic = self.place.traffic();
        if let Some(error) = traffic.end.clone() {
            drop(traffic); // whoever is told may hand over the next batch at once
            return done.finish(Err(error), StageTime::default());
        }
        traffic.step += 1;
        let pending = Pending { step: traffic.step, batch, input, since: Instant::now(), done };
        if let Some(link) = &traffic.link {
            self.place.send(link, &pending);
        }
        traffic.unanswered.push_back(pending);
    }

    fn watch(&mut self, lost: LossWatch) {
        self.runtime.spawn(self.place.clone().look_after(lost));
    }

    fn set_active(&mut self, active: bool) {
        let mut traffic = self.place.traffic();
        traffic.active = active;
        if let Some(link) = &traffic.link {
            // The end of the link is told elsewhere.
            let _ = link.set_active(active);
        }
    }
}

impl Drop for RemoteStage {
    fn drop(&mut self) {
        // Dropping unanswered steps tells that the stage has stopped, outside of the lock.
        let unanswered = self.place.traffic().end(StageError::Stopped);
        drop(unanswered);
        self.place.dropped.notify_one();
    }
}
