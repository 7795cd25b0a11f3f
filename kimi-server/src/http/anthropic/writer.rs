//! Answers of Anthropic's API: a message of blocks, and the events that tell how it comes about.

use kimi_core::ChatEvent;
use kimi_core::chat_model::FinishReason;
use kimi_core::engine::Usage;
use serde_json::{Value, json};

use super::tool_id;
use crate::http::answer::{Answer, End, Writer};
use crate::http::error::ApiError;
use crate::http::response::new_id;
use crate::http::stream::push_event;

/// Clients give thinking back only with a signature. There is nothing to sign here.
const SIGNATURE: &str = "kimi";

/// Puts a message together, and writes its events if it is streamed.
pub(super) struct MessageWriter {
    id: String,
    model: String,
    max_tokens: u32,
    /// Events since they were sent last; `None` if the answer is not streamed.
    events: Option<String>,
    /// Blocks that are finished.
    content: Vec<Value>,
    open: Option<Open>,
    /// The stop sequence that ended the answer.
    stop_sequence: Option<String>,
}

/// The block that is being written.
struct Open {
    kind: Kind,
    text: String,
}

enum Kind {
    Text,
    Thinking,
    Tool { id: String, name: String },
}

impl MessageWriter {
    pub(super) fn new(model: &str, max_tokens: u32, stream: bool) -> Self {
        Self {
            id: new_id("msg_"),
            model: model.to_owned(),
            max_tokens,
            events: stream.then(String::new),
            content: Vec::new(),
            open: None,
            stop_sequence: None,
        }
    }

    /// Adds an event to the stream, if there is one.
    fn event(&mut self, kind: &str, fields: impl FnOnce() -> Value) {
        if let Some(events) = &mut self.events {
            let mut data = fields();
            data["type"] = kind.into();
            push_event(events, kind, &data);
        }
    }

    fn flush(&mut self, out: &mut String) {
        if let Some(events) = &mut self.events {
            out.push_str(events);
            events.clear();
        }
    }

    fn take(&mut self, part: ChatEvent) {
        match part {
            ChatEvent::Content(text) => {
                if !matches!(self.open, Some(Open { kind: Kind::Text, .. })) {
                    self.begin_block(Kind::Text);
                }
                self.add("text_delta", "text", &text);
            }
            ChatEvent::Reasoning(text) => {
                if !matches!(self.open, Some(Open { kind: Kind::Thinking, .. })) {
                    self.begin_block(Kind::Thinking);
                }
                self.add("thinking_delta", "thinking", &text);
            }
            ChatEvent::ToolCallBegin { id, name, .. } => {
                self.begin_block(Kind::Tool { id: tool_id::shown(&id), name });
            }
            ChatEvent::ToolCallArguments { fragment, .. } => {
                self.add("input_json_delta", "partial_json", &fragment);
            }
            ChatEvent::ToolCallEnd { .. } => self.end_block(),
            ChatEvent::StopString(text) => self.stop_sequence = Some(text),
            ChatEvent::Logprob(_) | ChatEvent::Finished { .. } | ChatEvent::Failed(_) => {}
        }
    }

    fn begin_block(&mut self, kind: Kind) {
        self.end_block();
        let block = match &kind {
            Kind::Text => json!({"type": "text", "text": ""}),
            Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Tool { id, name } => tool_json(id, name, json!({})),
        };
        let index = self.content.len();
        self.event("content_block_start", || json!({"index": index, "content_block": block}));
        self.open = Some(Open { kind, text: String::new() });
    }

    fn add(&mut self, kind: &str, field: &str, text: &str) {
        let index = self.content.len();
        self.event("content_block_delta", || json!({"index": index, "delta": {"type": kind, field: text}}));
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
        }
    }

    fn end_block(&mut self) {
        let Some(Open { kind, text }) = self.open.take() else { return };
        let index = self.content.len();
        let block = match kind {
            Kind::Text => json!({"type": "text", "text": text}),
            Kind::Thinking => {
                let delta = json!({"type": "signature_delta", "signature": SIGNATURE});
                self.event("content_block_delta", || json!({"index": index, "delta": delta}));
                json!({"type": "thinking", "thinking": text, "signature": SIGNATURE})
            }
            Kind::Tool { id, name } => tool_json(&id, &name, input(&text)),
        };
        self.event("content_block_stop", || json!({"index": index}));
        self.content.push(block);
    }

    /// `usage` may have more fields in a message than where it ends a stream.
    fn message(&self, stop_reason: Value, usage: &Usage) -> Value {
        let mut usage = usage_json(usage);
        for field in ["cache_creation", "service_tier", "inference_geo"] {
            usage[field] = Value::Null;
        }
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content,
            "stop_reason": stop_reason,
            "stop_sequence": self.stop_sequence,
            "stop_details": null,
            "container": null,
            "usage": usage,
        })
    }

    fn stop_reason(&self, finish: FinishReason, usage: &Usage) -> &'static str {
        match finish {
            _ if self.stop_sequence.is_some() => "stop_sequence",
            FinishReason::Length if usage.completion_tokens < self.max_tokens => {
                "model_context_window_exceeded"
            }
            FinishReason::Length => "max_tokens",
            FinishReason::ToolCalls => "tool_use",
            FinishReason::Stop | FinishReason::Cancelled => "end_turn",
        }
    }
}

impl Writer for MessageWriter {
    fn rename(&self, error: ApiError) -> ApiError {
        let mut error = error.renamed("output_config.format", "input_schema");
        if error.code == Some("context_length_exceeded") {
            // Anthropic's words, which its clients look for.
            error.message = format!("prompt is too long: {}", error.message);
        } else if let Some(param) = &error.param
            && !error.message.starts_with(param.as_str())
        {
            error.message = format!("{param}: {}", error.message);
        }
        error
    }

    fn hear(&mut self, _: usize, part: &ChatEvent) {
        self.take(part.clone());
    }

    fn whole(&mut self, answers: Vec<Answer>) -> Value {
        self.end_block();
        let End { reason, usage } = answers.first().map(|answer| answer.end).unwrap_or_default();
        self.message(self.stop_reason(reason, &usage).into(), &usage)
    }

    fn begin(&mut self, prompt_tokens: usize, out: &mut String) {
        // What of it was cached comes at the end.
        let usage = Usage { prompt_tokens, ..Usage::default() };
        let message = self.message(Value::Null, &usage);
        self.event("message_start", || json!({"message": message}));
        self.event("ping", || json!({}));
        self.flush(out);
    }

    fn idle(&mut self, out: &mut String) {
        self.event("ping", || json!({}));
        self.flush(out);
    }

    fn part(&mut self, _: usize, part: ChatEvent, out: &mut String) {
        self.take(part);
        self.flush(out);
    }

    fn end(&mut self, End { reason, usage }: End, out: &mut String) {
        self.end_block();
        let stop = json!({
            "stop_reason": self.stop_reason(reason, &usage),
            "stop_sequence": self.stop_sequence,
            "stop_details": null,
            "container": null,
        });
        self.event("message_delta", || json!({"delta": stop, "usage": usage_json(&usage)}));
        self.event("message_stop", || json!({}));
        self.flush(out);
    }

    fn fail(&mut self, error: &ApiError, _: bool, out: &mut String) {
        push_event(out, "error", &error.anthropic_body());
    }

    fn error(&self, error: &ApiError) -> Value {
        error.anthropic_body()
    }
}

/// A call, which nothing but the model itself has made.
fn tool_json(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input, "caller": {"type": "direct"}})
}

/// A call's arguments. What is no JSON object, as where the answer was cut off, is kept as text.
fn input(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(input)) => Value::Object(input),
        _ if arguments.trim().is_empty() => json!({}),
        _ => json!({"invalid_json": arguments}),
    }
}

/// As Anthropic counts: tokens that were computed for an earlier request are not among the input tokens.
fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "server_tool_use": null,
    })
}
