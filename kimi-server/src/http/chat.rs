//! The request of `POST /v1/chat/completions`.

use kimi_core::chat_model::{OutputFormat, ToolChoice};
use kimi_core::sampler::MAX_TOP_LOGPROBS;
use kimi_core::{CancelFlag, ChatRequest};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{Prepared, Question};
use super::chat_writer::ChatWriter;
use super::error::ApiError;
use super::json::Body;
use super::messages::{self, ChatMessage, Tools};
use super::options::Options;
use super::output::{Choice, Format, OtherFormats};
use super::read::{Object, Whole};
use super::routes::App;
use super::thinking::ThinkingFields;

/// The fields that only chats have.
#[derive(Debug, Deserialize)]
struct ChatFields {
    messages: Vec<ChatMessage>,
    tools: Option<Tools>,
    tool_choice: Option<Choice>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Format>,
    chat_template_kwargs: Option<Object<Map<String, Value>>>,
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
    logprobs: Option<bool>,
    top_logprobs: Option<Whole>,
    modalities: Option<Vec<String>>,
    echo: Option<bool>,
}

/// Reads a request. `cancel` ends the making of its prompt.
///
/// # Errors
/// 400 that names the field, what was expected and what was found; 404 for a model that is not served.
pub(super) fn prepare(app: &App, mut body: Body, cancel: CancelFlag) -> Result<Prepared, ApiError> {
    let options: Options = body.part()?;
    let thinking: ThinkingFields = body.part()?;
    let other_format = body.part::<OtherFormats>()?.format()?;
    let fields: ChatFields = body.rest()?;
    let (logprobs, top_logprobs) = logprobs(&fields)?;
    check_modalities(fields.modalities.as_deref().unwrap_or_default())?;
    if fields.echo == Some(true) {
        let message = "is not supported for chats; the answer holds only what is new";
        return Err(ApiError::field("echo", "unsupported_parameter", message));
    }
    let mut template_kwargs = fields.chat_template_kwargs.unwrap_or_default().0;
    let thinking = thinking.apply(&mut template_kwargs)?;
    let goes_on = fields.continue_final_message.unwrap_or(false);
    let (messages, continue_last) =
        messages::conversation(fields.messages, goes_on, fields.add_generation_prompt)?;
    let output = output(fields.response_format, other_format)?;
    let model = app.model(options.model.as_deref())?.clone();
    let tools = fields.tools.unwrap_or_default().0;
    let tool_choice = fields.tool_choice.map_or(ToolChoice::Auto, |choice| choice.0);
    let parallel_calls = fields.parallel_tool_calls.unwrap_or(true);
    let chat = ChatRequest {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: parallel_calls,
        output,
        template_kwargs,
        continue_last,
        logprobs,
        top_logprobs,
        cancel,
        ..options.request(&model, thinking, None)?
    };
    let choices = options.choices()?;
    let writer = ChatWriter::new(model.id(), choices, options.include_usage(), logprobs);
    Ok(Prepared {
        model,
        questions: vec![Question { request: chat, choices }],
        prompt_field: "messages",
        parallel_calls,
        stream: options.stream(),
        writer: Box::new(writer),
    })
}

/// The form of the answer.
fn output(format: Option<Format>, other: Option<OutputFormat>) -> Result<OutputFormat, ApiError> {
    match (format, other) {
        (Some(Format(format)), Some(_)) if format != OutputFormat::Text => {
            let message = "says what form the answer has, and so does another field; give one of them";
            Err(ApiError::field("response_format", "invalid_value", message))
        }
        (Some(Format(format)), None) => Ok(format),
        (_, other) => Ok(other.unwrap_or_default()),
    }
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

fn check_modalities(modalities: &[String]) -> Result<(), ApiError> {
    match modalities.iter().position(|modality| modality != "text") {
        Some(i) => {
            let path = format!("modalities[{i}]");
            Err(ApiError::field(&path, "unsupported_value", "only \"text\" is supported"))
        }
        None => Ok(()),
    }
}
