//! How much context.

use std::time::Duration;

use clap::Args;

use super::at_least_one;
use crate::cli::ui;

/// How long answers wait for a lost GPU's layers to be loaded again, where no flag says so.
const RECOVERY: Duration = Duration::from_secs(600);

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
