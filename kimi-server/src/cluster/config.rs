//! What a worker is set to.

use kimi_core::DeviceChoice;
use kimi_core::checkpoint::Checkpoint;

use crate::models::Lookup;

/// What a worker knows.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Its name.
    pub node_id: String,
    /// The model to use, whatever the coordinator calls it; `None` looks the coordinator's name up.
    pub model: Option<Checkpoint>,
    /// Where to look.
    pub lookup: Lookup,
    /// What it computes on.
    pub device: DeviceChoice,
}
