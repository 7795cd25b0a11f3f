//! The messages: what each says, its bounds, and its postcard encoding.
//!
//! A message's kind is in the frame's prefix and its fields are the frame's header; the [`Message`] enum itself
//! never crosses the wire. Collections are bounded twice: by the header limit before anything is decoded (an
//! element takes at least a byte), and by the `MAX_` constants here, on sending and on receiving alike.

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, FrameError};

/// Bytes in one text field.
pub const MAX_TEXT: usize = 4096;
/// Entries in [`Hello::capabilities`].
pub const MAX_CAPABILITIES: usize = 64;
/// Sequences in one [`Forward`], and ids in one [`Cancel`].
pub const MAX_SEQUENCES: usize = 4096;
/// Tokens or pages of one sequence in one step.
pub const MAX_PER_SEQUENCE: usize = 1 << 18;
/// Bytes in an opaque field.
pub const MAX_OPAQUE: usize = 1 << 16;

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
    /// Coordinator to worker: give up steps or sequences.
    Cancel(Cancel) = 8,
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
        self.check(payload).map_err(|source| FrameError::Invalid { kind, source })?;
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
        message.check(payload).map_err(|source| FrameError::Invalid { kind, source })?;
        Ok(message)
    }

    fn check(&self, payload: u64) -> Result<(), MessageError> {
        match self {
            Message::Hello(hello) => hello.check(),
            Message::Welcome(welcome) => welcome.hello.check(),
            Message::Assign(assign) => assign.check(),
            Message::Ready(ready) => at_most("bytes in device", ready.device.len(), MAX_TEXT),
            Message::Forward(forward) => forward.check(payload),
            Message::Result(result) => {
                at_most("bytes in opaque", result.opaque.len(), MAX_OPAQUE)?;
                payload_is(tensor_bytes(result.rows, result.cols, result.dtype)?, payload)
            }
            Message::Cancel(cancel) => {
                at_most("steps", cancel.steps.len(), MAX_SEQUENCES)?;
                at_most("sequences", cancel.sequences.len(), MAX_SEQUENCES)
            }
            Message::Error(report) => at_most("bytes in message", report.message.len(), MAX_TEXT),
            Message::Goodbye(goodbye) => at_most("bytes in reason", goodbye.reason.len(), MAX_TEXT),
            Message::LoadProgress(_) | Message::Ping(_) | Message::Pong(_) => Ok(()),
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

fn payload_is(expected: u64, found: u64) -> Result<(), MessageError> {
    if found == expected {
        Ok(())
    } else {
        Err(MessageError::Count { what: "payload bytes (rows x cols x element size)", found, expected })
    }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), MessageError> {
    if holds { Ok(()) } else { Err(MessageError::Range { what }) }
}

fn tensor_bytes(rows: u32, cols: u32, dtype: Dtype) -> Result<u64, MessageError> {
    let values = u64::from(rows) * u64::from(cols); // below 2^64: two 32-bit factors
    values.checked_mul(dtype.size()).ok_or(MessageError::Range { what: "rows x cols overflows" })
}

/// Which end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Connects, plans, sends steps.
    Coordinator,
    /// Listens, loads layers, computes steps.
    Worker,
}

impl Role {
    /// The other end.
    pub fn peer(self) -> Role {
        match self {
            Role::Coordinator => Role::Worker,
            Role::Worker => Role::Coordinator,
        }
    }
}

/// The protocol versions that a peer speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl Versions {
    /// What this release speaks.
    pub const OURS: Versions = Versions { min: 1, max: 1 };

    /// The newest version that both speak.
    pub fn common(self, other: Versions) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

/// 32 bytes that name a checkpoint's contents; shown as hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Something optional that a peer can do, such as encryption; unknown names are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Its name.
    pub name: String,
    /// Its parameters, as that capability defines them.
    pub value: Vec<u8>,
}

/// How a peer introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that it speaks.
    pub versions: Versions,
    /// Release of its software, for people.
    pub software: String,
    /// Its name in the cluster.
    pub node_id: String,
    /// Its end of the link.
    pub role: Role,
    /// Its checkpoint, or `None` if it has not opened one yet.
    pub fingerprint: Option<Fingerprint>,
    /// Unanswered steps that it takes.
    pub max_in_flight: u32,
    /// What else it can do.
    pub capabilities: Vec<Capability>,
}

impl Hello {
    fn check(&self) -> Result<(), MessageError> {
        ensure(self.versions.min <= self.versions.max, "the version range is empty")?;
        at_most("bytes in software", self.software.len(), MAX_TEXT)?;
        at_most("bytes in node_id", self.node_id.len(), MAX_TEXT)?;
        at_most("capabilities", self.capabilities.len(), MAX_CAPABILITIES)?;
        self.capabilities.iter().try_for_each(|capability| {
            at_most("bytes in a capability's name", capability.name.len(), MAX_TEXT)?;
            at_most("bytes in a capability's value", capability.value.len(), MAX_OPAQUE)
        })
    }
}

/// The answer to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that the link speaks from here on.
    pub version: u16,
    /// The worker.
    pub hello: Hello,
}

/// The stage that a worker is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// Name of the model, as both sides look it up.
    pub model: String,
    /// The coordinator's checkpoint: the worker's must be the same.
    pub fingerprint: Fingerprint,
    /// Layers, the end not included.
    pub layers: Range<u32>,
    /// Whether the stage embeds the tokens.
    pub first: bool,
    /// Whether the stage has the final norm and the head.
    pub last: bool,
    /// Pages of the latent cache.
    pub cache_pages: u32,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Element type of the hidden states on the wire.
    pub dtype: Dtype,
    /// Further settings, as the two programs agree on them.
    pub opaque: Vec<u8>,
}

impl Assign {
    fn check(&self) -> Result<(), MessageError> {
        at_most("bytes in model", self.model.len(), MAX_TEXT)?;
        at_most("bytes in opaque", self.opaque.len(), MAX_OPAQUE)?;
        ensure(self.layers.start < self.layers.end, "the layer range is empty")?;
        ensure(self.cache_pages > 0 && self.page_tokens > 0, "the cache has no pages or no tokens in a page")
    }
}

/// What a loading worker is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadPhase {
    /// Reading and checking headers.
    Opening,
    /// Reading weights, and copying them to the device.
    Reading,
    /// First touches: pipelines, wired memory, a trial step.
    Warming,
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// What is being done.
    pub phase: LoadPhase,
    /// Bytes of weights in place.
    pub loaded_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// The assigned stage can compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Bytes of weights held.
    pub weight_bytes: u64,
    /// Bytes of cache held.
    pub cache_bytes: u64,
    /// Time that loading took, in microseconds.
    pub load_micros: u64,
    /// What computes, for people, such as "cpu avx2 x16".
    pub device: String,
}

/// Element type of a payload; little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Whose outputs the last stage hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outputs {
    /// No token's: a prefill chunk that is not the last.
    None,
    /// The last token's.
    Last,
    /// Every token's: verification of a draft.
    All,
}

/// One sequence's part in a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceStep {
    /// The sequence.
    pub id: u64,
    /// Position of its first new token.
    pub start: u32,
    /// New tokens: as many rows of the payload.
    pub count: u32,
    /// Their ids: `count` of them for the first stage, else empty.
    pub tokens: Vec<u32>,
    /// The sequence's page table: its cache pages in order of position.
    pub pages: Vec<u32>,
    /// What the last stage hands on.
    pub outputs: Outputs,
    /// Sampling parameters as the two programs encode them; empty for none.
    pub sampling: Vec<u8>,
}

/// A step to compute. The payload is the hidden state `[rows, cols]`, row major; empty for the first stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Number of the step; rises from each to the next.
    pub step: u64,
    /// The sequences, in the order of their rows.
    pub sequences: Vec<SequenceStep>,
    /// Element type of the payload.
    pub dtype: Dtype,
    /// New tokens of all sequences together.
    pub rows: u32,
    /// Width of the hidden state.
    pub cols: u32,
}

impl Forward {
    fn check(&self, payload: u64) -> Result<(), MessageError> {
        at_most("sequences", self.sequences.len(), MAX_SEQUENCES)?;
        ensure(!self.sequences.is_empty(), "a step without sequences")?;
        let mut rows = 0;
        for sequence in &self.sequences {
            at_most("tokens of a sequence", sequence.tokens.len(), MAX_PER_SEQUENCE)?;
            at_most("pages of a sequence", sequence.pages.len(), MAX_PER_SEQUENCE)?;
            at_most("bytes in sampling", sequence.sampling.len(), MAX_OPAQUE)?;
            ensure(sequence.count > 0, "a sequence without tokens")?;
            ensure(sequence.start.checked_add(sequence.count).is_some(), "a position over 2^32")?;
            let (found, expected) = (sequence.tokens.len() as u64, u64::from(sequence.count));
            if found != expected && (found > 0 || payload == 0) {
                return Err(MessageError::Count { what: "token ids of a sequence", found, expected });
            }
            rows += expected;
        }
        if rows != u64::from(self.rows) {
            let (found, expected) = (u64::from(self.rows), rows);
            return Err(MessageError::Count { what: "rows (sum of the sequences' counts)", found, expected });
        }
        match payload {
            0 => Ok(()), // the first stage: token ids in place of a hidden state
            _ => payload_is(tensor_bytes(self.rows, self.cols, self.dtype)?, payload),
        }
    }
}

/// A step's output. The payload is `[rows, cols]`, row major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// The step that this answers.
    pub step: u64,
    /// Rows of the payload.
    pub rows: u32,
    /// Columns of the payload: the hidden width, or the vocabulary where the worker is the last stage.
    pub cols: u32,
    /// Element type of the payload.
    pub dtype: Dtype,
    /// Time in the worker's stage, in microseconds.
    pub compute_micros: u64,
    /// Time in the worker's queue before that, in microseconds.
    pub queue_micros: u64,
    /// Anything else, such as sampled tokens, as the two programs encode it.
    pub opaque: Vec<u8>,
}

/// Steps and sequences that nobody waits for any more. Each such step is still answered, in its turn: with its
/// result if it was computed, else with [`ErrorCode::Cancelled`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Steps to skip.
    pub steps: Vec<u64>,
    /// Sequences to leave out of every step that has not begun.
    pub sequences: Vec<u64>,
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
