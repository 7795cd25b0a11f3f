//! The messages: what each says, its bounds, and its postcard encoding.
//!
//! A message's kind is in the frame's prefix and its fields are the frame's header; the [`Message`] enum itself
//! never crosses the wire. Collections are bounded twice: by the header limit before anything is decoded (every
//! element takes bytes of it; the most that a header can unfold to is about 30 times its own size), and by the
//! `MAX_` constants here, on sending and on receiving alike.

mod failure;
mod fetch;
mod greeting;
mod look;
mod stage;
mod step;
mod text;

use serde::{Deserialize, Serialize};

pub use self::{
    failure::{ErrorCode, ErrorReport, Subject},
    fetch::{Fetch, Item, MAX_FETCHES, MAX_PIECE, Piece},
    greeting::{Fingerprint, Hello, Role, Versions, Welcome},
    look::{Filling, Holding, Look, MAX_FILLING, MAX_LOOKS, ModelFiles, Status},
    stage::{Assign, LayerState, LoadProgress, Precision, Ready, StepBounds},
    step::{Activity, Forward, SequenceStep, StepResult},
    text::printable,
};
use crate::kind::Kind;

/// Bytes in one text field.
pub const MAX_TEXT: usize = 4096;
/// Bytes in [`Assign::description`].
pub const MAX_DESCRIPTION: usize = 16 << 10;
/// Sequences in one [`Forward`].
pub const MAX_SEQUENCES: usize = 4096;
/// Tokens or pages of one sequence in one step, and tokens of a whole step.
pub const MAX_PER_SEQUENCE: usize = 1 << 18;
/// Bytes of an element of a payload: 32-bit floats, little endian.
const ELEMENT_BYTES: u64 = 4;

macro_rules! messages {
    ($($name:ident($body:ty),)*) => {
        /// The header of a frame, decoded. [`Kind`] says what each is for.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message {
            $(#[doc = concat!("The fields of a [`Kind::", stringify!($name), "`].")] $name($body),)*
        }

        impl Message {
            /// The kind that goes into the prefix.
            pub fn kind(&self) -> Kind {
                match self { $(Message::$name(_) => Kind::$name,)* }
            }

            /// Appends the postcard encoding to `out`.
            pub(crate) fn encode_onto(&self, out: Vec<u8>) -> postcard::Result<Vec<u8>> {
                match self { $(Message::$name(body) => postcard::to_extend(body, out),)* }
            }

            /// Decodes the fields of a kind, and returns the bytes that are left over.
            pub(crate) fn decode_prefix(kind: Kind, header: &[u8]) -> postcard::Result<(Message, &[u8])> {
                Ok(match kind { $(Kind::$name => {
                    let (body, rest) = postcard::take_from_bytes(header)?;
                    (Message::$name(body), rest)
                })* })
            }
        }
    };
}

messages! {
    Hello(Hello),
    Welcome(Welcome),
    Assign(Assign),
    LoadProgress(LoadProgress),
    Ready(Ready),
    Forward(Forward),
    Result(StepResult),
    Activity(Activity),
    Ping(Ping),
    Pong(Pong),
    Error(ErrorReport),
    Goodbye(Goodbye),
    Look(Look),
    Status(Box<Status>),
    Fetch(Fetch),
    Piece(Piece),
}

impl Message {
    /// Checks bounds, and that the fields agree with each other and with `payload` bytes of payload.
    pub(crate) fn check(&self, payload: u64) -> Result<(), MessageError> {
        match self {
            Message::Hello(hello) => hello.check(),
            Message::Welcome(welcome) => welcome.hello.check(),
            Message::Assign(assign) => assign.check(),
            Message::Ready(ready) => at_most("bytes in device", ready.device.len(), MAX_TEXT),
            Message::Forward(forward) => forward.check(payload),
            Message::Result(result) => result.check(payload),
            Message::Error(report) => at_most("bytes in message", report.message.len(), MAX_TEXT),
            Message::Goodbye(goodbye) => at_most("bytes in reason", goodbye.reason.len(), MAX_TEXT),
            Message::Look(look) => look.check(),
            Message::Status(status) => status.check(),
            Message::Fetch(fetch) => fetch.check(),
            // A piece is bounded by what was asked for.
            Message::Piece(_)
            | Message::LoadProgress(_)
            | Message::Activity(_)
            | Message::Ping(_)
            | Message::Pong(_) => Ok(()),
        }
    }
}

impl Message {
    /// Makes the peer's texts safe to show, before anything of this side sees them.
    pub(crate) fn make_printable(&mut self) {
        match self {
            Message::Hello(hello) | Message::Welcome(Welcome { hello, .. }) => {
                text::make_printable(&mut hello.software);
                text::make_printable(&mut hello.node_id);
            }
            Message::Assign(assign) => text::make_printable(&mut assign.model),
            Message::Ready(ready) => text::make_printable(&mut ready.device),
            Message::Error(report) => text::make_printable(&mut report.message),
            Message::Goodbye(goodbye) => text::make_printable(&mut goodbye.reason),
            Message::Look(look) => text::make_printable(&mut look.model),
            Message::Fetch(fetch) => text::make_printable(&mut fetch.model),
            Message::Status(status) => {
                text::make_printable(&mut status.device);
                text::make_printable(&mut status.coordinator);
                if let Some(ModelFiles::Unusable(reason)) = &mut status.model {
                    text::make_printable(reason);
                }
            }
            Message::Piece(_)
            | Message::LoadProgress(_)
            | Message::Forward(_)
            | Message::Result(_)
            | Message::Activity(_)
            | Message::Ping(_)
            | Message::Pong(_) => {}
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

/// The answer to a [`Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// [`Ping::nonce`].
    pub nonce: u64,
    /// [`Ping::timestamp_micros`].
    pub timestamp_micros: u64,
    /// How much the sender has computed or loaded, in units of its own. A number that stands still while there is a step to
    /// compute tells a node that is stuck from one that is slow.
    pub progress: u64,
    /// Bytes that the sender had to read from its disk again because its memory does not hold them, since it was started.
    pub paged_in_bytes: u64,
}

/// An orderly end. Steps in flight are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// For people.
    pub reason: String,
}
