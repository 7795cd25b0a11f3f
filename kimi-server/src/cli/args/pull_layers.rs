//! Arguments of `kimi pull-layers`.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::placement::layer_range;
use super::{NodeArgs, TrustArgs};
use crate::cli::defaults;

/// Arguments of `kimi pull-layers`.
#[derive(Debug, Args)]
#[command(after_help = "\
The source is a machine with the model that runs `kimi worker` with this cluster's key; it may serve meanwhile. Each range of a
tensor comes with its blake3, which is checked when it arrives and once more when its file is written. Run the same command
again after whatever broke it off: it goes on with what is there. With other layers it adds those.

FOLDER then is a part of the model: `kimi serve`, `kimi worker` and, with all layers, `kimi verify` take it as it is.
The first layers bring the embedding, the last ones the head. `kimi plan` shows who needs which layers.

Examples:
  kimi pull-layers kimi-k2-4bit --from studio-1 --layers 0-30
  kimi pull-layers kimi-k2-4bit --from 10.0.0.1:52416 --layers 31-60 --to /models/k2")]
pub struct PullLayersArgs {
    /// The model, as the source knows it: a short name, a hub id or a folder's name.
    pub model: String,
    /// Who has it: HOST:PORT, or the name of a machine that announces itself or is in the discovery file.
    #[arg(long, value_name = "NODE")]
    pub from: String,
    /// The layers, both ends included [default: all].
    #[arg(long, value_name = "A-B", value_parser = layers)]
    pub layers: Option<Range<usize>>,
    /// Where they go [default: ~/models/MODEL].
    #[arg(long, value_name = "FOLDER")]
    pub to: Option<PathBuf>,
    /// A TOML file with short names of models, in place of ~/.config/kimi/models.toml.
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// How long to look for the source where it announces itself.
    #[arg(long, value_name = "SECONDS", default_value_t = defaults::LOOK_SECONDS, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub wait: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn layers(text: &str) -> Result<Range<usize>, String> {
    layer_range(text).ok_or_else(|| "expected the first and the last layer, such as 0-30".to_owned())
}
