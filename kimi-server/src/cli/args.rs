//! The arguments of every command.

mod http;
mod local;
mod manage;
mod peers;
mod placement;
mod pull_layers;
mod speculation;
mod top;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kimi_core::synthetic::SyntheticShape;
use kimi_core::{DeviceChoice, DeviceKind};
use kimi_quant::Chip;

pub use http::HttpArgs;
pub use local::{ListArgs, PsArgs, RmArgs, ShowArgs};
pub use manage::{ApiKeyArgs, ApiKeyCommand, CompletionsArgs, ConfigArgs, ConfigCommand, LimitArgs, ManArgs};
pub use peers::{DoctorArgs, NodesArgs, PeerArgs};
pub use placement::{LinkArgs, NodeBandwidth, NodeLayers, PlacementArgs, PlanArgs};
pub use pull_layers::PullLayersArgs;
pub use speculation::SpeculationArgs;
pub use top::TopArgs;

use super::exo::ExoArgs;
use super::{defaults, ui};

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

/// How long answers wait for a lost GPU's layers to be loaded again, where no flag says so.
const RECOVERY: Duration = Duration::from_secs(600);

impl CacheArgs {
    /// The same for kimi-core.
    pub fn options(&self) -> kimi_core::ModelOptions {
        kimi_core::ModelOptions {
            context_tokens: self.context,
            cache_tokens: self.cache_tokens,
            conversations: self.conversations,
            // A thirty-second part of this machine's memory holds several contexts of any model that the machine runs.
            cache_memory: kimi_core::host_memory::HostMemory::total_bytes().map(|bytes| bytes / 32),
            recovery: RECOVERY,
            ..kimi_core::ModelOptions::default()
        }
    }

    /// Says on stderr that less context than asked for is there: `limit` tokens.
    pub fn note_limit(&self, limit: usize) {
        if let Some(asked) = self.context.filter(|asked| *asked > limit) {
            ui::notice(format_args!("note: --context {asked} is cut to {limit}, the model's limit"));
        }
    }
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    #[default]
    On,
    /// No.
    Off,
}

/// How much context.
#[derive(Debug, Clone, Default, Args)]
pub struct CacheArgs {
    /// Most tokens of a conversation, prompt and answer together [default: the model's, at most 32768].
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub context: Option<usize>,
    /// Tokens that the latent cache holds for all conversations together [default: 1 to 8 times --context, as many as a
    /// thirty-second part of this machine's memory holds].
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub cache_tokens: Option<usize>,
    /// The same as a number of whole conversations of --context tokens.
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "cache_tokens")]
    pub conversations: Option<usize>,
}

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// A GPU if there is one that the layers fit (software such as lavapipe does not count), else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error that says what is missing.
    Gpu,
}

/// What computes.
#[derive(Debug, Clone, Default, Args)]
pub struct DeviceArgs {
    /// What computes.
    #[arg(long, value_enum, env = "KIMI_BACKEND", default_value_t)]
    pub backend: BackendChoice,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub gpu: GpuArgs,
}

/// Which GPU, and how much of it.
#[derive(Debug, Clone, Default, Args)]
pub struct GpuArgs {
    /// The GPU with this number in `kimi devices`, or the first with this in its name [default: number 0].
    #[arg(long, value_name = "NUMBER|NAME", env = "KIMI_ADAPTER")]
    pub adapter: Option<String>,
    /// Use at most this much of the GPU's memory [default: all that its driver says is free].
    #[arg(long, value_name = "GB", env = "KIMI_GPU_MEMORY", value_parser = gigabytes)]
    pub gpu_memory: Option<f64>,
    /// Let the GPU's clock fall while it idles between the steps of running answers. Without it, the GPU gets a moment of
    /// work every few milliseconds meanwhile, so that one answer over several machines is not slowed by sleeping GPUs.
    #[arg(long, env = "KIMI_IDLE_CLOCKS")]
    pub idle_clocks: bool,
    /// Take the kernels and sizes of this chip of Apple's in place of the GPU's own: to check and to measure on any GPU what
    /// a Mac would run. With `--backend auto` it must be a GPU then, be it software.
    #[arg(
        long,
        value_name = "CHIP",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = Chip::DEFAULT_APPLE,
        env = "KIMI_AS_METAL",
        value_parser = Chip::of_apple,
    )]
    pub as_metal: Option<&'static Chip>,
}

impl DeviceArgs {
    /// The same for kimi-core.
    pub fn choice(&self) -> DeviceChoice {
        self.gpu.choice(match self.backend {
            BackendChoice::Auto => DeviceKind::Auto,
            BackendChoice::Cpu => DeviceKind::Cpu,
            BackendChoice::Gpu => DeviceKind::Gpu,
        })
    }
}

impl GpuArgs {
    /// The same for kimi-core.
    pub fn choice(&self, kind: DeviceKind) -> DeviceChoice {
        let memory = self.gpu_memory.map(|gb| (gb * 1e9) as u64);
        DeviceChoice {
            kind: if self.as_metal.is_some() && kind == DeviceKind::Auto { DeviceKind::Gpu } else { kind },
            adapter: self.adapter.clone(),
            memory,
            idle_clocks: self.idle_clocks,
            as_metal: self.as_metal,
            kernels: crate::system::cache_folder().map(|folder| folder.join("kernels")),
        }
    }
}

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

/// Arguments of `kimi key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KeyCommand,
    /// The key's file [default: $XDG_CONFIG_HOME/kimi/cluster.key, else ~/.config/kimi/cluster.key].
    #[arg(long, value_name = "FILE", global = true)]
    pub cluster_key_file: Option<PathBuf>,
}

/// What `kimi key` does.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum KeyCommand {
    /// Make a key for a new cluster, and say how to bring it to the other machines.
    New {
        /// Replace the key that is there: every machine of its cluster then needs the new one.
        #[arg(long)]
        force: bool,
    },
    /// Print the key, and on stderr how to bring it to another machine.
    Show,
    /// Print the cluster's public name, a hash of the key: equal on machines with the same key.
    Id,
}

/// Arguments of `kimi demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What to ask.
    #[arg(long, default_value = defaults::DEMO_PROMPT)]
    pub prompt: String,
    /// Most tokens of the answer.
    #[arg(long, value_name = "N", default_value_t = defaults::DEMO_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Port of the HTTP API; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Keep serving after the answer, until Ctrl-C.
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// Arguments of `kimi run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimi run kimi-tiny 'Tell me a story' --stats
  git diff | kimi run kimi-tiny 'What does this change?'
  kimi run kimi-tiny              chat; /help shows its commands, Ctrl-C stops an answer, Ctrl-D leaves")]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// What to ask; text on standard input follows it. Without either: a chat.
    #[arg(value_name = "PROMPT")]
    pub words: Vec<String>,
    /// The same as a flag, where the model is not given.
    #[arg(long, short, conflicts_with = "words")]
    pub prompt: Option<String>,
    /// System prompt.
    #[arg(long, alias = "system-prompt")]
    pub system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, alias = "max-generate-tokens", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// 0 always takes the most likely token. Default: what the model's card recommends (kimi inspect shows it), for
    /// instance 0.6 for Kimi-K2-Instruct and 1.0 for models that think.
    #[arg(long, alias = "default-temp")]
    pub temperature: Option<f32>,
    /// Sample only from the most likely tokens with this probability together. Default: the model's, as for --temperature.
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Makes the answer repeatable.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print token counts and speeds to stderr.
    #[arg(long)]
    pub stats: bool,
    /// Neither read nor keep what is typed in chats (~/.local/state/kimi/history).
    #[arg(long)]
    pub no_history: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub peers: PeerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub exo: ExoArgs,
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

/// Arguments of `kimi inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// A config.json in place of the checkpoint's.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, with every layer.
    #[arg(long)]
    pub json: bool,
}

/// What computes in `kimi verify`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum VerifyBackend {
    /// A GPU if there is one that the layers fit (software such as lavapipe does not count), else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error that says what is missing.
    Gpu,
    /// The model as plain burn modules, slow and readable; needs a build with --features reference.
    Reference,
}

/// Arguments of `kimi verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
FILE is safetensors with, for each case: CASE.ids I32[T], the prompt; CASE.logits F32[T, V], or F32[1, V] for the last
position only; CASE.greedy I32[G], the tokens that greedy decoding continues with. No tokenizer is needed.

Each prompt is run at once and token by token, and decoded greedily from the cache. A case passes if no logit differs by
more than the tolerance and all greedy tokens are equal.

Example:
  kimi verify ~/models/my-k2 --golden golden.safetensors --stages 2 --json")]
pub struct VerifyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// The recorded logits and tokens.
    #[arg(long, value_name = "FILE")]
    pub golden: PathBuf,
    /// A config.json in place of the checkpoint's.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What computes.
    #[arg(long, value_enum, env = "KIMI_BACKEND", default_value_t)]
    pub backend: VerifyBackend,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub gpu: GpuArgs,
    /// Split the layers over this many processes on this machine, connected by TCP.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub stages: u16,
    /// Largest difference of logits that passes.
    #[arg(long, value_name = "X", default_value_t = defaults::TOLERANCE, value_parser = tolerance)]
    pub tolerance: f64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kimi devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Measure how fast each device reads its memory (a few seconds and up to 1 GB each).
    #[arg(long)]
    pub measure: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A model of random weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyntheticModel {
    /// The shapes of Kimi-K2.
    KimiK2,
    /// A test shape: the same architecture in a megabyte.
    Tiny,
}

impl SyntheticModel {
    /// The same for kimi-core.
    pub fn shape(self) -> SyntheticShape {
        match self {
            Self::KimiK2 => SyntheticShape::KimiK2,
            Self::Tiny => SyntheticShape::Tiny,
        }
    }
}

/// Arguments of `kimi bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
With --backend auto a GPU is taken if there is one that is not software; a model that does not fit it is an error. Weights
are counted as stored, each once a step; shares are of the read bandwidth measured in the same run.

Examples:
  kimi bench --synthetic kimi-k2                         as many layers as fit, at most 6
  kimi bench --synthetic kimi-k2 --layers 2 --bits 3 --json
  kimi bench kimi-tiny --backend cpu")]
pub struct BenchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Random weights in place of a model: no file is needed.
    #[arg(long, value_enum, value_name = "SHAPE", conflicts_with = "model")]
    pub synthetic: Option<SyntheticModel>,
    /// Layers, with the embedding and the head [default: what fits the device, at most 6].
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "model", value_parser = at_least_one)]
    pub layers: Option<usize>,
    /// Bits of the weights: 2, 3, 4, 5, 6 or 8.
    #[arg(long, value_name = "B", requires = "synthetic", conflicts_with = "model", default_value_t = defaults::BENCH_BITS)]
    pub bits: u32,
    /// Experts of a layer [default: the model's].
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "model", value_parser = at_least_one)]
    pub experts: Option<usize>,
    /// Tokens in the cache when a token is decoded.
    #[arg(long, value_name = "TOKENS", default_value_t = defaults::BENCH_CONTEXT, value_parser = at_least_one)]
    pub context: usize,
    /// Tokens of the prefill.
    #[arg(long, value_name = "TOKENS", default_value_t = defaults::BENCH_PROMPT, value_parser = at_least_one)]
    pub prompt: usize,
    /// Sequences that are decoded at once.
    #[arg(long, value_name = "N", default_value_t = defaults::BENCH_SEQUENCES, value_parser = at_least_one)]
    pub sequences: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=1 << 24).contains(&n) => Ok(n),
        _ => Err("expected a number of tokens from 1 to 16777216".to_owned()),
    }
}

fn places(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=1_000_000).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 1000000".to_owned()),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("expected a finite number of at least 0".to_owned()),
    }
}

fn gigabytes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1e9 => Ok(x),
        _ => Err("expected a number of gigabytes above 0".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a number above 0 and at most 1".to_owned()),
    }
}
