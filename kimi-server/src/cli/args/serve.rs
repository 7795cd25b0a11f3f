//! Arguments of `kimi serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{
    CacheArgs, DeviceArgs, HttpArgs, ModelArgs, PeerArgs, PrecisionArgs, SpeculationArgs, gigabytes,
};
use crate::cli::defaults;
use crate::cli::exo::ExoArgs;

/// Whether something is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    #[default]
    On,
    /// No.
    Off,
}

/// Arguments of `kimi serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a discovery file, workers with this machine's cluster key that announce themselves are found and used: `kimi key new`,
`kimi worker` there, `kimi serve MODEL` here. If there are none, or this machine has no key, it holds the whole model.

Requests without temperature and top_p get those of the model's card: 0.6 and 1 for Kimi-K2-Instruct, 1.0 and 0.95 for models
while they think, 0.6 and 0.95 for those while they don't. `kimi inspect` and /v1/models show them; `temperature` and `top_p` of
the model in models.toml win.

Examples:
  kimi serve kimi-tiny
  kimi serve kimi-k2-4bit --wait-for-peers 1
  kimi serve kimi-k2-4bit --node-id a --discovery-config-path discovery.json \\
       --wait-for-peers 1
  curl http://127.0.0.1:52415/v1/chat/completions -H 'content-type: application/json' \\
       -d '{\"model\": \"kimi-tiny\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub struct ServeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Address to serve on. Anything but this machine itself needs API keys or --open-api.
    #[arg(long, default_value = defaults::HTTP_HOST)]
    pub host: String,
    /// Port to serve on; 0 takes a free one.
    #[arg(long, alias = "chatgpt-api-port", default_value_t = defaults::HTTP_PORT)]
    pub port: u16,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub peers: PeerArgs,
    /// How long answers under way wait for a lost machine or GPU to be replaced; they go on with the same text then.
    #[arg(long, value_name = "SECONDS", default_value_t = defaults::RECOVERY_TIMEOUT,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub recovery_timeout: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    /// How long a step should take at most while answers are written, in milliseconds: longer prompts are computed in
    /// pieces, so that they do not hold up the others.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub prompt_time: u64,
    /// Whether a prompt begins with what was computed for another one that begins alike: an earlier turn, or the same system
    /// prompt. Pages are kept in the cache until their place is needed.
    #[arg(long, value_enum, default_value_t)]
    pub prefix_cache: Switch,
    /// Keep what was computed in this folder too, so that chats and system prompts go on at once after a restart. Whoever can
    /// read it can find out what was said. Only if all layers are on this machine.
    #[arg(long, value_name = "DIR")]
    pub prefix_cache_disk: Option<PathBuf>,
    /// Most gigabytes that the files in --prefix-cache-disk take; what was unused for longest goes first.
    #[arg(long, value_name = "GB", default_value_t = defaults::PREFIX_CACHE_DISK, value_parser = gigabytes)]
    pub prefix_cache_disk_size: f64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub http: HttpArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub precision: PrecisionArgs,
    /// Let everybody who reaches --host use the API without a key, on networks that you trust. Implied by --insecure.
    #[arg(long)]
    pub open_api: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub exo: ExoArgs,
    /// Print one line of JSON when ready: {"event": "listening", "address": .., "model": ..}.
    #[arg(long)]
    pub json: bool,
}
