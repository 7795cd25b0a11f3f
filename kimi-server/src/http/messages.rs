//! The messages and tools of a request.

use kimi_core::chat::{Content, FunctionCall, Message, Tool, ToolCall};
use serde_json::Value;

use super::error::ApiError;
use super::json::{Field, Fields};

/// Most tools of a request.
const MAX_TOOLS: usize = 512;
/// Most characters of a tool's name.
const MAX_NAME_CHARS: usize = 256;

/// Reads `messages`, at least one.
pub(super) fn messages(field: Field) -> Result<Vec<Message>, ApiError> {
    let path = field.path().to_owned();
    let messages = field.array()?;
    if messages.is_empty() {
        return Err(ApiError::field(&path, "empty_array", "expected at least one message, found none"));
    }
    messages.into_iter().map(message).collect()
}

fn message(field: Field) -> Result<Message, ApiError> {
    let path = field.path().to_owned();
    let mut fields = field.object()?;
    let role = fields.require("role")?;
    let role = match role.value().as_str() {
        // What OpenAI calls "developer" since its reasoning models is what templates know as "system".
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some(other) => {
            let expected = "expected \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
            return Err(role.error("invalid_value", format!("{expected}, found {other:?}")));
        }
        None => return Err(role.wrong_type("a string")),
    };
    let mut message = Message { role: role.to_owned(), ..Message::default() };
    message.content = fields.take("content").map(content).transpose()?.map(Content::Text);
    message.name = fields.take("name").map(Field::string).transpose()?;
    match role {
        "assistant" => assistant(&mut fields, &mut message)?,
        "tool" => message.tool_call_id = Some(fields.require("tool_call_id")?.string()?),
        _ => {}
    }
    if message.content.is_none() && message.tool_calls.is_empty() {
        let what = if role == "assistant" { "is missing, and so are tool_calls" } else { "is missing" };
        return Err(ApiError::field(&format!("{path}.content"), "missing_required_parameter", what));
    }
    Ok(message)
}

/// Fields that only an assistant's message has.
fn assistant(fields: &mut Fields, message: &mut Message) -> Result<(), ApiError> {
    let reasoning = fields.take("reasoning_content").or_else(|| fields.take("reasoning"));
    message.reasoning_content = reasoning.map(Field::string).transpose()?;
    if let Some(calls) = fields.take("tool_calls") {
        message.tool_calls = calls.array()?.into_iter().map(tool_call).collect::<Result<_, _>>()?;
    }
    match fields.take("function_call") {
        Some(call) => Err(call.error("unsupported_parameter", "is not supported; use tool_calls")),
        None => Ok(()),
    }
}

/// A content's text: of a string, or of text parts one after another.
fn content(field: Field) -> Result<String, ApiError> {
    match field.value() {
        Value::String(_) => field.string(),
        Value::Array(parts) if parts.is_empty() => {
            Err(field.error("empty_array", "expected at least one part, found none"))
        }
        Value::Array(_) => field.array()?.into_iter().map(text_part).collect(),
        _ => Err(field.wrong_type("a string or an array of text parts")),
    }
}

fn text_part(field: Field) -> Result<String, ApiError> {
    let mut fields = field.object()?;
    let kind = fields.require("type")?;
    match kind.value().as_str() {
        Some("text") => fields.require("text")?.string(),
        Some("refusal") => fields.require("refusal")?.string(),
        Some(other @ ("image_url" | "input_audio" | "file" | "video_url")) => {
            let message = format!("{other:?} parts are not supported: this model takes text only");
            Err(kind.error("unsupported_value", message))
        }
        Some(other) => Err(kind.error("invalid_value", format!("expected \"text\", found {other:?}"))),
        None => Err(kind.wrong_type("a string")),
    }
}

fn tool_call(field: Field) -> Result<ToolCall, ApiError> {
    let mut fields = field.object()?;
    let id = fields.require("id")?.string()?;
    check_function_type(fields.take("type"))?;
    let mut function = fields.require("function")?.object()?;
    let name = name(function.require("name")?)?;
    let arguments = function.require("arguments")?.string()?;
    Ok(ToolCall { id, kind: "function".to_owned(), function: FunctionCall { name, arguments } })
}

/// Reads `tools`. A declaration is kept whole, because templates print all of it.
pub(super) fn tools(field: Field) -> Result<Vec<Tool>, ApiError> {
    let path = field.path().to_owned();
    let tools = field.array()?;
    if tools.len() > MAX_TOOLS {
        let message = format!("expected at most {MAX_TOOLS} tools, found {}", tools.len());
        return Err(ApiError::field(&path, "array_above_max_length", message));
    }
    tools.into_iter().map(tool).collect()
}

/// Checks a tool where it is: a schema takes many times the memory of its text.
fn tool(field: Field) -> Result<Tool, ApiError> {
    let path = field.path().to_owned();
    let mut fields = field.object()?;
    check_function_type(Some(fields.look_for("type")?))?;
    let function = fields.require("function")?.object()?;
    name(function.look_for("name")?)?;
    function.look("description").map(Field::string).transpose()?;
    function.check_object("parameters")?;
    function.look("strict").map(Field::boolean).transpose()?;
    let mut whole = fields.into_map();
    whole.insert("function".to_owned(), Value::Object(function.into_map()));
    let tool = Tool::try_from(Value::Object(whole));
    tool.map_err(|error| ApiError::field(&path, "invalid_value", error.to_string()))
}

fn check_function_type(kind: Option<Field>) -> Result<(), ApiError> {
    let Some(kind) = kind else { return Ok(()) };
    match kind.value().as_str() {
        Some("function") => Ok(()),
        Some(other) => {
            Err(kind.error("unsupported_value", format!("expected \"function\", found {other:?}")))
        }
        None => Err(kind.wrong_type("a string")),
    }
}

/// A function's name. Dots are not in OpenAI's alphabet, but tool servers use them.
fn name(field: Field) -> Result<String, ApiError> {
    let path = field.path().to_owned();
    let name = field.string()?;
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if (1..=MAX_NAME_CHARS).contains(&name.len()) && name.chars().all(known) {
        return Ok(name);
    }
    let found: String = name.chars().take(MAX_NAME_CHARS).collect();
    let message = format!("expected 1 to {MAX_NAME_CHARS} letters, digits, '_', '-' or '.', found {found:?}");
    Err(ApiError::field(&path, "invalid_value", message))
}
