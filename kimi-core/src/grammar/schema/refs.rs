//! References within a schema.

use percent::decode;
use serde_json::{Value, json};

use super::{Rewriter, fault};
use crate::chat_model::GrammarFault;

impl Rewriter<'_> {
    /// A reference to the rewritten target.
    pub(super) fn reference(
        &mut self,
        reference: &Value,
        path: &str,
        closed: bool,
    ) -> Result<Value, GrammarFault> {
        let text = reference.as_str().ok_or_else(|| fault(path, "$ref", "expected a string"))?;
        let pointer = self.pointer(text).ok_or_else(|| {
            let reason = format!(
                "{text:?} is nothing within the schema; references to other documents are not followed, so put what it stands \
                 for into $defs"
            );
            fault(path, "$ref", reason)
        })?;
        let next = self.numbers.len();
        let number = *self.numbers.entry((pointer.clone(), closed)).or_insert(next);
        if number == next {
            self.pending.push_back((number, pointer, closed));
        }
        Ok(json!({"$ref": format!("#/$defs/{number}")}))
    }

    /// The schema that a reference leads to.
    pub(super) fn target(&self, reference: &Value) -> Option<&Value> {
        self.root.pointer(&self.pointer(reference.as_str()?)?)
    }

    /// The JSON pointer of a reference's target, if there is one within the schema.
    fn pointer(&self, reference: &str) -> Option<String> {
        let own = self.root.get("$id").or_else(|| self.root.get("id")).and_then(Value::as_str);
        let own = own.map_or("", |id| id.split('#').next().unwrap_or_default());
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        if !document.is_empty() && document != own {
            return None;
        }
        let fragment = decode(fragment)?;
        if fragment.is_empty() || fragment.starts_with('/') {
            return self.root.pointer(&fragment).map(|_| fragment);
        }
        let mut path = String::new();
        anchor(self.root, &fragment, &mut path).then_some(path)
    }
}

/// Finds the schema of an anchor.
fn anchor(value: &Value, name: &str, path: &mut String) -> bool {
    let length = path.len();
    match value {
        Value::Object(fields) => {
            let is = |key: &str, name: &str| fields.get(key).and_then(Value::as_str) == Some(name);
            let old = format!("#{name}");
            if is("$anchor", name) || is("$id", &old) || is("id", &old) {
                return true;
            }
            for (key, value) in fields {
                path.push('/');
                path.push_str(&key.replace('~', "~0").replace('/', "~1"));
                if anchor(value, name, path) {
                    return true;
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (place, value) in items.iter().enumerate() {
                path.push_str(&format!("/{place}"));
                if anchor(value, name, path) {
                    return true;
                }
                path.truncate(length);
            }
        }
        _ => {}
    }
    false
}

mod percent {
    /// A fragment's text; `None` if it is none.
    pub(super) fn decode(fragment: &str) -> Option<String> {
        let mut bytes = Vec::with_capacity(fragment.len());
        let mut rest = fragment.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            if byte == b'%' {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &rest[2..];
            } else {
                bytes.push(byte);
            }
        }
        String::from_utf8(bytes).ok()
    }
}
