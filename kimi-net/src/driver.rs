//! Links on tokio: one task for each connection, and handles to it.

mod pump;
mod stats;
mod tcp;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
};

use self::pump::{AssignWaiter, Command, Pump, Route, StepWaiter, Waiter};
pub use self::{
    stats::{LinkStats, StepTiming},
    tcp::{Incoming, Listener, connect},
};
use crate::{
    error::{LinkError, ProtocolError},
    message::{
        Assign, Cancel, ErrorReport, Forward, Goodbye, Hello, LoadProgress, Message, Ready, StepResult,
    },
    protocol::{Config, Event, Protocol},
    tune::Tuned,
};

/// Events that a worker's program may leave unread; a step in flight is one of them, and steps are bounded.
const MAX_UNREAD_EVENTS: usize = 1024;

/// The coordinator's handle on the link to one worker. Clones share the link; it ends with the last of them.
#[derive(Clone)]
pub struct Coordinator {
    link: Link,
    steps: Arc<Semaphore>,
}

/// The worker's handle on the link to its coordinator. The link ends with it and its [`WorkerSender`]s.
pub struct Worker {
    link: Link,
    events: mpsc::Receiver<Event>,
}

/// The sending half of a [`Worker`]; clones share the link.
#[derive(Clone)]
pub struct WorkerSender {
    link: Link,
}

/// The answer to a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The worker's header.
    pub header: StepResult,
    /// The output, at an address that is a multiple of [`crate::PAYLOAD_ALIGNMENT`]; empty if it has no rows.
    pub payload: Bytes,
    /// Where the time went.
    pub timing: StepTiming,
}

/// A step that is under way. Dropping it gives up the answer, which is then skipped when it comes; the worker
/// still computes the step unless it is told to [`cancel`](Coordinator::cancel) it.
pub struct Pending {
    answer: oneshot::Receiver<Result<Reply, LinkError>>,
    link: Link,
}

impl Pending {
    /// Waits for the answer. [`LinkError::Failed`] if the worker could not compute the step; the link goes on then.
    pub async fn wait(self) -> Result<Reply, LinkError> {
        self.answer.await.unwrap_or_else(|_| Err(self.link.reason()))
    }
}

impl Coordinator {
    /// Says hello on a stream and waits for the welcome. Call it within a tokio runtime.
    pub async fn handshake<S>(stream: S, config: Config) -> Result<Coordinator, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        Coordinator::start(stream, config, None).await
    }

    async fn start<S>(stream: S, config: Config, socket: Option<Tuned>) -> Result<Coordinator, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let protocol = Protocol::coordinator(config, Instant::now())?;
        let (link, max_in_flight) = Link::open(stream, protocol, Route::coordinator(), socket).await?;
        Ok(Coordinator { link, steps: Arc::new(Semaphore::new(max_in_flight)) })
    }

    /// The worker's introduction.
    pub fn peer(&self) -> &Hello {
        &self.link.peer
    }

    /// The socket's options as the system set them; `None` for a stream that is no TCP connection of ours.
    pub fn socket(&self) -> Option<Tuned> {
        self.link.socket
    }

    /// Numbers of the link so far.
    pub fn stats(&self) -> LinkStats {
        self.link.shared.stats().clone()
    }

    /// Why the link is over; `None` while it is open.
    pub fn closed_reason(&self) -> Option<LinkError> {
        self.link.shared.reason.get().cloned()
    }

    /// Waits until the link is over and returns why. The future does not keep the link open.
    pub fn closed(&self) -> impl Future<Output = LinkError> + Send + use<> {
        let (mut ended, shared) = (self.link.ended.clone(), self.link.shared.clone());
        async move {
            // An error: nothing is ever sent, the sender is dropped when the link's task ends.
            let _ = ended.changed().await;
            shared.reason.get().cloned().unwrap_or(LinkError::Closed)
        }
    }

    /// Has the worker load a stage, and waits until it is ready. `progress` is called on the link's task and must
    /// return at once. [`LinkError::Failed`] if the worker could not load it; another stage may be assigned then.
    pub async fn assign(
        &self,
        assign: Assign,
        progress: impl FnMut(LoadProgress) + Send + 'static,
    ) -> Result<Ready, LinkError> {
        let (done, answer) = oneshot::channel();
        let waiter = Waiter::Assign(AssignWaiter { progress: Box::new(progress), done });
        self.link.command(Message::Assign(assign), Bytes::new(), waiter)?;
        answer.await.unwrap_or_else(|_| Err(self.link.reason()))
    }

    /// Sends a step and waits for its answer; first for a free place if the agreed number of steps is in flight.
    /// Several calls may run at once: steps are sent in the order in which the calls were first polled.
    /// Dropping the future is safe at any point; see [`Pending`].
    pub async fn forward(&self, header: Forward, payload: Bytes) -> Result<Reply, LinkError> {
        let permit = self.steps.clone().acquire_owned().await.map_err(|_| self.link.reason())?;
        self.send_step(header, payload, permit)?.wait().await
    }

    /// Sends a step now, in the order of the calls, and returns without waiting for its answer.
    /// An error if the agreed number of steps is in flight.
    pub fn submit(&self, header: Forward, payload: Bytes) -> Result<Pending, LinkError> {
        let permit = self
            .steps
            .clone()
            .try_acquire_owned()
            .map_err(|_| ProtocolError::TooManyInFlight { limit: self.link.max_in_flight })?;
        self.send_step(header, payload, permit)
    }

    fn send_step(
        &self,
        header: Forward,
        payload: Bytes,
        permit: OwnedSemaphorePermit,
    ) -> Result<Pending, LinkError> {
        let (done, answer) = oneshot::channel();
        let step = header.step;
        let waiter = StepWaiter { step, submitted: Instant::now(), sent: None, done, _permit: permit };
        self.link.command(Message::Forward(header), payload, Waiter::Step(waiter))?;
        Ok(Pending { answer, link: self.link.clone() })
    }

    /// Tells the worker what nobody waits for any more. Steps in flight are still answered, in their turn:
    /// with their result, or with [`crate::ErrorCode::Cancelled`] as [`LinkError::Failed`].
    pub async fn cancel(&self, cancel: Cancel) -> Result<(), LinkError> {
        self.link.send(Message::Cancel(cancel), Bytes::new()).await
    }

    /// Says goodbye and waits until that is sent. Steps in flight fail.
    pub async fn close(self, reason: impl Into<String>) {
        self.link.close(reason.into()).await;
    }
}

impl Worker {
    /// Waits for a coordinator's hello on a stream and welcomes it. Call it within a tokio runtime.
    pub async fn handshake<S>(stream: S, config: Config) -> Result<Worker, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        Worker::start(stream, config, None).await
    }

    async fn start<S>(stream: S, config: Config, socket: Option<Tuned>) -> Result<Worker, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let protocol = Protocol::worker(config, Instant::now());
        let (sender, events) = mpsc::channel(MAX_UNREAD_EVENTS);
        let (link, _) = Link::open(stream, protocol, Route::Worker { events: sender }, socket).await?;
        Ok(Worker { link, events })
    }

    /// The coordinator's introduction.
    pub fn peer(&self) -> &Hello {
        &self.link.peer
    }

    /// The socket's options as the system set them; `None` for a stream that is no TCP connection of ours.
    pub fn socket(&self) -> Option<Tuned> {
        self.link.socket
    }

    /// Numbers of the link so far.
    pub fn stats(&self) -> LinkStats {
        self.link.shared.stats().clone()
    }

    /// A handle to answer with, for the thread that computes.
    pub fn sender(&self) -> WorkerSender {
        WorkerSender { link: self.link.clone() }
    }

    /// The coordinator's next wish: [`Event::Assigned`], [`Event::Forward`], [`Event::Cancel`] or
    /// [`Event::Failed`]. An error when the link is over. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Event, LinkError> {
        self.events.recv().await.ok_or_else(|| self.link.reason())
    }

    /// Says goodbye and waits until that is sent.
    pub async fn close(self, reason: impl Into<String>) {
        self.link.close(reason.into()).await;
    }
}

impl WorkerSender {
    /// Reports how far loading is.
    pub async fn progress(&self, progress: LoadProgress) -> Result<(), LinkError> {
        self.link.send(Message::LoadProgress(progress), Bytes::new()).await
    }

    /// Reports that the assigned stage can compute.
    pub async fn ready(&self, ready: Ready) -> Result<(), LinkError> {
        self.link.send(Message::Ready(ready), Bytes::new()).await
    }

    /// Answers the oldest unanswered step.
    pub async fn result(&self, header: StepResult, payload: Bytes) -> Result<(), LinkError> {
        self.link.send(Message::Result(header), payload).await
    }

    /// Reports a failure: of the assignment, of the oldest unanswered step, or of the link as a whole (fatal).
    pub async fn fail(&self, report: ErrorReport) -> Result<(), LinkError> {
        self.link.send(Message::Error(report), Bytes::new()).await
    }
}

/// What every handle holds.
#[derive(Clone)]
struct Link {
    peer: Arc<Hello>,
    max_in_flight: usize,
    socket: Option<Tuned>,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    /// Its sender lives as long as the link's task.
    ended: watch::Receiver<()>,
}

/// What the link's task and its handles share.
#[derive(Default)]
struct Shared {
    stats: Mutex<LinkStats>,
    reason: OnceLock<LinkError>,
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, LinkStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    async fn open<S>(
        stream: S,
        protocol: Protocol,
        route: Route,
        socket: Option<Tuned>,
    ) -> Result<(Link, usize), LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (connected, greeting) = oneshot::channel();
        let (end, ended) = watch::channel(());
        let shared = Arc::new(Shared::default());
        let pump = Pump::new(protocol, route, receiver, connected, shared.clone());
        tokio::spawn(async move {
            pump.run(stream).await;
            drop(end);
        });
        let (peer, max_in_flight) =
            greeting.await.map_err(|_| shared.reason.get().cloned().unwrap_or(LinkError::Closed))?;
        Ok((Link { peer: Arc::new(peer), max_in_flight, socket, shared, commands, ended }, max_in_flight))
    }

    fn reason(&self) -> LinkError {
        self.shared.reason.get().cloned().unwrap_or(LinkError::Closed)
    }

    fn command(&self, message: Message, payload: Bytes, waiter: Waiter) -> Result<(), LinkError> {
        self.commands.send(Command { message, payload, waiter }).map_err(|_| self.reason())
    }

    async fn send(&self, message: Message, payload: Bytes) -> Result<(), LinkError> {
        let (done, accepted) = oneshot::channel();
        self.command(message, payload, Waiter::Accepted(done))?;
        accepted.await.unwrap_or_else(|_| Err(self.reason()))
    }

    async fn close(mut self, reason: String) {
        // An error from either means that the link is over already.
        let _ = self.send(Message::Goodbye(Goodbye { reason }), Bytes::new()).await;
        let _ = self.ended.changed().await;
    }
}
