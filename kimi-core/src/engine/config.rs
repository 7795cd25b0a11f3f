//! Sizes of an engine, and what it may do.

use std::time::Duration;

use super::EngineError;
use crate::page_store::PageStoreConfig;
use crate::pipeline::Pipeline;
use crate::scheduler::SchedulerConfig;
use crate::stage::CacheConfig;

/// Whether tokens are guessed, so that one step can verify several. The answer does not depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Only where a request brings a [`Drafter`](crate::constraint::Drafter).
    #[default]
    Off,
    /// By [`PromptLookup`](crate::lookup::PromptLookup) for all requests, where it pays as measured for each.
    Auto,
    /// By [`PromptLookup`](crate::lookup::PromptLookup) for all requests, so many tokens wherever the text repeats itself.
    Fixed(usize),
}

/// Sizes of an [`Engine`](super::Engine).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Most tokens of a sequence, prompt and answer together.
    pub context_tokens: usize,
    /// The cache of every stage.
    pub cache: CacheConfig,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Most new tokens in a batch.
    pub token_budget: usize,
    /// Most sequences that run at once; others wait.
    pub max_sequences: usize,
    /// Most requests, running and waiting; others are refused.
    pub max_requests: usize,
    /// How long a batch should take at most while sequences decode: prompts are cut accordingly.
    pub prompt_time: Duration,
    /// Most guesses that a step verifies for one request, where [`Self::speculation`] names no number.
    pub max_drafts: usize,
    /// Whether tokens are guessed.
    pub speculation: Speculation,
    /// Whether requests begin with what others have computed of the same text; see [`crate::prefix_cache`].
    pub prefix_cache: bool,
    /// Where pages outlive the process, if they do: all stages must be in it.
    pub page_store: Option<PageStoreConfig>,
    /// How long running requests wait for a lost stage to be replaced, and for a step to go through all stages again. They
    /// fail after it; the engine goes on when the stage is there again. 0 takes the engine down at once.
    pub recovery: Duration,
}

impl EngineConfig {
    /// Default of [`Self::prompt_time`].
    pub const PROMPT_TIME: Duration = Duration::from_millis(100);

    /// Batches of [`TOKEN_BUDGET`](crate::stage::TOKEN_BUDGET) tokens, 32 running sequences, 1024 requests, prompts cut to
    /// 100 ms, shared prefixes, no end-of-sequence ids, no recovery.
    pub fn new(vocab_size: u32, context_tokens: usize, cache: CacheConfig) -> Self {
        Self {
            vocab_size,
            context_tokens,
            cache,
            eos_ids: Vec::new(),
            token_budget: crate::stage::TOKEN_BUDGET,
            max_sequences: 32,
            max_requests: 1024,
            prompt_time: Self::PROMPT_TIME,
            max_drafts: 8,
            speculation: Speculation::Off,
            prefix_cache: true,
            page_store: None,
            recovery: Duration::ZERO,
        }
    }

    pub(super) fn scheduler(&self, pipeline: &Pipeline) -> Result<SchedulerConfig, EngineError> {
        let sizes = [
            ("vocab_size", self.vocab_size as usize, 1),
            ("context_tokens", self.context_tokens, 2),
            ("cache.pages", self.cache.pages, 1),
            ("cache.page_tokens", self.cache.page_tokens, 1),
            ("token_budget", self.token_budget, 1),
            ("max_sequences", self.max_sequences, 1),
            ("max_requests", self.max_requests, 1),
        ];
        if let Some(&(name, found, min)) = sizes.iter().find(|(_, found, min)| found < min) {
            return Err(EngineError::Config { name, found, min });
        }
        Ok(SchedulerConfig {
            context_tokens: self.context_tokens,
            cache: self.cache,
            token_budget: self.token_budget,
            max_sequences: self.max_sequences,
            stages: pipeline.spans().len(),
            queues: pipeline.queues(),
            chains: pipeline.chains(),
            max_drafts: match self.speculation {
                Speculation::Fixed(max) => max,
                Speculation::Off | Speculation::Auto => self.max_drafts,
            },
            prefix_cache: self.prefix_cache,
        })
    }
}
