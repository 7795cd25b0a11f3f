//! The fields of a request of Anthropic's API, beside its messages.

use kimi_core::chat::Tool;
use kimi_core::chat_model::{OutputFormat, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::messages::{object, present, string, wrong};
use crate::http::output::json_schema;
use crate::http::read::{Object, Refusal, Whole};
use crate::http::responses::function;

/// A declared tool.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Declared(pub(super) Tool);

impl TryFrom<Value> for Declared {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        let fields = object(&value, "")?;
        match string(fields.get("type"), "type")? {
            None | Some("custom") => {}
            Some(found) => {
                let message = format!(
                    "{found:?} is a tool of Anthropic's, which this server and its models don't have; leave it out, or declare \
                     a tool of yours with name, description and input_schema"
                );
                return Err(Refusal::at("type", "unsupported_value", message));
            }
        }
        if present(fields.get("input_schema")).is_none() {
            return Err(Refusal::missing("input_schema"));
        }
        function(fields, "input_schema").map(Self)
    }
}

/// `tool_choice`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Object<RawChoice>")]
pub(super) struct Choice {
    pub(super) tools: ToolChoice,
    pub(super) parallel: bool,
}

#[derive(Deserialize)]
struct RawChoice {
    r#type: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

impl TryFrom<Object<RawChoice>> for Choice {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawChoice>) -> Result<Self, Refusal> {
        let tools = match raw.r#type.as_str() {
            "auto" => ToolChoice::Auto,
            "any" => ToolChoice::Required,
            "none" => ToolChoice::None,
            "tool" => ToolChoice::Named(raw.name.ok_or_else(|| Refusal::missing("name"))?),
            other => return Err(Refusal::kind("\"auto\", \"any\", \"tool\" or \"none\"", other)),
        };
        Ok(Self { tools, parallel: !raw.disable_parallel_tool_use.unwrap_or(false) })
    }
}

/// `thinking`. The budget is no limit here: a model thinks as long as it does.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Object<RawThinking>")]
pub(super) struct Thinking(pub(super) bool);

#[derive(Deserialize)]
struct RawThinking {
    r#type: String,
    budget_tokens: Option<Whole>,
}

impl TryFrom<Object<RawThinking>> for Thinking {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawThinking>) -> Result<Self, Refusal> {
        if let Some(budget) = raw.budget_tokens
            && let Err(error) = budget.within("budget_tokens", 1..=i64::from(u32::MAX))
        {
            let message = error.message.trim_start_matches("budget_tokens: ");
            return Err(Refusal::at("budget_tokens", "invalid_value", message));
        }
        match raw.r#type.as_str() {
            "enabled" | "adaptive" => Ok(Self(true)),
            "disabled" => Ok(Self(false)),
            other => Err(Refusal::kind("\"enabled\", \"adaptive\" or \"disabled\"", other)),
        }
    }
}

/// `output_config`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OutputConfig {
    format: Option<Format>,
}

/// `output_config.format`, or `output_format` as it was called at first.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Object<RawFormat>")]
pub(super) struct Format(OutputFormat);

#[derive(Deserialize)]
struct RawFormat {
    r#type: String,
    schema: Option<Value>,
}

impl TryFrom<Object<RawFormat>> for Format {
    type Error = Refusal;

    fn try_from(Object(raw): Object<RawFormat>) -> Result<Self, Refusal> {
        match raw.r#type.as_str() {
            "json_schema" => {
                let schema = raw.schema.ok_or_else(|| Refusal::missing("schema"))?;
                if !schema.is_object() {
                    return Err(wrong("schema", "an object", &schema));
                }
                Ok(Self(json_schema("", schema, false)))
            }
            other => Err(Refusal::kind("\"json_schema\"", other)),
        }
    }
}

/// The form of the answer, which either field may ask for.
pub(super) fn output(config: OutputConfig, format: Option<Format>) -> OutputFormat {
    config.format.or(format).map_or(OutputFormat::Text, |format| format.0)
}

/// Refuses a field that has a value.
///
/// # Errors
/// 400 that names it and says what to do.
pub(super) fn refuse(name: &str, value: Option<&Value>, instead: &str) -> Result<(), ApiError> {
    match value {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(values)) if values.is_empty() => Ok(()),
        Some(_) => {
            Err(ApiError::field(name, "unsupported_parameter", format!("is not supported; {instead}")))
        }
    }
}
