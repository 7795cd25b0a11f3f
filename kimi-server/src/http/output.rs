//! `tool_choice` and `response_format`: the form that an answer must have.

use kimi_core::chat_model::{OutputFormat, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use super::read::{self, Object, Refusal};

/// `tool_choice`: a word, or an object that names tools.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Choice(pub(super) ToolChoice);

impl TryFrom<Value> for Choice {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        const WORDS: &str = "\"auto\", \"none\", \"required\" or an object that names tools";
        match &value {
            Value::String(word) => match word.as_str() {
                "auto" => Ok(ToolChoice::Auto),
                "none" => Ok(ToolChoice::None),
                // Moonshot and Anthropic's "any" is what OpenAI calls "required".
                "required" | "any" => Ok(ToolChoice::Required),
                _ => Err(Refusal::new("invalid_value", expected(WORDS, &value))),
            },
            Value::Object(fields) => match fields.get("type").and_then(Value::as_str) {
                Some("function") => name(&value, "").map(ToolChoice::Named),
                Some("allowed_tools") => allowed(fields.get("allowed_tools").unwrap_or(&value)),
                Some(_) | None => {
                    let found = fields.get("type").unwrap_or(&Value::Null);
                    let code =
                        if found.is_null() { "missing_required_parameter" } else { "unsupported_value" };
                    Err(Refusal::at("type", code, expected("\"function\" or \"allowed_tools\"", found)))
                }
            },
            other => Err(Refusal::new("invalid_type", expected(WORDS, other))),
        }
        .map(Self)
    }
}

/// The name in `{"type": "function", "function": {"name": ...}}`, or without the inner object as Responses have it.
fn name(tool: &Value, path: &str) -> Result<String, Refusal> {
    let (fields, at) = match tool.get("function") {
        Some(function) => (function, format!("{path}function.name")),
        None if tool.get("name").is_some() => (tool, format!("{path}name")),
        None => return Err(Refusal::missing(&format!("{path}function"))),
    };
    match fields.get("name") {
        Some(Value::String(name)) => Ok(name.clone()),
        None | Some(Value::Null) => Err(Refusal::missing(&at)),
        Some(other) => Err(Refusal::at(&at, "invalid_type", expected("a string", other))),
    }
}

/// `{"mode": ..., "tools": [...]}`.
fn allowed(fields: &Value) -> Result<ToolChoice, Refusal> {
    let path = "allowed_tools";
    let mode = fields.get("mode").unwrap_or(&Value::Null);
    let required = match mode.as_str() {
        Some("auto") => false,
        Some("required") => true,
        _ => {
            let message = expected("\"auto\" or \"required\"", mode);
            return Err(Refusal::at(&format!("{path}.mode"), "invalid_value", message));
        }
    };
    let tools = fields.get("tools").and_then(Value::as_array).filter(|tools| !tools.is_empty());
    let Some(tools) = tools else {
        let found = fields.get("tools").unwrap_or(&Value::Null);
        let message = expected("an array of at least one tool", found);
        return Err(Refusal::at(&format!("{path}.tools"), "invalid_value", message));
    };
    let one = |(i, tool)| name(tool, &format!("{path}.tools[{i}]."));
    let names = tools.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    Ok(ToolChoice::Allowed { required, names })
}

fn expected(what: &str, found: &Value) -> String {
    format!("expected {what}, found {}", read::describe(found))
}

/// `response_format`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Object<RawFormat>")]
pub(super) struct Format(pub(super) OutputFormat);

#[derive(Deserialize)]
struct RawFormat {
    r#type: String,
    json_schema: Option<Object<Schema>>,
    schema: Option<Value>,
    regex: Option<String>,
    pattern: Option<String>,
    lark: Option<String>,
    grammar: Option<String>,
}

#[derive(Deserialize)]
struct Schema {
    name: Option<String>,
    schema: Option<Value>,
    strict: Option<bool>,
}

impl TryFrom<Object<RawFormat>> for Format {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawFormat>) -> Result<Self, Refusal> {
        Ok(Self(match raw.r#type.as_str() {
            "text" => OutputFormat::Text,
            // llama.cpp and Together put a schema beside the type.
            "json_object" => match raw.schema {
                Some(schema) => json_schema("", schema, false),
                None => OutputFormat::JsonObject,
            },
            "json_schema" => {
                let Object(of) = raw.json_schema.ok_or_else(|| Refusal::missing("json_schema"))?;
                let schema = of.schema.ok_or_else(|| Refusal::missing("json_schema.schema"))?;
                json_schema(of.name.as_deref().unwrap_or_default(), schema, of.strict.unwrap_or(false))
            }
            "regex" => {
                let pattern = raw.regex.or(raw.pattern);
                OutputFormat::Regex(pattern.ok_or_else(|| Refusal::missing("regex"))?)
            }
            "lark" | "grammar" => {
                let grammar = raw.lark.or(raw.grammar);
                OutputFormat::Lark(grammar.ok_or_else(|| Refusal::missing("lark"))?)
            }
            other => {
                let types = "\"text\", \"json_object\", \"json_schema\", \"regex\" or \"lark\"";
                return Err(Refusal::at("type", "invalid_value", expected(types, &Value::from(other))));
            }
        }))
    }
}

pub(super) fn json_schema(name: &str, schema: Value, strict: bool) -> OutputFormat {
    OutputFormat::JsonSchema { name: name.to_owned(), schema, strict }
}

/// Fields by which vLLM, SGLang and llama.cpp ask for the same, beside `response_format`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OtherFormats {
    structured_outputs: Option<Object<StructuredOutputs>>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    json_schema: Option<Value>,
    regex: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
}

impl OtherFormats {
    /// The form that one of the fields asks for.
    ///
    /// # Errors
    /// 400 that names a second field that asks for one too.
    pub(super) fn format(self) -> Result<Option<OutputFormat>, ApiError> {
        let schema = |value: Value| match value {
            // Some clients send the schema as text.
            Value::String(text) => match serde_json::from_str(&text) {
                Ok(schema) => json_schema("", schema, false),
                Err(_) => json_schema("", Value::String(text), false),
            },
            schema => json_schema("", schema, false),
        };
        let structured = self.structured_outputs.unwrap_or_default().0;
        let mut found = [
            ("structured_outputs.json", structured.json.map(schema)),
            ("structured_outputs.regex", structured.regex.map(OutputFormat::Regex)),
            ("structured_outputs.choice", structured.choice.map(OutputFormat::Choice)),
            ("structured_outputs.grammar", structured.grammar.map(OutputFormat::Lark)),
            (
                "structured_outputs.json_object",
                structured.json_object.filter(|&on| on).map(|_| OutputFormat::JsonObject),
            ),
            ("guided_json", self.guided_json.map(schema)),
            ("guided_regex", self.guided_regex.map(OutputFormat::Regex)),
            ("guided_choice", self.guided_choice.map(OutputFormat::Choice)),
            ("guided_grammar", self.guided_grammar.map(OutputFormat::Lark)),
            ("json_schema", self.json_schema.map(schema)),
            ("regex", self.regex.map(OutputFormat::Regex)),
        ]
        .into_iter()
        .filter_map(|(name, format)| Some((name, format?)));
        let first = found.next();
        match (first, found.next()) {
            (Some((first, _)), Some((second, _))) => {
                let message = format!("says what form the answer has, and so does {first}; give one of them");
                Err(ApiError::field(second, "invalid_value", message))
            }
            (first, _) => Ok(first.map(|(_, format)| format)),
        }
    }
}
