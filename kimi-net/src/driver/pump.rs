//! The task of a link: moves bytes between the stream and the protocol, and events to those who wait for them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    pin,
    sync::{mpsc, oneshot},
    time::{sleep_until, timeout},
};

use super::{Reply, Shared, StepTiming};
use crate::{
    error::LinkError,
    frame::OutFrame,
    message::{Assign, ErrorReport, Forward, Hello, LoadProgress, Message, Ready, StepResult, Subject},
    protocol::{Event, Protocol},
};

/// Frames handed to the stream at once.
const MAX_FRAMES: usize = 8;
/// Bytes handed to the stream at once, or one frame.
const MAX_BYTES: usize = 1 << 20;
/// Time for last words, each way.
const LINGER: Duration = Duration::from_secs(1);

/// What a handle asks the link's task for.
#[allow(clippy::large_enum_variant, reason = "goes through a channel once")]
pub(super) enum Command {
    /// Send this; nobody waits.
    Send(Message, Bytes),
    /// Have a stage loaded.
    Assign(Assign, AssignWaiter),
    /// Have a step computed.
    Step(Step),
}

/// A step to send, and who waits for its answer.
pub(super) struct Step {
    pub(super) header: Forward,
    pub(super) payload: Bytes,
    pub(super) waiter: StepWaiter,
}

pub(super) struct AssignWaiter {
    pub(super) progress: Box<dyn FnMut(LoadProgress) + Send>,
    /// Dropping it tells that the link is over.
    pub(super) done: oneshot::Sender<Result<Ready, LinkError>>,
}

pub(super) struct StepWaiter {
    pub(super) step: u64,
    pub(super) submitted: Instant,
    /// When the last byte was handed to the operating system.
    pub(super) sent: Option<Instant>,
    pub(super) done: Done,
}

type OnReply = Box<dyn FnOnce(Result<Reply, LinkError>) + Send>;

/// Whom to tell of a step's answer. Dropping it tells why the link is over, whatever ended it.
pub(super) struct Done {
    /// `None` once it was called.
    call: Option<OnReply>,
    shared: Arc<Shared>,
}

impl Done {
    pub(super) fn new(call: OnReply, shared: Arc<Shared>) -> Done {
        Done { call: Some(call), shared }
    }

    fn tell(mut self, result: Result<Reply, LinkError>) {
        if let Some(call) = self.call.take() {
            call(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call(Err(self.shared.reason()));
        }
    }
}

/// Where a link's events go.
pub(super) enum Route {
    Coordinator {
        /// Steps in flight, oldest first.
        steps: VecDeque<StepWaiter>,
        /// Steps that wait for a place among those in flight.
        waiting: VecDeque<Step>,
        assign: Option<AssignWaiter>,
    },
    Worker {
        events: mpsc::Sender<Event>,
    },
}

impl Route {
    pub(super) fn coordinator() -> Route {
        Route::Coordinator { steps: VecDeque::new(), waiting: VecDeque::new(), assign: None }
    }
}

pub(super) struct Pump {
    protocol: Protocol,
    route: Route,
    commands: mpsc::UnboundedReceiver<Command>,
    connected: Option<oneshot::Sender<Hello>>,
    shared: Arc<Shared>,
    queue: SendQueue,
    /// False after a failed write: the peer may have left some last words to read.
    writable: bool,
}

#[allow(clippy::large_enum_variant, reason = "lives for one turn of the loop")]
enum Woken {
    Command(Option<Command>),
    Written(io::Result<usize>),
    Read(io::Result<usize>),
    Timer,
}

impl Pump {
    pub(super) fn new(
        protocol: Protocol,
        route: Route,
        commands: mpsc::UnboundedReceiver<Command>,
        connected: oneshot::Sender<Hello>,
        shared: Arc<Shared>,
    ) -> Pump {
        let queue = SendQueue::default();
        Pump { protocol, route, commands, connected: Some(connected), shared, queue, writable: true }
    }

    /// Runs the link to its end.
    pub(super) async fn run<S: AsyncRead + AsyncWrite>(mut self, stream: S) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let timer = sleep_until(Instant::now().into());
        pin!(timer);
        let reason = loop {
            if let Some(reason) = self.deliver_events() {
                break reason;
            }
            self.queue.fill(&mut self.protocol);
            // Deadlines mostly move away: the timer is only set again when it fires or when one came nearer.
            if let Some(due) = self.protocol.next_timeout().filter(|due| *due < timer.deadline().into_std()) {
                timer.as_mut().reset(due.into());
            }
            let mut target = self.protocol.target();
            let woken = tokio::select! {
                biased;
                // During the handshake nobody can send commands, but whoever waits for it may give up.
                command = self.commands.recv() => Woken::Command(command),
                written = self.queue.write(&mut writer), if self.writable && self.queue.busy() => {
                    Woken::Written(written)
                }
                read = reader.read_buf(&mut target) => Woken::Read(read),
                () = timer.as_mut() => Woken::Timer,
            };
            match woken {
                Woken::Timer => {
                    self.protocol.handle_timeout(Instant::now());
                    if let Some(due) = self.protocol.next_timeout() {
                        timer.as_mut().reset(due.into());
                    }
                }
                other => self.handle(other),
            }
        };
        self.finish(reason, reader, writer).await;
    }

    fn handle(&mut self, woken: Woken) {
        match woken {
            Woken::Timer => {}
            Woken::Command(Some(command)) => self.on_command(command),
            Woken::Command(None) => self.protocol.goodbye("the program dropped the link"),
            Woken::Written(Ok(count)) => {
                self.shared.stats().bytes_sent += count as u64;
                let route = &mut self.route;
                self.queue.advance(count, |step| {
                    if let Route::Coordinator { steps, .. } = route
                        && let Some(waiter) = steps.iter_mut().find(|waiter| waiter.step == step)
                    {
                        waiter.sent = Some(Instant::now());
                    }
                });
            }
            Woken::Written(Err(error)) => {
                tracing::debug!(%error, "cannot write to the peer; reading on until the stream ends");
                self.writable = false;
            }
            Woken::Read(Ok(0)) => self.protocol.handle_end(),
            // An encrypted stream that ends without saying so: cut off.
            Woken::Read(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.protocol.handle_end()
            }
            Woken::Read(Ok(count)) => {
                self.shared.stats().bytes_received += count as u64;
                self.protocol.handle_received(Instant::now());
            }
            Woken::Read(Err(error)) => {
                self.protocol.abort(LinkError::io("cannot read from the peer", &error))
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match (command, &mut self.route) {
            (Command::Send(message, payload), route) => {
                let Err(error) = self.protocol.send(message, payload) else { return };
                match route {
                    // Its peer would wait for an answer for ever.
                    Route::Worker { .. } => self.protocol.abort(error),
                    Route::Coordinator { .. } => tracing::debug!(%error, "not sent"),
                }
            }
            (Command::Assign(assign, waiter), Route::Coordinator { assign: assigned, .. }) => {
                match self.protocol.send(Message::Assign(assign), Bytes::new()) {
                    Ok(()) => *assigned = Some(waiter),
                    // Whoever has stopped waiting does not need to know.
                    Err(error) => drop(waiter.done.send(Err(error))),
                }
            }
            (Command::Step(step), Route::Coordinator { waiting, .. }) => {
                waiting.push_back(step);
                self.send_steps();
            }
            (Command::Assign(..) | Command::Step(_), Route::Worker { .. }) => {
                tracing::warn!("a coordinator's command at a worker");
            }
        }
    }

    /// Sends waiting steps while there are places for them.
    fn send_steps(&mut self) {
        let Route::Coordinator { steps, waiting, .. } = &mut self.route else { return };
        while waiting.front().is_some_and(|next| self.protocol.has_room_for(&next.header))
            && let Some(Step { header, payload, waiter }) = waiting.pop_front()
        {
            match self.protocol.send(Message::Forward(header), payload) {
                Ok(()) => steps.push_back(waiter),
                Err(error) => waiter.done.tell(Err(error)),
            }
        }
    }

    /// Hands all events on; returns why the link is over, if it is.
    fn deliver_events(&mut self) -> Option<LinkError> {
        while let Some(event) = self.protocol.poll_event() {
            match event {
                Event::Closed(reason) => return Some(reason),
                Event::Connected { peer, .. } => {
                    if let Some(connected) = self.connected.take() {
                        drop(connected.send(peer));
                    }
                }
                Event::Pong { round_trip, progress, paged_in_bytes } => {
                    self.shared.stats().pong(round_trip, progress, paged_in_bytes);
                }
                event => self.deliver(event),
            }
        }
        self.send_steps();
        None
    }

    fn deliver(&mut self, event: Event) {
        match &mut self.route {
            Route::Worker { events } => match events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    self.protocol.goodbye("the program dropped the link");
                }
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.protocol.abort(LinkError::Unattended { unread: super::MAX_UNREAD_EVENTS });
                }
            },
            Route::Coordinator { steps, assign, .. } => match event {
                Event::Progress(progress) => {
                    if let Some(waiter) = assign {
                        (waiter.progress)(progress);
                    }
                }
                Event::Ready(ready) => finish_assign(assign, Ok(ready)),
                Event::Result(header, payload) => {
                    if let Some(waiter) = steps.pop_front() {
                        finish_step(waiter, header, payload, &self.shared);
                    }
                }
                Event::Failed(report) => fail(steps, assign, report),
                other => tracing::warn!(?other, "a worker's event at a coordinator"),
            },
        }
    }

    /// Lets everyone know, sends what is queued, and gives the peer time to read it: closing a socket with unread
    /// bytes in it would make the system throw our last words away.
    async fn finish<S: AsyncRead + AsyncWrite>(
        mut self,
        reason: LinkError,
        mut reader: ReadHalf<S>,
        mut writer: WriteHalf<S>,
    ) {
        tracing::debug!(%reason, "link closed");
        let ours = reason.code().is_some() || reason == LinkError::Closed;
        // The reason is set first: those who wait look for it when their waiter is dropped.
        drop(self.shared.reason.set(reason));
        let Pump { protocol, route, commands, connected, queue, .. } = &mut self;
        *route = Route::coordinator();
        connected.take();
        commands.close();
        while commands.try_recv().is_ok() {}
        if !ours {
            return;
        }
        let last_words = async {
            queue.fill(protocol);
            while queue.busy() {
                let count = queue.write(&mut writer).await?;
                queue.advance(count, |_| {});
                queue.fill(protocol);
            }
            writer.shutdown().await
        };
        if let Ok(Ok(())) = timeout(LINGER, last_words).await {
            let mut scratch = vec![0; 64 << 10];
            let drain = async { while reader.read(&mut scratch).await.is_ok_and(|count| count > 0) {} };
            // Out of time or at the end: either way the stream may be closed now.
            let _ = timeout(LINGER, drain).await;
        }
    }
}

fn finish_assign(assign: &mut Option<AssignWaiter>, result: Result<Ready, LinkError>) {
    if let Some(waiter) = assign.take() {
        drop(waiter.done.send(result));
    }
}

fn finish_step(waiter: StepWaiter, header: StepResult, payload: Bytes, shared: &Shared) {
    let now = Instant::now();
    // An answer can overtake our note that the last byte went out.
    let sent = waiter.sent.unwrap_or(now);
    let timing = StepTiming { send_micros: micros(waiter.submitted, sent), wait_micros: micros(sent, now) };
    shared.stats().step(timing);
    waiter.done.tell(Ok(Reply { header, payload, timing }));
}

fn fail(steps: &mut VecDeque<StepWaiter>, assign: &mut Option<AssignWaiter>, report: ErrorReport) {
    match report.subject {
        Subject::Assignment => finish_assign(assign, Err(LinkError::Failed(report))),
        Subject::Step(_) => {
            if let Some(waiter) = steps.pop_front() {
                waiter.done.tell(Err(LinkError::Failed(report)));
            }
        }
        Subject::Link => tracing::warn!(code = ?report.code, message = %report.message, "the worker reports"),
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

/// Frames on their way to the stream, sent from where their bytes are.
#[derive(Default)]
struct SendQueue {
    frames: VecDeque<OutFrame>,
    unflushed: bool,
}

impl SendQueue {
    fn fill(&mut self, protocol: &mut Protocol) {
        while self.frames.len() < MAX_FRAMES
            && self.frames.iter().map(OutFrame::remaining).sum::<usize>() < MAX_BYTES
            && let Some(frame) = protocol.poll_transmit()
        {
            self.frames.push_back(frame);
        }
    }

    fn busy(&self) -> bool {
        self.unflushed || !self.frames.is_empty()
    }

    /// Hands some bytes to the stream, heads and payloads side by side; flushes when there are none.
    /// Safe to drop: a write that has not returned has taken nothing.
    async fn write<W: AsyncWrite + Unpin>(&self, writer: &mut W) -> io::Result<usize> {
        if self.frames.is_empty() {
            writer.flush().await?;
            return Ok(0);
        }
        let mut slices = [IoSlice::new(&[]); 2 * MAX_FRAMES];
        let parts = self.frames.iter().flat_map(|frame| [&frame.head, &frame.payload]);
        let mut count = 0;
        for part in parts.filter(|part| !part.is_empty()).take(slices.len()) {
            slices[count] = IoSlice::new(part);
            count += 1;
        }
        match writer.write_vectored(&slices[..count]).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    /// Takes sent bytes off, and tells of each step whose last byte was among them.
    fn advance(&mut self, mut count: usize, mut step_sent: impl FnMut(u64)) {
        self.unflushed = count > 0;
        while let Some(frame) = self.frames.front_mut() {
            count = frame.advance(count);
            if frame.remaining() > 0 {
                return;
            }
            if let Some(step) = frame.step {
                step_sent(step);
            }
            self.frames.pop_front();
        }
    }
}
