//! What answers in OpenAI's shape have in common.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use kimi_core::chat_model::{FinishReason, LikelyToken};
use kimi_core::engine::Usage;
use serde::Serialize;
use serde_json::{Value, json};

use super::engine::unix_time;

/// Names the program in `system_fingerprint`: with the same one, the same seed gives the same answer.
const FINGERPRINT: &str = concat!("kimi-", env!("CARGO_PKG_VERSION"));

/// An id that no other answer has, behind a prefix.
pub(super) fn new_id(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new();
    format!("{prefix}{:016x}{:016x}", random.hash_one(count), random.hash_one(!count))
}

/// What all parts of one response share.
#[derive(Debug, Clone)]
pub(super) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// A new response of a model.
    pub(super) fn new(prefix: &str, model: &str) -> Self {
        Self { id: new_id(prefix), created: unix_time(), model: model.to_owned() }
    }

    /// A whole response, or a part of a streamed one.
    pub(super) fn object<'a, C: Serialize>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        usage: Option<Value>,
    ) -> Object<'a, C> {
        let Self { id, created, model } = self;
        Object { id, object, created: *created, model, system_fingerprint: FINGERPRINT, choices, usage }
    }
}

/// A response that is about to be written. Parts of streams are written once for each token, so they are no [`Value`]s.
#[derive(Serialize)]
pub(super) struct Object<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

/// What all choices of a response took.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Prompts that were counted.
    prompts: BTreeSet<usize>,
    prompt: u64,
    /// Of those, tokens that were computed for others before.
    cached: u64,
    completion: u64,
    reasoning: u64,
}

impl Totals {
    /// Adds a choice of a prompt, which counts once.
    pub(super) fn add(&mut self, usage: &Usage, prompt: usize) {
        self.completion += u64::from(usage.completion_tokens);
        self.reasoning += u64::from(usage.reasoning_tokens);
        if self.prompts.insert(prompt) {
            self.prompt += usage.prompt_tokens as u64;
            self.cached += usage.cached_tokens as u64;
        }
    }

    /// `usage`.
    pub(super) fn json(&self) -> Value {
        let (prompt, completion) = (self.prompt, self.completion);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

/// `finish_reason`.
pub(super) fn finish_json(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

/// A token in `logprobs`.
pub(super) fn token_json(token: &LikelyToken) -> Value {
    let text = String::from_utf8_lossy(&token.bytes);
    json!({"token": text, "logprob": shown_logprob(token.logprob), "bytes": token.bytes})
}

/// JSON has no infinity; OpenAI's documents call -9999 "very unlikely".
pub(super) fn shown_logprob(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
