//! Machines of a cluster that find each other without a file, by multicast DNS (RFC 6762, 6763).
//!
//! A worker with a cluster key [`announce`]s itself as `_kimi._tcp`; a coordinator with the same key [`find`]s it. What is
//! announced is public, and anyone on the network can announce anything: a record gives addresses to try and a name for
//! messages. Trust comes from the key alone, when the link is made.

mod mdns;
mod record;

use std::fmt;

use kimi_net::Versions;

pub use mdns::{Announced, Member, MembershipError, Wait, announce, find};
pub use record::{MAX_DEVICE, MAX_NODE_ID, Record, RecordError};

/// Protocol versions as they are announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken(pub Versions);

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Spoken {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (min, max) = text.split_once('-').ok_or(())?;
        let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u16>().map_err(drop),
            false => Err(()),
        };
        let versions = Versions { min: number(min)?, max: number(max)? };
        if versions.min <= versions.max { Ok(Self(versions)) } else { Err(()) }
    }
}
