//! How a coordinator reaches its workers.

use std::time::Duration;

use kimi_net::{Config, Coordinator, LinkError, Trust, Tuning};

/// A worker to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub id: String,
    /// `host:port`.
    pub target: String,
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

    /// A link to a worker. Since it is made again when it breaks, silence may be taken for its end soon.
    ///
    /// # Errors
    /// The link's.
    pub async fn link(&self, worker: &Wanted) -> Result<Coordinator, LinkError> {
        let config = Config {
            ping_interval: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(2),
            ..Config::new(self.node_id.as_str())
        };
        kimi_net::connect(worker.target.as_str(), &self.trust, &Tuning::default(), config).await
    }
}
