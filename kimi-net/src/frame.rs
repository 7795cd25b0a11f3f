//! Frames: a fixed prefix, a postcard header, raw tensor bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut, buf::Limit};

use crate::{
    kind::Kind,
    message::{Message, MessageError},
};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"KIMI";
/// Version of the frame layout. What the messages mean is versioned by [`crate::Versions`].
pub const FRAME_VERSION: u16 = 1;
/// Bytes of a frame's prefix.
pub const PREFIX_BYTES: usize = 20;
/// A received payload starts at a multiple of this many bytes, so that it can be viewed as `f32` (or loaded
/// in vectors) where it lies. The buffer has 63 bytes of slack, and its first bytes up to the next multiple
/// are left out of it; growing makes a new buffer, aligned anew.
pub const PAYLOAD_ALIGNMENT: usize = 64;

/// Payload bytes that one claim in a prefix can make us allocate before any have arrived: a hidden state of
/// 512 tokens fits without growing.
const FIRST_ALLOCATION: usize = 16 << 20;

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
        [0x14..=0x17, 0x03, ..] => " (an encrypted link: this side runs with --insecure, the other does not)",
        _ => "",
    }
}

/// What a receiver accepts. Checked when the prefix is there, before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a header.
    pub max_header: u32,
    /// Bytes of a payload.
    pub max_payload: u64,
}

impl Limits {
    /// For a peer that has not introduced itself: 64 KiB, no payload.
    pub const HANDSHAKE: Limits = Limits { max_header: 64 << 10, max_payload: 0 };
}

impl Default for Limits {
    /// 1 MiB of header, 1 GiB of payload.
    fn default() -> Limits {
        Limits { max_header: 1 << 20, max_payload: 1 << 30 }
    }
}

/// The checked prefix of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Kind of the message.
    pub kind: Kind,
    /// Bytes of the header.
    pub header_bytes: u32,
    /// Bytes of the payload.
    pub payload_bytes: u64,
}

impl Prefix {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; PREFIX_BYTES] {
        let mut out = [0; PREFIX_BYTES];
        let mut rest = &mut out[..];
        rest.put_slice(&MAGIC);
        rest.put_u16_le(FRAME_VERSION);
        rest.put_u16_le(self.kind.number());
        rest.put_u32_le(self.header_bytes);
        rest.put_u64_le(self.payload_bytes);
        out
    }

    /// Reads and checks a prefix.
    pub fn decode(bytes: &[u8; PREFIX_BYTES], limits: &Limits) -> Result<Prefix, FrameError> {
        let mut rest = &bytes[..];
        let mut found = [0; 4];
        rest.copy_to_slice(&mut found);
        if found != MAGIC {
            return Err(FrameError::NotKimi { found });
        }
        match rest.get_u16_le() {
            FRAME_VERSION => {}
            found => return Err(FrameError::Version { found }),
        }
        let number = rest.get_u16_le();
        let kind = Kind::from_number(number).ok_or(FrameError::UnknownKind { found: number })?;
        let prefix = Prefix { kind, header_bytes: rest.get_u32_le(), payload_bytes: rest.get_u64_le() };
        prefix.check(limits)?;
        Ok(prefix)
    }

    fn check(&self, limits: &Limits) -> Result<(), FrameError> {
        let kind = self.kind;
        if self.header_bytes > limits.max_header {
            let (claimed, limit) = (self.header_bytes.into(), limits.max_header.into());
            return Err(FrameError::HeaderTooLarge { kind, claimed, limit });
        }
        // A payload must also fit in the address space of this machine.
        let limit = if kind.carries_payload() { limits.max_payload.min(isize::MAX as u64 / 2) } else { 0 };
        if self.payload_bytes > limit {
            return Err(FrameError::PayloadTooLarge { kind, claimed: self.payload_bytes, limit });
        }
        Ok(())
    }
}

/// A frame that was received.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The decoded header.
    pub message: Message,
    /// The payload, at an address that is a multiple of [`PAYLOAD_ALIGNMENT`]; empty if there is none.
    pub payload: Bytes,
}

/// A frame to send: prefix and header in one buffer, the payload in the caller's own.
#[derive(Debug, Clone)]
pub struct OutFrame {
    /// Prefix and header.
    pub head: Bytes,
    /// The caller's bytes, not copied.
    pub payload: Bytes,
    /// The step of a `Forward` or `Result`, for statistics.
    pub step: Option<u64>,
}

impl OutFrame {
    /// Encodes a message, with the checks that the receiver will make.
    pub fn new(message: &Message, payload: Bytes, limits: &Limits) -> Result<OutFrame, FrameError> {
        let payload_bytes = payload.len() as u64;
        let mut head = encode(message, vec![0; PREFIX_BYTES], payload_bytes)?;
        let header_bytes = (head.len() - PREFIX_BYTES) as u64;
        let kind = message.kind();
        let prefix = Prefix {
            kind,
            header_bytes: u32::try_from(header_bytes).map_err(|_| FrameError::HeaderTooLarge {
                kind,
                claimed: header_bytes,
                limit: limits.max_header.into(),
            })?,
            payload_bytes,
        };
        prefix.check(limits)?;
        head[..PREFIX_BYTES].copy_from_slice(&prefix.encode());
        let step = match message {
            Message::Forward(forward) => Some(forward.step),
            Message::Result(result) => Some(result.step),
            _ => None,
        };
        Ok(OutFrame { head: head.into(), payload, step })
    }

    /// Bytes that are still to be sent.
    pub fn remaining(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Takes up to `count` sent bytes off and returns how many were left over for the next frame.
    pub fn advance(&mut self, count: usize) -> usize {
        let of_head = count.min(self.head.len());
        self.head.advance(of_head);
        let of_payload = (count - of_head).min(self.payload.len());
        self.payload.advance(of_payload);
        count - of_head - of_payload
    }
}

/// What [`FrameReader::poll`] found.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// Read more into [`FrameReader::target`].
    NeedMore,
    /// A prefix within the limits; nothing has been allocated for its frame. Poll again to accept it.
    Prefix(Prefix),
    /// A whole header, which [`FrameReader::header`] shows; nothing has been allocated for its payload. Poll again
    /// to accept it.
    Header,
    /// A whole frame.
    Frame(Frame),
}

enum Part {
    Prefix,
    Header(Prefix),
    Decoded(Prefix, Message),
    Payload(Prefix, Message),
}

/// Takes frames out of a stream of bytes.
///
/// The bytes are read straight to where they stay: [`target`](Self::target) ends exactly where the current part
/// of the frame ends, so that a payload goes from the socket into its own buffer. That buffer starts with at most
/// 16 MiB and doubles as bytes arrive, so that a claim in a prefix costs little.
pub struct FrameReader {
    limits: Limits,
    part: Part,
    /// Prefix or header; reused from frame to frame.
    head: BytesMut,
    payload: BytesMut,
    /// Length of the current buffer at which the next decision is due.
    goal: usize,
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub fn new(limits: Limits) -> FrameReader {
        let (head, payload) = (BytesMut::with_capacity(512), BytesMut::new());
        FrameReader { limits, part: Part::Prefix, head, payload, goal: PREFIX_BYTES }
    }

    /// Limits for the prefixes to come.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Where the next bytes of the stream belong. Never empty after `poll` has returned `NeedMore`.
    pub fn target(&mut self) -> Limit<&mut BytesMut> {
        let buffer = match self.part {
            Part::Prefix | Part::Header(_) | Part::Decoded(..) => &mut self.head,
            Part::Payload(..) => &mut self.payload,
        };
        let room = self.goal.saturating_sub(buffer.len());
        buffer.limit(room)
    }

    /// Looks at what [`target`](Self::target) has received. After an error the stream has no frame boundaries
    /// any more and must be closed.
    pub fn poll(&mut self) -> Result<Progress, FrameError> {
        loop {
            match &self.part {
                Part::Prefix => {
                    self.check_magic()?;
                    let Ok(bytes) = <&[u8; PREFIX_BYTES]>::try_from(&self.head[..]) else {
                        return Ok(Progress::NeedMore);
                    };
                    let prefix = Prefix::decode(bytes, &self.limits)?;
                    self.begin_header(prefix);
                    return Ok(Progress::Prefix(prefix));
                }
                Part::Header(_) if self.head.len() < self.goal => return Ok(Progress::NeedMore),
                Part::Header(prefix) => {
                    let prefix = *prefix;
                    let message = decode(prefix.kind, &self.head, prefix.payload_bytes)?;
                    self.part = Part::Decoded(prefix, message);
                    return Ok(Progress::Header);
                }
                Part::Decoded(..) => {
                    if let Part::Decoded(prefix, message) = std::mem::replace(&mut self.part, Part::Prefix) {
                        self.begin_payload(prefix, message);
                    }
                }
                Part::Payload(..) if self.payload.len() < self.goal => return Ok(Progress::NeedMore),
                Part::Payload(prefix, _) if (self.goal as u64) < prefix.payload_bytes => {
                    self.grow(prefix.payload_bytes as usize);
                }
                Part::Payload(..) => {
                    let part = std::mem::replace(&mut self.part, Part::Prefix);
                    let payload = std::mem::take(&mut self.payload).freeze();
                    self.begin_prefix();
                    if let Part::Payload(_, message) = part {
                        return Ok(Progress::Frame(Frame { message, payload }));
                    }
                }
            }
        }
    }

    /// The header of the frame whose payload comes next or is on its way.
    pub fn header(&self) -> Option<&Message> {
        match &self.part {
            Part::Decoded(_, message) | Part::Payload(_, message) => Some(message),
            Part::Prefix | Part::Header(_) => None,
        }
    }

    /// Where in a frame the stream is, for an error about its end; `None` between frames.
    pub fn position(&self) -> Option<String> {
        match &self.part {
            Part::Prefix if self.head.is_empty() => None,
            Part::Prefix => {
                Some(format!("in a prefix, {} of {PREFIX_BYTES} bytes received", self.head.len()))
            }
            Part::Header(prefix) => Some(format!(
                "in the header of a {:?} frame, {} of {} bytes received",
                prefix.kind,
                self.head.len(),
                prefix.header_bytes
            )),
            Part::Decoded(prefix, _) | Part::Payload(prefix, _) => Some(format!(
                "in the payload of a {:?} frame, {} of {} bytes received",
                prefix.kind,
                self.payload.len(),
                prefix.payload_bytes
            )),
        }
    }

    /// Tells another protocol from its first bytes, without waiting for a whole prefix.
    fn check_magic(&self) -> Result<(), FrameError> {
        match self.head.first_chunk::<4>() {
            Some(found) if *found != MAGIC => Err(FrameError::NotKimi { found: *found }),
            _ => Ok(()),
        }
    }

    fn begin_prefix(&mut self) {
        self.part = Part::Prefix;
        self.head.clear();
        self.goal = PREFIX_BYTES;
    }

    fn begin_header(&mut self, prefix: Prefix) {
        self.goal = prefix.header_bytes as usize;
        self.head.clear();
        self.head.reserve(self.goal);
        self.part = Part::Header(prefix);
    }

    fn begin_payload(&mut self, prefix: Prefix, message: Message) {
        // The prefix was checked against the address space.
        self.goal = (prefix.payload_bytes as usize).min(FIRST_ALLOCATION);
        self.payload = aligned_buffer(self.goal);
        self.part = Part::Payload(prefix, message);
    }

    fn grow(&mut self, total: usize) {
        self.goal = self.goal.saturating_mul(2).min(total);
        let mut larger = aligned_buffer(self.goal);
        larger.extend_from_slice(&self.payload);
        self.payload = larger;
    }
}

/// An empty buffer with room for `capacity` bytes that begins at a multiple of [`PAYLOAD_ALIGNMENT`].
fn aligned_buffer(capacity: usize) -> BytesMut {
    if capacity == 0 {
        return BytesMut::new();
    }
    let mut buffer = BytesMut::with_capacity(capacity + PAYLOAD_ALIGNMENT - 1);
    let skip = (buffer.as_ptr() as usize).wrapping_neg() % PAYLOAD_ALIGNMENT;
    buffer.resize(skip, 0);
    buffer.advance(skip);
    buffer
}

/// Appends a header to `out`, after the same checks as on receipt.
fn encode(message: &Message, out: Vec<u8>, payload: u64) -> Result<Vec<u8>, FrameError> {
    let kind = message.kind();
    message.check(payload).map_err(|cause| FrameError::Invalid { kind, cause })?;
    let malformed =
        |error: postcard::Error| FrameError::Malformed { kind, bytes: 0, detail: error.to_string() };
    message.encode_onto(out).map_err(malformed)
}

/// Decodes and checks a header whose frame announces `payload` bytes of payload.
fn decode(kind: Kind, header: &[u8], payload: u64) -> Result<Message, FrameError> {
    let malformed = |detail: String| FrameError::Malformed { kind, bytes: header.len(), detail };
    let (mut message, rest) =
        Message::decode_prefix(kind, header).map_err(|error| malformed(error.to_string()))?;
    // A hello comes before the version is agreed on: a newer peer's may have fields that we skip.
    if !rest.is_empty() && !matches!(kind, Kind::Hello | Kind::Welcome) {
        return Err(malformed(format!("{} bytes are left over", rest.len())));
    }
    message.check(payload).map_err(|cause| FrameError::Invalid { kind, cause })?;
    message.make_printable();
    Ok(message)
}
