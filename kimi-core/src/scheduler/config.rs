//! Sizes of a scheduler.

use super::RequestError;
use crate::stage::CacheConfig;

/// Sizes of a [`Scheduler`](super::Scheduler).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Most tokens of a sequence, prompt and answer together.
    pub context_tokens: usize,
    /// The cache of every stage; a page has at least 1 token.
    pub cache: CacheConfig,
    /// Most new tokens in a batch, at least 1.
    pub token_budget: usize,
    /// Most sequences that run at once, at least 1; `token_budget` if that is less. Paused ones do not count.
    pub max_sequences: usize,
    /// Stages, at least 1: as many batches may be in flight, or more ([`Scheduler::set_depth`](super::Scheduler::set_depth)).
    pub stages: usize,
    /// Whether one batch more is of use, since stages prepare it while they compute another.
    pub queues: bool,
    /// Whether a batch may follow the last one before its tokens are known ([`Batch::follows`](crate::batch::Batch::follows)). Only with one stage.
    pub chains: bool,
    /// Most guesses that a step verifies for one sequence.
    pub max_drafts: usize,
    /// Whether sequences share pages.
    pub prefix_cache: bool,
}

impl SchedulerConfig {
    /// Most tokens that one sequence can have: the context, or the whole cache if that is smaller.
    pub fn limit(&self) -> usize {
        self.context_tokens.min(self.cache.tokens())
    }

    /// Whether a sequence with `prompt` tokens could be generated if it ran alone.
    ///
    /// # Errors
    /// [`RequestError`], except for tokens and sampling parameters, which are not looked at.
    pub fn check(&self, prompt: usize, max_tokens: Option<u32>) -> Result<(), RequestError> {
        let cache = self.cache.tokens();
        match prompt {
            0 => Err(RequestError::EmptyPrompt),
            _ if max_tokens == Some(0) => Err(RequestError::MaxTokens),
            found if found >= self.context_tokens => {
                Err(RequestError::Context { found, context: self.context_tokens })
            }
            found if found >= cache => Err(RequestError::Cache { found, cache }),
            _ => Ok(()),
        }
    }
}
