//! Responses of `POST /v1/chat/completions` in OpenAI's shape.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use kimi_core::chat_model::{FinishReason, LikelyToken, TokenLogprob};
use kimi_core::engine::Usage;
use serde_json::{Map, Value, json};

use super::engine::{ServedModel, unix_time};

/// Names the program in `system_fingerprint`: with the same one, the same seed gives the same answer.
const FINGERPRINT: &str = concat!("kimi-", env!("CARGO_PKG_VERSION"));

/// What all parts of one response share.
#[derive(Debug, Clone)]
pub(super) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// A new response.
    pub(super) fn new(model: &ServedModel) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let random = RandomState::new();
        let id = format!("chatcmpl-{:016x}{:016x}", random.hash_one(count), random.hash_one(!count));
        Self { id, created: unix_time(), model: model.id().to_owned() }
    }

    /// A whole answer.
    pub(super) fn completion(&self, answer: Answer, finish: FinishReason, usage: &Usage) -> Value {
        let logprobs = answer.logprobs.as_deref().map(logprobs_json);
        let choice = json!({
            "index": 0,
            "message": answer.message(),
            "logprobs": logprobs,
            "finish_reason": finish_json(finish),
        });
        self.object("chat.completion", vec![choice], Some(usage_json(usage)))
    }

    /// A part of a streamed answer. `usage` is absent unless the client asked for it.
    pub(super) fn chunk(
        &self,
        delta: Value,
        logprobs: &[TokenLogprob],
        finish: Option<FinishReason>,
        usage: Option<Value>,
    ) -> Value {
        let logprobs = (!logprobs.is_empty()).then(|| logprobs_json(logprobs));
        let finish = finish.map(finish_json);
        let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.object("chat.completion.chunk", vec![choice], usage)
    }

    /// The part after the last one of a streamed answer.
    pub(super) fn usage_chunk(&self, usage: &Usage) -> Value {
        self.object("chat.completion.chunk", Vec::new(), Some(usage_json(usage)))
    }

    fn object(&self, kind: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }
}

/// A whole answer, put together from its parts.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) content: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<Call>,
    /// `None` if the client did not ask for them.
    pub(super) logprobs: Option<Vec<TokenLogprob>>,
}

/// A tool call of an answer.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

impl Answer {
    fn message(self) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        let no_text = self.content.is_empty() && !self.calls.is_empty();
        message.insert("content".into(), if no_text { Value::Null } else { self.content.into() });
        message.insert("refusal".into(), Value::Null);
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".into(), self.reasoning.into());
        }
        if !self.calls.is_empty() {
            let calls = self.calls.into_iter().map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            });
            message.insert("tool_calls".into(), calls.collect());
        }
        Value::Object(message)
    }
}

fn finish_json(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

fn usage_json(usage: &Usage) -> Value {
    let (prompt, completion) = (usage.prompt_tokens as u64, u64::from(usage.completion_tokens));
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

fn logprobs_json(tokens: &[TokenLogprob]) -> Value {
    let tokens: Vec<_> = tokens
        .iter()
        .map(|token| {
            let mut object = token_json(&token.token);
            object["top_logprobs"] = token.top.iter().map(token_json).collect();
            object
        })
        .collect();
    json!({"content": tokens, "refusal": null})
}

fn token_json(token: &LikelyToken) -> Value {
    let text = String::from_utf8_lossy(&token.bytes);
    // JSON has no infinity; OpenAI's documents call -9999 "very unlikely".
    json!({"token": text, "logprob": token.logprob.max(-9999.0), "bytes": token.bytes})
}
