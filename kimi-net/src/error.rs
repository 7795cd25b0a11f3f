//! Everything that can go wrong on a link, split by whose fault it is, and its one mapping to wire codes.

use std::{io, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    frame::{FRAME_VERSION, MAGIC},
    message::{ErrorReport, Fingerprint, Kind, MessageError, Role, Versions},
    protocol::State,
};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What an [`ErrorReport`] is about. A `u16` on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "u16", into = "u16")]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code of a newer peer that this version has no name for.
            Unknown(u16),
        }

        impl From<u16> for ErrorCode {
            fn from(number: u16) -> ErrorCode {
                match number { $($number => ErrorCode::$name,)* other => ErrorCode::Unknown(other) }
            }
        }

        impl From<ErrorCode> for u16 {
            fn from(code: ErrorCode) -> u16 {
                match code { $(ErrorCode::$name => $number,)* ErrorCode::Unknown(other) => other }
            }
        }
    };
}

error_codes! {
    /// The peers have no frame or protocol version in common.
    VersionMismatch = 1,
    /// The peers hold different checkpoints.
    FingerprintMismatch = 2,
    /// A coordinator met a coordinator, or a worker a worker.
    RoleMismatch = 3,
    /// A message came where the protocol has no place for it.
    OutOfOrder = 4,
    /// A header could not be decoded, or its fields contradict each other.
    Malformed = 5,
    /// A frame or a collection is over the receiver's limits.
    TooLarge = 6,
    /// A message kind that the receiver does not know.
    UnknownKind = 7,
    /// Hello or welcome did not come in time.
    HandshakeTimeout = 8,
    /// Nothing, not even an answer to a ping, or a frame that never ends.
    Timeout = 9,
    /// More steps, or more unread events, than the receiver takes.
    Overloaded = 10,
    /// The assigned layers could not be loaded.
    LoadFailed = 11,
    /// A step could not be computed.
    StepFailed = 12,
    /// Weights or cache do not fit in the worker's memory.
    OutOfMemory = 14,
    /// The worker does not have the assigned model.
    UnknownModel = 15,
    /// A fault of the sender itself.
    Internal = 16,
}

/// A peer's bytes are not a frame that this side accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not start a frame with [`MAGIC`].
    #[error(
        "the peer does not speak kimi's wire protocol: found bytes \"{}\"{}, expected \"{}\"; \
         check that the address is that of a kimi worker",
        found.escape_ascii(), guess_protocol(found), MAGIC.escape_ascii()
    )]
    NotKimi {
        /// The bytes in the place of the magic.
        found: [u8; 4],
    },
    /// Another frame layout.
    #[error(
        "the peer sends frames of version {found}, this side speaks version {FRAME_VERSION}; \
         run the same release of kimi on both machines"
    )]
    Version {
        /// The version of the peer's frame.
        found: u16,
    },
    /// A kind that this version has no message for.
    #[error("message kind {found} is unknown to this version; run the same release of kimi on both machines")]
    UnknownKind {
        /// The kind's number.
        found: u16,
    },
    /// The header is over the limit.
    #[error("{kind:?} frame with a header of {claimed} bytes; the limit is {limit}")]
    HeaderTooLarge {
        /// Kind of the frame.
        kind: Kind,
        /// Bytes that the frame claims to have.
        claimed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The payload is over the limit.
    #[error("{kind:?} frame with a payload of {claimed} bytes; the limit is {limit}")]
    PayloadTooLarge {
        /// Kind of the frame.
        kind: Kind,
        /// Bytes that the frame claims to have.
        claimed: u64,
        /// Bytes allowed: 0 for kinds that carry no tensor.
        limit: u64,
    },
    /// The header is not the postcard encoding of its kind.
    #[error("the header of a {kind:?} frame ({bytes} bytes) cannot be decoded: {detail}")]
    Malformed {
        /// Kind of the frame.
        kind: Kind,
        /// Length of the header.
        bytes: usize,
        /// What the decoder found.
        detail: String,
    },
    /// The header can be decoded but contradicts itself, its payload or a bound.
    #[error("{kind:?} message: {cause}")]
    Invalid {
        /// Kind of the frame.
        kind: Kind,
        /// What is wrong with it.
        cause: MessageError,
    },
}

fn guess_protocol(found: &[u8; 4]) -> &'static str {
    match found {
        b"GET " | b"POST" | b"PUT " | b"HEAD" | b"OPTI" | b"DELE" | b"PRI " => " (an HTTP request)",
        b"HTTP" => " (an HTTP response)",
        b"SSH-" => " (an SSH greeting)",
        [0x16, 0x03, ..] => " (a TLS handshake)",
        _ => "",
    }
}

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
    /// Different checkpoints.
    #[error(
        "the checkpoints differ: ours has fingerprint {ours}, the peer's {theirs}; \
         give both machines the same files"
    )]
    FingerprintMismatch {
        /// Fingerprint of this side's checkpoint.
        ours: Fingerprint,
        /// Fingerprint of the peer's checkpoint.
        theirs: Fingerprint,
    },
    /// A coordinator met a coordinator, or a worker did.
    #[error("this is a {ours:?} and the peer greets as a {found:?}; connect a coordinator to workers")]
    RoleMismatch {
        /// What the peer says it is.
        found: Role,
        /// What this side is.
        ours: Role,
    },
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

/// Why a link ended, or why an operation on it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer's bytes are not an acceptable frame. Ends the link.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer broke the protocol (ends the link), or the caller was about to (does not).
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The peer ended the link and said why.
    #[error("the peer ended the link: {} ({:?})", .0.message, .0.code)]
    Peer(ErrorReport),
    /// The peer could not do what it was asked to. The link goes on.
    #[error("the peer could not do it: {} ({:?})", .0.message, .0.code)]
    Failed(ErrorReport),
    /// The peer said goodbye.
    #[error("the peer left: {reason}")]
    PeerLeft {
        /// The peer's words.
        reason: String,
    },
    /// This side said goodbye.
    #[error("the link is closed")]
    Closed,
    /// The handshake was not over in time.
    #[error("no complete handshake within {after:?}; is the other end a kimi of the other role?")]
    HandshakeTimeout {
        /// The limit.
        after: Duration,
    },
    /// Nothing was received for too long.
    #[error("nothing was received for {after:?}, not even an answer to a ping; the peer is lost")]
    Silent {
        /// The limit.
        after: Duration,
    },
    /// A frame was begun and not finished in time.
    #[error("a frame was not complete after {after:?}")]
    FrameTimeout {
        /// The limit.
        after: Duration,
    },
    /// The stream ended with no goodbye.
    #[error("the connection was lost {at}")]
    Lost {
        /// Where in a frame.
        at: String,
    },
    /// The operating system's word on the socket.
    #[error("{context}: {detail}")]
    Io {
        /// What was being done.
        context: String,
        /// Kind of error.
        kind: io::ErrorKind,
        /// The error's text.
        detail: String,
    },
    /// The events of the link are not taken by the program that owns it.
    #[error("{unread} events of this link were not taken; it is closed")]
    Unattended {
        /// Events that wait.
        unread: usize,
    },
    /// See [`crate::listen_guard`].
    #[error(
        "{addr} is not a loopback address, and links are not encrypted yet: whoever can reach it reads \
         every prompt and answer. Use 127.0.0.1 or pass --insecure on a network that you trust"
    )]
    Exposed {
        /// The address that was refused.
        addr: SocketAddr,
    },
}

impl LinkError {
    /// An I/O error with what was being done, such as "cannot listen on 127.0.0.1:5000".
    pub(crate) fn io(context: impl Into<String>, error: &io::Error) -> LinkError {
        LinkError::Io { context: context.into(), kind: error.kind(), detail: error.to_string() }
    }

    /// The code under which this error is told to the peer: the one place of that mapping.
    /// `None` if there is nobody to tell: the peer left, or does not speak this protocol.
    pub fn code(&self) -> Option<ErrorCode> {
        Some(match self {
            LinkError::Frame(FrameError::NotKimi { .. }) => return None,
            LinkError::Frame(FrameError::Version { .. }) => ErrorCode::VersionMismatch,
            LinkError::Frame(FrameError::UnknownKind { .. }) => ErrorCode::UnknownKind,
            LinkError::Frame(FrameError::HeaderTooLarge { .. } | FrameError::PayloadTooLarge { .. }) => {
                ErrorCode::TooLarge
            }
            LinkError::Frame(FrameError::Malformed { .. } | FrameError::Invalid { .. }) => {
                ErrorCode::Malformed
            }
            LinkError::Protocol(ProtocolError::VersionMismatch { .. }) => ErrorCode::VersionMismatch,
            LinkError::Protocol(ProtocolError::FingerprintMismatch { .. }) => ErrorCode::FingerprintMismatch,
            LinkError::Protocol(ProtocolError::RoleMismatch { .. }) => ErrorCode::RoleMismatch,
            LinkError::Protocol(
                ProtocolError::TooManyInFlight { .. } | ProtocolError::PeerNotReading { .. },
            ) => ErrorCode::Overloaded,
            LinkError::Protocol(_) => ErrorCode::OutOfOrder,
            LinkError::HandshakeTimeout { .. } => ErrorCode::HandshakeTimeout,
            LinkError::Silent { .. } | LinkError::FrameTimeout { .. } => ErrorCode::Timeout,
            LinkError::Unattended { .. } => ErrorCode::Overloaded,
            LinkError::Failed(report) => report.code,
            LinkError::Peer(_)
            | LinkError::PeerLeft { .. }
            | LinkError::Closed
            | LinkError::Lost { .. }
            | LinkError::Io { .. }
            | LinkError::Exposed { .. } => return None,
        })
    }
}
