//! JSON as a template sees it, without a copy of it.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Serde, Value as JinjaValue};
use serde_json::Value;

/// An object or array somewhere in a JSON value that others hold too. A scalar becomes a template's own value; what
/// is below stays where it is until the template asks for it. Declarations of tools are many times larger in memory
/// than as text, and a template mostly prints them whole.
#[derive(Debug)]
pub(super) struct JsonNode {
    root: Arc<Value>,
    /// The way from the root.
    path: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Key(Arc<str>),
    Index(usize),
}

impl JsonNode {
    /// A whole value for a template.
    pub(super) fn root(value: Arc<Value>) -> JinjaValue {
        match *value {
            Value::Array(_) | Value::Object(_) => {
                JinjaValue::from_object(Self { root: value, path: Vec::new() })
            }
            _ => JinjaValue::from(Serde(&*value)),
        }
    }

    /// The value here.
    pub(super) fn value(&self) -> &Value {
        let mut value = &*self.root;
        for step in &self.path {
            let below = match step {
                Step::Key(key) => value.get(&**key),
                Step::Index(index) => value.get(*index),
            };
            // A path is made of steps that exist.
            value = below.unwrap_or(&Value::Null);
        }
        value
    }

    fn below(&self, value: &Value, step: impl FnOnce() -> Step) -> JinjaValue {
        match value {
            Value::Array(_) | Value::Object(_) => {
                let path = self.path.iter().cloned().chain([step()]).collect();
                JinjaValue::from_object(Self { root: self.root.clone(), path })
            }
            scalar => JinjaValue::from(Serde(scalar)),
        }
    }
}

impl Object for JsonNode {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.value().is_array() { ObjectRepr::Seq } else { ObjectRepr::Map }
    }

    fn get_value(self: &Arc<Self>, key: &JinjaValue) -> Option<JinjaValue> {
        match self.value() {
            Value::Array(items) => {
                let index = key.as_usize()?;
                Some(self.below(items.get(index)?, || Step::Index(index)))
            }
            Value::Object(map) => {
                let key = key.as_str()?;
                Some(self.below(map.get(key)?, || Step::Key(key.into())))
            }
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.value() {
            Value::Array(items) => Enumerator::Seq(items.len()),
            Value::Object(map) => Enumerator::Values(map.keys().map(JinjaValue::from).collect()),
            _ => Enumerator::Empty,
        }
    }
}
