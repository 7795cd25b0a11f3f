//! What a coordinator knows of its workers at the moment, for `/health` and for people.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kimi_net::LinkStats;

/// The state of every node of a cluster; clones share it.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    nodes: Arc<Mutex<HashMap<String, NodeStatus>>>,
}

/// The state of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// What it does.
    pub state: NodeState,
    /// Since when.
    pub since: Instant,
    /// Its link, at most a second old; the last one while it has none.
    pub link: LinkStats,
}

/// How far a node is before it can compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// Bytes of weights in place.
    pub loaded: u64,
    /// Bytes of weights in all; 0 until it is known.
    pub total: u64,
    /// Kernels compiled, of how many, after the weights; `None` before that.
    pub kernels: Option<(usize, usize)>,
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// Loads its layers.
    Loading(NodeLoad),
    /// Computes what it gets.
    Ready,
    /// Its connection broke, and is being made again. Steps wait for it.
    Reconnecting {
        /// What was seen.
        reason: String,
    },
    /// It is gone, with its caches. Another stage is looked for.
    Lost {
        /// What was seen.
        reason: String,
    },
    /// It answers, but computes no more. Its layers are wanted from others first.
    Stuck {
        /// What was seen.
        reason: String,
    },
    /// Another coordinator has it now.
    Taken {
        /// Its words.
        reason: String,
    },
}

impl NodeLoad {
    /// Weights in place, of how many.
    pub fn of(loaded: u64, total: u64) -> Self {
        Self { loaded, total, kernels: None }
    }
}

impl NodeState {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Loading(_) => "loading",
            Self::Ready => "ready",
            Self::Reconnecting { .. } => "reconnecting",
            Self::Lost { .. } => "lost",
            Self::Stuck { .. } => "stuck",
            Self::Taken { .. } => "taken",
        }
    }

    /// Why it is not ready, if something happened.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Loading(_) | Self::Ready => None,
            Self::Reconnecting { reason }
            | Self::Lost { reason }
            | Self::Stuck { reason }
            | Self::Taken { reason } => Some(reason),
        }
    }
}

impl ClusterStatus {
    /// Notes what a node does now. The time of the change stays if it only goes on with it.
    pub fn set(&self, node: &str, state: NodeState) {
        let mut nodes = self.nodes();
        let goes_on = nodes.get(node).filter(|before| before.state.word() == state.word());
        let since = goes_on.map_or_else(Instant::now, |before| before.since);
        let link = nodes.remove(node).map(|before| before.link).unwrap_or_default();
        nodes.insert(node.to_owned(), NodeStatus { state, since, link });
    }

    /// Notes the numbers of a node's link.
    pub fn set_link(&self, node: &str, link: LinkStats) {
        if let Some(status) = self.nodes().get_mut(node) {
            status.link = link;
        }
    }

    /// What a node does.
    pub fn get(&self, node: &str) -> Option<NodeStatus> {
        self.nodes().get(node).cloned()
    }

    /// How far loading is, as a sentence; `None` if nothing is loading.
    pub fn loading(&self) -> Option<Loading> {
        let nodes = self.nodes();
        let mut sum = Loading::default();
        let mut any = false;
        for NodeStatus { state, since, .. } in nodes.values() {
            if let NodeState::Loading(NodeLoad { loaded, total, kernels }) = state {
                any = true;
                sum.loaded += loaded;
                sum.total += total;
                if let Some((made, all)) = kernels {
                    let (sum_made, sum_all) = sum.kernels.unwrap_or_default();
                    sum.kernels = Some((sum_made + made, sum_all + all));
                }
                sum.time = sum.time.max(since.elapsed());
            }
        }
        any.then_some(sum)
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<String, NodeStatus>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far the nodes that load are, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loading {
    /// Bytes of weights in place.
    pub loaded: u64,
    /// Bytes of weights in all.
    pub total: u64,
    /// Kernels compiled, of how many; `None` before the first.
    pub kernels: Option<(usize, usize)>,
    /// Since the first of them began.
    pub time: Duration,
}

impl Loading {
    /// How long it will still take at the rate so far; `None` while there is none.
    pub fn remaining(&self) -> Option<Duration> {
        let rate = self.loaded as f64 / self.time.as_secs_f64().max(1e-3);
        (rate > 0.0).then(|| Duration::from_secs_f64(self.total.saturating_sub(self.loaded) as f64 / rate))
    }
}
