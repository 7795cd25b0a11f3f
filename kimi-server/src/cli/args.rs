//! The arguments of every command.

mod cache;
mod check;
mod device;
mod http;
mod local;
mod manage;
mod peers;
mod placement;
mod pull_layers;
mod run;
mod serve;
mod speculation;
mod top;
mod values;
mod worker;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use cache::CacheArgs;
pub use check::{BenchArgs, DevicesArgs, InspectArgs, SyntheticModel, VerifyArgs, VerifyBackend};
pub use device::{BackendChoice, CpuArgs, DeviceArgs, GpuArgs, PrecisionArgs, PrecisionName};
pub use http::HttpArgs;
pub use local::{ListArgs, PsArgs, RmArgs, ShowArgs};
pub use manage::{
    ApiKeyArgs, ApiKeyCommand, CompletionsArgs, ConfigArgs, ConfigCommand, KeyArgs, KeyCommand, LimitArgs,
    ManArgs,
};
pub use peers::{DoctorArgs, NodesArgs, PeerArgs};
pub use placement::{LinkArgs, NodeBandwidth, NodeLayers, PlacementArgs, PlanArgs};
pub use pull_layers::PullLayersArgs;
pub use run::{DemoArgs, RunArgs};
pub use serve::{ServeArgs, Switch};
pub use speculation::SpeculationArgs;
pub use top::TopArgs;
use values::{at_least_one, gigabytes, places, share, tolerance};
pub use worker::{NodeArgs, TrustArgs, WorkerArgs};

const EXAMPLES: &str = "\
Examples:
  kimi demo                                      all at once, on a small model
  kimi run kimi-tiny --prompt 'Tell me a story'  text in the terminal
  kimi serve ~/models/Kimi-K2                    the HTTP API, port 52415
  kimi inspect ~/models/Kimi-K2                  bits and bytes of every module
  kimi top                                       what a running `kimi serve` does, and why it is slow
  kimi devices                                   GPUs, and how much of Kimi-K2 they hold
  kimi bench --synthetic kimi-k2                 speed at the real shapes, without a file
  kimi api-key new laptop                        a key of the API, for others than this machine
  kimi config                                    every setting, and where it comes from
  kimi doctor kimi-k2-4bit                       what keeps it from running here, and what mends it

Two machines on one network, A with the API and B with most of the layers; both have the checkpoint:
  A$ kimi key new                     once; it prints how to bring the key to B
  B$ kimi worker
  A$ kimi serve kimi-k2-4bit          finds B; `kimi nodes` shows who is there

The same with a file that names the machines, discovery.json, on both:
  B$ kimi worker --node-id b --default-model kimi-k2-4bit \\
          --discovery-config-path discovery.json
  A$ kimi plan kimi-k2-4bit --node-id a --discovery-config-path discovery.json
  A$ kimi serve kimi-k2-4bit --node-id a --discovery-config-path discovery.json

MODEL is kimi-tiny, a path, a hub id (org/name) that is in ~/models or in Hugging Face's cache, or a short name such as
kimi-k2-4bit. Own short names go into ~/.config/kimi/models.toml:
  [models.my-k2]
  hub = \"org/name\"       # or path = \"/a/folder\"

Every flag of serve, run and worker may also stand in the environment (--max-chats is KIMI_MAX_CHATS) or in
~/.config/kimi/config.toml; `kimi config` shows what holds.

Exit codes: 0 success; 1 a check failed, the model does not fit, or something went wrong (the reason is on stderr);
2 wrong arguments.";

/// Kimi-K2 on one machine or several, behind an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "kimi", version, after_help = EXAMPLES, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// What is logged to stderr: off, error, warn, info, debug, trace, or filters such as kimi_net=debug [default: warn;
    /// for a worker also who connects and what is loaded, for a server one line a request].
    #[arg(long, global = true, value_name = "LEVEL", env = "KIMI_LOG", hide_env_values = true)]
    pub log: Option<String>,
    /// How it is logged: text for people, json for programs, one object a line.
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the main job on the embedded model: two processes, TCP, HTTP API, streamed answer.
    Demo(DemoArgs),
    /// Answer a prompt, or chat, in the terminal.
    Run(RunArgs),
    /// Serve an OpenAI-compatible HTTP API, alone or as the coordinator of workers.
    Serve(ServeArgs),
    /// Hold layers for a coordinator on another machine.
    Worker(WorkerArgs),
    /// Make or show the key that the machines of a cluster share: `kimi key new`.
    Key(KeyArgs),
    /// Make, list and revoke keys of the API: `kimi api-key new NAME`.
    ApiKey(ApiKeyArgs),
    /// Show the machines of the cluster: how each is reached and how fast, its memory, its device, what it holds.
    Nodes(NodesArgs),
    /// Look for what keeps a model from running here and on the other machines, or makes it slow, and say what mends it.
    Doctor(DoctorArgs),
    /// Show what a server does, once a second: tokens, requests, pages, where a step's time goes, and why it is slow.
    Top(TopArgs),
    /// List the models on this machine.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a model: its size, context, chat template, and how it samples. Reads headers only.
    Show(ShowArgs),
    /// Show what of kimi runs on this machine: servers with their models, and a worker.
    Ps(PsArgs),
    /// Delete a model that kimi has fetched, after asking.
    Rm(RmArgs),
    /// Show which machine would hold which layers. Reads headers only; a build that kimi knows need not be here.
    Plan(PlanArgs),
    /// Get just the layers that this machine needs from a machine that has them.
    PullLayers(PullLayersArgs),
    /// Show a checkpoint's modules: bits, groups, bytes. Reads headers only.
    Inspect(InspectArgs),
    /// Compare logits and greedy tokens with recorded ones.
    Verify(VerifyArgs),
    /// List GPUs and the CPU: limits, memory, and how much of Kimi-K2 they hold.
    Devices(DevicesArgs),
    /// Measure decode, prefill and every operation on a device, beside its read bandwidth.
    Bench(BenchArgs),
    /// Show the settings, and where each comes from: a flag, the environment, config.toml or the default.
    Config(ConfigArgs),
    /// Print a script that has a shell complete kimi's commands and flags.
    Completions(CompletionsArgs),
    /// Print a man page, or write all of them.
    Man(ManArgs),
}

/// Which model.
#[derive(Debug, Clone, Default, Args)]
pub struct ModelArgs {
    /// kimi-tiny, a path, a hub id (org/name) or a short name.
    pub model: Option<String>,
    /// The model where MODEL is not given.
    #[arg(long, value_name = "MODEL", env = "KIMI_DEFAULT_MODEL")]
    pub default_model: Option<String>,
    /// A TOML file with short names of models, in place of ~/.config/kimi/models.toml.
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
}

impl ModelArgs {
    /// The name given.
    ///
    /// # Errors
    /// If neither MODEL nor --default-model is.
    pub fn name(&self) -> anyhow::Result<&str> {
        let name = self.model.as_deref().or(self.default_model.as_deref());
        name.ok_or_else(|| {
            anyhow::anyhow!("which model? Give MODEL or --default-model, for example kimi-tiny")
        })
    }
}
