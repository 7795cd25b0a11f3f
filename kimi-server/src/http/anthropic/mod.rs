//! Anthropic's Messages API: `POST /v1/messages` and `POST /v1/messages/count_tokens`.
//!
//! Its blocks become the messages of a chat ([`messages`]) and the answer becomes blocks again ([`writer`]). Errors have
//! Anthropic's shape on all paths that begin with `/v1/messages`.

mod fields;
mod messages;
mod tool_id;
mod writer;

use kimi_core::chat_model::ToolChoice;
use kimi_core::sampler::StopStrings;
use kimi_core::{CancelFlag, ChatRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use fields::{Choice, Declared, Format, OutputConfig, Thinking, output, refuse};
use messages::{System, Turn, conversation};
use writer::MessageWriter;

use super::ServedModel;
use super::answer::{Prepared, Question};
use super::error::{ApiError, NO_THREADS};
use super::json::Body;
use super::options::Options;
use super::read::{Object, Whole};
use super::responses::check_count;
use super::routes::App;

/// The fields that only messages have. `cache_control` and `metadata` mean nothing here: what prompts share is found by
/// itself.
#[derive(Debug, Deserialize)]
struct Fields {
    messages: Vec<Turn>,
    system: Option<System>,
    max_tokens: Option<Whole>,
    temperature: Option<f64>,
    tools: Option<Vec<Declared>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<Object<OutputConfig>>,
    output_format: Option<Format>,
    mcp_servers: Option<Value>,
    container: Option<Value>,
    thread: Option<Value>,
}

/// Reads a request. `cancel` ends the making of its prompt.
///
/// # Errors
/// 400 that names the field, what was expected and what was found; 404 for a model that is not served.
pub(super) fn prepare(app: &App, body: Body, cancel: CancelFlag) -> Result<Prepared, ApiError> {
    let (model, options, chat) = read(app, body, cancel)?;
    let Some(max_tokens) = chat.max_tokens else {
        return Err(ApiError::field("max_tokens", "missing_required_parameter", "is missing"));
    };
    if let Err(error) = StopStrings::new(chat.stop.clone()) {
        let message = format!("expected {}, found {}", error.expected, error.found);
        return Err(ApiError::field("stop_sequences", "invalid_value", message));
    }
    let writer = MessageWriter::new(model.id(), max_tokens, options.stream());
    Ok(Prepared {
        model,
        parallel_calls: chat.parallel_tool_calls,
        questions: vec![Question { request: chat, choices: 1 }],
        prompt_field: "messages",
        stream: options.stream(),
        writer: Box::new(writer),
    })
}

/// The tokens of a request's prompt.
///
/// # Errors
/// As [`prepare`].
pub(super) fn count(app: &App, body: Body, cancel: CancelFlag) -> Result<Value, ApiError> {
    let (model, _, chat) = read(app, body, cancel)?;
    model.check_loaded()?;
    Ok(json!({"input_tokens": model.engine().tokens(&chat)?.len()}))
}

fn read(
    app: &App,
    mut body: Body,
    cancel: CancelFlag,
) -> Result<(ServedModel, Options, ChatRequest), ApiError> {
    let options: Options = body.part()?;
    let fields: Fields = body.rest()?;
    let declare = "declare tools that your client runs";
    refuse("mcp_servers", fields.mcp_servers.as_ref(), declare)?;
    refuse("container", fields.container.as_ref(), declare)?;
    if fields.thread.is_some() {
        let message = "conversations are not kept here; send all messages, without it";
        return Err(ApiError::field("thread", NO_THREADS, message));
    }
    if options.choices()? != 1 {
        return Err(ApiError::field("n", "unsupported_value", "an answer is one message"));
    }
    if let Some(temperature) = fields.temperature.filter(|temperature| !(0.0..=1.0).contains(temperature)) {
        let message = format!("expected a number from 0 to 1, found {temperature}");
        return Err(ApiError::field("temperature", "invalid_value", message));
    }
    let limit = |limit: Whole| limit.within("max_tokens", 1..=i64::from(u32::MAX));
    let max_tokens = fields.max_tokens.map(limit).transpose()?.map(|limit| limit as u32);
    let (messages, continue_last) = conversation(fields.system, fields.messages)?;
    let output = output(fields.output_config.unwrap_or_default().0, fields.output_format);
    let declared = fields.tools.unwrap_or_default();
    check_count(declared.len())?;
    let tools: Vec<_> = declared.into_iter().map(|declared| declared.0).collect();
    let (tool_choice, parallel_tool_calls) =
        fields.tool_choice.map_or((ToolChoice::Auto, true), |choice| (choice.tools, choice.parallel));
    let thinking = fields.thinking.map(|thinking| thinking.0);
    let model = app.model(options.model.as_deref())?.clone();
    let chat = ChatRequest {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        output,
        continue_last,
        max_tokens,
        cancel,
        ..options.request(&model, thinking, None)?
    };
    Ok((model, options, chat))
}
