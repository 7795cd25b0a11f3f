//! Answers of `POST /v1/chat/completions` in OpenAI's shape.

use kimi_core::ChatEvent;
use kimi_core::chat_model::{FinishReason, TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, End, Writer};
use super::error::ApiError;
use super::response::{Head, Totals, finish_json, token_json};
use super::stream::push_data;

/// The last event of a stream that ended as it should.
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// What a part of a stream is.
const CHUNK: &str = "chat.completion.chunk";

/// What a part of a stream says of a choice.
#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Value,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

/// Writes chat completions.
pub(super) struct ChatWriter {
    head: Head,
    include_usage: bool,
    /// Whether the request asked for probabilities.
    logprobs: bool,
    /// Of each choice, those of the tokens that have come since its last event.
    pending: Vec<Vec<TokenLogprob>>,
    totals: Totals,
}

impl ChatWriter {
    /// Writes `choices` answers of a model.
    pub(super) fn new(model: &str, choices: usize, include_usage: bool, logprobs: bool) -> Self {
        let head = Head::new("chatcmpl-", model);
        Self { head, include_usage, logprobs, pending: vec![Vec::new(); choices], totals: Totals::default() }
    }

    /// A part of a streamed answer. `usage` of all of them but the one that has it is null, if the client asked for it.
    fn chunk(&mut self, choice: usize, delta: Value, finish: Option<FinishReason>, out: &mut String) {
        let logprobs = std::mem::take(&mut self.pending[choice]);
        let logprobs = (!logprobs.is_empty()).then(|| logprobs_json(&logprobs));
        let finish = finish.map(finish_json);
        let choice = ChunkChoice { index: choice, delta, logprobs, finish_reason: finish };
        let usage = self.include_usage.then_some(Value::Null);
        push_data(out, &self.head.object(CHUNK, &[choice], usage));
    }
}

impl Writer for ChatWriter {
    fn whole(&mut self, answers: Vec<Answer>) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in answers.into_iter().enumerate() {
            self.totals.add(&answer.end.usage, 0);
            choices.push(json!({
                "index": index,
                "logprobs": self.logprobs.then(|| logprobs_json(&answer.logprobs)),
                "finish_reason": finish_json(answer.end.reason),
                "message": message(answer),
            }));
        }
        json!(self.head.object("chat.completion", &choices, Some(self.totals.json())))
    }

    fn begin(&mut self, _: usize, out: &mut String) {
        for choice in 0..self.pending.len() {
            self.chunk(choice, json!({"role": "assistant", "content": ""}), None, out);
        }
    }

    fn part(&mut self, choice: usize, part: ChatEvent, out: &mut String) {
        let delta = match part {
            ChatEvent::Content(text) => json!({"content": text}),
            ChatEvent::Reasoning(text) => json!({"reasoning_content": text}),
            ChatEvent::ToolCallBegin { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
            }
            ChatEvent::ToolCallArguments { index, fragment } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": fragment}}]})
            }
            ChatEvent::Logprob(logprob) => return self.pending[choice].push(logprob),
            ChatEvent::ToolCallEnd { .. }
            | ChatEvent::StopString(_)
            | ChatEvent::Finished { .. }
            | ChatEvent::Failed(_) => return,
        };
        self.chunk(choice, delta, None, out);
    }

    fn finish(&mut self, choice: usize, end: &End, out: &mut String) {
        self.totals.add(&end.usage, 0);
        // Tokens that made no text, such as the markers of a tool call.
        if !self.pending[choice].is_empty() {
            self.chunk(choice, json!({"content": ""}), None, out);
        }
        self.chunk(choice, json!({}), Some(end.reason), out);
    }

    fn end(&mut self, _: End, out: &mut String) {
        if self.include_usage {
            let usage = self.totals.json();
            push_data(out, &self.head.object::<Value>(CHUNK, &[], Some(usage)));
        }
        out.push_str(DONE);
    }

    fn fail(&mut self, error: &ApiError, cut_short: bool, out: &mut String) {
        push_data(out, &error.body());
        if cut_short {
            out.push_str(DONE);
        }
    }
}

fn message(answer: Answer) -> Value {
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    let no_text = answer.content.is_empty() && !answer.calls.is_empty();
    message.insert("content".into(), if no_text { Value::Null } else { answer.content.into() });
    message.insert("refusal".into(), Value::Null);
    if !answer.reasoning.is_empty() {
        message.insert("reasoning_content".into(), answer.reasoning.into());
    }
    if !answer.calls.is_empty() {
        let calls = answer.calls.into_iter().map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        });
        message.insert("tool_calls".into(), calls.collect());
    }
    Value::Object(message)
}

fn logprobs_json(tokens: &[TokenLogprob]) -> Value {
    let token = |token: &TokenLogprob| {
        let mut object = token_json(&token.token);
        object["top_logprobs"] = token.top.iter().map(token_json).collect();
        object
    };
    json!({"content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null})
}
