//! Whether the model is to think, in the words of several APIs.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::read::{self, Refusal};

/// The variable of templates that keep the thinking of earlier turns, if it is true.
pub(super) const PRESERVE: &str = "preserve_thinking";

/// The fields that say it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ThinkingFields {
    /// Moonshot's.
    thinking: Option<Switch>,
    /// OpenAI's; `none` is no thinking, and there are no degrees of it.
    reasoning_effort: Option<String>,
    /// Qwen's, which clients have taken up.
    enable_thinking: Option<bool>,
    /// The same as the variable [`PRESERVE`].
    preserve_thinking: Option<bool>,
}

/// `{"type": "enabled" | "disabled", "keep": "all"}`, or just true or false.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
struct Switch {
    on: Option<bool>,
    keep: bool,
}

impl TryFrom<Value> for Switch {
    type Error = Refusal;

    fn try_from(value: Value) -> Result<Self, Refusal> {
        let wrong =
            |expected: &str, found: &Value| format!("expected {expected}, found {}", read::describe(found));
        let fields = match &value {
            Value::Bool(on) => return Ok(Self { on: Some(*on), keep: false }),
            Value::Object(fields) => fields,
            other => {
                return Err(Refusal::new(
                    "invalid_type",
                    wrong("an object such as {\"type\": \"disabled\"}", other),
                ));
            }
        };
        let on = match fields.get("type") {
            None | Some(Value::Null) => None,
            Some(Value::String(kind)) if kind == "enabled" || kind == "auto" => Some(true),
            Some(Value::String(kind)) if kind == "disabled" => Some(false),
            Some(other) => {
                return Err(Refusal::at(
                    "type",
                    "invalid_value",
                    wrong("\"enabled\" or \"disabled\"", other),
                ));
            }
        };
        let keep = match fields.get("keep") {
            None | Some(Value::Null) => false,
            Some(Value::String(what)) if what == "all" => true,
            Some(other) => return Err(Refusal::at("keep", "invalid_value", wrong("\"all\"", other))),
        };
        Ok(Self { on, keep })
    }
}

impl ThinkingFields {
    /// Whether the model is to think, if the request says so; variables of the template win. Adds variables that follow.
    ///
    /// # Errors
    /// 400 for an effort that is none.
    pub(super) fn apply(&self, variables: &mut Map<String, Value>) -> Result<Option<bool>, ApiError> {
        let effort = match self.reasoning_effort.as_deref() {
            None => None,
            Some("none") => Some(false),
            Some("minimal" | "low" | "medium" | "high" | "xhigh" | "max" | "auto") => Some(true),
            Some(other) => {
                let found = read::describe(&Value::from(other));
                let message = format!(
                    "expected \"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\", found {found}"
                );
                return Err(ApiError::field("reasoning_effort", "invalid_value", message));
            }
        };
        if self.preserve_thinking == Some(true) || self.thinking.is_some_and(|thinking| thinking.keep) {
            variables.entry(PRESERVE).or_insert(Value::Bool(true));
        }
        let variable = |name: &str| variables.get(name).and_then(Value::as_bool);
        let variable = variable("thinking").or_else(|| variable("enable_thinking"));
        Ok(variable.or(self.thinking.and_then(|thinking| thinking.on)).or(self.enable_thinking).or(effort))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn apply(fields: Value, variables: Value) -> (Option<bool>, Value) {
        let fields: ThinkingFields = serde_json::from_value(fields).unwrap();
        let mut variables = variables.as_object().unwrap().clone();
        let thinking = fields.apply(&mut variables).unwrap();
        (thinking, Value::Object(variables))
    }

    #[test]
    fn every_api_is_understood() {
        let none = |fields| apply(fields, json!({})).0;
        assert_eq!(none(json!({})), None);
        assert_eq!(none(json!({"thinking": null})), None);
        assert_eq!(none(json!({"thinking": {"type": "disabled"}})), Some(false));
        assert_eq!(none(json!({"thinking": {"type": "enabled"}, "reasoning_effort": "none"})), Some(true));
        assert_eq!(none(json!({"thinking": false})), Some(false));
        assert_eq!(none(json!({"reasoning_effort": "none"})), Some(false));
        assert_eq!(none(json!({"reasoning_effort": "high"})), Some(true));
        assert_eq!(none(json!({"enable_thinking": false})), Some(false));
        assert_eq!(apply(json!({"enable_thinking": true}), json!({"thinking": false})).0, Some(false));
        let kept = apply(json!({"thinking": {"type": "enabled", "keep": "all"}}), json!({}));
        assert_eq!(kept, (Some(true), json!({"preserve_thinking": true})));
    }

    #[test]
    fn words_that_mean_nothing_are_refused() {
        for fields in [
            json!({"thinking": {"type": "off"}}),
            json!({"thinking": 1}),
            json!({"thinking": {"keep": "some"}}),
        ] {
            assert!(serde_json::from_value::<ThinkingFields>(fields).is_err());
        }
        let fields: ThinkingFields = serde_json::from_value(json!({"reasoning_effort": "lots"})).unwrap();
        assert_eq!(fields.apply(&mut Map::new()).unwrap_err().param.as_deref(), Some("reasoning_effort"));
    }
}
