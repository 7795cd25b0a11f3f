//! Parts of a model's files, for a node that lacks them.

use serde::{Deserialize, Serialize};

use super::{MAX_TEXT, MessageError, at_most, ensure};

/// Bytes of a [`Piece`]'s payload.
pub const MAX_PIECE: usize = 8 << 20;
/// Pieces that may be asked for and not answered.
pub const MAX_FETCHES: usize = 4;

/// Observer to worker: a range of a part of your files. Answered by one [`Piece`], whoever the worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The model, as an [`Assign`](super::Assign) names it.
    pub model: String,
    /// The part.
    pub item: Item,
    /// First byte.
    pub offset: u64,
    /// How many bytes; fewer come where the part ends before.
    pub bytes: u32,
}

/// A part of a model's files. Its number is one of the worker's own list: no name or path of a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// The list: what the model consists of, without weights.
    Manifest,
    /// The file beside the weights that has this place in the list.
    File(u32),
    /// The values of the tensor that has this place in the list.
    Tensor(u32),
}

/// Worker to observer: the answer to a [`Fetch`], with the bytes as payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Bytes of the whole part.
    pub total: u64,
    /// The payload's blake3.
    pub hash: [u8; 32],
}

impl Fetch {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        at_most("bytes in model", self.model.len(), MAX_TEXT)?;
        ensure(self.bytes > 0, "no bytes are asked for")?;
        at_most("bytes of a piece", self.bytes as usize, MAX_PIECE)
    }
}
