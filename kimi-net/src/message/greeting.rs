//! Who is at the other end.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MAX_TEXT, MessageError, at_most, ensure};

/// Which end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Connects, plans, sends steps.
    Coordinator,
    /// Listens, loads layers, computes steps.
    Worker,
    /// Connects and asks a worker for its status; loads and computes nothing.
    Observer,
}

impl Role {
    /// Whether a link can have these two ends: one of them is a worker.
    pub fn meets(self, other: Role) -> bool {
        (self == Role::Worker) != (other == Role::Worker)
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
    /// Unanswered steps that it takes.
    pub max_in_flight: u32,
}

impl Hello {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        ensure(self.versions.min <= self.versions.max, "the version range is empty")?;
        at_most("bytes in software", self.software.len(), MAX_TEXT)?;
        at_most("bytes in node_id", self.node_id.len(), MAX_TEXT)
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
