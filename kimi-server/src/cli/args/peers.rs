//! Arguments of commands that use other machines.

use std::path::PathBuf;

use clap::Args;

use super::{ModelArgs, NodeArgs, PlacementArgs, TrustArgs, share};
use crate::cli::defaults;

/// With which machines a model is held.
#[derive(Debug, Clone, Args)]
pub struct PeerArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// Start when this many workers have answered, with those that have [default: all of the discovery file; without a
    /// file those that are found, and none if none is; 0 looks for none].
    #[arg(long, value_name = "N")]
    pub wait_for_peers: Option<usize>,
    /// How long to wait for them.
    #[arg(long, alias = "discovery-timeout", value_name = "SECONDS", default_value_t = defaults::PEER_TIMEOUT)]
    pub peer_timeout: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub placement: PlacementArgs,
    /// Do not look for workers that announce themselves on the network.
    #[arg(long)]
    pub no_mdns: bool,
    /// Accepted so that all machines can share a command line; the coordinator connects out and listens for no peer.
    #[arg(long, value_name = "HOST")]
    pub node_host: Option<String>,
    /// Like --node-host.
    #[arg(long, value_name = "PORT")]
    pub node_port: Option<u16>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,
}

/// Arguments of `kimi nodes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a discovery file, workers with this machine's cluster key are looked for on the network. Each address of a node is
measured: the shortest of several round trips, and the time of up to 8 MiB each way. Workers answer while they serve.
Exit code 1 if a node of the file does not answer.

Examples:
  kimi nodes
  kimi nodes --discovery-config-path discovery.json --node-id a --json")]
pub struct NodesArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// How long to look for workers that announce themselves.
    #[arg(long, value_name = "SECONDS", default_value_t = defaults::LOOK_SECONDS, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub wait: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kimi doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Looks at this machine and, like `kimi nodes`, at the others. Each line says whether something is ok, could be better (warn)
or keeps the model from running (fail), what that means, and what mends it. Exit code 1 if something fails.

Examples:
  kimi doctor                      this machine, and the workers that announce themselves
  kimi doctor kimi-k2-4bit --discovery-config-path discovery.json --node-id a")]
pub struct DoctorArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// Tokens of context to leave room for [default: the model's, at most 32768].
    #[arg(long, value_name = "TOKENS", value_parser = super::at_least_one)]
    pub context: Option<usize>,
    /// Share of each machine's memory that weights and cache may take [default: 0.75].
    #[arg(long, value_name = "0..1", value_parser = share)]
    pub usable_memory: Option<f64>,
    /// How long to look for workers that announce themselves.
    #[arg(long, value_name = "SECONDS", default_value_t = defaults::LOOK_SECONDS, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub wait: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,
    /// A config.json in place of the checkpoint's.
    #[arg(long, value_name = "FILE", hide = true)]
    pub config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
