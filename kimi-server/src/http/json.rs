//! JSON of a request, read field by field so that every mistake names the field's path.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// Most brackets within brackets. No request of a chat needs more than a tool's schema does.
const MAX_DEPTH: usize = 100;
/// Bytes that a value takes in memory, beside its text: an object with room for its first fields, each further field
/// or element, a string. Measured, and rounded up.
const OBJECT_BYTES: usize = 400;
const ELEMENT_BYTES: usize = 110;
const STRING_BYTES: usize = 32;
/// Copies of a text on its way into a prompt.
const TEXT_COPIES: usize = 3;
/// Characters of a wrong value that an error shows.
const SHOWN_CHARS: usize = 40;

/// A JSON object whose fields are taken out one by one; those that nobody takes are ignored.
#[derive(Debug)]
pub(super) struct Fields {
    path: String,
    map: Map<String, Value>,
}

/// A value and where in the request it was.
#[derive(Debug)]
pub(super) struct Field {
    path: String,
    value: Value,
}

/// Parses a request's body, an object that [`weigh`] has found good.
///
/// # Errors
/// 400 if it is not UTF-8, not JSON (with line and column), or not an object.
pub(super) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        ApiError::invalid("invalid_utf8", format!("the request's body is not UTF-8 from byte {at} on"))
    })?;
    let value: Value = serde_json::from_str(text).map_err(|error| {
        ApiError::invalid("invalid_json", format!("the request's body is not valid JSON: {error}"))
    })?;
    match value {
        Value::Object(map) => Ok(Fields { path: String::new(), map }),
        other => {
            let message = format!("the request's body must be a JSON object, found {}", describe(&other));
            Err(ApiError::invalid("invalid_type", message))
        }
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

impl Fields {
    /// Takes a field; `null` counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Field> {
        let value = self.map.remove(key).filter(|value| !value.is_null())?;
        Some(Field { path: self.path_of(key), value })
    }

    /// Takes a field that must be there.
    ///
    /// # Errors
    /// 400 if it is absent.
    pub(super) fn require(&mut self, key: &str) -> Result<Field, ApiError> {
        self.take(key).ok_or_else(|| self.missing(key))
    }

    /// A copy of a field that is small, or wrong; `null` counts as absent. What is large is left where it is: see
    /// [`Self::check_object`].
    pub(super) fn look(&self, key: &str) -> Option<Field> {
        let value = self.map.get(key).filter(|value| !value.is_null())?.clone();
        Some(Field { path: self.path_of(key), value })
    }

    /// [`Self::look`] at a field that must be there.
    ///
    /// # Errors
    /// 400 if it is absent.
    pub(super) fn look_for(&self, key: &str) -> Result<Field, ApiError> {
        self.look(key).ok_or_else(|| self.missing(key))
    }

    /// Checks that a field is an object, if it is there.
    ///
    /// # Errors
    /// 400 if it is something else.
    pub(super) fn check_object(&self, key: &str) -> Result<(), ApiError> {
        match self.map.get(key) {
            None | Some(Value::Null | Value::Object(_)) => Ok(()),
            Some(_) => self.look_for(key)?.object().map(drop),
        }
    }

    fn path_of(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{key}", self.path)
    }

    fn missing(&self, key: &str) -> ApiError {
        ApiError::field(&self.path_of(key), "missing_required_parameter", "is missing")
    }

    /// All fields that have not been taken.
    pub(super) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// All fields that have not been taken, with their paths.
    pub(super) fn into_fields(self) -> impl Iterator<Item = (String, Field)> {
        let path = self.path;
        self.map.into_iter().map(move |(key, value)| {
            let field = Field { path: format!("{path}[{key:?}]"), value };
            (key, field)
        })
    }
}

impl Field {
    /// Where in the request it is, such as `messages[0].content`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The value as it is.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// An error about this field.
    pub(super) fn error(&self, code: &'static str, message: impl AsRef<str>) -> ApiError {
        ApiError::field(&self.path, code, message)
    }

    /// 400: the value has another type than `expected`.
    pub(super) fn wrong_type(&self, expected: &str) -> ApiError {
        self.error("invalid_type", format!("expected {expected}, found {}", describe(&self.value)))
    }

    /// A string.
    pub(super) fn string(self) -> Result<String, ApiError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong_type("a string")),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    /// A number.
    pub(super) fn number(self) -> Result<f64, ApiError> {
        self.value.as_f64().ok_or_else(|| self.wrong_type("a number"))
    }

    /// A whole number in a range. `5.0` counts as one.
    pub(super) fn integer(self, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        let expected = || match *range.end() {
            i64::MAX => format!("a whole number from {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let Value::Number(number) = &self.value else { return Err(self.wrong_type(&expected())) };
        let Some(found) = whole(number) else { return Err(self.wrong_type(&expected())) };
        match i64::try_from(found) {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => {
                let below = found < i128::from(*range.start());
                let code = if below { "integer_below_min_value" } else { "integer_above_max_value" };
                Err(self.error(code, format!("expected {}, found {found}", expected())))
            }
        }
    }

    /// The elements of an array.
    pub(super) fn array(self) -> Result<Vec<Field>, ApiError> {
        let Value::Array(values) = self.value else { return Err(self.wrong_type("an array")) };
        let path = self.path;
        let element = |(i, value)| Field { path: format!("{path}[{i}]"), value };
        Ok(values.into_iter().enumerate().map(element).collect())
    }

    /// The fields of an object.
    pub(super) fn object(self) -> Result<Fields, ApiError> {
        match self.value {
            Value::Object(map) => Ok(Fields { path: self.path, map }),
            _ => Err(self.wrong_type("an object")),
        }
    }
}

/// The value of a number without a fraction.
fn whole(number: &serde_json::Number) -> Option<i128> {
    let exact = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    exact.or_else(|| number.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i128))
}

/// A value's type, and the value itself if it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(found) => format!("{found}"),
        Value::Number(found) => format!("the number {found}"),
        Value::String(found) => match found.chars().count() {
            0..SHOWN_CHARS => format!("the string {found:?}"),
            chars => format!("a string of {chars} characters"),
        },
        Value::Array(found) => format!("an array of {} elements", found.len()),
        Value::Object(found) => format!("an object with {} fields", found.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn read(body: &[u8]) -> Result<Fields, ApiError> {
        weigh(body, LIMIT)?;
        parse(body)
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
        assert_eq!(code(b"[]"), "invalid_type");
        assert_eq!(code("[".repeat(1_000_000).as_bytes()), "json_too_deep");
        let error = read(b"{\n  \"a\": ?\n}").unwrap_err();
        assert!(error.message.contains("line 2 column 8"), "{error}");
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

    #[test]
    fn numbers_are_checked() {
        let read = |text: &str| Field { path: "x".to_owned(), value: serde_json::from_str(text).unwrap() };
        assert_eq!(read("5.0").integer(0..=9), Ok(5));
        assert_eq!(read("-9223372036854775808").integer(i64::MIN..=i64::MAX), Ok(i64::MIN));
        let code = |r: Result<i64, ApiError>| r.unwrap_err().code.unwrap();
        assert_eq!(code(read("-1").integer(0..=9)), "integer_below_min_value");
        assert_eq!(code(read("1e300").integer(0..=9)), "integer_above_max_value");
        assert_eq!(code(read("18446744073709551615").integer(0..=i64::MAX)), "integer_above_max_value");
        assert_eq!(code(read("1.5").integer(0..=9)), "invalid_type");
        assert_eq!(code(read("\"1\"").integer(0..=9)), "invalid_type");
        assert_eq!(read("1").number(), Ok(1.0));
        assert_eq!(read("-2.5e3").number(), Ok(-2500.0));
        let error = read("true").number().unwrap_err();
        assert_eq!(error.message, "x: expected a number, found true");
    }

    #[test]
    fn paths_lead_to_the_field() {
        let mut body = parse(br#"{"a": [{"b": null}, {"b": {"c": 3}}], "n": null}"#).unwrap();
        assert!(body.take("n").is_none());
        let mut elements = body.take("a").unwrap().array().unwrap();
        let mut second = elements.pop().unwrap().object().unwrap();
        let mut b = second.take("b").unwrap().object().unwrap();
        assert_eq!(b.take("c").unwrap().string().unwrap_err().param.as_deref(), Some("a[1].b.c"));
        let mut first = elements.pop().unwrap().object().unwrap();
        let error = first.require("b").unwrap_err();
        assert_eq!(
            (error.param.as_deref(), error.code),
            (Some("a[0].b"), Some("missing_required_parameter"))
        );
    }
}
