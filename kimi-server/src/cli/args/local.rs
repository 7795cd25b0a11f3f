//! Arguments of `kimi list`, `show`, `ps` and `rm`.

use std::path::PathBuf;

use clap::Args;

use super::ModelArgs;
use crate::cli::defaults;

/// Arguments of `kimi list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Looks in ~/models, in LM Studio's folder and in Hugging Face's cache. A model elsewhere is used by its path.")]
pub struct ListArgs {
    /// A TOML file with short names of models, in place of ~/.config/kimi/models.toml.
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kimi show`.
#[derive(Debug, Args)]
#[command(after_help = "`kimi inspect` shows the bits and bytes of every module.")]
pub struct ShowArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kimi ps`.
#[derive(Debug, Args)]
#[command(after_help = "\
A worker is seen if this machine has the cluster's key. `kimi top` shows more of a server, `kimi nodes` of other machines.")]
pub struct PsArgs {
    /// Port of the API of a `kimi serve`; may be given several times.
    #[arg(long, value_name = "PORT", help = format!("Port of the API of a `kimi serve`; several may be given [default: {}]", defaults::HTTP_PORT))]
    pub port: Vec<u16>,
    /// The file with the cluster's key, in place of ~/.config/kimi/cluster.key.
    #[arg(long, value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kimi rm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Deletes only what `kimi pull-layers` has put into a folder of models. Delete what you have downloaded yourself.")]
pub struct RmArgs {
    /// The model, as `kimi list` names it.
    pub model: String,
    /// A TOML file with short names of models, in place of ~/.config/kimi/models.toml.
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
    /// Delete without asking.
    #[arg(long, short)]
    pub yes: bool,
}
