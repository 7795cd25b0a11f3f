//! Values as Python prints them. The reference renders chats in Python, and the model has learnt its commas,
//! spaces and floats; other ones would be other tokens.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Number, Value};

use super::bounded::{BoundedText, RenderLimits, Stopped};

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
    let limits = RenderLimits::default();
    let mut out = BoundedText::new(&limits);
    // Without limits it is not stopped.
    let _ = Writer::new(&mut out, style).value(value, 0);
    out.into_string()
}

/// Writes values as Python's `json.dumps` does.
pub(super) struct Writer<'w, 'l> {
    out: &'w mut BoundedText<'l>,
    style: &'w JsonStyle,
}

impl<'w, 'l> Writer<'w, 'l> {
    pub(super) fn new(out: &'w mut BoundedText<'l>, style: &'w JsonStyle) -> Self {
        Self { out, style }
    }

    pub(super) fn style(&self) -> &JsonStyle {
        self.style
    }

    /// A whole value, `depth` levels deep in others.
    pub(super) fn value(&mut self, value: &Value, depth: usize) -> Result<(), Stopped> {
        match value {
            Value::Null => self.out.push("null"),
            Value::Bool(true) => self.out.push("true"),
            Value::Bool(false) => self.out.push("false"),
            Value::Number(number) => self.out.push(&number_text(number)),
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                self.open("[")?;
                for (at, item) in items.iter().enumerate() {
                    self.item(depth + 1, at > 0)?;
                    self.value(item, depth + 1)?;
                }
                self.close("]", depth, items.is_empty())
            }
            Value::Object(map) => {
                self.open("{")?;
                if self.style.sort_keys {
                    let mut entries: Vec<_> = map.iter().collect();
                    entries.sort_by_key(|(key, _)| *key);
                    self.entries(entries.into_iter(), depth)?;
                } else {
                    self.entries(map.iter(), depth)?;
                }
                self.close("}", depth, map.is_empty())
            }
        }
    }

    fn entries<'v>(
        &mut self,
        entries: impl Iterator<Item = (&'v String, &'v Value)>,
        depth: usize,
    ) -> Result<(), Stopped> {
        for (at, (key, item)) in entries.enumerate() {
            self.key(key, depth + 1, at > 0)?;
            self.value(item, depth + 1)?;
        }
        Ok(())
    }

    /// The bracket that begins an array or object.
    pub(super) fn open(&mut self, bracket: &str) -> Result<(), Stopped> {
        self.out.push(bracket)
    }

    /// What comes before an element.
    pub(super) fn item(&mut self, depth: usize, not_first: bool) -> Result<(), Stopped> {
        if not_first {
            self.out.push(&self.style.item_separator)?;
        }
        self.new_line(depth)
    }

    /// What comes before a field's value.
    pub(super) fn key(&mut self, key: &str, depth: usize, not_first: bool) -> Result<(), Stopped> {
        self.item(depth, not_first)?;
        self.string(key)?;
        self.out.push(&self.style.key_separator)
    }

    /// The bracket that ends an array or object.
    pub(super) fn close(&mut self, bracket: &str, depth: usize, empty: bool) -> Result<(), Stopped> {
        if !empty {
            self.new_line(depth)?;
        }
        self.out.push(bracket)
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Stopped> {
        if let Some(indent) = &self.style.indent {
            self.out.push("\n")?;
            for _ in 0..depth {
                self.out.push(indent)?;
            }
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Stopped> {
        self.out.push("\"")?;
        let mut plain = 0;
        for (at, c) in text.char_indices() {
            let escape = match c {
                '"' => Cow::Borrowed("\\\""),
                '\\' => Cow::Borrowed("\\\\"),
                '\n' => Cow::Borrowed("\\n"),
                '\r' => Cow::Borrowed("\\r"),
                '\t' => Cow::Borrowed("\\t"),
                '\u{8}' => Cow::Borrowed("\\b"),
                '\u{c}' => Cow::Borrowed("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && c > '~' && self.style.keep != Some(c)) => {
                    let units = c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect();
                    Cow::Owned(units)
                }
                _ => continue,
            };
            self.out.push(&text[plain..at])?;
            self.out.push(&escape)?;
            plain = at + c.len_utf8();
        }
        self.out.push(&text[plain..])?;
        self.out.push("\"")
    }
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

/// The beginning of a value's JSON, for people.
pub(super) fn shown(value: &Value) -> String {
    const MOST: usize = 80;
    let limits = RenderLimits { max_bytes: 4 * MOST, ..RenderLimits::default() };
    let mut out = BoundedText::new(&limits);
    // A string or key that is too long is left out, and all after it.
    let whole = Writer::new(&mut out, &JsonStyle::default()).value(value, 0).is_ok();
    let text = out.into_string();
    let cut: String = text.chars().take(MOST).collect();
    if whole && cut.len() == text.len() { cut } else { cut + "..." }
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
