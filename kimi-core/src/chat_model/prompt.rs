//! From a request to the tokens of its prompt.

use serde_json::Value;

use super::{ChatError, ChatModel, ChatRequest, RawPrompt};
use crate::chat::{Message, PromptRequest, RenderLimits, TemplateError, Thinking, normalize_tool_call_ids};
use crate::engine::RequestError;
use crate::tokenizer::{RenderedPrompt, TokenizerError};

/// A prompt of more contexts than this is not counted to its end.
const COUNTED_CONTEXTS: usize = 4;
/// Where no thinking is wanted of a model that always thinks: as its templates render an answer without thinking.
const NO_THOUGHT: &str = "<think></think>";

impl ChatModel {
    /// The prompt's token ids: the chat through the template, with what users wrote never becoming a control token.
    ///
    /// # Errors
    /// [`ChatError::Template`] or [`ChatError::Tokenizer`].
    pub fn prompt(&self, request: &ChatRequest) -> Result<Vec<u32>, ChatError> {
        let mut request = request.clone();
        self.normalize_calls(&mut request.messages);
        Ok(self.render(&request)?.0)
    }

    /// Gives calls in a history the ids of Kimi's form, and the arguments that were sampled.
    pub(super) fn normalize_calls(&self, messages: &mut [Message]) {
        normalize_tool_call_ids(messages);
        self.shared.replay.restore_calls(messages);
    }

    /// Token ids, and whether the prompt ends inside the model's thinking. What can't fit the context is given up as
    /// soon as that is certain.
    pub(super) fn render(&self, request: &ChatRequest) -> Result<(Vec<u32>, bool), ChatError> {
        let (rendered, thinking) = match &request.raw {
            Some(RawPrompt::Tokens(ids)) => return Ok((ids.clone(), false)),
            Some(RawPrompt::Text(text)) => {
                // Every special token's name is its token.
                return Ok((self.encode(&RenderedPrompt::trusted(text.as_str()), request)?, false));
            }
            None => self.render_chat(request)?,
        };
        Ok((self.encode(&rendered, request)?, thinking))
    }

    fn render_chat(&self, request: &ChatRequest) -> Result<(RenderedPrompt, bool), ChatError> {
        let (template, special) = (&self.shared.template, self.shared.tokenizer.special());
        let mut variables = request.template_kwargs.clone();
        if let (Some(thinking), Thinking::Switched { by }) = (request.thinking, template.thinking()) {
            variables.entry(by).or_insert(Value::Bool(thinking));
        }
        let (begun, messages) = match (request.continue_last, request.messages.split_last()) {
            (true, Some((last, before))) => (Some(last), before),
            _ => (None, request.messages.as_slice()),
        };
        let prompt = PromptRequest {
            messages,
            tools: &request.tools,
            add_generation_prompt: true,
            variables: &variables,
        };
        let context = self.context_tokens();
        let max_bytes = context.saturating_mul(self.shared.tokenizer.longest_token());
        let limits = RenderLimits { max_bytes, cancel: request.cancel.clone() };
        let rendered = template.render_within(&prompt, special, &limits);
        let mut rendered = rendered.map_err(|error| match error {
            TemplateError::TooLong { .. } => self.too_long(context),
            error => error.into(),
        })?;
        let silenced = request.thinking == Some(false) && template.thinking() == Thinking::Always;
        if silenced && !rendered.text().trim_end().ends_with("</think>") {
            rendered.append(RenderedPrompt::trusted(NO_THOUGHT));
        }
        Ok(match begun {
            Some(last) => template.begin_answer(&rendered, last, special)?,
            None => {
                let thinking = rendered.text().trim_end().ends_with("<think>");
                (rendered, thinking)
            }
        })
    }

    fn encode(&self, prompt: &RenderedPrompt, request: &ChatRequest) -> Result<Vec<u32>, ChatError> {
        // Near the limit the error tells how long the prompt is.
        let max_tokens = self.context_tokens().saturating_mul(COUNTED_CONTEXTS);
        let (tokenizer, cancel) = (&self.shared.tokenizer, &request.cancel);
        let encoded = match &request.raw {
            Some(_) => tokenizer.encode_within(prompt, max_tokens, cancel),
            None => {
                let sampled = |text: &str| self.shared.replay.tokens(text);
                tokenizer.encode_as_sampled(prompt, max_tokens, cancel, &sampled)
            }
        };
        encoded.map_err(|error| match error {
            TokenizerError::LongText { limit } => self.too_long(limit),
            error => error.into(),
        })
    }

    fn too_long(&self, more_than: usize) -> ChatError {
        RequestError::LongPrompt { more_than, context: self.context_tokens() }.into()
    }
}
