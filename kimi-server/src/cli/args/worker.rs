//! Arguments of `kimi worker`, and what links machines.

use std::path::PathBuf;

use clap::Args;

use super::DeviceArgs;
use crate::cli::exo::ExoArgs;

/// This machine's place among the others.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// Name of this machine in the discovery file.
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// discovery.json with all machines: {"peers": {"ID": {"address", "port", "device_capabilities": {"memory": MiB, ..}}}}.
    #[arg(long, value_name = "FILE")]
    pub discovery_config_path: Option<PathBuf>,
}

/// With whom this machine links.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustArgs {
    /// The cluster's key, from `kimi key new` [default: the environment's KIMI_CLUSTER_KEY, which holds the key itself, else
    /// ~/.config/kimi/cluster.key].
    #[arg(long, value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,
    /// Link without key and encryption, for measuring on networks that you trust. Both ends must be started so.
    #[arg(long)]
    pub insecure: bool,
}

/// Arguments of `kimi worker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimi worker --node-id b --discovery-config-path discovery.json \\
       --default-model kimi-k2-4bit
  kimi worker --node-host 10.0.0.2 --node-port 52416

The coordinator names the model; the worker looks for it on this machine and checks that it is the same. With
--default-model it uses that one, whatever the coordinator calls it (the check stays).")]
pub struct WorkerArgs {
    /// The model to use, whatever the coordinator calls it: a name or a path.
    #[arg(long, value_name = "MODEL", env = "KIMI_DEFAULT_MODEL")]
    pub default_model: Option<String>,
    /// A TOML file with short names of models, in place of ~/.config/kimi/models.toml.
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// Address to listen on, for those who have the cluster's key [default: the discovery file's, else all of this machine;
    /// with --insecure 127.0.0.1].
    #[arg(long, value_name = "HOST")]
    pub node_host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: the discovery file's, else 52416].
    #[arg(long, value_name = "PORT")]
    pub node_port: Option<u16>,
    /// Do not announce this worker on the network. Otherwise its name, port, memory, device, release and the public name of
    /// its cluster are, by multicast DNS, if it has a key and others can reach it.
    #[arg(long)]
    pub no_mdns: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    /// Accepted so that all machines can share a command line; a worker waits for its coordinator.
    #[arg(long, value_name = "N")]
    pub wait_for_peers: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub exo: ExoArgs,
    /// Print one line of JSON when ready: {"event": "listening", "address": .., "node_id": ..}.
    #[arg(long)]
    pub json: bool,
    /// A config.json in place of the checkpoint's.
    #[arg(long, value_name = "FILE", hide = true)]
    pub config: Option<PathBuf>,
    /// End when standard input does, so that a worker never outlives the process that started it.
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}
