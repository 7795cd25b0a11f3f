//! Arguments of `kimi api-key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::api_keys::Limits;

/// Arguments of `kimi api-key`.
#[derive(Debug, Args)]
#[command(after_help = "\
A server reads the file again when it changes: a new key is good, and a revoked one is not, within seconds.

Examples:
  kimi api-key new laptop
  kimi api-key new guests --chats 2 --requests 60 --tokens 100000
  kimi api-key revoke guests
  kimi serve kimi-k2-4bit --host 0.0.0.0        asks for a key from now on")]
pub struct ApiKeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ApiKeyCommand,
    /// The file of keys [default: $XDG_CONFIG_HOME/kimi/api-keys, else ~/.config/kimi/api-keys].
    #[arg(long, value_name = "FILE", global = true)]
    pub api_key_file: Option<PathBuf>,
}

/// What `kimi api-key` does.
#[derive(Debug, Clone, Subcommand)]
pub enum ApiKeyCommand {
    /// Make a key and print it. It is shown this once: the file has only its hash.
    New {
        /// What to call it in the log and in the file.
        name: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        limits: LimitArgs,
    },
    /// List the keys' names and limits.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a key.
    Revoke {
        /// Its name.
        name: String,
    },
}

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, Args)]
pub struct LimitArgs {
    /// Most chats at a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chats: Option<u32>,
    /// Most requests a minute.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: Option<u32>,
    /// Most tokens a minute, of prompts and answers together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: Option<u32>,
}

impl LimitArgs {
    /// The same for a key.
    pub fn limits(self) -> Limits {
        Limits { chats: self.chats, requests: self.requests, tokens: self.tokens }
    }
}
