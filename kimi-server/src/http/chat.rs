//! The request of `POST /v1/chat/completions`.

use kimi_core::sampler::MAX_TOP_LOGPROBS;
use kimi_core::{CancelFlag, ChatRequest};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::Prepared;
use super::chat_writer::ChatWriter;
use super::error::ApiError;
use super::json::Body;
use super::messages::{self, ChatMessage, Tools};
use super::options::Options;
use super::read::{self, Object, Whole};
use super::routes::App;

/// The fields that only chats have.
#[derive(Debug, Deserialize)]
struct ChatFields {
    messages: Vec<ChatMessage>,
    tools: Option<Tools>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Object<ResponseFormat>>,
    chat_template_kwargs: Option<Object<Map<String, Value>>>,
    logprobs: Option<bool>,
    top_logprobs: Option<Whole>,
    modalities: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
}

/// Reads a request. `cancel` ends the making of its prompt.
///
/// # Errors
/// 400 that names the field, what was expected and what was found; 404 for a model that is not served.
pub(super) fn prepare(app: &App, mut body: Body, cancel: CancelFlag) -> Result<Prepared, ApiError> {
    let options: Options = body.part()?;
    let fields: ChatFields = body.rest()?;
    let (logprobs, top_logprobs) = logprobs(&fields)?;
    let use_tools = tool_choice(fields.tool_choice.as_ref())?;
    check_modalities(fields.modalities.as_deref().unwrap_or_default())?;
    response_format(fields.response_format.as_ref())?;
    let chat = ChatRequest {
        messages: messages::not_empty(fields.messages)?,
        tools: if use_tools { fields.tools.unwrap_or_default().0 } else { Vec::new() },
        template_kwargs: fields.chat_template_kwargs.unwrap_or_default().0,
        params: options.sampling()?,
        max_tokens: options.max_tokens()?,
        stop: options.stop(),
        logprobs,
        top_logprobs,
        ignore_eos: options.ignore_eos(),
        cancel,
        ..ChatRequest::default()
    };
    let model = app.model(options.model.as_deref())?.clone();
    let choices = options.choices()?;
    let writer = ChatWriter::new(model.id(), choices, options.include_usage(), logprobs);
    Ok(Prepared {
        model,
        requests: Prepared::choices(chat, choices)?,
        parallel_calls: fields.parallel_tool_calls.unwrap_or(true),
        stream: options.stream(),
        writer: Box::new(writer),
    })
}

/// Whether to report probabilities, and of how many alternatives.
fn logprobs(fields: &ChatFields) -> Result<(bool, u8), ApiError> {
    let logprobs = fields.logprobs.unwrap_or(false);
    let Some(top) = fields.top_logprobs else { return Ok((logprobs, 0)) };
    match top.within("top_logprobs", 0..=MAX_TOP_LOGPROBS as i64)? {
        1.. if !logprobs => Err(ApiError::field("top_logprobs", "invalid_value", "needs \"logprobs\": true")),
        top => Ok((logprobs, top as u8)),
    }
}

/// Whether the model is told of the tools.
fn tool_choice(choice: Option<&Value>) -> Result<bool, ApiError> {
    let error = |code, message: String| Err(ApiError::field("tool_choice", code, message));
    match choice {
        None => Ok(true),
        Some(Value::String(word)) if word == "auto" => Ok(true),
        Some(Value::String(word)) if word == "none" => Ok(false),
        Some(Value::String(word)) if word != "required" => {
            error("invalid_value", format!("expected \"auto\" or \"none\", found {word:?}"))
        }
        Some(Value::String(_) | Value::Object(_)) => {
            let message = "forcing a tool call is not supported yet; use \"auto\" or \"none\"";
            error("unsupported_value", message.to_owned())
        }
        Some(other) => {
            let found = read::describe(other);
            error("invalid_type", format!("expected \"auto\" or \"none\", found {found}"))
        }
    }
}

fn check_modalities(modalities: &[String]) -> Result<(), ApiError> {
    match modalities.iter().position(|modality| modality != "text") {
        Some(i) => {
            let path = format!("modalities[{i}]");
            Err(ApiError::field(&path, "unsupported_value", "only \"text\" is supported"))
        }
        None => Ok(()),
    }
}

fn response_format(format: Option<&Object<ResponseFormat>>) -> Result<(), ApiError> {
    let error = |code, message: String| Err(ApiError::field("response_format.type", code, message));
    match format.map(|format| format.0.r#type.as_str()) {
        None | Some("text") => Ok(()),
        Some(found @ ("json_object" | "json_schema")) => {
            let what = "is not supported yet; use \"text\" and ask for JSON in the messages";
            error("unsupported_value", format!("{found:?} {what}"))
        }
        Some(found) => error("invalid_value", format!("expected \"text\", found {found:?}")),
    }
}
