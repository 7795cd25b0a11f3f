//! Something failed at the other end.

use serde::{Deserialize, Serialize};

use super::MAX_TEXT;

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
    /// Another coordinator has taken the worker over: the same one on a new connection, or one of the same name.
    Replaced = 17,
    /// The caches that were to be gone on with are not there any more.
    CacheLost = 18,
    /// The worker's computing has stopped in the middle of a step.
    Stuck = 19,
}

/// What an [`ErrorReport`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// Nothing in particular.
    Link,
    /// The last [`Assign`](super::Assign).
    Assignment,
    /// A [`Forward`](super::Forward) of this step; comes in the order of the results.
    Step(u64),
}

/// Something failed at the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What it answers.
    pub subject: Subject,
    /// Whether the sender ends the link with it.
    pub fatal: bool,
    /// For people.
    pub message: String,
}

impl ErrorReport {
    /// A report that leaves the link open; its message becomes one line, and is cut after [`MAX_TEXT`] bytes.
    pub fn new(code: ErrorCode, subject: Subject, message: impl Into<String>) -> ErrorReport {
        let mut message: String = message.into();
        if message.contains('\n') {
            message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        }
        message.truncate(message.floor_char_boundary(MAX_TEXT));
        ErrorReport { code, subject, fatal: false, message }
    }

    /// The same, as the sender's last word.
    pub fn fatal(code: ErrorCode, message: impl Into<String>) -> ErrorReport {
        ErrorReport { fatal: true, ..ErrorReport::new(code, Subject::Link, message) }
    }
}
