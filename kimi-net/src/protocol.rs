//! The protocol without sockets and without a clock: bytes and times in, events and frames out.

mod config;
pub(crate) mod error;
mod event;
mod state;

use std::{collections::VecDeque, sync::atomic::Ordering, time::Instant};

use bytes::{BufMut, Bytes, BytesMut, buf::Limit};

pub use self::{
    config::{Config, ProgressCount},
    error::ProtocolError,
    event::Event,
    state::State,
};
use crate::{
    error::LinkError,
    frame::{FrameError, FrameReader, Limits, OutFrame, Prefix, Progress},
    kind::Kind,
    message::{
        ErrorReport, Forward, Goodbye, Hello, MAX_FETCHES, MAX_LOOKS, Message, Ping, Pong, Role, StepBounds,
        Subject, Versions, Welcome,
    },
};

/// Frames that may wait to be sent; a peer that makes us queue more does not read.
const MAX_QUEUED: usize = 1024;
/// Memory for steps that are not answered: three full prefill steps of Kimi-K2, or as many decode steps as
/// [`Config::max_in_flight`] allows. A step that is larger goes alone.
const MAX_IN_FLIGHT_BYTES: u64 = 48 << 20;

/// One end of a link.
///
/// Feed it with [`handle_input`](Self::handle_input) (or, without a copy, [`target`](Self::target) and
/// [`handle_received`](Self::handle_received)) and [`handle_timeout`](Self::handle_timeout); then take all of
/// [`poll_event`](Self::poll_event) and [`poll_transmit`](Self::poll_transmit).
pub struct Protocol {
    config: Config,
    role: Role,
    /// What the peer is; until it has said so, a coordinator for a worker.
    peer_role: Role,
    state: State,
    reader: FrameReader,
    outgoing: VecDeque<OutFrame>,
    events: VecDeque<Event>,
    /// Steps sent and not answered, oldest first; the same on both sides, but for what is under way.
    in_flight: VecDeque<InFlight>,
    /// Their memory together, see [`Forward::memory`].
    in_flight_bytes: u64,
    /// Payloads of answers that wait to be sent: their steps still take memory.
    unsent_bytes: u64,
    max_in_flight: usize,
    last_step: Option<u64>,
    /// Questions of an observer that are not answered.
    looks: usize,
    /// Bytes of the pieces that an observer has asked for and not got, oldest first.
    fetches: VecDeque<u32>,
    /// Of the stage that is assigned; steps without one are out of order.
    bounds: Option<StepBounds>,
    clock: Clock,
}

/// A step without an answer.
#[derive(Clone, Copy)]
struct InFlight {
    step: u64,
    bytes: u64,
}

/// Times of a link, as they were passed in.
struct Clock {
    started: Instant,
    heard: Instant,
    frame_begun: Option<Instant>,
    next_ping: Instant,
    /// The ping that was sent last and not answered yet.
    pinged: Option<(u64, Instant)>,
    pings: u64,
}

impl Protocol {
    /// The coordinator's end; its hello is ready to be sent.
    pub fn coordinator(config: Config, now: Instant) -> Result<Protocol, LinkError> {
        Protocol::connecting(Role::Coordinator, config, now)
    }

    /// The end of a node that only looks; its hello is ready to be sent.
    pub fn observer(config: Config, now: Instant) -> Result<Protocol, LinkError> {
        Protocol::connecting(Role::Observer, config, now)
    }

    fn connecting(role: Role, config: Config, now: Instant) -> Result<Protocol, LinkError> {
        let mut protocol = Protocol::new(role, config, now);
        let hello = protocol.config.hello(role);
        protocol.push(&Message::Hello(hello), Bytes::new())?;
        Ok(protocol)
    }

    /// A worker's end; it waits for a hello.
    pub fn worker(config: Config, now: Instant) -> Protocol {
        Protocol::new(Role::Worker, config, now)
    }

    fn new(role: Role, config: Config, now: Instant) -> Protocol {
        let clock =
            Clock { started: now, heard: now, frame_begun: None, next_ping: now, pinged: None, pings: 0 };
        Protocol {
            max_in_flight: config.max_in_flight.max(1) as usize,
            config,
            role,
            peer_role: if role == Role::Worker { Role::Coordinator } else { Role::Worker },
            state: State::Greeting,
            reader: FrameReader::new(Limits::HANDSHAKE),
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unsent_bytes: 0,
            last_step: None,
            looks: 0,
            fetches: VecDeque::new(),
            bounds: None,
            clock,
        }
    }

    /// Where the link is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether this step may be sent before another one is answered.
    pub fn has_room_for(&self, forward: &Forward) -> bool {
        self.check_room(forward).is_ok()
    }

    fn check_room(&self, forward: &Forward) -> Result<(), ProtocolError> {
        if self.in_flight.len() >= self.max_in_flight {
            return Err(ProtocolError::TooManyInFlight { limit: self.max_in_flight });
        }
        // The coordinator counts a step until it has its answer, so that what a worker counts is never more.
        let before = self.in_flight_bytes + self.unsent_bytes;
        let bytes = before.saturating_add(forward.memory());
        if before > 0 && bytes > MAX_IN_FLIGHT_BYTES {
            return Err(ProtocolError::TooMuchInFlight { bytes, limit: MAX_IN_FLIGHT_BYTES });
        }
        Ok(())
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<OutFrame> {
        let frame = self.outgoing.pop_front()?;
        if self.role == Role::Worker {
            self.unsent_bytes -= frame.payload.len() as u64;
        }
        Some(frame)
    }

    /// Sends a message, if the protocol has a place for it now; an error leaves the link as it was.
    /// Hello, welcome, pings and their answers are sent by the protocol itself.
    pub fn send(&mut self, message: Message, payload: Bytes) -> Result<(), LinkError> {
        let kind = message.kind();
        let own = matches!(kind, Kind::Hello | Kind::Welcome | Kind::Ping | Kind::Pong);
        if own || !self.state.admits(self.role, kind) {
            return Err(ProtocolError::OutOfOrder { kind, from: self.role, state: self.state }.into());
        }
        let frame = OutFrame::new(&message, payload, &self.config.limits)?;
        self.check_payload(kind, frame.payload.len() as u64)?;
        self.check_step(&message)?;
        self.advance(self.role, &message)?;
        if self.role == Role::Worker {
            self.unsent_bytes += frame.payload.len() as u64;
        }
        self.outgoing.push_back(frame);
        match message {
            Message::Goodbye(_) => self.end(LinkError::Closed),
            Message::Error(report) if report.fatal => self.end(LinkError::Closed),
            _ => {}
        }
        Ok(())
    }

    /// Where the bytes of the peer belong; see [`FrameReader::target`].
    pub fn target(&mut self) -> Limit<&mut BytesMut> {
        self.reader.target()
    }

    /// Looks at what [`target`](Self::target) has received.
    pub fn handle_received(&mut self, now: Instant) {
        self.clock.heard = now;
        while self.state != State::Closed {
            let result = match self.reader.poll() {
                Ok(Progress::NeedMore) => break,
                Ok(Progress::Prefix(prefix)) => self.admit(prefix),
                Ok(Progress::Header) => self.reader.header().map_or(Ok(()), |header| self.admit_step(header)),
                Ok(Progress::Frame(frame)) => {
                    self.clock.frame_begun = None;
                    self.on_message(now, frame.message, frame.payload)
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                self.abort(error);
            }
        }
        let mid_frame = self.reader.position().is_some();
        self.clock.frame_begun = if mid_frame { self.clock.frame_begun.or(Some(now)) } else { None };
    }

    /// Takes in bytes of the peer, copying them.
    pub fn handle_input(&mut self, now: Instant, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.state != State::Closed {
            let mut target = self.target();
            let (taken, rest) = bytes.split_at(bytes.len().min(target.remaining_mut()));
            target.put_slice(taken);
            bytes = rest;
            self.handle_received(now);
        }
    }

    /// The stream has ended.
    pub fn handle_end(&mut self) {
        let at = self.reader.position().unwrap_or_else(|| format!("while the link was {:?}", self.state));
        self.end(LinkError::Lost { at });
    }

    /// Ends the link for a reason from outside the protocol, and tells the peer if that makes sense.
    pub fn abort(&mut self, error: LinkError) {
        if self.state == State::Closed {
            return;
        }
        if let Some(code) = error.code() {
            let report = Message::Error(ErrorReport::fatal(code, error.to_string()));
            // A report has no part that could be over a limit, and there is no better way to say so.
            let _ = self.push(&report, Bytes::new());
        }
        self.end(error);
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest; `None` when closed.
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Closed => None,
            State::Greeting => Some(self.clock.started + self.config.handshake_timeout),
            _ => {
                let silent = self.clock.heard + self.config.idle_timeout;
                let stalled = self.clock.frame_begun.map(|begun| begun + self.config.frame_timeout);
                Some(stalled.map_or(silent, |at| at.min(silent)).min(self.clock.next_ping))
            }
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Config { handshake_timeout, idle_timeout, frame_timeout, ping_interval, .. } = self.config;
        let clock = &self.clock;
        let error = match self.state {
            State::Closed => return,
            State::Greeting if now >= clock.started + handshake_timeout => {
                LinkError::HandshakeTimeout { after: handshake_timeout }
            }
            State::Greeting => return,
            _ if now >= clock.heard + idle_timeout => LinkError::Silent { after: idle_timeout },
            _ if clock.frame_begun.is_some_and(|begun| now >= begun + frame_timeout) => {
                LinkError::FrameTimeout { after: frame_timeout }
            }
            _ if now >= clock.next_ping => {
                self.clock.next_ping = now + ping_interval;
                match self.ping(now) {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            _ => return,
        };
        self.abort(error);
    }

    /// Refuses a frame before its header and payload are allocated.
    fn admit(&self, prefix: Prefix) -> Result<(), LinkError> {
        let (kind, from, state) = (prefix.kind, self.peer_role, self.state);
        // Two coordinators greet each other: let the hello in, so that it can be said what is wrong.
        let greeting = state == State::Greeting && kind == Kind::Hello;
        if !greeting && !state.admits(from, kind) {
            return Err(ProtocolError::OutOfOrder { kind, from, state }.into());
        }
        self.check_payload(kind, prefix.payload_bytes)
    }

    /// Holds the size of a payload against the assignment, or against what was asked for.
    fn check_payload(&self, kind: Kind, claimed: u64) -> Result<(), LinkError> {
        let limit = match kind {
            Kind::Piece => self.fetches.front().map_or(0, |bytes| u64::from(*bytes)),
            _ => self.bounds.map_or(0, |bounds| bounds.max_payload()),
        };
        if claimed > limit {
            return Err(FrameError::PayloadTooLarge { kind, claimed, limit }.into());
        }
        Ok(())
    }

    /// Refuses a step before its payload is allocated.
    fn admit_step(&self, message: &Message) -> Result<(), LinkError> {
        self.check_step(message)?;
        match message {
            Message::Forward(forward) => Ok(self.check_room(forward)?),
            _ => Ok(()),
        }
    }

    /// Holds a step against the assignment.
    fn check_step(&self, message: &Message) -> Result<(), LinkError> {
        match (message, &self.bounds) {
            (Message::Forward(forward), Some(bounds)) => {
                let invalid = |cause| FrameError::Invalid { kind: Kind::Forward, cause };
                Ok(bounds.check(forward).map_err(invalid)?)
            }
            _ => Ok(()),
        }
    }

    fn on_message(&mut self, now: Instant, message: Message, payload: Bytes) -> Result<(), LinkError> {
        self.advance(self.peer_role, &message)?;
        let event = match message {
            Message::Hello(hello) => return self.on_hello(now, hello),
            Message::Welcome(welcome) => return self.on_welcome(now, welcome),
            Message::Ping(Ping { nonce, timestamp_micros }) => {
                let Config { progress, paged_in, .. } = &self.config;
                let (progress, paged_in_bytes) = (progress.get(), paged_in.load(Ordering::Relaxed));
                let pong = Pong { nonce, timestamp_micros, progress, paged_in_bytes };
                return self.push(&Message::Pong(pong), Bytes::new());
            }
            Message::Pong(pong) => match self.clock.pinged.take_if(|(nonce, _)| *nonce == pong.nonce) {
                Some((_, sent)) => {
                    let round_trip = now.saturating_duration_since(sent);
                    Event::Pong { round_trip, progress: pong.progress, paged_in_bytes: pong.paged_in_bytes }
                }
                None => return Ok(()), // an answer that was overtaken by a newer ping
            },
            Message::Assign(assign) => Event::Assigned(assign),
            Message::LoadProgress(progress) => Event::Progress(progress),
            Message::Ready(ready) => Event::Ready(ready),
            Message::Forward(forward) => Event::Forward(forward, payload),
            Message::Result(result) => Event::Result(result, payload),
            Message::Activity(activity) => Event::Activity(activity.active),
            // Answers are large.
            Message::Look(_) | Message::Fetch(_) if self.outgoing.len() >= 2 * MAX_LOOKS => {
                return Err(ProtocolError::PeerNotReading { queued: self.outgoing.len() }.into());
            }
            Message::Look(look) => Event::Looked(look),
            Message::Status(status) => Event::Status(status),
            Message::Fetch(fetch) => Event::Fetched(fetch),
            Message::Piece(piece) => Event::Piece(piece, payload),
            Message::Error(report) if report.fatal => return Err(LinkError::Peer(report)),
            Message::Error(report) => Event::Failed(report),
            Message::Goodbye(goodbye) => return Err(LinkError::PeerLeft { reason: goodbye.reason }),
        };
        self.events.push_back(event);
        Ok(())
    }

    fn on_hello(&mut self, now: Instant, hello: Hello) -> Result<(), LinkError> {
        if self.role != Role::Worker {
            return Err(ProtocolError::RoleMismatch { found: hello.role, ours: self.role }.into());
        }
        let (ours, theirs) = (self.config.versions, hello.versions);
        let version = ours.common(theirs).ok_or(ProtocolError::VersionMismatch { ours, theirs })?;
        self.check_peer(&hello)?;
        let welcome = Welcome { version, hello: self.config.hello(self.role) };
        self.push(&Message::Welcome(welcome), Bytes::new())?;
        self.connect(now, hello, version);
        Ok(())
    }

    fn on_welcome(&mut self, now: Instant, welcome: Welcome) -> Result<(), LinkError> {
        let Welcome { version, hello } = welcome;
        let ours = self.config.versions;
        if !(ours.min..=ours.max).contains(&version) {
            let theirs = Versions { min: version, max: version };
            return Err(ProtocolError::VersionMismatch { ours, theirs }.into());
        }
        self.check_peer(&hello)?;
        self.connect(now, hello, version);
        Ok(())
    }

    fn check_peer(&self, hello: &Hello) -> Result<(), LinkError> {
        if !hello.role.meets(self.role) {
            return Err(ProtocolError::RoleMismatch { found: hello.role, ours: self.role }.into());
        }
        Ok(())
    }

    fn connect(&mut self, now: Instant, peer: Hello, version: u16) {
        self.state = State::Idle;
        self.peer_role = peer.role;
        self.reader.set_limits(self.config.limits);
        self.max_in_flight = self.max_in_flight.min(peer.max_in_flight.max(1) as usize);
        self.clock.next_ping = now; // a first round trip at once
        self.events.push_back(Event::Connected { peer, version, max_in_flight: self.max_in_flight });
    }

    /// The effect of a message on the state, whichever side sends it: both follow the same rules.
    fn advance(&mut self, from: Role, message: &Message) -> Result<(), ProtocolError> {
        match message {
            Message::Assign(_) if !self.in_flight.is_empty() => {
                return Err(ProtocolError::AssignWhileBusy { in_flight: self.in_flight.len() });
            }
            Message::Assign(assign) => {
                self.state = State::Loading;
                self.bounds = Some(assign.step_bounds());
            }
            Message::Look(_) if self.looks >= MAX_LOOKS => {
                return Err(ProtocolError::TooManyLooks { limit: MAX_LOOKS });
            }
            Message::Look(_) => self.looks += 1,
            Message::Status(_) => {
                self.looks = self.looks.checked_sub(1).ok_or(ProtocolError::UnaskedStatus)?;
            }
            Message::Fetch(_) if self.fetches.len() >= MAX_FETCHES => {
                return Err(ProtocolError::TooManyFetches { limit: MAX_FETCHES });
            }
            Message::Fetch(fetch) => self.fetches.push_back(fetch.bytes),
            Message::Piece(_) => {
                self.fetches.pop_front().ok_or(ProtocolError::UnaskedPiece)?;
            }
            Message::Ready(_) => self.state = State::Serving,
            Message::Forward(forward) => self.begin_step(forward)?,
            Message::Result(result) => self.answer_step(result.step)?,
            Message::Error(report) if !report.fatal => match report.subject {
                Subject::Link => {}
                Subject::Assignment if from == Role::Worker && self.state == State::Loading => {
                    self.state = State::Idle;
                    self.bounds = None;
                }
                Subject::Step(step) if from == Role::Worker => self.answer_step(step)?,
                _ => {
                    return Err(ProtocolError::OutOfOrder { kind: Kind::Error, from, state: self.state });
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn begin_step(&mut self, forward: &Forward) -> Result<(), ProtocolError> {
        let step = forward.step;
        if let Some(last) = self.last_step.filter(|last| step <= *last) {
            return Err(ProtocolError::StepNotRising { found: step, last });
        }
        self.check_room(forward)?;
        let bytes = forward.memory();
        self.last_step = Some(step);
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(InFlight { step, bytes });
        Ok(())
    }

    fn answer_step(&mut self, step: u64) -> Result<(), ProtocolError> {
        match self.in_flight.front().copied() {
            Some(oldest) if oldest.step == step => {
                self.in_flight.pop_front();
                self.in_flight_bytes -= oldest.bytes;
                Ok(())
            }
            oldest => {
                Err(ProtocolError::StepOutOfOrder { found: step, expected: oldest.map(|oldest| oldest.step) })
            }
        }
    }

    fn ping(&mut self, now: Instant) -> Result<(), LinkError> {
        self.clock.pings += 1;
        let nonce = self.clock.pings;
        let since = now.saturating_duration_since(self.clock.started);
        let timestamp_micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        self.clock.pinged = Some((nonce, now));
        self.push(&Message::Ping(Ping { nonce, timestamp_micros }), Bytes::new())
    }

    fn push(&mut self, message: &Message, payload: Bytes) -> Result<(), LinkError> {
        if self.outgoing.len() >= MAX_QUEUED && message.kind() != Kind::Error {
            return Err(ProtocolError::PeerNotReading { queued: self.outgoing.len() }.into());
        }
        self.outgoing.push_back(OutFrame::new(message, payload, &self.config.limits)?);
        Ok(())
    }

    fn end(&mut self, reason: LinkError) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.in_flight.clear();
            self.in_flight_bytes = 0;
            self.events.push_back(Event::Closed(reason));
        }
    }

    /// A goodbye with this reason; nothing on a closed link.
    pub fn goodbye(&mut self, reason: impl Into<String>) {
        // Refused only when the link is closed, which is what is wanted.
        let _ = self.send(Message::Goodbye(Goodbye { reason: reason.into() }), Bytes::new());
    }
}
