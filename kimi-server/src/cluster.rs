//! Stages on other machines or in other processes: the glue of kimi-core to kimi-net.
//!
//! The coordinator [`connect`]s to workers, gives each its layers and gets a [`RemoteStage`] for each; with its own last
//! stage they make up the model ([`build`]). A worker is [`worker::serve`]. [`child`] starts workers as processes of this
//! machine.

pub mod child;
mod config;
mod connect;
mod host;
mod pipeline;
mod remote;
mod wire;
pub mod worker;

use std::sync::Arc;

pub use connect::{ConnectError, Connected, Wanted, connect};
pub use pipeline::{BuildError, Built, Placement, build, reload_last};
pub use remote::RemoteStage;

/// Is told how far loading is: index of the stage, bytes loaded, bytes in all. Called from several threads.
pub type LoadWatch = Arc<dyn Fn(usize, u64, u64) + Send + Sync>;
