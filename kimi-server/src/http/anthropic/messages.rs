//! `system` and `messages` of Anthropic's API, and the messages of a chat that they stand for.

use std::collections::HashMap;

use kimi_core::chat::{Content, FunctionCall, Message, ToolCall};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::tool_id;
use crate::http::error::ApiError;
use crate::http::messages::{object, present, string, wrong};
use crate::http::read::{self, Refusal};

/// Blocks that come of tools which Anthropic's servers run.
const HOSTED: [&str; 11] = [
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "container_upload",
    "compaction",
];
/// Stands before a result that is an error, since templates have no field for that.
const ERROR: &str = "Error: ";

/// `system`: a text or text blocks.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct System(String);

impl TryFrom<Value> for System {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        text(&value, "").map(Self)
    }
}

/// A message of a request.
#[derive(Debug)]
pub(super) struct Turn {
    role: &'static str,
    /// With their places in the message.
    blocks: Vec<(usize, Block)>,
}

#[derive(Debug)]
enum Block {
    Text(String),
    Thinking(String),
    Use(ToolCall),
    Result { id: String, text: String },
}

impl<'de> Deserialize<'de> for Turn {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::try_from(Value::deserialize(from)?).map_err(Refusal::into_serde)
    }
}

impl TryFrom<Value> for Turn {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        let fields = object(&value, "")?;
        let role = match required(fields, "role", "role")? {
            "user" => "user",
            "assistant" => "assistant",
            "system" => "system",
            other => {
                let found = read::describe(&Value::from(other));
                let message = format!("expected \"user\" or \"assistant\", found {found}");
                return Err(Refusal::at("role", "invalid_value", message));
            }
        };
        let blocks = match fields.get("content") {
            Some(Value::String(text)) => vec![(0, Block::Text(text.clone()))],
            Some(Value::Array(blocks)) => {
                let mut all = Vec::with_capacity(blocks.len());
                for (i, value) in blocks.iter().enumerate() {
                    let path = format!("content[{i}]");
                    all.extend(block(object(value, &path)?, &path, role)?.map(|block| (i, block)));
                }
                all
            }
            None | Some(Value::Null) => return Err(Refusal::missing("content")),
            Some(other) => return Err(wrong("content", "a string or an array of blocks", other)),
        };
        Ok(Self { role, blocks })
    }
}

fn required<'v>(fields: &'v Map<String, Value>, field: &str, path: &str) -> Result<&'v str, Refusal> {
    string(fields.get(field), path)?.ok_or_else(|| Refusal::missing(path))
}

/// A block of a message; `None` for one that says nothing here.
fn block(fields: &Map<String, Value>, path: &str, role: &str) -> Result<Option<Block>, Refusal> {
    let at = |field: &str| format!("{path}.{field}");
    let text_at = |field: &str| required(fields, field, &at(field)).map(str::to_owned);
    let kind = required(fields, "type", &at("type"))?;
    let only = |wanted: &str| match role == wanted {
        true => Ok(()),
        false => {
            let message = format!("{kind:?} blocks are only for messages with \"role\": {wanted:?}");
            Err(Refusal::at(&at("type"), "invalid_value", message))
        }
    };
    Ok(Some(match kind {
        "text" => Block::Text(text_at("text")?),
        "thinking" => {
            only("assistant")?;
            Block::Thinking(text_at("thinking")?)
        }
        "redacted_thinking" => {
            only("assistant")?;
            return Ok(None);
        }
        "tool_use" => {
            only("assistant")?;
            let name = text_at("name")?;
            if name.is_empty() {
                return Err(Refusal::at(&at("name"), "invalid_value", "expected a name, found \"\""));
            }
            let input = present(fields.get("input")).ok_or_else(|| Refusal::missing(&at("input")))?;
            object(input, &at("input"))?;
            // Written as the model writes arguments.
            let function = FunctionCall::deserialize(json!({"name": name, "arguments": input}))
                .map_err(|error| Refusal::at(&at("input"), "invalid_value", error.to_string()))?;
            Block::Use(ToolCall { id: text_at("id")?, kind: "function".to_owned(), function })
        }
        "tool_result" => {
            only("user")?;
            let mut result = match present(fields.get("content")) {
                Some(content) => text(content, &at("content"))?,
                None => String::new(),
            };
            match present(fields.get("is_error")) {
                None | Some(Value::Bool(false)) => {}
                Some(Value::Bool(true)) if result.to_lowercase().starts_with("error") => {}
                Some(Value::Bool(true)) => result.insert_str(0, ERROR),
                Some(other) => return Err(wrong(&at("is_error"), "true or false", other)),
            }
            Block::Result { id: text_at("tool_use_id")?, text: result }
        }
        found => return Err(refused(found, &at("type"))),
    }))
}

/// Why a type of block is not taken.
fn refused(found: &str, path: &str) -> Refusal {
    match found {
        "image" | "document" | "search_result" => {
            let message = format!("{found:?} blocks are not supported: this model takes text only");
            Refusal::at(path, "unsupported_value", message)
        }
        found if HOSTED.contains(&found) => {
            let message =
                format!("{found:?} blocks come of tools that this server does not have; leave them out");
            Refusal::at(path, "unsupported_value", message)
        }
        found => {
            let expected =
                "expected \"text\", \"thinking\", \"redacted_thinking\", \"tool_use\" or \"tool_result\"";
            let found = read::describe(&Value::from(found));
            Refusal::at(path, "invalid_value", format!("{expected}, found {found}"))
        }
    }
}

/// A text, or text blocks, each beginning a line.
fn text(content: &Value, path: &str) -> Result<String, Refusal> {
    let blocks = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        other => return Err(wrong(path, "a string or an array of text blocks", other)),
    };
    let mut all = String::new();
    for (i, block) in blocks.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let fields = object(block, &path)?;
        let at = |field: &str| format!("{path}.{field}");
        match required(fields, "type", &at("type"))? {
            "text" => push_line(&mut all, required(fields, "text", &at("text"))?),
            found => return Err(refused(found, &at("type"))),
        }
    }
    Ok(all)
}

fn push_line(all: &mut String, text: &str) {
    if !all.is_empty() && !all.ends_with('\n') {
        all.push('\n');
    }
    all.push_str(text);
}

/// The messages of the chat, and whether the answer goes on with the last one, which is an assistant's then.
///
/// # Errors
/// 400 if there is no message, for a result of no call, and for an end that has no answer.
pub(super) fn conversation(
    system: Option<System>,
    turns: Vec<Turn>,
) -> Result<(Vec<Message>, bool), ApiError> {
    if turns.is_empty() {
        return Err(ApiError::field("messages", "empty_array", "expected at least one message, found none"));
    }
    let last = turns.len() - 1;
    let mut messages: Vec<Message> =
        system.map(|System(text)| Message::new("system", text)).into_iter().collect();
    // The ids of calls as the client has them, and as the model does.
    let mut calls = HashMap::new();
    let mut goes_on = false;
    for (i, turn) in turns.into_iter().enumerate() {
        if turn.role == "assistant" {
            let mut message = assistant(turn.blocks);
            for call in &mut message.tool_calls {
                let own = tool_id::restored(&call.id, &call.function.name);
                calls.insert(std::mem::replace(&mut call.id, own.clone()), own);
            }
            if i == last {
                check_prefill(&message, i)?;
                goes_on = true;
            }
            messages.push(message);
            continue;
        }
        let mut said: Option<String> = None;
        for (at, block) in turn.blocks {
            match block {
                Block::Result { id, text } => {
                    let Some(id) = calls.get(&id) else {
                        let found = read::describe(&Value::from(id));
                        let message = format!("expected the id of a tool_use block before it, found {found}");
                        let path = format!("messages[{i}].content[{at}].tool_use_id");
                        return Err(ApiError::field(&path, "invalid_value", message));
                    };
                    messages.extend(said.take().map(|text| Message::new(turn.role, text)));
                    messages.push(Message { tool_call_id: Some(id.clone()), ..Message::new("tool", text) });
                }
                Block::Text(text) => push_line(said.get_or_insert_default(), &text),
                Block::Thinking(_) | Block::Use(_) => {} // read as an assistant's only
            }
        }
        messages.extend(said.map(|text| Message::new(turn.role, text)));
    }
    Ok((messages, goes_on))
}

fn assistant(blocks: Vec<(usize, Block)>) -> Message {
    let mut message = Message { role: "assistant".to_owned(), ..Message::default() };
    let mut said: Option<String> = None;
    for (_, block) in blocks {
        match block {
            Block::Text(text) => push_line(said.get_or_insert_default(), &text),
            Block::Thinking(text) => message.reasoning_content.get_or_insert_default().push_str(&text),
            Block::Use(call) => message.tool_calls.push(call),
            Block::Result { .. } => {} // read as a user's only
        }
    }
    if said.is_none() && message.tool_calls.is_empty() {
        said = Some(String::new());
    }
    message.content = said.map(Content::Text);
    message
}

/// Checks that an answer can go on after an assistant's message.
fn check_prefill(message: &Message, i: usize) -> Result<(), ApiError> {
    let problem = match &message.content {
        _ if !message.tool_calls.is_empty() => {
            "the last message has tool_use blocks; send their results in a message of the user"
        }
        Some(Content::Text(text)) if text.trim_end().len() != text.len() => {
            "the answer goes on with this last message, which must not end in white space"
        }
        _ => return Ok(()),
    };
    Err(ApiError::field(&format!("messages[{i}].content"), "invalid_value", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Fields {
        system: Option<System>,
        messages: Vec<Turn>,
    }

    fn read(body: Value) -> Result<(Vec<Message>, bool), ApiError> {
        let fields: Fields = read::fields(body, &mut Default::default())?;
        conversation(fields.system, fields.messages)
    }

    #[test]
    fn blocks_become_messages() {
        let (messages, goes_on) = read(json!({
            "system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B"}],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1, "b": "x"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true, "content": [{"type": "text", "text": "no"}]},
                    {"type": "text", "text": "and?"},
                ]},
                {"role": "assistant", "content": "Well"},
            ],
        }))
        .unwrap();
        let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user", "assistant"]);
        assert_eq!(messages[0], Message::new("system", "A\nB"));
        assert_eq!(messages[2].reasoning_content.as_deref(), Some("hm"));
        assert_eq!(messages[2].tool_calls[0].function.arguments, r#"{"a": 1, "b": "x"}"#);
        assert_eq!(messages[3].content, Some(Content::Text("Error: no".into())));
        assert!(goes_on);
    }

    #[test]
    fn mistakes_are_named() {
        let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        let assistant = |content: Value| json!({"messages": [{"role": "assistant", "content": content}]});
        let cases = [
            (json!({"messages": []}), "messages", "empty_array"),
            (json!({"messages": ["x"]}), "messages[0]", "invalid_type"),
            (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role", "invalid_value"),
            (json!({"system": 5, "messages": []}), "system", "invalid_type"),
            (json!({"system": [{"type": "image"}], "messages": []}), "system[0].type", "unsupported_value"),
            (user(Value::Null), "messages[0].content", "missing_required_parameter"),
            (user(json!([{"type": "image"}])), "messages[0].content[0].type", "unsupported_value"),
            (
                user(json!([{"type": "web_search_tool_result"}])),
                "messages[0].content[0].type",
                "unsupported_value",
            ),
            (user(json!([{"type": "poem"}])), "messages[0].content[0].type", "invalid_value"),
            (user(json!([{"type": "tool_use"}])), "messages[0].content[0].type", "invalid_value"),
            (user(json!([{"type": "text", "text": 5}])), "messages[0].content[0].text", "invalid_type"),
            (
                user(json!([{"type": "tool_result", "tool_use_id": "x"}])),
                "messages[0].content[0].tool_use_id",
                "invalid_value",
            ),
            (assistant(json!("x ")), "messages[0].content", "invalid_value"),
            (
                assistant(json!([{"type": "tool_use", "id": "x", "name": "f", "input": "{}"}])),
                "messages[0].content[0].input",
                "invalid_type",
            ),
        ];
        for (body, path, code) in cases {
            let error = read(body.clone()).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(path), Some(code)), "{body}: {error}");
        }
    }
}
