//! A request's body as JSON: its size and depth before it takes memory, then its fields.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::{foreign, read};

/// Most brackets within brackets. No request of a chat needs more than a tool's schema does.
const MAX_DEPTH: usize = 100;
/// Bytes that a value takes in memory, beside its text: an object with room for its first fields, each further field
/// or element, a string. Measured, and rounded up.
const OBJECT_BYTES: usize = 400;
const ELEMENT_BYTES: usize = 110;
const STRING_BYTES: usize = 32;
/// Copies of a text on its way into a prompt.
const TEXT_COPIES: usize = 3;
/// What some editors and shells put before UTF-8 text (RFC 8259, section 8.1: a parser may ignore it).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A request's body, an object. Each front door reads its fields with serde, in one struct or several; what no struct
/// has is logged once and otherwise ignored.
#[derive(Debug)]
pub(super) struct Body {
    fields: Map<String, Value>,
    /// Fields that no struct has had so far; `None` before the first one.
    unread: Option<BTreeSet<String>>,
}

impl Body {
    /// Parses a body that [`weigh`] has found good.
    ///
    /// # Errors
    /// 400 if it is not UTF-8, not JSON (with line and column), not an object, or has a field of another server that
    /// would change the answer and means nothing here.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        let text = std::str::from_utf8(body).map_err(|error| {
            let at = error.valid_up_to();
            ApiError::invalid("invalid_utf8", format!("the request's body is not UTF-8 from byte {at} on"))
        })?;
        if text.trim().is_empty() {
            let message = "the request has no body; send a JSON object";
            return Err(ApiError::invalid("invalid_json", message));
        }
        let value: Value = serde_json::from_str(text).map_err(|error| {
            ApiError::invalid("invalid_json", format!("the request's body is not valid JSON: {error}"))
        })?;
        match value {
            Value::Object(fields) => {
                foreign::refuse(&fields)?;
                Ok(Self { fields, unread: None })
            }
            other => {
                let found = read::describe(&other);
                let message = format!("the request's body must be a JSON object, found {found}");
                Err(ApiError::invalid("invalid_type", message))
            }
        }
    }

    /// Reads some of the fields, which stay for others to read. For what is small.
    ///
    /// # Errors
    /// 400 that names the field, what was expected and what was found.
    pub(super) fn part<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        let mut ignored = BTreeSet::new();
        let part = read::fields(&self.fields, &mut ignored)?;
        self.unread = Some(match self.unread.take() {
            Some(before) => before.intersection(&ignored).cloned().collect(),
            None => ignored,
        });
        Ok(part)
    }

    /// Reads the rest of the fields and lets go of the body.
    ///
    /// # Errors
    /// As [`Self::part`].
    pub(super) fn rest<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        let mut ignored = BTreeSet::new();
        let rest = read::fields(Value::Object(self.fields), &mut ignored)?;
        // A path with a dot or a bracket is inside of a field that this struct has.
        let unknown = |path: &&String| match &self.unread {
            Some(unread) if !path.contains(['.', '[']) => unread.contains(*path),
            _ => true,
        };
        let unknown: Vec<&str> = ignored.iter().filter(unknown).map(String::as_str).collect();
        if !unknown.is_empty() {
            tracing::debug!(fields = unknown.join(", "), "the request has fields that mean nothing here");
        }
        Ok(rest)
    }
}

/// Bytes of memory that a body takes once it is parsed and until it is a prompt; found before it takes any.
///
/// # Errors
/// 400 if it is nested too deep, or would take more than `limit`.
pub(super) fn weigh(body: &[u8], limit: usize) -> Result<usize, ApiError> {
    let (mut depth, mut weight, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for (at, &byte) in body.iter().enumerate() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            weight += TEXT_COPIES;
        } else {
            match byte {
                b'"' => (in_string, weight) = (true, weight + STRING_BYTES),
                b'{' => (depth, weight) = (depth + 1, weight + OBJECT_BYTES),
                b'[' => (depth, weight) = (depth + 1, weight + ELEMENT_BYTES),
                b']' | b'}' => depth = depth.saturating_sub(1),
                b',' => weight += ELEMENT_BYTES,
                _ => {}
            }
            if depth > MAX_DEPTH {
                let message =
                    format!("the request's JSON is nested deeper than {MAX_DEPTH} levels at byte {at}");
                return Err(ApiError::invalid("json_too_deep", message));
            }
        }
        if weight > limit {
            let message = format!(
                "the request's JSON takes more than {limit} bytes of memory, the server's limit, at byte {at} of {}; \
                 send fewer values or shorter texts",
                body.len()
            );
            return Err(ApiError::invalid("json_too_large", message));
        }
    }
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn read(body: &[u8]) -> Result<Body, ApiError> {
        weigh(body, LIMIT)?;
        Body::parse(body)
    }

    fn code(body: &[u8]) -> &'static str {
        read(body).unwrap_err().code.unwrap()
    }

    #[test]
    fn broken_bodies_are_told_apart() {
        assert_eq!(code(b"{\"a\": \xff}"), "invalid_utf8");
        assert_eq!(code(b"{\"a\": }"), "invalid_json");
        assert_eq!(code(b"{\"a\": 1e999}"), "invalid_json");
        assert_eq!(code(b"{\"a\": NaN}"), "invalid_json");
        assert_eq!(code(b"{\"a\": \"\\ud800\"}"), "invalid_json");
        assert_eq!(code(b""), "invalid_json");
        assert!(read(b" \n").unwrap_err().message.contains("no body"));
        assert_eq!(code(b"[]"), "invalid_type");
        assert_eq!(code("[".repeat(1_000_000).as_bytes()), "json_too_deep");
        let error = read(b"{\n  \"a\": ?\n}").unwrap_err();
        assert!(error.message.contains("line 2 column 8"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        assert!(read(b"\xef\xbb\xbf{\"a\": 1}").is_ok());
        assert_eq!(code(b"\xef\xbb\xbf\xef\xbb\xbf{}"), "invalid_json");
        assert_eq!(code(b"\xff\xfe{\0}\0"), "invalid_utf8");
    }

    #[test]
    fn many_values_and_long_texts_are_too_large() {
        for dense in ["1,", "{},", "\"\",", "{\"a\":\"b\"},", "[[]],"] {
            let body = format!("{{\"a\": [{}1]}}", dense.repeat(20_000));
            assert_eq!(code(body.as_bytes()), "json_too_large", "{dense}");
            let body = format!("{{\"a\": [{}1]}}", dense.repeat(20));
            assert!(weigh(body.as_bytes(), LIMIT).unwrap() > 20 * ELEMENT_BYTES);
        }
        let text = |bytes: usize| format!("{{\"a\": \"{}\"}}", "x".repeat(bytes));
        assert_eq!(code(text(LIMIT / TEXT_COPIES).as_bytes()), "json_too_large");
        assert!(read(text(LIMIT / TEXT_COPIES - 1000).as_bytes()).is_ok());
        assert!(read(" ".repeat(LIMIT).as_bytes()).unwrap_err().code == Some("invalid_json"));
    }

    #[test]
    fn brackets_in_strings_do_not_nest() {
        let body = format!(r#"{{"a": "\\\"{}"}}"#, "[,".repeat(MAX_DEPTH + 1));
        assert!(read(body.as_bytes()).is_ok());
    }
}
