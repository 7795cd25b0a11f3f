//! What the HTTP API may take, and who may use it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::places;
use crate::api_keys::{self, ApiKey, Limits};
use crate::http::{HttpConfig, Origin};

/// What the HTTP API may take, and who may use it.
#[derive(Debug, Clone, Args)]
pub struct HttpArgs {
    /// Name that the model is served under; further ones are accepted in requests too [default: MODEL's name].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// A key that requests must have, in `Authorization: Bearer KEY` or `x-api-key: KEY`. In the environment other users of
    /// this machine don't see it.
    #[arg(long, value_name = "KEY", value_delimiter = ',', env = "KIMI_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// A file of keys, from `kimi api-key new NAME`; it is read again when it changes [default: ~/.config/kimi/api-keys, if
    /// it is there].
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Let /metrics be read without a key. /health always may.
    #[arg(long)]
    pub open_metrics: bool,
    /// Let web pages of this origin use the API: https://HOST or https://HOST:PORT, localhost for this machine's on any port, or * for all.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<Origin>,
    /// A name that this server may be called by, where only this machine reaches it. Known are its own, *.localhost, *.local and
    /// *.internal, as host.docker.internal.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allow_host: Vec<String>,
    /// Log what is asked and answered, beside one line a request.
    #[arg(long)]
    pub log_prompts: bool,
    /// How long answers under way may go on after Ctrl-C or SIGTERM; the rest is cut short with an error that says so.
    #[arg(long, value_name = "SECONDS", default_value_t = HttpConfig::default().shutdown_grace.as_secs())]
    pub shutdown_grace: u64,
    /// Most connections at a time; when all are taken, a new one gets the place of the idlest.
    #[arg(long, value_name = "N", env = "KIMI_MAX_CONNECTIONS", value_parser = places)]
    #[arg(default_value_t = HttpConfig::default().max_connections)]
    pub max_connections: usize,
    /// Most connections of one address, or of one IPv6 network [default: nearly all].
    #[arg(long, value_name = "N", env = "KIMI_MAX_CONNECTIONS_PER_ADDRESS", value_parser = places)]
    pub max_connections_per_address: Option<usize>,
    /// Most chats that are answered at a time; further ones wait. Some of the connections are always kept for other
    /// requests.
    #[arg(long, value_name = "N", env = "KIMI_MAX_CHATS", value_parser = places)]
    #[arg(default_value_t = HttpConfig::default().max_chats)]
    pub max_chats: usize,
    /// Memory for the bodies of all requests together: half for those that arrive (beyond it: status 503), half for those
    /// that are being read.
    #[arg(long, value_name = "MB", env = "KIMI_BODY_MEMORY", value_parser = clap::value_parser!(u32).range(8..=65_536))]
    #[arg(default_value_t = (HttpConfig::default().max_bodies_memory >> 20) as u32)]
    pub body_memory: u32,
}

impl HttpArgs {
    /// The same for the server.
    ///
    /// # Errors
    /// If the file of keys can't be read.
    pub fn config(&self) -> anyhow::Result<HttpConfig> {
        let api_key_file = self.key_file();
        if let Some(file) = &api_key_file {
            api_keys::read(file)?;
        }
        let given = self.api_key.iter().filter(|text| !text.is_empty());
        Ok(HttpConfig {
            api_keys: given.map(|text| ApiKey::of_text("api-key", text, Limits::default())).collect(),
            api_key_file,
            open_metrics: self.open_metrics,
            cors: self.cors_origin.clone(),
            allow_hosts: self.allow_host.clone(),
            log_prompts: self.log_prompts,
            shutdown_grace: Duration::from_secs(self.shutdown_grace),
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            max_chats: self.max_chats,
            max_bodies_memory: (self.body_memory as usize) << 20,
            ..HttpConfig::default()
        })
    }

    /// The file of keys, given or in its usual place.
    fn key_file(&self) -> Option<PathBuf> {
        let usual = || api_keys::default_path().ok().filter(|path| path.exists());
        self.api_key_file.clone().or_else(usual)
    }
}
