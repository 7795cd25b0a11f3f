//! Arguments of the commands that answer in the terminal.

use clap::Args;

use super::{CacheArgs, DeviceArgs, ModelArgs, PeerArgs, PrecisionArgs, SpeculationArgs};
use crate::cli::defaults;
use crate::cli::exo::ExoArgs;

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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub precision: PrecisionArgs,
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
    pub precision: PrecisionArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub exo: ExoArgs,
}
