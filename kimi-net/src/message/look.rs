//! What a node that only looks asks of a worker, and what the worker says of itself.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

use super::{Fingerprint, MAX_TEXT, MessageError, at_most};

/// Bytes of a [`Filling`].
pub const MAX_FILLING: usize = 128 << 10;
/// Questions of an observer that may be unanswered.
pub const MAX_LOOKS: usize = 8;

/// Observer to worker: what are you, and what do you hold? Answered by one [`Status`], whoever the worker serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// A model, as an [`Assign`](super::Assign) names it, whose files the worker is to look at; empty for none.
    pub model: String,
    /// Bytes of [`Status::filling`] to send back.
    pub reply_bytes: u32,
    /// Bytes that only measure the link; see [`Self::measures_link`].
    pub filling: Filling,
}

/// Worker to observer: the answer to a [`Look`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it computes on, for people.
    pub device: String,
    /// Bytes of memory that its process can have; 0 where its system does not say.
    pub memory_bytes: u64,
    /// Bytes of it that are free.
    pub available_bytes: u64,
    /// Its clock, in microseconds since 1970.
    pub clock_micros: u64,
    /// Name of the coordinator that it serves; empty for none.
    pub coordinator: String,
    /// The layers that it has loaded.
    pub holding: Option<Holding>,
    /// Its files of [`Look::model`].
    pub model: Option<ModelFiles>,
    /// As many bytes as were asked for.
    pub filling: Filling,
}

/// Layers that a worker has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The checkpoint that they are of.
    pub fingerprint: Fingerprint,
    /// First layer.
    pub first_layer: u32,
    /// Last layer, included.
    pub last_layer: u32,
    /// Stored bytes of their weights.
    pub weight_bytes: u64,
    /// Bytes of their cache.
    pub cache_bytes: u64,
}

/// A worker's files of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelFiles {
    /// They are there, and make this checkpoint.
    Found(Fingerprint),
    /// They are not, or can't be used: why.
    Unusable(String),
}

/// Zeros that travel for their number alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filling(pub Vec<u8>);

impl Filling {
    /// So many bytes, at most [`MAX_FILLING`].
    pub fn of(bytes: usize) -> Filling {
        Filling(vec![0; bytes.min(MAX_FILLING)])
    }
}

impl Serialize for Filling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Filling {
    /// As one block: element by element would measure the decoder in place of the link.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Filling, D::Error> {
        struct Block;
        impl Visitor<'_> for Block {
            type Value = Filling;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a block of bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Filling, E> {
                Ok(Filling(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Block)
    }
}

impl Look {
    /// Whether it only measures the link: such a question is answered at once, with the clock and the filling alone.
    pub fn measures_link(&self) -> bool {
        self.reply_bytes > 0 || !self.filling.0.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), MessageError> {
        at_most("bytes in model", self.model.len(), MAX_TEXT)?;
        at_most("reply_bytes", self.reply_bytes as usize, MAX_FILLING)?;
        at_most("bytes in filling", self.filling.0.len(), MAX_FILLING)
    }
}

impl Status {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        at_most("bytes in device", self.device.len(), MAX_TEXT)?;
        at_most("bytes in coordinator", self.coordinator.len(), MAX_TEXT)?;
        if let Some(ModelFiles::Unusable(reason)) = &self.model {
            at_most("bytes in the reason", reason.len(), MAX_TEXT)?;
        }
        at_most("bytes in filling", self.filling.0.len(), MAX_FILLING)
    }
}
