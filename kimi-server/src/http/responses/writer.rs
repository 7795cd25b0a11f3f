//! Answers of the Responses API: items, and the events that tell how they come about.

use std::sync::Arc;

use kimi_core::ChatEvent;
use kimi_core::chat_model::{FinishReason, TokenLogprob};
use kimi_core::engine::Usage;
use serde_json::{Map, Value, json};

use super::store::{Conversation, Store, Turn};
use crate::http::answer::{Answer, End, Writer};
use crate::http::engine::unix_time;
use crate::http::error::ApiError;
use crate::http::response::{new_id, token_json};
use crate::http::stream::push_event;

/// What is needed to store a response.
pub(super) struct Keep {
    pub(super) store: Arc<Store>,
    /// The turns that the request goes on with.
    pub(super) before: Conversation,
    /// The request's items.
    pub(super) input: Vec<Value>,
}

/// Puts a response together, and writes its events if it is streamed.
pub(super) struct ResponsesWriter {
    id: String,
    head: Map<String, Value>,
    keep: Option<Keep>,
    /// Whether thinking is shown as a summary of itself, which is where clients look that ask for summaries.
    as_summary: bool,
    /// Events since they were sent last; `None` if the answer is not streamed.
    events: Option<String>,
    sequence: u64,
    /// Items that are finished.
    output: Vec<Value>,
    open: Option<Open>,
    /// Probabilities of tokens whose text has not come yet.
    pending: Vec<TokenLogprob>,
}

/// The item that is being written.
struct Open {
    id: String,
    kind: Kind,
    text: String,
    logprobs: Vec<Value>,
}

enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

impl ResponsesWriter {
    pub(super) fn new(
        mut head: Map<String, Value>,
        keep: Option<Keep>,
        stream: bool,
        as_summary: bool,
    ) -> Self {
        let id = new_id("resp_");
        head.insert("id".into(), id.clone().into());
        head.insert("object".into(), "response".into());
        head.insert("created_at".into(), unix_time().into());
        Self {
            id,
            head,
            keep,
            as_summary,
            events: stream.then(String::new),
            sequence: 0,
            output: Vec::new(),
            open: None,
            pending: Vec::new(),
        }
    }

    /// Adds an event to the stream, if there is one.
    fn event(&mut self, kind: &str, fields: impl FnOnce(&Self) -> Value) {
        if self.events.is_none() {
            return;
        }
        let mut data = fields(self);
        data["type"] = kind.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        if let Some(events) = &mut self.events {
            push_event(events, kind, &data);
        }
    }

    /// An event of the open item.
    fn item_event(&mut self, kind: &str, fields: impl FnOnce(&Open, &mut Value)) {
        self.event(kind, |writer| {
            let mut data = json!({"output_index": writer.output.len()});
            if let Some(open) = &writer.open {
                data["item_id"] = open.id.as_str().into();
                fields(open, &mut data);
            }
            data
        });
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
                if !matches!(self.open, Some(Open { kind: Kind::Message, .. })) {
                    self.begin_item("msg_", Kind::Message);
                }
                let logprobs: Vec<_> = std::mem::take(&mut self.pending).iter().map(logprob_json).collect();
                self.item_event("response.output_text.delta", |_, data| {
                    data["content_index"] = 0.into();
                    data["delta"] = text.as_str().into();
                    data["logprobs"] = logprobs.iter().map(for_event).collect();
                });
                if let Some(open) = &mut self.open {
                    open.text.push_str(&text);
                    open.logprobs.extend(logprobs);
                }
            }
            ChatEvent::Reasoning(text) => {
                if !matches!(self.open, Some(Open { kind: Kind::Reasoning, .. })) {
                    self.begin_item("rs_", Kind::Reasoning);
                }
                let (kind, index) = match self.as_summary {
                    true => ("response.reasoning_summary_text.delta", "summary_index"),
                    false => ("response.reasoning_text.delta", "content_index"),
                };
                self.item_event(kind, |_, data| {
                    data[index] = 0.into();
                    data["delta"] = text.as_str().into();
                });
                self.add(&text);
            }
            ChatEvent::ToolCallBegin { id, name, .. } => {
                self.begin_item("fc_", Kind::Call { call_id: id, name });
            }
            ChatEvent::ToolCallArguments { fragment, .. } => {
                self.item_event("response.function_call_arguments.delta", |_, data| {
                    data["delta"] = fragment.as_str().into();
                });
                self.add(&fragment);
            }
            ChatEvent::ToolCallEnd { .. } => self.end_item("completed"),
            ChatEvent::Logprob(logprob) => self.pending.push(logprob),
            ChatEvent::StopString(_) | ChatEvent::Finished { .. } | ChatEvent::Failed(_) => {}
        }
    }

    /// More of what the open item says, other than text of the answer.
    fn add(&mut self, text: &str) {
        self.pending.clear();
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
        }
    }

    fn begin_item(&mut self, prefix: &str, kind: Kind) {
        self.end_item("completed");
        let open = Open { id: new_id(prefix), kind, text: String::new(), logprobs: Vec::new() };
        let item = self.item(&open, "in_progress");
        self.open = Some(open);
        self.event(
            "response.output_item.added",
            |writer| json!({"output_index": writer.output.len(), "item": item}),
        );
        self.part_event("added");
    }

    /// The beginning or the end of the open item's only part.
    fn part_event(&mut self, what: &str) {
        let summary = match &self.open {
            Some(Open { kind: Kind::Call { .. }, .. }) | None => return,
            Some(open) => self.as_summary && matches!(open.kind, Kind::Reasoning),
        };
        let (kind, index) = match summary {
            true => (format!("response.reasoning_summary_part.{what}"), "summary_index"),
            false => (format!("response.content_part.{what}"), "content_index"),
        };
        self.item_event(&kind, |open, data| {
            data[index] = 0.into();
            data["part"] = open.part(summary);
        });
    }

    fn end_item(&mut self, status: &str) {
        let Some(open) = &self.open else { return };
        let (kind, text, index) = match (&open.kind, self.as_summary) {
            (Kind::Message, _) => ("response.output_text.done", "text", Some("content_index")),
            (Kind::Reasoning, true) => {
                ("response.reasoning_summary_text.done", "text", Some("summary_index"))
            }
            (Kind::Reasoning, false) => ("response.reasoning_text.done", "text", Some("content_index")),
            (Kind::Call { .. }, _) => ("response.function_call_arguments.done", "arguments", None),
        };
        self.item_event(kind, |open, data| {
            data[text] = open.text.as_str().into();
            if let Some(index) = index {
                data[index] = 0.into();
            }
            match &open.kind {
                Kind::Message => data["logprobs"] = open.logprobs.iter().map(for_event).collect(),
                Kind::Call { name, .. } => data["name"] = name.as_str().into(),
                Kind::Reasoning => {}
            }
        });
        self.part_event("done");
        let Some(open) = self.open.take() else { return };
        let item = self.item(&open, status);
        self.event(
            "response.output_item.done",
            |writer| json!({"output_index": writer.output.len(), "item": item}),
        );
        self.output.push(item);
    }

    fn item(&self, open: &Open, status: &str) -> Value {
        let parts = |summary| match status {
            "in_progress" => json!([]),
            _ => json!([open.part(summary)]),
        };
        match &open.kind {
            Kind::Message => json!({
                "id": open.id, "type": "message", "role": "assistant", "status": status, "content": parts(false),
            }),
            Kind::Reasoning if self.as_summary => {
                json!({"id": open.id, "type": "reasoning", "status": status, "summary": parts(true)})
            }
            Kind::Reasoning => json!({
                "id": open.id, "type": "reasoning", "status": status, "summary": [], "content": parts(false),
            }),
            Kind::Call { call_id, name } => json!({
                "id": open.id, "type": "function_call", "status": status, "call_id": call_id, "name": name,
                "arguments": open.text,
            }),
        }
    }

    /// All has been said. Ends the item that is open, and gives the response.
    fn close(&mut self, End { reason, usage }: End) -> Value {
        let incomplete = reason == FinishReason::Length;
        let status = if incomplete { "incomplete" } else { "completed" };
        self.end_item(status);
        let mut response = self.response(status);
        response["incomplete_details"] =
            if incomplete { json!({"reason": "max_output_tokens"}) } else { Value::Null };
        response["usage"] = usage_json(&usage);
        response["completed_at"] = if incomplete { Value::Null } else { unix_time().into() };
        response
    }

    fn response(&self, status: &str) -> Value {
        let mut response = self.head.clone();
        response.insert("status".into(), status.into());
        response.insert("error".into(), Value::Null);
        response.insert("incomplete_details".into(), Value::Null);
        response.insert("output".into(), self.output.clone().into());
        Value::Object(response)
    }

    fn keep(&mut self, response: &Value) {
        if let Some(Keep { store, before, input }) = self.keep.take() {
            let turn = Turn { response: response.to_string(), input: Value::Array(input).to_string() };
            store.keep(&self.id, &before, turn);
        }
    }
}

impl Open {
    /// What the item says, as a part of its content or of its summary.
    fn part(&self, summary: bool) -> Value {
        match &self.kind {
            Kind::Message => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs})
            }
            _ if summary => json!({"type": "summary_text", "text": self.text}),
            _ => json!({"type": "reasoning_text", "text": self.text}),
        }
    }
}

impl Writer for ResponsesWriter {
    fn rename(&self, error: ApiError) -> ApiError {
        error.renamed("text.format", "parameters")
    }

    fn hear(&mut self, _: usize, part: &ChatEvent) {
        self.take(part.clone());
    }

    fn whole(&mut self, answers: Vec<Answer>) -> Value {
        let response = self.close(answers.first().map(|answer| answer.end).unwrap_or_default());
        self.keep(&response);
        response
    }

    fn begin(&mut self, _: usize, out: &mut String) {
        let response = self.response("in_progress");
        for kind in ["response.created", "response.in_progress"] {
            self.event(kind, |_| json!({"response": response}));
        }
        self.flush(out);
    }

    fn idle(&mut self, out: &mut String) {
        let response = self.response("in_progress");
        self.event("response.in_progress", |_| json!({"response": response}));
        self.flush(out);
    }

    fn part(&mut self, _: usize, part: ChatEvent, out: &mut String) {
        self.take(part);
        self.flush(out);
    }

    fn end(&mut self, last: End, out: &mut String) {
        let response = self.close(last);
        // Before the client can ask for it.
        self.keep(&response);
        let kind = match last.reason {
            FinishReason::Length => "response.incomplete",
            _ => "response.completed",
        };
        self.event(kind, |_| json!({"response": response}));
        self.flush(out);
    }

    fn fail(&mut self, error: &ApiError, _: bool, out: &mut String) {
        let mut response = self.response("failed");
        let code = match error.status.as_u16() {
            429 => "rate_limit_exceeded",
            _ => "server_error",
        };
        response["error"] = json!({"code": code, "message": error.message});
        self.event("response.failed", |_| json!({"response": response}));
        self.flush(out);
    }
}

fn usage_json(usage: &Usage) -> Value {
    let (input, output) = (usage.prompt_tokens as u64, u64::from(usage.completion_tokens));
    json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": input + output,
    })
}

fn logprob_json(token: &TokenLogprob) -> Value {
    let mut object = token_json(&token.token);
    object["top_logprobs"] = token.top.iter().map(token_json).collect();
    object
}

/// Probabilities in events have no bytes.
fn for_event(logprob: &Value) -> Value {
    let brief = |token: &Value| json!({"token": token["token"], "logprob": token["logprob"]});
    let mut object = brief(logprob);
    object["top_logprobs"] = logprob["top_logprobs"].as_array().into_iter().flatten().map(brief).collect();
    object
}
