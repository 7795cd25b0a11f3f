//! Arguments of `kimi top`.

use clap::Args;

use crate::cli::defaults;

/// Arguments of `kimi top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Shows once a second what a server does: for each model tokens per second, requests, pages of the cache, and for each machine
its layers and where a step's time goes; and why it is slow, where that is known. q ends it.

Examples:
  kimi top
  kimi top http://127.0.0.1:8080 --once")]
pub struct TopArgs {
    /// Address of the API of a `kimi serve`.
    #[arg(value_name = "URL", default_value_t = format!("http://{}:{}", defaults::HTTP_HOST, defaults::HTTP_PORT))]
    pub url: String,
    /// Print one page, over one second, and end. So it does where stdout is no terminal.
    #[arg(long)]
    pub once: bool,
    /// Print the state of the moment as JSON, which is what /health answers, and end.
    #[arg(long)]
    pub json: bool,
}
