//! What a link is set to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    frame::Limits,
    message::{Hello, Role, Versions},
};

/// Counts what a node has computed or loaded. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct ProgressCount(Arc<AtomicU64>);

impl From<Arc<AtomicU64>> for ProgressCount {
    fn from(count: Arc<AtomicU64>) -> Self {
        Self(count)
    }
}

impl ProgressCount {
    /// Counts one more.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a link introduces itself, and its limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// Versions to offer.
    pub versions: Versions,
    /// Release, for people.
    pub software: String,
    /// Name of this node.
    pub node_id: String,
    /// Unanswered steps on the link; the smaller of the two sides' numbers counts.
    pub max_in_flight: u32,
    /// What is accepted from the peer once it has introduced itself.
    pub limits: Limits,
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Between two pings.
    pub ping_interval: Duration,
    /// Without a byte received, after which the peer counts as lost.
    pub idle_timeout: Duration,
    /// From the first byte of a frame to its last.
    pub frame_timeout: Duration,
    /// Told to the peer in every answer to a ping.
    pub progress: ProgressCount,
    /// [`Pong::paged_in_bytes`](crate::Pong::paged_in_bytes) of this node, told likewise; whoever knows it writes it here.
    pub paged_in: Arc<AtomicU64>,
}

impl Config {
    /// The defaults for a node of this name.
    pub fn new(node_id: impl Into<String>) -> Config {
        Config {
            versions: Versions::OURS,
            software: concat!("kimi ", env!("CARGO_PKG_VERSION")).into(),
            node_id: node_id.into(),
            max_in_flight: 64,
            limits: Limits::default(),
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(120),
            progress: ProgressCount::default(),
            paged_in: Arc::default(),
        }
    }

    pub(super) fn hello(&self, role: Role) -> Hello {
        Hello {
            versions: self.versions,
            software: self.software.clone(),
            node_id: self.node_id.clone(),
            role,
            max_in_flight: self.max_in_flight.max(1),
        }
    }
}
