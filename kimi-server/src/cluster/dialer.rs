//! How a coordinator reaches its workers.

use std::time::Duration;

use kimi_net::{Config, Coordinator, LinkError, Tuning};

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
    /// Links to other machines, although they are not encrypted.
    pub insecure: bool,
}

impl Dialer {
    /// A dialer with this node's name.
    pub fn new(node_id: impl Into<String>, insecure: bool) -> Self {
        Self { node_id: node_id.into(), insecure }
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
        kimi_net::connect(worker.target.as_str(), self.insecure, &Tuning::default(), config).await
    }
}
