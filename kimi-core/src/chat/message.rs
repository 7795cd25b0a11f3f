//! Chat messages and tools in the JSON shape of OpenAI's chat API. Unknown fields are ignored.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::python;

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`; a template may know others.
    pub role: String,
    /// The text; `None` for a message of tool calls alone.
    #[serde(default)]
    pub content: Option<Content>,
    /// Shown in place of the role, for instance a tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The calls of an assistant's message.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// In a `tool` message: the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The thinking before an assistant's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Another name for [`Message::reasoning_content`] that some clients send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(text.into())), ..Self::default() }
    }

    /// The message as a template sees it: a field that is not set is absent, `content` is always there.
    pub(super) fn to_template(&self) -> Value {
        let mut map = Map::new();
        map.insert("role".into(), self.role.clone().into());
        map.insert("content".into(), serde_json::to_value(&self.content).unwrap_or(Value::Null));
        let mut set = |key: &str, value: Option<&String>| {
            if let Some(value) = value {
                map.insert(key.into(), value.clone().into());
            }
        };
        set("name", self.name.as_ref());
        set("tool_call_id", self.tool_call_id.as_ref());
        set("reasoning_content", self.reasoning_content.as_ref().or(self.reasoning.as_ref()));
        if !self.tool_calls.is_empty() {
            map.insert("tool_calls".into(), serde_json::to_value(&self.tool_calls).unwrap_or(Value::Null));
        }
        Value::Object(map)
    }
}

/// A message's content: text, or a list of typed parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, in order.
    Parts(Vec<ContentPart>),
}

impl Content {
    /// The text; of parts, their texts one after another.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.iter().filter_map(|p| p.text.as_deref()).collect(),
        }
    }
}

/// One part of a message's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContentPart {
    /// `text`, `image_url`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The other fields, for instance `image_url`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A call of a tool in an assistant's message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The call's id; the tool's answer names it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// A function's name and arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments as JSON text, as the model wrote it. A JSON object is accepted in its place and written
    /// as Python's `json.dumps` would.
    #[serde(default = "no_arguments", deserialize_with = "arguments")]
    pub arguments: String,
}

fn function() -> String {
    "function".into()
}

fn no_arguments() -> String {
    "{}".into()
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

fn arguments<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => text,
        Value::Null => no_arguments(),
        other => python::dumps(&other, &python::JsonStyle::default()),
    })
}

/// A tool that the model may call, as the client sent it: `{"type": "function", "function": {"name": ...,
/// ...}}`.
///
/// All fields are kept, because templates print the whole declaration; the keys of every object in it are in order,
/// as Moonshot's tokenizer sorts them (`deep_sort_dict`). Clones share it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Tool(Arc<Value>);

/// A tool declaration without the fields that it must have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a tool's {field}: expected {expected}, found {found}")]
pub struct ToolError {
    /// Which field.
    pub field: &'static str,
    /// What it should be.
    pub expected: &'static str,
    /// What it is.
    pub found: String,
}

impl Tool {
    /// The function's name.
    pub fn name(&self) -> &str {
        self.function("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The JSON schema of the function's arguments.
    pub fn parameters(&self) -> Option<&Value> {
        self.function("parameters")
    }

    /// Whether its arguments must follow the parameters in every call: `function.strict`.
    pub fn strict(&self) -> bool {
        self.function("strict").and_then(Value::as_bool).unwrap_or(false)
    }

    /// The whole declaration.
    pub fn json(&self) -> &Arc<Value> {
        &self.0
    }

    fn function(&self, key: &str) -> Option<&Value> {
        self.0.get("function")?.get(key)
    }
}

impl TryFrom<Value> for Tool {
    type Error = ToolError;

    fn try_from(mut value: Value) -> Result<Self, ToolError> {
        let shown = |v: Option<&Value>| v.map_or("nothing".to_owned(), python::shown);
        let fail =
            |field, expected, found: Option<&Value>| Err(ToolError { field, expected, found: shown(found) });
        let kind = value.get("type");
        if kind.and_then(Value::as_str) != Some("function") {
            return fail("type", "\"function\"", kind);
        }
        let name = value.get("function").and_then(|f| f.get("name"));
        if name.and_then(Value::as_str).is_none_or(str::is_empty) {
            return fail("function.name", "a string that is not empty", name);
        }
        value.sort_all_objects();
        Ok(Self(Arc::new(value)))
    }
}

impl From<Tool> for Value {
    fn from(tool: Tool) -> Self {
        Arc::unwrap_or_clone(tool.0)
    }
}
