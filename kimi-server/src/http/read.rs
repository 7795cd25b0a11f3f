//! A request's fields, read by serde. Every mistake becomes an error that names the field's path.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::error::ApiError;

/// Characters of a wrong value that an error shows.
const SHOWN_CHARS: usize = 60;
/// Stands around the parts of a [`Refusal`] on its way through serde, which knows only texts.
const MARK: char = '\u{1}';
/// Codes that a [`Refusal`] may have.
const CODES: [&str; 7] = [
    "empty_array",
    "array_above_max_length",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "unsupported_parameter",
    "unsupported_value",
];

/// Reads a struct from a JSON object. Adds the paths of what it does not have, and is not null, to `ignored`.
///
/// # Errors
/// 400 that names the field, what was expected and what was found.
pub(super) fn fields<'de, T, D>(from: D, ignored: &mut BTreeSet<String>) -> Result<T, ApiError>
where
    T: DeserializeOwned,
    D: Deserializer<'de, Error = serde_json::Error>,
{
    let mut note = |path: serde_ignored::Path<'_>| {
        ignored.insert(path.to_string());
    };
    let from = serde_ignored::Deserializer::new(from, &mut note);
    serde_path_to_error::deserialize(from)
        .map_err(|error| api_error(&error.path().to_string(), &error.inner().to_string()))
}

/// A mistake that serde does not know, found while a value is read: what code the error has, and which field below the
/// value is at fault (empty for the value itself).
#[derive(Debug)]
pub(super) struct Refusal {
    code: &'static str,
    at: String,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, at: String::new(), message: message.into() }
    }

    /// About a field below the value.
    pub(super) fn at(field: &str, code: &'static str, message: impl Into<String>) -> Self {
        Self { code, at: field.to_owned(), message: message.into() }
    }

    /// About a field below the value that is not there.
    pub(super) fn missing(field: &str) -> Self {
        Self::at(field, "missing_required_parameter", "is missing")
    }

    /// About a `type` that is none of those that are taken.
    pub(super) fn kind(expected: &str, found: &str) -> Self {
        let found = describe(&Value::from(found));
        Self::at("type", "invalid_value", format!("expected {expected}, found {found}"))
    }

    /// On its way through serde.
    pub(super) fn into_serde<E: de::Error>(self) -> E {
        E::custom(self)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{}{MARK}{}{MARK}{}", self.code, self.at, self.message)
    }
}

/// What serde says about the value at a path, as an error of the API.
fn api_error(path: &str, message: &str) -> ApiError {
    let path = if path == "." { "" } else { path };
    let join = |field: &str| match (path, field) {
        (path, "") => path.to_owned(),
        ("", field) => field.to_owned(),
        (path, field) if field.starts_with('[') => format!("{path}{field}"),
        (path, field) => format!("{path}.{field}"),
    };
    if let Some(parts) = message.strip_prefix(MARK) {
        let mut parts = parts.splitn(3, MARK);
        let mut next = || parts.next().unwrap_or_default();
        let (code, at, message) = (next(), next(), next());
        let code = CODES.into_iter().find(|known| *known == code).unwrap_or("invalid_value");
        return ApiError::field(&join(at), code, message);
    }
    if let Some(field) = message.strip_prefix("missing field `") {
        let field = field.split('`').next().unwrap_or_default();
        return ApiError::field(&join(field), "missing_required_parameter", "is missing");
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        let code = if found == "null" { "missing_required_parameter" } else { "invalid_type" };
        let (expected, found) = (plain_expected(expected), plain_found(found));
        return ApiError::field(path, code, format!("expected {expected}, found {found}"));
    }
    ApiError::field(path, "invalid_value", shorten(message))
}

/// The type that serde expected, in JSON's words.
fn plain_expected(text: &str) -> &str {
    match text {
        "a boolean" => "true or false",
        "f64" | "f32" => "a number",
        "a sequence" => "an array",
        "a map" => "an object",
        other => other,
    }
}

/// What serde found, in JSON's words.
fn plain_found(text: &str) -> String {
    let between = |start: &str| text.strip_prefix(start)?.strip_suffix('`');
    if let Some(number) = between("integer `").or_else(|| between("floating point `")) {
        return format!("the number {number}");
    }
    match text {
        "sequence" => "an array".to_owned(),
        "map" => "an object".to_owned(),
        _ => match between("boolean `") {
            Some(flag) => flag.to_owned(),
            None if text.starts_with("string ") => format!("the {}", shorten(text)),
            None => shorten(text),
        },
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) if text.starts_with("string ") => format!("{}...\"", &text[..end]),
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value's type, and the value itself if it is short.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(found) => format!("{found}"),
        Value::Number(found) => format!("the number {found}"),
        Value::String(found) => plain_found(&format!("string {found:?}")),
        Value::Array(found) => format!("an array of {} elements", found.len()),
        Value::Object(found) => format!("an object with {} fields", found.len()),
    }
}

/// A struct that is read from an object only: serde would also take an array, field after field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        from.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// A number without a fraction; `5.0` counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole(i128);

impl Whole {
    /// The number, if it is in a range.
    ///
    /// # Errors
    /// 400 that names `path` and the range.
    pub(super) fn within(self, path: &str, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        match i64::try_from(self.0) {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => {
                let below = self.0 < i128::from(*range.start());
                let code = if below { "integer_below_min_value" } else { "integer_above_max_value" };
                let expected = match *range.end() {
                    i64::MAX => format!("a whole number from {}", range.start()),
                    end => format!("a whole number from {} to {end}", range.start()),
                };
                Err(ApiError::field(path, code, format!("expected {expected}, found {}", self.0)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Whole, E> {
                Ok(Whole(value.into()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value.into()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Whole, E> {
                match value.fract() == 0.0 {
                    true => Ok(Whole(value as i128)),
                    false => Err(E::invalid_type(de::Unexpected::Float(value), &self)),
                }
            }
        }
        from.deserialize_any(Number)
    }
}

/// One string, or an array of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Strings(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Strings, E> {
                Ok(Strings(vec![text]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strings, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = seq.next_element()? {
                    all.push(text);
                }
                Ok(Strings(all))
            }
        }
        from.deserialize_any(OneOrMore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    struct Outer {
        a: Vec<Object<Inner>>,
        n: Option<Whole>,
        s: Option<Strings>,
        f: Option<f64>,
        b: Option<bool>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        b: String,
    }

    fn read(value: Value) -> Result<(Outer, Vec<String>), ApiError> {
        let mut ignored = BTreeSet::new();
        let outer = fields(value, &mut ignored)?;
        Ok((outer, ignored.into_iter().collect()))
    }

    #[test]
    fn paths_lead_to_the_field() {
        let (outer, ignored) = read(json!({"a": [{"b": "x", "c": 3}], "s": "y", "z": 1, "n": null})).unwrap();
        assert_eq!((outer.a[0].0.b.as_str(), outer.s, outer.n), ("x", Some(Strings(vec!["y".into()])), None));
        assert_eq!((outer.f, outer.b, ignored), (None, None, vec!["a.0.c".to_owned(), "z".to_owned()]));
        let cases = [
            (
                json!({"a": [{"b": "x"}, {"b": 5}]}),
                "a[1].b",
                "invalid_type",
                "expected a string, found the number 5",
            ),
            (json!({"a": [{}]}), "a[0].b", "missing_required_parameter", "is missing"),
            (
                json!({"a": [{"b": null}]}),
                "a[0].b",
                "missing_required_parameter",
                "expected a string, found null",
            ),
            (json!({"a": [["x"]]}), "a[0]", "invalid_type", "expected an object, found an array"),
            (json!({}), "a", "missing_required_parameter", "is missing"),
            (json!({"a": {}}), "a", "invalid_type", "expected an array, found an object"),
            (
                json!({"a": [], "n": 1.5}),
                "n",
                "invalid_type",
                "expected a whole number, found the number 1.5",
            ),
            (json!({"a": [], "s": [1]}), "s[0]", "invalid_type", "expected a string, found the number 1"),
            (
                json!({"a": [], "s": 1}),
                "s",
                "invalid_type",
                "expected a string or an array of strings, found the number 1",
            ),
            (json!({"a": [], "f": true}), "f", "invalid_type", "expected a number, found true"),
            (
                json!({"a": [], "b": "yes"}),
                "b",
                "invalid_type",
                "expected true or false, found the string \"yes\"",
            ),
        ];
        for (value, path, code, message) in cases {
            let error = read(value.clone()).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(path), Some(code)), "{value}: {error}");
            assert_eq!(error.message, format!("{path}: {message}"));
        }
        let error = read(json!({"a": "x".repeat(10_000)})).unwrap_err();
        assert!(error.message.len() < 200, "{error}");
    }

    #[test]
    fn numbers_are_checked() {
        let whole = |text: &str| serde_json::from_str::<Whole>(text).unwrap();
        assert_eq!(whole("5.0").within("x", 0..=9), Ok(5));
        assert_eq!(whole("-9223372036854775808").within("x", i64::MIN..=i64::MAX), Ok(i64::MIN));
        let code = |r: Result<i64, ApiError>| r.unwrap_err().code.unwrap();
        assert_eq!(code(whole("-1").within("x", 0..=9)), "integer_below_min_value");
        assert_eq!(code(whole("1e300").within("x", 0..=9)), "integer_above_max_value");
        assert_eq!(code(whole("18446744073709551615").within("x", 0..=i64::MAX)), "integer_above_max_value");
    }
}
