//! How a coordinator reaches its workers.

use std::time::Duration;

use kimi_net::{Config, Coordinator, Trust};

use super::routes::{self, RouteError};

/// A worker to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub id: String,
    /// `host:port`.
    pub target: String,
    /// More ways to it, of the same form. Each is measured, and the best is taken.
    pub others: Vec<String>,
}

impl Wanted {
    /// A worker with one way to it.
    pub fn at(id: impl Into<String>, target: impl Into<String>) -> Self {
        Self { id: id.into(), target: target.into(), others: Vec::new() }
    }
}

/// Makes links to workers: what all links of a coordinator have in common.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// This coordinator's name.
    pub node_id: String,
    /// What the links are protected with.
    pub trust: Trust,
}

impl Dialer {
    /// A dialer with this node's name.
    pub fn new(node_id: impl Into<String>, trust: Trust) -> Self {
        Self { node_id: node_id.into(), trust }
    }

    /// A link to a worker by the best of its routes.
    ///
    /// # Errors
    /// [`RouteError`] of the best route, where several were tried.
    pub async fn link(&self, worker: &Wanted) -> Result<Coordinator, RouteError> {
        routes::connect(worker, self).await
    }

    /// What a link is set to. Since it is made again when it breaks, silence may be taken for its end soon.
    pub(super) fn config(&self) -> Config {
        Config {
            ping_interval: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(2),
            ..Config::new(self.node_id.as_str())
        }
    }
}
