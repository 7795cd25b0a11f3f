//! Stages on other machines or in other processes: the glue of kimi-core to kimi-net.
//!
//! The coordinator [`connect`]s to workers, gives each its layers and gets a [`RemoteStage`] for each; with its own last
//! stage they make up the model ([`build`]). A stage that is lost is replaced ([`Recovery`]). A worker is [`worker::serve`]. [`child`] starts workers as processes of this
//! machine.

pub mod child;
mod config;
mod connect;
mod dialer;
mod host;
pub mod look;
mod patience;
mod pipeline;
mod recovery;
mod refusal;
mod remote;
pub(crate) mod routes;
mod status;
mod wire;
pub mod worker;

use std::sync::Arc;

pub use connect::{ConnectError, Connected, connect};
pub use dialer::{Dialer, Wanted};
pub use patience::Patience;
pub use pipeline::{BuildError, Built, Placement, build};
pub use recovery::Recovery;
pub use remote::RemoteStage;
pub use routes::{RouteError, describe};
pub use status::{ClusterStatus, Loading, NodeLoad, NodeState, NodeStatus};

/// Is told how far loading is: index of the stage, and what is in place. Called from several threads.
pub type LoadWatch = Arc<dyn Fn(usize, NodeLoad) + Send + Sync>;
