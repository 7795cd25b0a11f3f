//! Arguments of the commands about kimi itself: keys of the API, configuration, completions, man pages.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::Shell;

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

/// Arguments of `kimi config`.
#[derive(Debug, Args)]
#[command(after_help = "\
A setting is a flag of serve, run, worker, plan, nodes, doctor or pull-layers. It is taken from the command line, else from the
environment (--max-chats is KIMI_MAX_CHATS), else from config.toml, else it has its default. In the file it stands at the top,
for every command that has it, or in the section of one:
  log-format = \"json\"
  [serve]
  port = 8080
  cors-origin = [\"https://chat.example.com\"]")]
pub struct ConfigArgs {
    /// What to show.
    #[command(subcommand)]
    pub command: Option<ConfigCommand>,
}

/// What `kimi config` does.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Show each setting of a command and where it comes from.
    Show {
        /// The command.
        #[arg(default_value = "serve")]
        command: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print where config.toml is or would be.
    Path,
}

/// Arguments of `kimi completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimi completions bash > ~/.local/share/bash-completion/completions/kimi
  kimi completions zsh > ~/.zfunc/_kimi
  kimi completions fish > ~/.config/fish/completions/kimi.fish")]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

/// Arguments of `kimi man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimi man serve | man -l -
  kimi man --dir ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The command whose page to print [default: the program's].
    pub command: Option<String>,
    /// Write all pages into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
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
