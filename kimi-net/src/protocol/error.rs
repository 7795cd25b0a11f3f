//! What a peer, or the caller, does against the protocol.

use super::state::State;
use crate::{
    kind::Kind,
    message::{Role, Versions},
};

/// Messages that are well formed but against the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// No place for this message in this state.
    #[error("{kind:?} from the {from:?} is out of order while the link is {state:?}")]
    OutOfOrder {
        /// The message.
        kind: Kind,
        /// Who sent or wants to send it.
        from: Role,
        /// State of the link.
        state: State,
    },
    /// Assign while steps are in flight.
    #[error("Assign while {in_flight} steps are in flight; wait for their results")]
    AssignWhileBusy {
        /// Unanswered steps.
        in_flight: usize,
    },
    /// Step numbers must rise.
    #[error("Forward of step {found} after step {last}: step numbers must rise")]
    StepNotRising {
        /// Step of the message.
        found: u64,
        /// Highest step so far.
        last: u64,
    },
    /// Steps are answered in the order in which they were sent.
    #[error("an answer to step {found}, expected {}", step_name(*expected))]
    StepOutOfOrder {
        /// Step of the answer.
        found: u64,
        /// The oldest unanswered step, if any.
        expected: Option<u64>,
    },
    /// Too many unanswered steps.
    #[error("Forward with {limit} steps in flight already, the limit that was agreed on")]
    TooManyInFlight {
        /// The limit.
        limit: usize,
    },
    /// Unanswered steps that take too much memory together.
    #[error("Forward with which the steps in flight take {bytes} bytes; the limit is {limit}")]
    TooMuchInFlight {
        /// Bytes of all, this one included.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No common version.
    #[error(
        "protocol versions do not overlap: ours {ours}, the peer's {theirs}; \
         run the same release of kimi on both machines"
    )]
    VersionMismatch {
        /// Versions of this side.
        ours: Versions,
        /// Versions of the peer.
        theirs: Versions,
    },
    /// A coordinator met a coordinator, or a worker did.
    #[error(
        "this is a {ours:?} and the peer greets as a {found:?}; workers are connected to, by a coordinator or an observer"
    )]
    RoleMismatch {
        /// What the peer says it is.
        found: Role,
        /// What this side is.
        ours: Role,
    },
    /// Too many unanswered questions.
    #[error("Look with {limit} unanswered already, the limit")]
    TooManyLooks {
        /// The limit.
        limit: usize,
    },
    /// Every status answers a question.
    #[error("a Status that nobody has asked for")]
    UnaskedStatus,
    /// Too many pieces that are asked for.
    #[error("Fetch with {limit} unanswered already, the limit")]
    TooManyFetches {
        /// The limit.
        limit: usize,
    },
    /// Every piece answers a fetch.
    #[error("a Piece that nobody has asked for")]
    UnaskedPiece,
    /// The peer reads too little, or asks for more answers than it takes.
    #[error("{queued} frames wait to be sent; the peer does not read them")]
    PeerNotReading {
        /// Frames in the queue.
        queued: usize,
    },
}

fn step_name(step: Option<u64>) -> String {
    step.map_or("none: no step is in flight".into(), |step| format!("step {step}"))
}
