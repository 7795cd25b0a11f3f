//! Values as Python prints them. The reference renders chats in Python, and the model has learnt its commas,
//! spaces and floats; other ones would be other tokens.

use std::fmt::Write;

use serde_json::{Number, Value};

/// The options of Python's `json.dumps`.
#[derive(Debug, Clone)]
pub(super) struct JsonStyle {
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) ensure_ascii: bool,
    /// One level of indentation; `None` for one line.
    pub(super) indent: Option<String>,
    pub(super) sort_keys: bool,
    /// A character that `ensure_ascii` leaves as it is (see `fence.rs`).
    pub(super) keep: Option<char>,
}

impl Default for JsonStyle {
    /// `json.dumps(value, ensure_ascii=False)`.
    fn default() -> Self {
        Self {
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            ensure_ascii: false,
            indent: None,
            sort_keys: false,
            keep: None,
        }
    }
}

/// Python's `json.dumps`. The recursion is as deep as the value, whose depth the caller has bounded.
pub(super) fn dumps(value: &Value, style: &JsonStyle) -> String {
    let mut out = String::new();
    write_json(&mut out, value, style, 0);
    out
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::String(text) => write_string(out, text, style),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                separate(out, style, depth + 1, at > 0);
                write_json(out, item, style, depth + 1);
            }
            new_line(out, style, depth);
            out.push(']');
        }
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Object(map) => {
            out.push('{');
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            for (at, (key, item)) in entries.into_iter().enumerate() {
                separate(out, style, depth + 1, at > 0);
                write_string(out, key, style);
                out.push_str(&style.key_separator);
                write_json(out, item, style, depth + 1);
            }
            new_line(out, style, depth);
            out.push('}');
        }
    }
}

fn separate(out: &mut String, style: &JsonStyle, depth: usize, not_first: bool) {
    if not_first {
        out.push_str(&style.item_separator);
    }
    new_line(out, style, depth);
}

fn new_line(out: &mut String, style: &JsonStyle, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn write_string(out: &mut String, text: &str, style: &JsonStyle) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && c > '~' && style.keep != Some(c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number_text(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_repr(float),
        _ => number.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that read back as the same, with an exponent below 1e-4
/// and from 1e16.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Python's `str` of a value that came from JSON.
pub(super) fn str_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// Python's `repr` of a value that came from JSON.
pub(super) fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number_text(number),
        Value::String(text) => string_repr(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let items: Vec<_> = map.iter().map(|(k, v)| format!("{}: {}", string_repr(k), repr(v))).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

fn string_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..='\u{a0}').contains(&c) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_as_python_prints_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789012345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (5e-324, "5e-324"),
        ];
        for (value, expected) in cases {
            assert_eq!(float_repr(value), expected);
        }
    }

    #[test]
    fn json_as_python_writes_it() {
        let value = json!({"b": [1, 2.0, null, true], "a": "é<>&\u{7f}\u{1}\"\\\n😀", "c": [], "d": {}});
        assert_eq!(
            dumps(&value, &JsonStyle::default()),
            "{\"b\": [1, 2.0, null, true], \"a\": \"é<>&\u{7f}\\u0001\\\"\\\\\\n😀\", \"c\": [], \"d\": {}}"
        );
        let ascii = JsonStyle { ensure_ascii: true, sort_keys: true, ..JsonStyle::default() };
        assert!(dumps(&value, &ascii).starts_with(r#"{"a": "\u00e9<>&\u007f\u0001\"\\\n\ud83d\ude00", "b""#));
        let indented =
            JsonStyle { indent: Some("  ".into()), item_separator: ",".into(), ..JsonStyle::default() };
        assert_eq!(dumps(&json!({"a": [1, {}]}), &indented), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    }

    #[test]
    fn repr_as_python_prints_it() {
        assert_eq!(
            repr(&json!({"a": ["x'", true, null, 1e-5, "\u{7f}"]})),
            r#"{'a': ["x'", True, None, 1e-05, '\x7f']}"#
        );
    }
}
