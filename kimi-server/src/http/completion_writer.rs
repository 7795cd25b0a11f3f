//! Answers of `POST /v1/completions` in OpenAI's shape.

use kimi_core::ChatEvent;
use kimi_core::chat_model::{FinishReason, TokenLogprob};
use serde_json::{Map, Value, json};

use super::answer::{Answer, End, Writer};
use super::chat_writer::DONE;
use super::error::ApiError;
use super::response::{Head, Totals, finish_json, shown_logprob};
use super::stream::push_data;

/// Writes text completions.
pub(super) struct CompletionWriter {
    head: Head,
    include_usage: bool,
    /// How many alternatives the request wants beside each token's probability; `None` for no probabilities.
    logprobs: Option<usize>,
    /// Answers for each prompt.
    per_prompt: usize,
    /// Each prompt's text, if the request wants it before the answer.
    echoed: Vec<String>,
    choices: Vec<Choice>,
    totals: Totals,
}

/// What is known of a choice between two events.
#[derive(Clone, Default)]
struct Choice {
    /// Probabilities of the tokens that have come since the last event.
    pending: Vec<TokenLogprob>,
    /// Characters before them.
    offset: usize,
}

impl CompletionWriter {
    /// Writes so many choices in all, and for each prompt, of a model.
    pub(super) fn new(
        model: &str,
        (choices, per_prompt): (usize, usize),
        echoed: Vec<String>,
        include_usage: bool,
        logprobs: Option<usize>,
    ) -> Self {
        Self {
            head: Head::new("cmpl-", model),
            include_usage,
            logprobs,
            per_prompt: per_prompt.max(1),
            echoed,
            choices: vec![Choice::default(); choices],
            totals: Totals::default(),
        }
    }

    fn echo(&self, choice: usize) -> Option<&str> {
        self.echoed.get(choice / self.per_prompt).map(String::as_str)
    }

    fn chunk(&mut self, index: usize, text: &str, finish: Option<FinishReason>, out: &mut String) {
        let of = &mut self.choices[index];
        let pending = std::mem::take(&mut of.pending);
        let logprobs = self.logprobs.filter(|_| !pending.is_empty());
        let logprobs = logprobs.map(|top| logprobs_json(&pending, top, &mut of.offset));
        let finish = finish.map(finish_json);
        let choice = json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish});
        let usage = self.include_usage.then_some(Value::Null);
        push_data(out, &self.head.object("text_completion", &[choice], usage));
    }
}

impl Writer for CompletionWriter {
    fn whole(&mut self, answers: Vec<Answer>) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in answers.into_iter().enumerate() {
            self.totals.add(&answer.end.usage, index / self.per_prompt);
            let text = format!("{}{}", self.echo(index).unwrap_or_default(), answer.content);
            let logprobs = self.logprobs.map(|top| logprobs_json(&answer.logprobs, top, &mut 0));
            let finish = finish_json(answer.end.reason);
            choices
                .push(json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}));
        }
        json!(self.head.object("text_completion", &choices, Some(self.totals.json())))
    }

    fn begin(&mut self, _: usize, out: &mut String) {
        for choice in 0..self.choices.len() {
            if let Some(text) = self.echo(choice).map(str::to_owned) {
                self.chunk(choice, &text, None, out);
            }
        }
    }

    fn part(&mut self, choice: usize, part: ChatEvent, out: &mut String) {
        match part {
            ChatEvent::Content(text) => self.chunk(choice, &text, None, out),
            ChatEvent::Logprob(logprob) => self.choices[choice].pending.push(logprob),
            _ => {} // a text that is not taken apart has nothing else
        }
    }

    fn finish(&mut self, choice: usize, end: &End, out: &mut String) {
        self.totals.add(&end.usage, choice / self.per_prompt);
        self.chunk(choice, "", Some(end.reason), out);
    }

    fn end(&mut self, _: End, out: &mut String) {
        if self.include_usage {
            let usage = self.totals.json();
            push_data(out, &self.head.object::<Value>("text_completion", &[], Some(usage)));
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

/// Probabilities in the old shape: one array of each thing. `offset` counts the characters of the text.
fn logprobs_json(tokens: &[TokenLogprob], top: usize, offset: &mut usize) -> Value {
    let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for token in tokens {
        let text = String::from_utf8_lossy(&token.token.bytes);
        offsets.push(*offset);
        *offset += text.chars().count();
        logprobs.push(shown_logprob(token.token.logprob));
        let likely = token.top.iter().take(top).map(|likely| {
            (String::from_utf8_lossy(&likely.bytes).into_owned(), shown_logprob(likely.logprob).into())
        });
        tops.push(Value::Object(likely.collect::<Map<_, _>>()));
        texts.push(text);
    }
    json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}
