//! What a peer holds, in a form that the two programs compare. This crate compares nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MAX_DESCRIBED, MAX_DESCRIBED_TEXT, MessageError, at_most};

/// A hash of a part of a checkpoint; shown as hexadecimal.
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

/// What decides a checkpoint's computation, as the two programs describe it: they must agree on all of it, and can say
/// what differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointDescription {
    /// Version of the description.
    pub version: u32,
    /// Keys and values of its config.
    pub config: Vec<(String, String)>,
    /// Groups of its tensors, by name.
    pub tensors: Vec<(String, Fingerprint)>,
}

impl CheckpointDescription {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        at_most("config values of a checkpoint", self.config.len(), MAX_DESCRIBED)?;
        at_most("tensor groups of a checkpoint", self.tensors.len(), MAX_DESCRIBED)?;
        let texts = self.config.iter().flat_map(|(key, value)| [key, value]);
        texts
            .chain(self.tensors.iter().map(|(group, _)| group))
            .try_for_each(|text| at_most("bytes in a text of a checkpoint", text.len(), MAX_DESCRIBED_TEXT))
    }
}
