//! What is asked of an engine, and what it says of it.

use std::sync::Arc;
use std::time::Duration;

use super::{EngineError, FinishReason};
use crate::constraint::{Constrained, Drafter};
use crate::sampler::SamplingParams;

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen. Without a seed one is drawn.
    pub params: SamplingParams,
    /// Most tokens to generate; `None` for as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Tokens of the answer before it may end on a stop token; until then none can be chosen.
    pub min_tokens: u32,
    /// Tokens that end the answer, beside the model's own.
    pub stop_ids: Vec<u32>,
    /// Go on after the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
    /// How many most likely tokens to report beside each sampled one.
    pub top_logprobs: u8,
    /// Limits the tokens of the answer; a constraint of its own for each request.
    pub constraint: Option<Constrained>,
    /// Guesses tokens, so that one step can verify several, in place of what [`EngineConfig::speculation`](super::EngineConfig::speculation) says. The answer does
    /// not depend on it.
    pub drafter: Option<Arc<dyn Drafter>>,
}

/// Something that happened to a request.
#[derive(Debug, Clone)]
pub enum TokenEvent {
    /// A new token, never one that ends the answer.
    Token {
        /// Its id.
        id: u32,
        /// Natural logarithm of its probability.
        logprob: f32,
        /// The most likely tokens with their log-probabilities, best first, as many as asked for.
        top: Vec<(u32, f32)>,
        /// Counts the tokens of the answer from 0.
        index: u32,
    },
    /// The last event.
    Finished {
        /// How it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The last event, if the engine could not go on.
    Failed {
        /// What happened.
        error: EngineError,
    },
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were not computed for this request, since another one had.
    pub cached_tokens: usize,
    /// Tokens generated, the one that ended the answer included.
    pub completion_tokens: u32,
    /// Those of them that are a chat's thinking; the engine, which knows no chats, leaves it 0.
    pub reasoning_tokens: u32,
    /// From submission to the first batch.
    pub queue: Duration,
    /// From the first batch to the first generated token.
    pub prefill: Duration,
    /// From the first generated token to the end.
    pub decode: Duration,
    /// From submission to the first generated token; `None` if there was none.
    pub time_to_first_token: Option<Duration>,
}
