//! Items of a conversation, as the Responses API has them: what a request may bring, and the messages that they stand for.

use std::collections::HashSet;

use kimi_core::chat::{Content, FunctionCall, Message, ToolCall};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::http::error::ApiError;
use crate::http::messages::{object, present, string, wrong};
use crate::http::read::{self, Refusal};
use crate::http::response::new_id;

/// Types of items that come of tools which OpenAI's servers run.
const HOSTED: [&str; 20] = [
    "file_search_call",
    "web_search_call",
    "computer_call",
    "computer_call_output",
    "code_interpreter_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "custom_tool_call",
    "custom_tool_call_output",
    "tool_search_call",
    "compaction",
];

/// `input`: a text, or items.
#[derive(Debug, Default)]
pub(super) struct Input(pub(super) Vec<Given>);

/// An item of a request, as it came and as it was understood.
#[derive(Debug)]
pub(super) struct Given {
    item: Item,
    value: Map<String, Value>,
}

/// An item that was understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Message {
        role: &'static str,
        text: String,
    },
    Reasoning {
        text: String,
    },
    Call {
        call_id: String,
        name: String,
        arguments: String,
    },
    Output {
        call_id: String,
        text: String,
    },
    /// An item of a stored response.
    Reference {
        id: String,
    },
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrItems;
        impl<'de> Visitor<'de> for TextOrItems {
            type Value = Input;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or an array of items")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Input, E> {
                let value = json!({"role": "user", "content": text});
                Ok(Input(vec![Given::try_from(value).map_err(Refusal::into_serde)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Input(all))
            }
        }
        from.deserialize_any(TextOrItems)
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::try_from(Value::deserialize(from)?).map_err(Refusal::into_serde)
    }
}

impl TryFrom<Value> for Given {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        let item = Item::read(object(&value, "")?)?;
        match value {
            Value::Object(value) => Ok(Self { item, value }),
            other => Err(wrong("", "an object", &other)),
        }
    }
}

impl Given {
    /// The item as it is shown and stored: with an id, and a message's text as a part.
    fn shown(self) -> (Item, Value) {
        let Self { item, mut value } = self;
        let (kind, prefix) = match &item {
            Item::Message { role, text } => {
                if matches!(value.get("content"), Some(Value::String(_))) {
                    let kind = if *role == "assistant" { "output_text" } else { "input_text" };
                    let mut part = json!({"type": kind, "text": text});
                    if *role == "assistant" {
                        part["annotations"] = json!([]);
                    }
                    value.insert("content".into(), json!([part]));
                }
                ("message", "msg_")
            }
            Item::Reasoning { .. } => ("reasoning", "rs_"),
            Item::Call { .. } => ("function_call", "fc_"),
            Item::Output { .. } => ("function_call_output", "fco_"),
            Item::Reference { .. } => ("item_reference", ""),
        };
        value.insert("type".into(), kind.into());
        if present(value.get("id")).is_none() {
            value.insert("id".into(), new_id(prefix).into());
        }
        value.entry("status").or_insert("completed".into());
        (item, value.into())
    }
}

impl Item {
    /// Reads an item.
    ///
    /// # Errors
    /// The field that is at fault, and why.
    pub(super) fn read(item: &Map<String, Value>) -> Result<Self, Refusal> {
        let needed = |field: &str| required(item, field);
        let kind = match string(item.get("type"), "type")? {
            Some(kind) => kind,
            None if present(item.get("role")).is_some() => "message",
            None => return Err(Refusal::missing("type")),
        };
        match kind {
            "message" => {
                let role = role(required(item, "role")?.as_str())?;
                let content = item.get("content").unwrap_or(&Value::Null);
                let text = text(content, "content", &["input_text", "output_text", "text", "refusal"])?;
                Ok(Self::Message { role, text })
            }
            "function_call" => {
                let name = needed("name")?;
                if name.is_empty() {
                    return Err(Refusal::at("name", "invalid_value", "expected a name, found \"\""));
                }
                Ok(Self::Call { call_id: needed("call_id")?, name, arguments: needed("arguments")? })
            }
            "function_call_output" => {
                let output = present(item.get("output")).ok_or_else(|| Refusal::missing("output"))?;
                let text = text(output, "output", &["input_text", "output_text", "text"])?;
                Ok(Self::Output { call_id: needed("call_id")?, text })
            }
            "reasoning" => {
                let part = |field: &str, kind: &str| match present(item.get(field)) {
                    Some(parts) => text(parts, field, &[kind, "text"]),
                    None => Ok(String::new()),
                };
                let (content, summary) =
                    (part("content", "reasoning_text")?, part("summary", "summary_text")?);
                Ok(Self::Reasoning { text: if content.is_empty() { summary } else { content } })
            }
            "item_reference" => Ok(Self::Reference { id: needed("id")? }),
            found if HOSTED.contains(&found) => {
                let message =
                    format!("{found:?} items come of tools that this server does not have; leave them out");
                Err(Refusal::at("type", "unsupported_value", message))
            }
            found => {
                let expected = "expected \"message\", \"reasoning\", \"function_call\", \"function_call_output\" or \
                                \"item_reference\"";
                let found = read::describe(&Value::from(found));
                Err(Refusal::at("type", "invalid_value", format!("{expected}, found {found}")))
            }
        }
    }
}

fn required(item: &Map<String, Value>, field: &str) -> Result<String, Refusal> {
    let found = string(item.get(field), field)?.ok_or_else(|| Refusal::missing(field))?;
    Ok(found.to_owned())
}

fn role(found: &str) -> Result<&'static str, Refusal> {
    match found {
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "system" | "developer" => Ok("system"),
        other => {
            let found = read::describe(&Value::from(other));
            let expected = "expected \"user\", \"assistant\", \"system\" or \"developer\"";
            Err(Refusal::at("role", "invalid_value", format!("{expected}, found {found}")))
        }
    }
}

/// The text of a string, or of parts of some types, one after another.
fn text(content: &Value, path: &str, types: &[&str]) -> Result<String, Refusal> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        Value::Null => return Err(Refusal::missing(path)),
        other => return Err(wrong(path, "a string or an array of parts", other)),
    };
    let mut all = String::new();
    for (i, part) in parts.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let part = object(part, &path)?;
        let at = |field: &str| format!("{path}.{field}");
        let kind = string(part.get("type"), &at("type"))?.ok_or_else(|| Refusal::missing(&at("type")))?;
        if matches!(kind, "input_image" | "input_file" | "input_audio" | "input_video") {
            let message = format!("{kind:?} parts are not supported: this model takes text only");
            return Err(Refusal::at(&at("type"), "unsupported_value", message));
        }
        if !types.contains(&kind) {
            let found = read::describe(&Value::from(kind));
            let message = format!("expected {:?}, found {found}", types.first().unwrap_or(&"text"));
            return Err(Refusal::at(&at("type"), "invalid_value", message));
        }
        let field = if kind == "refusal" { "refusal" } else { "text" };
        all.push_str(string(part.get(field), &at(field))?.ok_or_else(|| Refusal::missing(&at(field)))?);
    }
    Ok(all)
}

/// A conversation that is put together from items.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    /// Ids of the calls so far.
    calls: HashSet<String>,
}

impl Conversation {
    /// Adds the items of an earlier turn, as they were stored.
    ///
    /// # Errors
    /// 500 if they can't be read, which is a mistake of the server.
    pub(super) fn stored(&mut self, items: &[Value]) -> Result<(), ApiError> {
        let broken = || ApiError::internal("a stored item can't be read");
        for value in items {
            let item = Item::read(value.as_object().ok_or_else(broken)?).map_err(|_| broken())?;
            self.push(item).map_err(|_| broken())?;
        }
        Ok(())
    }

    /// Adds the items of a request. Gives them back as they are stored. `stored` finds an item of a stored response by its
    /// id.
    ///
    /// # Errors
    /// 400 for an answer to no call; 404 for a reference to nothing.
    pub(super) fn given(
        &mut self,
        items: Vec<Given>,
        stored: impl Fn(&str) -> Option<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let mut shown = Vec::with_capacity(items.len());
        for (i, given) in items.into_iter().enumerate() {
            if let Item::Reference { id } = &given.item {
                let found = stored(id).ok_or_else(|| ApiError::no_item(&format!("input[{i}].id"), id))?;
                self.stored(std::slice::from_ref(&found))?;
                shown.push(found);
                continue;
            }
            let (item, value) = given.shown();
            self.push(item).map_err(|found| {
                let message = format!("expected the call_id of a function_call before it, found {found:?}");
                ApiError::field(&format!("input[{i}].call_id"), "invalid_value", message)
            })?;
            shown.push(value);
        }
        Ok(shown)
    }

    /// # Errors
    /// The id that a result answers, if no call has it.
    fn push(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Message { role: "assistant", text } => {
                let open = self.open(is_thought);
                open.content = Some(Content::Text(text));
            }
            Item::Message { role, text } => self.messages.push(Message::new(role, text)),
            Item::Reasoning { text } if text.is_empty() => {}
            Item::Reasoning { text } => {
                self.open(is_thought).reasoning_content.get_or_insert_default().push_str(&text);
            }
            Item::Call { call_id, name, arguments } => {
                self.calls.insert(call_id.clone());
                let function = FunctionCall { name, arguments };
                let call = ToolCall { id: call_id, kind: "function".to_owned(), function };
                self.open(|_| true).tool_calls.push(call);
            }
            Item::Output { call_id, text } => {
                if !self.calls.contains(&call_id) {
                    return Err(call_id);
                }
                self.messages.push(Message { tool_call_id: Some(call_id), ..Message::new("tool", text) });
            }
            Item::Reference { id } => return Err(id),
        }
        Ok(())
    }

    /// The assistant's message that an item belongs to: the last one, if it `fits`, or a new one.
    fn open(&mut self, fits: impl Fn(&Message) -> bool) -> &mut Message {
        if !self.messages.last().is_some_and(|last| last.role == "assistant" && fits(last)) {
            self.messages.push(Message { role: "assistant".to_owned(), ..Message::default() });
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }
}

/// Whether a message has nothing but thinking so far.
fn is_thought(message: &Message) -> bool {
    message.content.is_none() && message.tool_calls.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(items: Value) -> Result<Vec<Message>, ApiError> {
        let Input(items) =
            read::fields::<Wrapped, _>(json!({"input": items}), &mut Default::default())?.input;
        let mut all = Conversation::default();
        all.given(items, |_| None)?;
        Ok(all.messages)
    }

    #[derive(Deserialize)]
    struct Wrapped {
        input: Input,
    }

    #[test]
    fn items_of_one_answer_are_one_message() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let output = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": [{"type": "input_text", "text": "1"}]});
        let messages = conversation(json!([
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": null},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
            call("x"), call("y"), output("y"), output("x"),
            {"role": "assistant", "content": "done"},
            {"role": "assistant", "content": "really"},
        ]))
        .unwrap();
        let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "assistant", "assistant"]);
        assert_eq!(messages[1], Message::new("user", "ab"));
        let answer = &messages[2];
        assert_eq!((answer.reasoning_content.as_deref(), answer.tool_calls.len()), (Some("hm"), 2));
        assert_eq!(answer.content, Some(Content::Text("Let me see.".into())));
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("y"));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (json!(5), "input", "invalid_type"),
            (json!(["x"]), "input[0]", "invalid_type"),
            (json!([{"content": "x"}]), "input[0].type", "missing_required_parameter"),
            (json!([{"type": 5}]), "input[0].type", "invalid_type"),
            (json!([{"type": "poem"}]), "input[0].type", "invalid_value"),
            (json!([{"type": "web_search_call"}]), "input[0].type", "unsupported_value"),
            (json!([{"role": "robot", "content": "x"}]), "input[0].role", "invalid_value"),
            (json!([{"role": "user"}]), "input[0].content", "missing_required_parameter"),
            (
                json!([{"role": "user", "content": [{"type": "input_image"}]}]),
                "input[0].content[0].type",
                "unsupported_value",
            ),
            (
                json!([{"role": "user", "content": [{"type": "input_text", "text": 1}]}]),
                "input[0].content[0].text",
                "invalid_type",
            ),
            (
                json!([{"type": "function_call", "name": "f", "arguments": "{}"}]),
                "input[0].call_id",
                "missing_required_parameter",
            ),
            (
                json!([{"type": "function_call_output", "call_id": "x", "output": "1"}]),
                "input[0].call_id",
                "invalid_value",
            ),
            (json!([{"type": "item_reference", "id": "msg_1"}]), "input[0].id", "item_not_found"),
        ];
        for (items, path, code) in cases {
            let error = conversation(items.clone()).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(path), Some(code)), "{items}: {error}");
        }
    }
}
