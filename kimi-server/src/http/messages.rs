//! The messages and tools of a request.

use std::collections::HashSet;
use std::fmt;

use kimi_core::chat::{Content, FunctionCall, Message, Tool, ToolCall, is_call_name};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::error::ApiError;
use super::read::{self, Object, Refusal};

/// Most tools of a request.
pub(super) const MAX_TOOLS: usize = 512;
/// Ids of calls that an error shows.
const SHOWN_IDS: usize = 8;
/// Most characters of a tool's name.
const MAX_NAME_CHARS: usize = 256;

/// A message of a request.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Object<RawMessage>")]
pub(super) struct ChatMessage {
    pub(super) message: Message,
    /// Whether the answer goes on after it.
    partial: bool,
}

#[derive(Deserialize)]
struct RawMessage {
    role: Role,
    content: Option<Text>,
    name: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
    function_call: Option<Value>,
    partial: Option<bool>,
    /// DeepSeek's word for `partial`.
    prefix: Option<bool>,
}

impl TryFrom<Object<RawMessage>> for ChatMessage {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawMessage>) -> Result<Self, Refusal> {
        let role = raw.role.0;
        let mut message = Message { role: role.to_owned(), name: raw.name, ..Message::default() };
        message.content = match raw.content {
            // Clients write so what an assistant's or a tool's message without a text has (kimi-cli).
            Some(Text(None)) if matches!(role, "assistant" | "tool") => Some(Content::Text(String::new())),
            Some(Text(None)) => {
                return Err(Refusal::at("content", "empty_array", "expected at least one part, found none"));
            }
            text => text.and_then(|text| text.0).map(Content::Text),
        };
        match role {
            "assistant" => {
                if raw.function_call.is_some() {
                    let what = "is not supported; use tool_calls";
                    return Err(Refusal::at("function_call", "unsupported_parameter", what));
                }
                message.reasoning_content = raw.reasoning_content.or(raw.reasoning);
                message.tool_calls = raw.tool_calls.into_iter().flatten().map(|call| call.0).collect();
            }
            "tool" => {
                let id = raw.tool_call_id.ok_or_else(|| Refusal::missing("tool_call_id"))?;
                message.tool_call_id = Some(id);
            }
            _ => {}
        }
        // Reasoning alone is what a model's answer was whose limit came before its text.
        if message.content.is_none() && message.tool_calls.is_empty() && message.reasoning_content.is_none() {
            let what = match role {
                "assistant" => "is missing, and so are tool_calls and reasoning_content",
                _ => "is missing",
            };
            return Err(Refusal::at("content", "missing_required_parameter", what));
        }
        let partial = raw.partial.or(raw.prefix).unwrap_or(false);
        if partial && (role != "assistant" || !message.tool_calls.is_empty()) {
            let what = "is only for an assistant's message without tool_calls, which the answer goes on with";
            return Err(Refusal::at("partial", "invalid_value", what));
        }
        Ok(Self { message, partial })
    }
}

/// A role, as templates call it.
struct Role(&'static str);

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let found = String::deserialize(from)?;
        match found.as_str() {
            // What OpenAI calls "developer" since its reasoning models is what templates know as "system".
            "system" | "developer" => Ok(Self("system")),
            "user" => Ok(Self("user")),
            "assistant" => Ok(Self("assistant")),
            "tool" => Ok(Self("tool")),
            other => {
                let expected = "expected \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
                let found = read::describe(&Value::from(other));
                Err(Refusal::new("invalid_value", format!("{expected}, found {found}")).into_serde())
            }
        }
    }
}

/// A content's text: of a string, or of text parts one after another; `None` where there is no part.
#[derive(Debug)]
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of text parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Some(text.to_owned())))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Text, E> {
                Ok(Text(Some(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Text, A::Error> {
                let mut text: Option<String> = None;
                while let Some(Part(more)) = parts.next_element()? {
                    text.get_or_insert_default().push_str(&more);
                }
                Ok(Text(text))
            }
        }
        from.deserialize_any(Parts)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Object<RawPart>")]
struct Part(String);

#[derive(Deserialize)]
struct RawPart {
    r#type: String,
    text: Option<String>,
    refusal: Option<String>,
}

impl TryFrom<Object<RawPart>> for Part {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawPart>) -> Result<Self, Refusal> {
        match raw.r#type.as_str() {
            // The latter two are what the Responses API calls it.
            "text" | "input_text" | "output_text" => raw.text.ok_or_else(|| Refusal::missing("text")),
            "refusal" => raw.refusal.ok_or_else(|| Refusal::missing("refusal")),
            other @ ("image_url" | "input_audio" | "file" | "video_url") => {
                let message = format!("{other:?} parts are not supported: this model takes text only");
                Err(Refusal::at("type", "unsupported_value", message))
            }
            other => Err(Refusal::kind("\"text\"", other)),
        }
        .map(Self)
    }
}

/// A call in an assistant's message.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Object<RawCall>")]
struct Call(ToolCall);

#[derive(Deserialize)]
struct RawCall {
    id: String,
    r#type: Option<String>,
    function: Object<RawFunction>,
}

#[derive(Deserialize)]
struct RawFunction {
    name: String,
    /// JSON text; other servers' histories have the object itself.
    arguments: Value,
}

impl TryFrom<Object<RawCall>> for Call {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawCall>) -> Result<Self, Refusal> {
        check_function(raw.r#type.as_deref().unwrap_or("function"))?;
        let Object(RawFunction { name, arguments }) = raw.function;
        // A model may have made up any name, and the server has passed it on: so it is taken back.
        if !is_call_name(&name) {
            let found = read::describe(&Value::from(name));
            let message = format!("expected a name without control characters, found {found}");
            return Err(Refusal::at("function.name", "invalid_value", message));
        }
        let function = match arguments {
            Value::String(arguments) => FunctionCall { name, arguments },
            // Written as models write it.
            Value::Object(_) => FunctionCall::deserialize(json!({"name": name, "arguments": arguments}))
                .map_err(|error| Refusal::at("function.arguments", "invalid_value", error.to_string()))?,
            other => return Err(wrong("function.arguments", "a string or an object", &other)),
        };
        Ok(Self(ToolCall { id: raw.id, kind: "function".to_owned(), function }))
    }
}

/// Checks the type of a tool or of a call.
fn check_function(found: &str) -> Result<(), Refusal> {
    let message = match found {
        "function" => return Ok(()),
        "builtin_function" => {
            "\"builtin_function\" (such as $web_search) runs on Moonshot's own servers and is not supported here; declare a \
             \"function\" of yours"
                .to_owned()
        }
        found => format!("expected \"function\", found {}", read::describe(&Value::from(found))),
    };
    Err(Refusal::at("type", "unsupported_value", message))
}

/// The declared tools.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Vec<Declared>")]
pub(super) struct Tools(pub(super) Vec<Tool>);

impl TryFrom<Vec<Declared>> for Tools {
    type Error = Refusal;

    fn try_from(tools: Vec<Declared>) -> Result<Self, Refusal> {
        if tools.len() > MAX_TOOLS {
            let message = format!("expected at most {MAX_TOOLS} tools, found {}", tools.len());
            return Err(Refusal::new("array_above_max_length", message));
        }
        Ok(Self(tools.into_iter().map(|tool| tool.0).collect()))
    }
}

/// A tool. The declaration is kept whole, because templates print all of it.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Declared(Tool);

impl TryFrom<Value> for Declared {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        let fields = object(&value, "")?;
        check_function(string(fields.get("type"), "type")?.ok_or_else(|| Refusal::missing("type"))?)?;
        let function = present(fields.get("function")).ok_or_else(|| Refusal::missing("function"))?;
        let function = object(function, "function")?;
        let name = string(function.get("name"), "function.name")?;
        check_name("function.name", name.ok_or_else(|| Refusal::missing("function.name"))?)?;
        string(function.get("description"), "function.description")?;
        if let Some(parameters) = present(function.get("parameters")) {
            object(parameters, "function.parameters")?;
        }
        match present(function.get("strict")) {
            None | Some(Value::Bool(_)) => {}
            Some(other) => return Err(wrong("function.strict", "true or false", other)),
        }
        Tool::try_from(value).map(Self).map_err(|error| Refusal::new("invalid_value", error.to_string()))
    }
}

pub(super) fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

pub(super) fn wrong(path: &str, expected: &str, found: &Value) -> Refusal {
    Refusal::at(path, "invalid_type", format!("expected {expected}, found {}", read::describe(found)))
}

pub(super) fn object<'v>(
    value: &'v Value,
    path: &str,
) -> Result<&'v serde_json::Map<String, Value>, Refusal> {
    value.as_object().ok_or_else(|| wrong(path, "an object", value))
}

pub(super) fn string<'v>(value: Option<&'v Value>, path: &str) -> Result<Option<&'v str>, Refusal> {
    match present(value) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(path, "a string", other)),
    }
}

/// A function's name. Dots are not in OpenAI's alphabet, but tool servers use them.
pub(super) fn check_name(path: &str, name: &str) -> Result<(), Refusal> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if (1..=MAX_NAME_CHARS).contains(&name.len()) && name.chars().all(known) {
        return Ok(());
    }
    let found: String = name.chars().take(MAX_NAME_CHARS).collect();
    let message = format!("expected 1 to {MAX_NAME_CHARS} letters, digits, '_', '-' or '.', found {found:?}");
    Err(Refusal::at(path, "invalid_value", message))
}

/// The messages, at least one, and whether the answer goes on after the last one: because it is `partial`, or because
/// the request says `continue_final_message`.
///
/// # Errors
/// 400 if there is none, or if the answer can't begin as the request wants.
pub(super) fn conversation(
    messages: Vec<ChatMessage>,
    continue_final_message: bool,
    add_generation_prompt: Option<bool>,
) -> Result<(Vec<Message>, bool), ApiError> {
    let Some(last) = messages.last() else {
        let message = "expected at least one message, found none";
        return Err(ApiError::field("messages", "empty_array", message));
    };
    let at = messages.len() - 1;
    if let Some(early) = messages[..at].iter().position(|message| message.partial) {
        let message = "is only for the last message, which the answer goes on with";
        return Err(ApiError::field(&format!("messages[{early}].partial"), "invalid_value", message));
    }
    if continue_final_message && (last.message.role != "assistant" || !last.message.tool_calls.is_empty()) {
        let message = "needs a last message of an assistant, without tool_calls, to go on with";
        return Err(ApiError::field("continue_final_message", "invalid_value", message));
    }
    let goes_on = continue_final_message || last.partial;
    if add_generation_prompt == Some(false) && !goes_on {
        let message = "false is only supported with continue_final_message: an answer needs a beginning";
        return Err(ApiError::field("add_generation_prompt", "unsupported_value", message));
    }
    check_results(&messages)?;
    Ok((messages.into_iter().map(|message| message.message).collect(), goes_on))
}

/// Checks that each tool's message answers a call: a wrong id would become a wrong prompt, and nobody would see it. Late,
/// early and repeated answers are put right with the ids.
fn check_results(messages: &[ChatMessage]) -> Result<(), ApiError> {
    let calls = messages.iter().flat_map(|message| &message.message.tool_calls);
    let ids: HashSet<&str> = calls.map(|call| call.id.as_str()).collect();
    for (i, ChatMessage { message, .. }) in messages.iter().enumerate() {
        let Some(id) = message.tool_call_id.as_deref() else { continue };
        if ids.contains(id) || (id.is_empty() && !ids.is_empty()) {
            continue;
        }
        let mut known: Vec<String> =
            ids.iter().take(SHOWN_IDS).map(|id| read::describe(&(*id).into())).collect();
        known.sort_unstable();
        let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
        let found = read::describe(&Value::from(id));
        let message = format!(
            "expected the id of a call in an assistant's message of this request, found {found}; calls: {known}"
        );
        return Err(ApiError::field(&format!("messages[{i}].tool_call_id"), "invalid_value", message));
    }
    Ok(())
}
