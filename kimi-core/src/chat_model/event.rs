//! What a chat asks for, and what comes of it.

use serde_json::{Map, Value};

use super::output::{OutputFormat, ToolChoice};
use crate::cancel::CancelFlag;
use crate::chat::{Message, Tool};
use crate::engine::{EngineError, Usage};
use crate::sampler::SamplingParams;

/// A chat to be continued.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// The conversation, oldest message first.
    pub messages: Vec<Message>,
    /// Tools that the model may call. Without any it calls none, and what it writes to call one is not part of the answer.
    pub tools: Vec<Tool>,
    /// Which of them it may call, and whether it must.
    pub tool_choice: ToolChoice,
    /// Whether one answer may hold several calls.
    pub parallel_tool_calls: bool,
    /// What the answer's text must look like.
    pub output: OutputFormat,
    /// Further variables of the chat template.
    pub template_kwargs: Map<String, Value>,
    /// Whether the model thinks before it answers; `None` for what it does by itself. Without a meaning for a model that
    /// never thinks, or where `template_kwargs` says it.
    pub thinking: Option<bool>,
    /// Whether the answer goes on after the last message, which is an assistant's, and is part of it (Moonshot's partial
    /// mode).
    pub continue_last: bool,
    /// A prompt in place of messages, tools and template; the answer is not taken apart then.
    pub raw: Option<RawPrompt>,
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// Most tokens to generate; `None` for as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Tokens of the answer before it may end by itself, on a stop token or a stop string.
    pub min_tokens: u32,
    /// Strings that end the answer's text.
    pub stop: Vec<String>,
    /// Tokens that end the answer, beside the model's own; they are not part of the text.
    pub stop_token_ids: Vec<u32>,
    /// Whether to report each token's log-probability.
    pub logprobs: bool,
    /// How many likely alternatives to report beside each.
    pub top_logprobs: u8,
    /// Go on after the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Ends the making of the prompt, which may take long; an answer that has begun has its own end
    /// ([`ChatGeneration::cancel`](super::ChatGeneration::cancel)).
    pub cancel: CancelFlag,
}

impl Default for ChatRequest {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            output: OutputFormat::Text,
            template_kwargs: Map::new(),
            thinking: None,
            continue_last: false,
            raw: None,
            params: SamplingParams::default(),
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: false,
            top_logprobs: 0,
            ignore_eos: false,
            cancel: CancelFlag::default(),
        }
    }
}

impl ChatRequest {
    /// A chat of one message.
    pub fn user(text: impl Into<String>) -> Self {
        Self { messages: vec![Message::new("user", text)], ..Self::default() }
    }
}

/// A prompt that is no chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawPrompt {
    /// A text, in which the names of special tokens are those tokens.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A step of the answer.
#[derive(Debug, Clone)]
pub enum ChatEvent {
    /// More text, always whole UTF-8.
    Content(String),
    /// More of the thinking before the answer.
    Reasoning(String),
    /// A tool call begins.
    ToolCallBegin {
        /// Counts the calls of this answer from 0.
        index: usize,
        /// The call's id.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments, as the model wrote them.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// The text.
        fragment: String,
    },
    /// A call's arguments are finished.
    ToolCallEnd {
        /// Which call.
        index: usize,
    },
    /// Log-probability of a token; only if asked for.
    Logprob(TokenLogprob),
    /// This stop string ended the text. [`Self::Finished`] follows.
    StopString(String),
    /// The last event.
    Finished {
        /// How the answer ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The last event, if the answer could not be finished.
    Failed(EngineError),
}

impl ChatEvent {
    /// The text to show, if the event has any.
    pub fn text(&self) -> &str {
        match self {
            Self::Content(text) => text,
            _ => "",
        }
    }
}

/// A token's log-probability and its likeliest alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: LikelyToken,
    /// The likeliest tokens, best first.
    pub top: Vec<LikelyToken>,
}

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelyToken {
    /// Its bytes; it may end inside a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string was found.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// The model ended it with tool calls.
    ToolCalls,
    /// Its caller cancelled it.
    Cancelled,
}
