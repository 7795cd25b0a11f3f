//! The messages: what each says, its bounds, and its postcard encoding.
//!
//! A message's kind is in the frame's prefix and its fields are the frame's header; the [`Message`] enum itself
//! never crosses the wire. Collections are bounded twice: by the header limit before anything is decoded (every
//! element takes bytes of it; the most that a header can unfold to is about 30 times its own size), and by the
//! `MAX_` constants here, on sending and on receiving alike.

mod greeting;
mod stage;
mod step;

use serde::{Deserialize, Serialize};

pub use self::{
    greeting::{Fingerprint, Hello, Role, Versions, Welcome},
    stage::{Assign, LoadProgress, Ready, StepBounds},
    step::{Activity, Forward, SequenceStep, StepResult},
};
use crate::error::{ErrorCode, FrameError};

/// Bytes in one text field.
pub const MAX_TEXT: usize = 4096;
/// Sequences in one [`Forward`].
pub const MAX_SEQUENCES: usize = 4096;
/// Tokens or pages of one sequence in one step, and tokens of a whole step.
pub const MAX_PER_SEQUENCE: usize = 1 << 18;
/// Bytes of an element of a payload: 32-bit floats, little endian.
const ELEMENT_BYTES: u64 = 4;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident($body:ty) = $number:literal,)*) => {
        /// The kind of a frame: a `u16` in its prefix.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// Every kind, in the order of their numbers.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// The number on the wire.
            pub fn number(self) -> u16 {
                self as u16
            }
        }

        impl TryFrom<u16> for Kind {
            type Error = FrameError;
            fn try_from(number: u16) -> Result<Kind, FrameError> {
                match number { $($number => Ok(Kind::$name),)* found => Err(FrameError::UnknownKind { found }) }
            }
        }

        /// The header of a frame, decoded.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message { $($(#[$doc])* $name($body),)* }

        impl Message {
            /// The kind that goes into the prefix.
            pub fn kind(&self) -> Kind {
                match self { $(Message::$name(_) => Kind::$name,)* }
            }

            fn encode_onto(&self, out: Vec<u8>) -> postcard::Result<Vec<u8>> {
                match self { $(Message::$name(body) => postcard::to_extend(body, out),)* }
            }

            fn decode_prefix(kind: Kind, header: &[u8]) -> postcard::Result<(Message, &[u8])> {
                Ok(match kind { $(Kind::$name => {
                    let (body, rest) = postcard::take_from_bytes(header)?;
                    (Message::$name(body), rest)
                })* })
            }
        }
    };
}

messages! {
    /// Coordinator to worker, first: who I am.
    Hello(Hello) = 1,
    /// Worker to coordinator: who I am, and the version we speak. A refusal is a fatal `Error` instead.
    Welcome(Welcome) = 2,
    /// Coordinator to worker: load these layers.
    Assign(Assign) = 3,
    /// Worker to coordinator: how far the loading is.
    LoadProgress(LoadProgress) = 4,
    /// Worker to coordinator: the layers are loaded.
    Ready(Ready) = 5,
    /// Coordinator to worker: compute a step. The payload is its input.
    Forward(Forward) = 6,
    /// Worker to coordinator: a step's output, as payload.
    Result(StepResult) = 7,
    /// Coordinator to worker: sequences are running, or none is.
    Activity(Activity) = 8,
    /// Either way: are you there?
    Ping(Ping) = 9,
    /// Either way: the same numbers back.
    Pong(Ping) = 10,
    /// Either way: something failed.
    Error(ErrorReport) = 11,
    /// Either way: no more from me.
    Goodbye(Goodbye) = 12,
}

impl Kind {
    /// Whether a frame of this kind may have a payload.
    pub fn carries_payload(self) -> bool {
        matches!(self, Kind::Forward | Kind::Result)
    }
}

impl Message {
    /// Appends the postcard encoding to `out`, after the same checks as on receipt.
    pub(crate) fn encode(&self, out: Vec<u8>, payload: u64) -> Result<Vec<u8>, FrameError> {
        let kind = self.kind();
        self.check(payload).map_err(|cause| FrameError::Invalid { kind, cause })?;
        self.encode_onto(out).map_err(|error| FrameError::Malformed {
            kind,
            bytes: 0,
            detail: error.to_string(),
        })
    }

    /// Decodes and checks a header whose frame announces `payload` bytes of payload.
    pub(crate) fn decode(kind: Kind, header: &[u8], payload: u64) -> Result<Message, FrameError> {
        let malformed = |detail: String| FrameError::Malformed { kind, bytes: header.len(), detail };
        let (message, rest) =
            Message::decode_prefix(kind, header).map_err(|error| malformed(error.to_string()))?;
        // A hello comes before the version is agreed on: a newer peer's may have fields that we skip.
        if !rest.is_empty() && !matches!(kind, Kind::Hello | Kind::Welcome) {
            return Err(malformed(format!("{} bytes are left over", rest.len())));
        }
        message.check(payload).map_err(|cause| FrameError::Invalid { kind, cause })?;
        Ok(message)
    }

    fn check(&self, payload: u64) -> Result<(), MessageError> {
        match self {
            Message::Hello(hello) => hello.check(),
            Message::Welcome(welcome) => welcome.hello.check(),
            Message::Assign(assign) => assign.check(),
            Message::Ready(ready) => at_most("bytes in device", ready.device.len(), MAX_TEXT),
            Message::Forward(forward) => forward.check(payload),
            Message::Result(result) => result.check(payload),
            Message::Error(report) => at_most("bytes in message", report.message.len(), MAX_TEXT),
            Message::Goodbye(goodbye) => at_most("bytes in reason", goodbye.reason.len(), MAX_TEXT),
            Message::LoadProgress(_) | Message::Activity(_) | Message::Ping(_) | Message::Pong(_) => Ok(()),
        }
    }
}

/// Fields of a message that are over a bound or contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A collection or text is too long.
    #[error("{found} {what}, the limit is {limit}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// Its number.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// Two counts that must be equal are not.
    #[error("{what}: found {found}, expected {expected}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Its number.
        found: u64,
        /// What the other fields call for.
        expected: u64,
    },
    /// A number that must not be zero is, or a range is empty, or a sum overflows.
    #[error("{what}")]
    Range {
        /// What is wrong.
        what: &'static str,
    },
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), MessageError> {
    if found <= limit { Ok(()) } else { Err(MessageError::TooMany { what, found, limit }) }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), MessageError> {
    if holds { Ok(()) } else { Err(MessageError::Range { what }) }
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Number of the ping.
    pub nonce: u64,
    /// When it was sent, in microseconds since the sender's link began.
    pub timestamp_micros: u64,
}

/// What an [`ErrorReport`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// Nothing in particular.
    Link,
    /// The last [`Assign`].
    Assignment,
    /// A [`Forward`] of this step; comes in the order of the results.
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
    /// A report that leaves the link open; a message over [`MAX_TEXT`] bytes is cut.
    pub fn new(code: ErrorCode, subject: Subject, message: impl Into<String>) -> ErrorReport {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_TEXT));
        ErrorReport { code, subject, fatal: false, message }
    }

    /// The same, as the sender's last word.
    pub fn fatal(code: ErrorCode, message: impl Into<String>) -> ErrorReport {
        ErrorReport { fatal: true, ..ErrorReport::new(code, Subject::Link, message) }
    }
}

/// An orderly end. Steps in flight are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// For people.
    pub reason: String,
}
