//! `tools`, `text` and `reasoning` of the Responses API.

use kimi_core::chat::Tool;
use kimi_core::chat_model::OutputFormat;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::http::error::ApiError;
use crate::http::messages::{self, object, present, string, wrong};
use crate::http::output::json_schema;
use crate::http::read::{self, Object, Refusal};

/// Types of tools that OpenAI's servers run, or that its models were trained on.
const HOSTED: [&str; 18] = [
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "file_search",
    "code_interpreter",
    "computer",
    "computer_use",
    "computer_use_preview",
    "image_generation",
    "mcp",
    "local_shell",
    "shell",
    "apply_patch",
    "custom",
    "namespace",
    "tool_search",
    "programmatic_tool_calling",
];

/// A declared tool as it came, and the function that it is.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Declared {
    /// `None` for a search that may not reach anything from here: Codex declares one with every request, unless its settings
    /// say otherwise, and works as well without.
    pub(super) tool: Option<Tool>,
    pub(super) shown: Value,
}

impl TryFrom<Value> for Declared {
    type Error = Refusal;

    fn try_from(mut value: Value) -> Result<Self, Refusal> {
        let fields = object(&value, "")?;
        match string(fields.get("type"), "type")?.ok_or_else(|| Refusal::missing("type"))? {
            "function" => {}
            "web_search" if fields.get("external_web_access") == Some(&Value::Bool(false)) => {
                return Ok(Self { tool: None, shown: value });
            }
            found if HOSTED.contains(&found) => {
                let message = format!(
                    "{found:?} is not supported: this server runs no tools of its own; leave it out (clients have a setting for \
                     that), or declare a \"function\" that your client runs"
                );
                return Err(Refusal::at("type", "unsupported_value", message));
            }
            found => return Err(Refusal::kind("\"function\"", found)),
        }
        let tool = function(fields, "parameters")?;
        value["strict"] = tool.strict().into();
        if value.get("parameters").is_none() {
            value["parameters"] = Value::Null;
        }
        Ok(Self { tool: Some(tool), shown: value })
    }
}

/// A function that is declared without an object around it. `schema` is what its parameters are called.
///
/// # Errors
/// The field that is at fault, and why.
pub(in crate::http) fn function(fields: &Map<String, Value>, schema: &str) -> Result<Tool, Refusal> {
    let name = string(fields.get("name"), "name")?.ok_or_else(|| Refusal::missing("name"))?;
    messages::check_name("name", name)?;
    let mut function = json!({"name": name});
    if let Some(description) = string(fields.get("description"), "description")? {
        function["description"] = description.into();
    }
    if let Some(parameters) = present(fields.get(schema)) {
        object(parameters, schema)?;
        function["parameters"] = parameters.clone();
    }
    match present(fields.get("strict")) {
        None => {}
        Some(strict @ Value::Bool(_)) => function["strict"] = strict.clone(),
        Some(other) => return Err(wrong("strict", "true or false", other)),
    }
    let tool = json!({"type": "function", "function": function});
    Tool::try_from(tool).map_err(|error| Refusal::new("invalid_value", error.to_string()))
}

/// Checks how many tools there are.
///
/// # Errors
/// 400 for too many.
pub(in crate::http) fn check_count(tools: usize) -> Result<(), ApiError> {
    if tools > messages::MAX_TOOLS {
        let message = format!("expected at most {} tools, found {tools}", messages::MAX_TOOLS);
        return Err(ApiError::field("tools", "array_above_max_length", message));
    }
    Ok(())
}

/// `text`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TextOptions {
    format: Option<Format>,
    verbosity: Option<String>,
}

impl TextOptions {
    /// The form of the answer, and the field as it is shown.
    pub(super) fn read(self) -> (OutputFormat, Value) {
        let (format, shown) = self.format.map_or_else(
            || (OutputFormat::Text, json!({"type": "text"})),
            |format| (format.output, format.shown),
        );
        (format, json!({"format": shown, "verbosity": self.verbosity.unwrap_or_else(|| "medium".to_owned())}))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Format {
    output: OutputFormat,
    shown: Value,
}

#[derive(Deserialize)]
struct RawFormat {
    r#type: String,
    name: Option<String>,
    schema: Option<Value>,
    strict: Option<bool>,
}

impl TryFrom<Value> for Format {
    type Error = Refusal;

    fn try_from(shown: Value) -> Result<Self, Refusal> {
        object(&shown, "")?;
        let raw = Object::<RawFormat>::deserialize(&shown);
        let Object(raw) = raw.map_err(|error| Refusal::new("invalid_value", error.to_string()))?;
        let output = match raw.r#type.as_str() {
            "text" => OutputFormat::Text,
            "json_object" => OutputFormat::JsonObject,
            "json_schema" => {
                let schema = raw.schema.ok_or_else(|| Refusal::missing("schema"))?;
                json_schema(raw.name.as_deref().unwrap_or_default(), schema, raw.strict.unwrap_or(false))
            }
            other => {
                return Err(Refusal::kind("\"text\", \"json_object\" or \"json_schema\"", other));
            }
        };
        Ok(Self { output, shown })
    }
}

/// `reasoning`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Reasoning {
    effort: Option<String>,
    summary: Option<String>,
    /// What `summary` was called before.
    generate_summary: Option<String>,
    mode: Option<String>,
    context: Option<String>,
}

impl Reasoning {
    /// Whether the model is to think, if the request says so. There are no degrees of it.
    ///
    /// # Errors
    /// 400 for an unknown effort.
    pub(super) fn thinking(&self) -> Result<Option<bool>, ApiError> {
        match self.effort.as_deref() {
            None => Ok(None),
            Some("none") => Ok(Some(false)),
            Some("minimal" | "low" | "medium" | "high" | "xhigh" | "max") => Ok(Some(true)),
            Some(other) => {
                let found = read::describe(&Value::from(other));
                let expected = "expected \"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\"";
                Err(ApiError::field(
                    "reasoning.effort",
                    "invalid_value",
                    format!("{expected}, found {found}"),
                ))
            }
        }
    }

    /// Checks what else there is of reasoning, and whether the thinking of earlier turns stays in the prompt.
    ///
    /// # Errors
    /// 400 for what is not supported.
    pub(super) fn keeps_earlier(&self) -> Result<bool, ApiError> {
        if let Some(mode) = self.mode.as_deref().filter(|mode| *mode != "standard") {
            let message = format!("{mode:?} is not supported: there is one way to think here; leave it out");
            return Err(ApiError::field("reasoning.mode", "unsupported_value", message));
        }
        match self.context.as_deref() {
            None | Some("auto" | "current_turn") => Ok(false),
            Some("all_turns") => Ok(true),
            Some(other) => {
                let found = read::describe(&Value::from(other));
                let message = format!("expected \"auto\", \"current_turn\" or \"all_turns\", found {found}");
                Err(ApiError::field("reasoning.context", "invalid_value", message))
            }
        }
    }

    /// Whether the client looks for the thinking in summaries.
    pub(super) fn as_summary(&self) -> bool {
        let summary = self.summary.as_deref().or(self.generate_summary.as_deref());
        summary.is_some_and(|summary| summary != "none")
    }

    pub(super) fn shown(&self) -> Value {
        json!({"effort": self.effort, "summary": self.summary})
    }
}
