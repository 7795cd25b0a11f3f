//! OpenAI's Responses API: `POST /v1/responses`, and what is stored of it.
//!
//! A request's items become the messages of a chat ([`items`]); the answer becomes items again ([`writer`]). Responses are
//! stored in memory unless `store` is false ([`store`]), so that a later request can go on with one by its id.

mod items;
mod routes;
mod store;
mod tools;
mod writer;

use std::collections::BTreeMap;

use kimi_core::chat::Message;
use kimi_core::chat_model::ToolChoice;
use kimi_core::sampler::MAX_TOP_LOGPROBS;
use kimi_core::{CancelFlag, ChatRequest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use items::{Conversation, Input};
pub(super) use routes::handle;
pub(super) use store::Store;
use tools::{Declared, Reasoning, TextOptions};
pub(super) use tools::{check_count, function};
use writer::{Keep, ResponsesWriter};

use super::answer::{Prepared, Question};
use super::error::ApiError;
use super::json::Body;
use super::options::Options;
use super::output::Choice;
use super::read::{self, Object, Whole};
use super::routes::App;
use super::thinking;

/// What a request may ask to be added to the answer. Of these only probabilities can be there.
const INCLUDES: [&str; 9] = [
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "shell_call.outputs",
];
/// OpenAI's bounds of `metadata`.
const MAX_METADATA: usize = 16;

/// The fields that only responses have.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    input: Option<Input>,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    context_management: Option<Vec<Value>>,
    prompt: Option<Value>,
    store: Option<bool>,
    background: Option<bool>,
    tools: Option<Vec<Declared>>,
    tool_choice: Option<Choice>,
    parallel_tool_calls: Option<bool>,
    text: Option<Object<TextOptions>>,
    reasoning: Option<Object<Reasoning>>,
    max_output_tokens: Option<Whole>,
    max_tool_calls: Option<Whole>,
    top_logprobs: Option<Whole>,
    metadata: Option<BTreeMap<String, String>>,
    truncation: Option<String>,
    include: Option<Vec<String>>,
    chat_template_kwargs: Option<Object<Map<String, Value>>>,
    user: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
}

/// The fields of a request that are shown in its response as they came.
#[derive(Debug, Deserialize)]
struct Shown {
    #[serde(default)]
    tool_choice: Value,
    temperature: Option<f64>,
    top_p: Option<f64>,
}

/// What a request becomes.
struct Read {
    chat: ChatRequest,
    /// The request's items.
    input: Vec<Value>,
    before: store::Conversation,
    /// The fields of the response that are known from the beginning.
    head: Map<String, Value>,
    stream: bool,
    store: bool,
    as_summary: bool,
}

/// Reads a request. `cancel` ends the making of its prompt.
///
/// # Errors
/// 400 that names the field, what was expected and what was found; 404 for a model that is not served.
pub(super) fn prepare(app: &App, body: Body, cancel: CancelFlag) -> Result<Prepared, ApiError> {
    let (model, read) = read(app, body, cancel)?;
    let keep =
        read.store.then(|| Keep { store: app.responses.clone(), before: read.before, input: read.input });
    let writer = ResponsesWriter::new(read.head, keep, read.stream, read.as_summary);
    Ok(Prepared {
        parallel_calls: read.chat.parallel_tool_calls,
        model,
        questions: vec![Question { request: read.chat, choices: 1 }],
        prompt_field: "input",
        stream: read.stream,
        writer: Box::new(writer),
    })
}

/// `POST /v1/responses/input_tokens`: the tokens of a request's prompt.
///
/// # Errors
/// As [`prepare`].
pub(super) fn count(app: &App, body: Body, cancel: CancelFlag) -> Result<Value, ApiError> {
    let (model, read) = read(app, body, cancel)?;
    model.check_loaded()?;
    let tokens = model.engine().tokens(&read.chat);
    let tokens = tokens.map_err(|error| ApiError::from(error).about_prompt("input"))?;
    Ok(json!({"object": "response.input_tokens", "input_tokens": tokens.len()}))
}

fn read(app: &App, mut body: Body, cancel: CancelFlag) -> Result<(super::ServedModel, Read), ApiError> {
    let options: Options = body.part()?;
    let shown: Shown = body.part()?;
    let fields: Fields = body.rest()?;
    refuse(&fields)?;
    if options.choices()? != 1 {
        return Err(ApiError::field(
            "n",
            "unsupported_value",
            "a response has one answer; use /v1/chat/completions",
        ));
    }
    let model = app.model(options.model.as_deref())?.clone();
    let store = fields.store.unwrap_or(true);
    let (logprobs, top_logprobs) = logprobs(&fields)?;
    let reasoning = fields.reasoning.unwrap_or_default().0;
    let thinks = reasoning.thinking()?;
    let mut template_kwargs = fields.chat_template_kwargs.unwrap_or_default().0;
    if reasoning.keeps_earlier()? {
        template_kwargs.entry(thinking::PRESERVE).or_insert(true.into());
    }
    let (output, text) = fields.text.unwrap_or_default().0.read();
    let declared = fields.tools.unwrap_or_default();
    check_count(declared.len())?;
    let functions = declared.into_iter().filter_map(|declared| Some((declared.tool?, declared.shown)));
    let (tools, shown_tools): (Vec<_>, Vec<_>) = functions.unzip();

    let before = match &fields.previous_response_id {
        Some(id) => app.responses.conversation(id).ok_or_else(|| ApiError::no_previous_response(id))?,
        None => Vec::new(),
    };
    let mut conversation = Conversation::default();
    if let Some(instructions) = &fields.instructions {
        conversation.messages.push(Message::new("system", instructions));
    }
    for turn in &before {
        conversation.stored(&turn.input())?;
        conversation.stored(&turn.output())?;
    }
    let items = fields.input.unwrap_or_default().0;
    let input = conversation.given(items, |id| app.responses.item(id))?;
    if conversation.messages.len() == usize::from(fields.instructions.is_some()) {
        let message = "expected at least one item, found none";
        return Err(ApiError::field("input", "missing_required_parameter", message));
    }

    let common = options.request(&model, thinks, None)?;
    let max_tokens = match fields.max_output_tokens {
        Some(limit) => Some(limit.within("max_output_tokens", 1..=i64::from(u32::MAX))? as u32),
        None => common.max_tokens,
    };
    let tool_choice = fields.tool_choice.map_or(ToolChoice::Auto, |choice| choice.0);
    let parallel_calls = fields.parallel_tool_calls.unwrap_or(true);
    let head = json!({
        "model": model.id(),
        "background": false,
        "instructions": fields.instructions,
        "max_output_tokens": max_tokens,
        "max_tool_calls": null,
        "metadata": fields.metadata.unwrap_or_default(),
        "parallel_tool_calls": parallel_calls,
        "previous_response_id": fields.previous_response_id,
        "reasoning": reasoning.shown(),
        "service_tier": "default",
        "store": store,
        "temperature": shown.temperature.unwrap_or_else(|| decimal(common.params.temperature())),
        "text": text,
        "tool_choice": if shown.tool_choice.is_null() { json!("auto") } else { shown.tool_choice },
        "tools": shown_tools,
        "top_logprobs": top_logprobs,
        "top_p": shown.top_p.unwrap_or_else(|| decimal(common.params.top_p())),
        "truncation": "disabled",
    });
    let chat = ChatRequest {
        messages: conversation.messages,
        tools,
        tool_choice,
        parallel_tool_calls: parallel_calls,
        output,
        template_kwargs,
        max_tokens,
        logprobs,
        top_logprobs,
        cancel,
        ..common
    };
    let mut head = match head {
        Value::Object(head) => head,
        _ => Map::new(),
    };
    // These are not shown where they were not given.
    let given = [
        ("prompt_cache_key", fields.prompt_cache_key),
        ("safety_identifier", fields.safety_identifier),
        ("user", fields.user),
    ];
    head.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))));
    let as_summary = reasoning.as_summary();
    let stream = options.stream();
    Ok((model, Read { chat, input, before, head, stream, store, as_summary }))
}

/// A number as it is written in decimal.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_default()
}

/// Refuses what is documented and not supported here.
fn refuse(fields: &Fields) -> Result<(), ApiError> {
    let no = |field, message: &str| Err(ApiError::field(field, "unsupported_parameter", message));
    if fields.background == Some(true) {
        return no("background", "is not supported; wait for the answer, or stream it");
    }
    if fields.conversation.is_some() {
        return no("conversation", "is not supported; use previous_response_id, or send all items");
    }
    if fields.context_management.as_ref().is_some_and(|managed| !managed.is_empty()) {
        return no("context_management", "is not supported; leave out items that are not needed any more");
    }
    if fields.prompt.is_some() {
        return no("prompt", "templates of prompts are not kept here; send instructions and input");
    }
    if fields.max_tool_calls.is_some() {
        return no(
            "max_tool_calls",
            "counts calls of OpenAI's own tools, which this server does not have; leave it out",
        );
    }
    match fields.truncation.as_deref() {
        None | Some("disabled") => {}
        Some("auto") => {
            return no(
                "truncation",
                "\"auto\" is not supported; leave out items that are not needed any more",
            );
        }
        Some(other) => {
            let found = read::describe(&Value::from(other));
            return Err(ApiError::field(
                "truncation",
                "invalid_value",
                format!("expected \"disabled\", found {found}"),
            ));
        }
    }
    let unknown = |include: &String| !INCLUDES.contains(&include.as_str());
    if let Some(i) = fields.include.iter().flatten().position(unknown) {
        let message = format!("expected one of {}", INCLUDES.join(", "));
        return Err(ApiError::field(&format!("include[{i}]"), "invalid_value", message));
    }
    if fields.metadata.as_ref().is_some_and(|metadata| metadata.len() > MAX_METADATA) {
        let message = format!("expected at most {MAX_METADATA} pairs");
        return Err(ApiError::field("metadata", "object_above_max_properties", message));
    }
    Ok(())
}

/// Whether to report probabilities, and of how many alternatives.
fn logprobs(fields: &Fields) -> Result<(bool, u8), ApiError> {
    let asked = |include: &String| include == INCLUDES[0];
    let top =
        fields.top_logprobs.map_or(Ok(0), |top| top.within("top_logprobs", 0..=MAX_TOP_LOGPROBS as i64))?;
    Ok((fields.include.iter().flatten().any(asked) || top > 0, top as u8))
}
