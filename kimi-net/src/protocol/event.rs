//! What a link reports.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    error::LinkError,
    message::{
        Assign, ErrorReport, Fetch, Forward, Hello, LoadProgress, Look, Piece, Ready, Status, StepResult,
    },
};

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
    /// To a worker: an observer asks for its status.
    Looked(Look),
    /// To an observer: the answer to its oldest question.
    Status(Box<Status>),
    /// To a worker: an observer asks for a piece of a model's files.
    Fetched(Fetch),
    /// To an observer: the answer to its oldest fetch.
    Piece(Piece, Bytes),
    /// The peer failed at something; the link goes on.
    Failed(ErrorReport),
    /// A ping came back.
    Pong {
        /// After this time.
        round_trip: Duration,
        /// [`Pong::progress`](crate::Pong::progress).
        progress: u64,
        /// [`Pong::paged_in_bytes`](crate::Pong::paged_in_bytes).
        paged_in_bytes: u64,
    },
    /// The link is over. Always the last event.
    Closed(LinkError),
}
