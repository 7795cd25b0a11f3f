//! `POST /v1/tokenize` and `POST /v1/detokenize`, in vLLM's shape, and Moonshot's count of tokens.

use kimi_core::chat_model::RawPrompt;
use kimi_core::{CancelFlag, ChatRequest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::engine::ServedModel;
use super::error::ApiError;
use super::json::Body;
use super::messages::{self, ChatMessage, Tools};
use super::read::{Object, Whole};
use super::routes::App;
use super::thinking::ThinkingFields;

/// Most tokens to be turned into text at once.
const MAX_TOKENS: usize = 1 << 20;

#[derive(Debug, Deserialize)]
struct TokenizeFields {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    tools: Option<Tools>,
    chat_template_kwargs: Option<Object<Map<String, Value>>>,
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

/// The tokens of a text, or of a chat's prompt.
///
/// # Errors
/// 400 that names the field; 404 and 503 for a model that is not there.
pub(super) fn tokenize(app: &App, body: Body, cancel: CancelFlag) -> Result<Value, ApiError> {
    let Tokenized { model, tokens, with_strings } = tokens(app, body, cancel)?;
    let text = |&token: &u32| model.engine().text(&[token]);
    let strings = with_strings.then(|| tokens.iter().map(text).collect::<Result<Vec<_>, _>>()).transpose()?;
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": model.engine().context_tokens(),
        "tokens": tokens,
        "token_strs": strings,
    }))
}

/// How many there are, in the shape of Moonshot's `tokenizers/estimate-token-count`.
///
/// # Errors
/// As [`tokenize`].
pub(super) fn count(app: &App, body: Body, cancel: CancelFlag) -> Result<Value, ApiError> {
    let tokens = tokens(app, body, cancel)?.tokens;
    Ok(json!({"data": {"total_tokens": tokens.len()}}))
}

struct Tokenized<'a> {
    model: &'a ServedModel,
    tokens: Vec<u32>,
    with_strings: bool,
}

fn tokens(app: &App, mut body: Body, cancel: CancelFlag) -> Result<Tokenized<'_>, ApiError> {
    let thinking: ThinkingFields = body.part()?;
    let fields: TokenizeFields = body.rest()?;
    let model = app.loaded(fields.model.as_deref())?;
    let mut request = ChatRequest { cancel, ..ChatRequest::default() };
    match (fields.prompt, fields.messages) {
        (Some(text), None) => request.raw = Some(RawPrompt::Text(text)),
        (None, Some(chat)) => {
            let goes_on = fields.continue_final_message.unwrap_or(false);
            (request.messages, request.continue_last) =
                messages::conversation(chat, goes_on, fields.add_generation_prompt)?;
            request.tools = fields.tools.unwrap_or_default().0;
            request.template_kwargs = fields.chat_template_kwargs.unwrap_or_default().0;
            request.thinking = thinking.apply(&mut request.template_kwargs)?;
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::field("prompt", "invalid_value", "give messages or a prompt, not both"));
        }
        (None, None) => {
            let what = "is missing, and so are messages";
            return Err(ApiError::field("prompt", "missing_required_parameter", what));
        }
    }
    let tokens = model.engine().tokens(&request)?;
    Ok(Tokenized { model, tokens, with_strings: fields.return_token_strs.unwrap_or(false) })
}

#[derive(Debug, Deserialize)]
struct DetokenizeFields {
    model: Option<String>,
    tokens: Vec<Whole>,
}

/// The text of some tokens.
///
/// # Errors
/// As [`tokenize`].
pub(super) fn detokenize(app: &App, body: Body, _: CancelFlag) -> Result<Value, ApiError> {
    let fields: DetokenizeFields = body.rest()?;
    let model = app.loaded(fields.model.as_deref())?;
    if fields.tokens.len() > MAX_TOKENS {
        let message = format!("expected at most {MAX_TOKENS} tokens, found {}", fields.tokens.len());
        return Err(ApiError::field("tokens", "array_above_max_length", message));
    }
    let id = |(i, token): (usize, &Whole)| {
        Ok(token.within(&format!("tokens[{i}]"), 0..=i64::from(u32::MAX))? as u32)
    };
    let ids = fields.tokens.iter().enumerate().map(id).collect::<Result<Vec<_>, ApiError>>()?;
    let text = model
        .engine()
        .text(&ids)
        .map_err(|error| ApiError::field("tokens", "invalid_value", error.to_string()))?;
    Ok(json!({"prompt": text}))
}
