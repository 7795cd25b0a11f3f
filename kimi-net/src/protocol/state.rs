//! Where a link is, and what may be said there.

use crate::{kind::Kind, message::Role};

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
        use Role::{Coordinator, Observer, Worker};
        match (self, from, kind) {
            (State::Closed, _, _) => false,
            (_, _, Kind::Error | Kind::Goodbye) => true,
            (State::Greeting, Coordinator | Observer, Kind::Hello)
            | (State::Greeting, Worker, Kind::Welcome) => true,
            (State::Greeting, _, _) => false,
            (_, _, Kind::Ping | Kind::Pong) => true,
            (State::Idle, Observer, Kind::Look | Kind::Fetch)
            | (State::Idle, Worker, Kind::Status | Kind::Piece) => true,
            (State::Idle | State::Serving, Coordinator, Kind::Assign) => true,
            (State::Loading, Worker, Kind::LoadProgress | Kind::Ready) => true,
            (State::Serving, Coordinator, Kind::Forward | Kind::Activity) => true,
            (State::Serving, Worker, Kind::Result) => true,
            _ => false,
        }
    }
}
