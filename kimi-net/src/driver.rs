//! Links on tokio: one task for each connection, and handles to it.

mod fetch;
mod look;
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
    sync::{mpsc, oneshot, watch},
};

use self::pump::{AssignWaiter, Command, Done, Pump, Route, Step, StepWaiter};
pub use self::{
    look::Observer,
    stats::{LinkStats, StepTiming},
    tcp::{Incoming, Listener, connect, observe},
};
use crate::{
    error::LinkError,
    message::{
        Activity, Assign, ErrorReport, Forward, Goodbye, Hello, LoadProgress, Message, Ready, Role,
        StepResult,
    },
    protocol::{Config, Event, Protocol},
    secure::{self, Trust},
    tune::Tuned,
};

/// Events that a worker's program may leave unread; a step in flight is one of them, and steps are bounded.
const MAX_UNREAD_EVENTS: usize = 1024;

/// The coordinator's handle on the link to one worker. Clones share the link; it ends with the last of them.
#[derive(Clone)]
pub struct Coordinator {
    link: Link,
}

/// The worker's handle on the link to its coordinator. The link ends with it and its [`WorkerSender`]s.
pub struct Worker {
    link: Link,
    events: mpsc::Receiver<Event>,
}

/// The sending half of a [`Worker`]; clones share the link.
///
/// Its functions queue a message and return at once; an error means that the link is over. Answers in the queue are
/// bounded by the steps in flight. A message that the protocol has no place for, such as the answer to a step that was
/// not asked for, is a fault of this side's program and ends the link.
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

impl Coordinator {
    /// Proves the key on a stream, says hello and waits for the welcome. Call it within a tokio runtime.
    pub async fn handshake<S>(stream: S, trust: &Trust, config: Config) -> Result<Coordinator, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Coordinator::start(stream, trust, config, None).await
    }

    async fn start<S>(
        stream: S,
        trust: &Trust,
        config: Config,
        socket: Option<Tuned>,
    ) -> Result<Coordinator, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = Instant::now(); // both handshakes together have the time of one
        let route = Route::coordinator();
        let link = match trust {
            Trust::Insecure => {
                let stream = secure::buffered(stream);
                Link::open(stream, Protocol::coordinator(config, begun)?, route, socket).await?
            }
            Trust::Key(key) => {
                let limit = config.handshake_timeout;
                let stream = secure::handshake(stream, key, Role::Coordinator, limit).await?;
                Link::open(stream, Protocol::coordinator(config, begun)?, route, socket).await?
            }
        };
        Ok(Coordinator { link })
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
            shared.reason()
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
        let waiter = AssignWaiter { progress: Box::new(progress), done };
        self.link.command(Command::Assign(assign, waiter))?;
        answer.await.unwrap_or_else(|_| Err(self.link.reason()))
    }

    /// Sends a step; `done` is told its answer. If the agreed number of steps is in flight, the step waits on this
    /// side. Steps are sent in the order of the calls.
    ///
    /// `done` is called exactly once: with the answer; with [`LinkError::Failed`] if the worker could not compute the
    /// step, and with an error if the step must not be sent (the link goes on after either); or with the reason why
    /// the link has ended. It runs on the link's task, or within this call if the link is over already, and must
    /// return at once. A step that is under way does not keep the link open.
    pub fn submit(
        &self,
        header: Forward,
        payload: Bytes,
        done: impl FnOnce(Result<Reply, LinkError>) + Send + 'static,
    ) {
        let waiter = StepWaiter {
            step: header.step,
            submitted: Instant::now(),
            sent: None,
            done: Done::new(Box::new(done), self.link.shared.clone()),
        };
        // On an error the step is dropped, which tells the waiter.
        drop(self.link.command(Command::Step(Step { header, payload, waiter })));
    }

    /// [`submit`](Self::submit), waiting for the answer. Dropping the future gives up the answer, not the step.
    pub async fn forward(&self, header: Forward, payload: Bytes) -> Result<Reply, LinkError> {
        let (done, answer) = oneshot::channel();
        // An error means that the future was dropped: nobody waits any more.
        self.submit(header, payload, move |result| drop(done.send(result)));
        answer.await.unwrap_or_else(|_| Err(self.link.reason()))
    }

    /// Tells the worker whether sequences are running. Returns at once; an error means that the link is over.
    /// A worker that serves no stage is not told.
    pub fn set_active(&self, active: bool) -> Result<(), LinkError> {
        self.link.send(Message::Activity(Activity { active }), Bytes::new())
    }

    /// Says goodbye and waits until that is sent. Steps in flight fail.
    pub async fn close(self, reason: impl Into<String>) {
        self.link.close(reason.into()).await;
    }
}

impl Worker {
    /// Waits for a coordinator's proof of the key and its hello on a stream, and welcomes it. Call it within a tokio runtime.
    pub async fn handshake<S>(stream: S, trust: &Trust, config: Config) -> Result<Worker, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Worker::start(stream, trust, config, None).await
    }

    async fn start<S>(
        stream: S,
        trust: &Trust,
        config: Config,
        socket: Option<Tuned>,
    ) -> Result<Worker, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limit = config.handshake_timeout;
        let protocol = Protocol::worker(config, Instant::now()); // both handshakes together have the time of one
        let (sender, events) = mpsc::channel(MAX_UNREAD_EVENTS);
        let route = Route::Worker { events: sender };
        let link = match trust {
            Trust::Insecure => Link::open(secure::buffered(stream), protocol, route, socket).await?,
            Trust::Key(key) => {
                let stream = secure::handshake(stream, key, Role::Worker, limit).await?;
                Link::open(stream, protocol, route, socket).await?
            }
        };
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

    /// What the coordinator asks for next: [`Event::Assigned`], [`Event::Forward`], [`Event::Activity`] or
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
    pub fn progress(&self, progress: LoadProgress) -> Result<(), LinkError> {
        self.link.send(Message::LoadProgress(progress), Bytes::new())
    }

    /// Reports that the assigned stage can compute.
    pub fn ready(&self, ready: Ready) -> Result<(), LinkError> {
        self.link.send(Message::Ready(ready), Bytes::new())
    }

    /// Answers the oldest unanswered step.
    pub fn result(&self, header: StepResult, payload: Bytes) -> Result<(), LinkError> {
        self.link.send(Message::Result(header), payload)
    }

    /// Reports a failure: of the assignment, of the oldest unanswered step, or of the link as a whole (fatal).
    pub fn fail(&self, report: ErrorReport) -> Result<(), LinkError> {
        self.link.send(Message::Error(report), Bytes::new())
    }
}

/// What every handle holds.
#[derive(Clone)]
struct Link {
    peer: Arc<Hello>,
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

    /// Why the link is over; [`LinkError::Closed`] too if its task ended with the runtime.
    fn reason(&self) -> LinkError {
        self.reason.get().cloned().unwrap_or(LinkError::Closed)
    }
}

impl Link {
    async fn open<S>(
        stream: S,
        protocol: Protocol,
        route: Route,
        socket: Option<Tuned>,
    ) -> Result<Link, LinkError>
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
        let peer = greeting.await.map_err(|_| shared.reason())?;
        Ok(Link { peer: Arc::new(peer), socket, shared, commands, ended })
    }

    fn reason(&self) -> LinkError {
        self.shared.reason()
    }

    fn command(&self, command: Command) -> Result<(), LinkError> {
        self.commands.send(command).map_err(|_| self.reason())
    }

    fn send(&self, message: Message, payload: Bytes) -> Result<(), LinkError> {
        self.command(Command::Send(message, payload))
    }

    async fn close(mut self, reason: String) {
        // An error from either means that the link is over already.
        let _ = self.send(Message::Goodbye(Goodbye { reason }), Bytes::new());
        let _ = self.ended.changed().await;
    }
}
