//! What a link is set to, where it is, and what it reports.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    error::LinkError,
    frame::Limits,
    message::{
        Assign, ErrorReport, Fingerprint, Forward, Hello, Kind, LoadProgress, Ready, Role, StepResult,
        Versions,
    },
};

/// How a link introduces itself, and its limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// Versions to offer.
    pub versions: Versions,
    /// Release, for people.
    pub software: String,
    /// Name of this node.
    pub node_id: String,
    /// This side's checkpoint; `None` if it has not opened one.
    pub fingerprint: Option<Fingerprint>,
    /// Unanswered steps on the link; the smaller of the two sides' numbers counts.
    pub max_in_flight: u32,
    /// What is accepted from the peer once it has introduced itself.
    pub limits: Limits,
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Between two pings.
    pub ping_interval: Duration,
    /// Without a byte received, after which the peer counts as lost.
    pub idle_timeout: Duration,
    /// From the first byte of a frame to its last.
    pub frame_timeout: Duration,
}

impl Config {
    /// The defaults for a node of this name.
    pub fn new(node_id: impl Into<String>) -> Config {
        Config {
            versions: Versions::OURS,
            software: concat!("kimi ", env!("CARGO_PKG_VERSION")).into(),
            node_id: node_id.into(),
            fingerprint: None,
            max_in_flight: 64,
            limits: Limits::default(),
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(120),
        }
    }

    pub(super) fn hello(&self, role: Role) -> Hello {
        Hello {
            versions: self.versions,
            software: self.software.clone(),
            node_id: self.node_id.clone(),
            role,
            fingerprint: self.fingerprint,
            max_in_flight: self.max_in_flight.max(1),
        }
    }
}

/// Where a link is; the crate's documentation draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Hello and welcome are under way.
    Greeting,
    /// The worker has no stage.
    Idle,
    /// The worker loads its stage.
    Loading,
    /// Steps may be sent.
    Serving,
    /// Over.
    Closed,
}

impl State {
    /// Whether `from` may send a message of this kind now.
    pub(super) fn admits(self, from: Role, kind: Kind) -> bool {
        use Role::{Coordinator, Worker};
        match (self, from, kind) {
            (State::Closed, _, _) => false,
            (_, _, Kind::Error | Kind::Goodbye) => true,
            (State::Greeting, Coordinator, Kind::Hello) | (State::Greeting, Worker, Kind::Welcome) => true,
            (State::Greeting, _, _) => false,
            (_, _, Kind::Ping | Kind::Pong) => true,
            (State::Idle | State::Serving, Coordinator, Kind::Assign) => true,
            (State::Loading, Worker, Kind::LoadProgress | Kind::Ready) => true,
            (State::Serving, Coordinator, Kind::Forward | Kind::Activity) => true,
            (State::Serving, Worker, Kind::Result) => true,
            _ => false,
        }
    }
}

/// What happened on a link.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The handshake is over.
    Connected {
        /// The peer.
        peer: Hello,
        /// The version that both speak.
        version: u16,
        /// Steps that may be in flight.
        max_in_flight: usize,
    },
    /// To a worker: load these layers.
    Assigned(Assign),
    /// To a coordinator: how far the worker is.
    Progress(LoadProgress),
    /// To a coordinator: the worker can compute.
    Ready(Ready),
    /// To a worker: a step and its input.
    Forward(Forward, Bytes),
    /// To a coordinator: the answer to its oldest step.
    Result(StepResult, Bytes),
    /// To a worker: whether sequences are running, and steps are to be expected.
    Activity(bool),
    /// The peer failed at something; the link goes on.
    Failed(ErrorReport),
    /// A ping came back after this time.
    RoundTrip(Duration),
    /// The link is over. Always the last event.
    Closed(LinkError),
}
