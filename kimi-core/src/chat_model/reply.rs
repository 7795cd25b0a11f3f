//! From the engine's tokens to the events of a chat.

use std::sync::Arc;

use crate::chat::{ParserOptions, ReasoningMode, ReplyEvent, ReplyParser, ToolMarkup, ToolSignature};
use crate::chat_model::constrain::may_call;
use crate::chat_model::{ChatEvent, ChatRequest, FinishReason, LikelyToken, Shared, TokenLogprob};
use crate::detokenizer::Detokenizer;
use crate::engine::{FinishReason as EngineFinish, TokenEvent, Usage};
use crate::sampler::StopStrings;

/// Bytes, then markers, then stop strings: one answer's state.
pub(super) struct ReplyStream {
    shared: Arc<Shared>,
    detokenizer: Detokenizer,
    parser: ReplyParser,
    stop: StopStrings,
    /// Stop strings in fewer tokens don't count.
    min_tokens: u32,
    logprobs: bool,
    /// Whether the text is not taken apart.
    raw: bool,
    /// The tokens since the last control token: of a prompt that ends within an answer, its too.
    segment: Vec<u32>,
    /// The id of the call that began last.
    call_id: String,
    reasoning_tokens: u32,
    /// A stop string was found; the number of tokens it took.
    stopped_at: Option<u32>,
}

impl ReplyStream {
    pub(super) fn new(
        shared: Arc<Shared>,
        request: &ChatRequest,
        prompt: &[u32],
        stop: StopStrings,
        reasoning: ReasoningMode,
    ) -> Self {
        let calls = || request.messages.iter().flat_map(|m| &m.tool_calls);
        let parser = ReplyParser::new(ParserOptions {
            reasoning,
            tool_markup: if may_call(request) { ToolMarkup::Calls } else { ToolMarkup::Drop },
            tools: request.tools.iter().map(ToolSignature::from).collect(),
            calls_before: calls().count() as u64,
            used_ids: calls().map(|call| call.id.clone()).collect(),
            ..ParserOptions::default()
        });
        let detokenizer = Detokenizer::new(true);
        let (min_tokens, logprobs) = (request.min_tokens, request.logprobs);
        let mut begun = prompt.rsplit(|&id| shared.tokenizer.is_control(id));
        let segment = begun.next().filter(|_| request.raw.is_none()).unwrap_or_default().to_vec();
        Self {
            shared,
            detokenizer,
            parser,
            stop,
            min_tokens,
            logprobs,
            raw: request.raw.is_some(),
            segment,
            call_id: String::new(),
            reasoning_tokens: 0,
            stopped_at: None,
        }
    }

    /// Whether the text itself ended the answer, so that no more tokens are needed.
    pub(super) fn ended_by_text(&self) -> bool {
        self.stopped_at.is_some()
    }

    pub(super) fn push(&mut self, event: TokenEvent, sink: &mut dyn FnMut(ChatEvent)) {
        match event {
            TokenEvent::Token { .. } if self.stopped_at.is_some() => {} // was on its way when the stop string came
            TokenEvent::Token { id, logprob, top, index } => {
                if self.logprobs {
                    sink(ChatEvent::Logprob(self.logprob(id, logprob, &top)));
                }
                self.token(id, index, sink);
            }
            TokenEvent::Finished { reason, usage } => self.finish(reason, usage, sink),
            TokenEvent::Failed { error } => sink(ChatEvent::Failed(error)),
        }
    }

    fn token(&mut self, id: u32, index: u32, sink: &mut dyn FnMut(ChatEvent)) {
        if self.raw {
            let text = self.detokenizer.push(&self.shared.tokenizer, id).unwrap_or_default();
            return self.emit(vec![ReplyEvent::Content(text)], index, sink);
        }
        let thought = self.parser.is_reasoning();
        let mut sampled = None;
        let events = if self.shared.tokenizer.is_control(id) {
            sampled = self.end_segment();
            let held = self.detokenizer.flush();
            let mut events = self.parser.push_literal(&held);
            if !self.shared.tokenizer.is_special(id) {
                events.extend(self.parser.push(self.shared.tokenizer.special().name(id).unwrap_or_default()));
            }
            events
        } else {
            self.segment.push(id);
            // An id outside the vocabulary can't come from a model whose head has as many rows.
            let text = self.detokenizer.push(&self.shared.tokenizer, id).unwrap_or_default();
            self.parser.push_literal(&text)
        };
        // The tokens that open and close it count too.
        self.reasoning_tokens += u32::from(thought || self.parser.is_reasoning());
        for event in &events {
            match (event, &sampled) {
                (ReplyEvent::CallBegin { id, .. }, _) => self.call_id.clone_from(id),
                (ReplyEvent::CallEnd { .. }, Some(arguments)) => {
                    self.shared.replay.remember_call(&self.call_id, arguments);
                }
                _ => {}
            }
        }
        self.emit(events, index, sink);
    }

    /// Remembers the tokens since the last control token; returns their text, if it is one.
    fn end_segment(&mut self) -> Option<String> {
        let tokens = std::mem::take(&mut self.segment);
        let bytes = tokens.iter().filter_map(|&id| self.shared.tokenizer.token_bytes(id));
        let text = String::from_utf8(bytes.collect::<Vec<_>>().concat()).ok()?;
        if !text.is_empty() {
            self.shared.replay.remember_text(&text, &tokens);
        }
        Some(text)
    }

    fn emit(&mut self, events: Vec<ReplyEvent>, index: u32, sink: &mut dyn FnMut(ChatEvent)) {
        for event in events {
            let event = match event {
                ReplyEvent::Content(text) if index < self.min_tokens => ChatEvent::Content(text),
                ReplyEvent::Content(text) => {
                    let out = self.stop.push(&text);
                    if !out.text.is_empty() {
                        sink(ChatEvent::Content(out.text));
                    }
                    if let Some(matched) = out.matched.and_then(|which| self.stop.string(which)) {
                        sink(ChatEvent::StopString(matched.to_owned()));
                        self.stopped_at = Some(index + 1);
                        return;
                    }
                    continue;
                }
                ReplyEvent::Reasoning(text) => ChatEvent::Reasoning(text),
                ReplyEvent::CallBegin { index, id, name } => {
                    // Text that was held back for a stop string stands before the call.
                    let held = self.stop.finish();
                    if !held.is_empty() {
                        sink(ChatEvent::Content(held));
                    }
                    ChatEvent::ToolCallBegin { index, id, name }
                }
                ReplyEvent::CallArguments { index, text } => {
                    ChatEvent::ToolCallArguments { index, fragment: text }
                }
                ReplyEvent::CallEnd { index, .. } => ChatEvent::ToolCallEnd { index },
            };
            sink(event);
        }
    }

    fn finish(&mut self, reason: EngineFinish, mut usage: Usage, sink: &mut dyn FnMut(ChatEvent)) {
        usage.reasoning_tokens = self.reasoning_tokens;
        if self.stopped_at.is_none() && !self.raw {
            self.end_segment(); // of a text that a stop string cut, the client has less
        }
        if self.stopped_at.is_none() {
            let held = self.detokenizer.flush();
            let events = if self.raw {
                vec![ReplyEvent::Content(held)]
            } else {
                let mut events = self.parser.push_literal(&held);
                events.extend(self.parser.finish());
                events
            };
            self.emit(events, usage.completion_tokens, sink);
        }
        let rest = self.stop.finish();
        if self.stopped_at.is_none() && !rest.is_empty() {
            sink(ChatEvent::Content(rest));
        }
        let reason = match (self.stopped_at, reason) {
            (Some(tokens), _) => {
                usage.completion_tokens = usage.completion_tokens.min(tokens);
                FinishReason::Stop
            }
            (None, EngineFinish::Stop) if self.parser.calls() > 0 => FinishReason::ToolCalls,
            (None, EngineFinish::Stop) => FinishReason::Stop,
            (None, EngineFinish::Length) => FinishReason::Length,
            (None, EngineFinish::Cancelled) => FinishReason::Cancelled,
        };
        sink(ChatEvent::Finished { reason, usage });
    }

    fn logprob(&self, id: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprob {
        let likely = |id, logprob| LikelyToken {
            bytes: self.shared.tokenizer.token_bytes(id).unwrap_or_default().to_vec(),
            logprob,
        };
        TokenLogprob { token: likely(id, logprob), top: top.iter().map(|&(id, p)| likely(id, p)).collect() }
    }
}
