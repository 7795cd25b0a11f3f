//! The id of a tool call. Kimi writes `functions.NAME:COUNTER`, and the name of the function is only there.

use serde_json::Value;

use super::message::Tool;

const PREFIX: &str = "functions.";

/// What the parser needs to know of a declared tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolSignature {
    /// The function's name.
    pub name: String,
    /// The names of its arguments.
    pub arguments: Vec<String>,
}

impl From<&Tool> for ToolSignature {
    fn from(tool: &Tool) -> Self {
        let properties = tool.parameters().and_then(|p| p.get("properties")).and_then(Value::as_object);
        Self {
            name: tool.name().to_owned(),
            arguments: properties.map(|p| p.keys().cloned().collect()).unwrap_or_default(),
        }
    }
}

/// What an id, as the model wrote it, tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallId {
    /// It names a function. With `id`, the id can stand as it is.
    Named { name: String, id: Option<String> },
    /// It is a bare counter or an opaque word: the function must be told from the declared tools and the
    /// arguments.
    Opaque { counter: Option<u64> },
    /// It is neither.
    Malformed,
}

/// The id in the form that the model has learnt.
pub(super) fn canonical(name: &str, counter: u64) -> String {
    format!("{PREFIX}{name}:{counter}")
}

/// Whether an id is `functions.NAME:COUNTER` with this name.
pub(super) fn is_canonical(id: &str, name: &str) -> bool {
    id.strip_prefix(PREFIX)
        .and_then(|r| r.strip_prefix(name))
        .and_then(|r| r.strip_prefix(':'))
        .is_some_and(is_counter)
}

fn is_counter(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Reads an id leniently: without the prefix, with spaces around it, with `-` and `.` in the name.
pub(super) fn read(raw: &str, tools: &[ToolSignature]) -> CallId {
    let id = raw.trim();
    let without_prefix = id.strip_prefix(PREFIX);
    if let Some((head, counter)) = id.rsplit_once(':')
        && is_counter(counter.trim())
    {
        let name = head.strip_prefix(PREFIX).unwrap_or(head).trim();
        return match name {
            "" => CallId::Opaque { counter: counter.trim().parse().ok() },
            name => CallId::Named { name: name.to_owned(), id: Some(id.to_owned()) },
        };
    }
    let name = without_prefix.unwrap_or(id);
    if tools.iter().any(|t| t.name == name) {
        return CallId::Named { name: name.to_owned(), id: None };
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let opaque = id.bytes().all(word) && (id.is_empty() || id.bytes().any(|b| b.is_ascii_digit()));
    if without_prefix.is_none() && opaque {
        CallId::Opaque { counter: id.parse().ok() }
    } else {
        CallId::Malformed
    }
}

/// The declared tool that is meant when the id does not say: the only one, or the only one that has all these
/// arguments.
pub(super) fn infer<'t>(arguments: &str, tools: &'t [ToolSignature]) -> Option<&'t str> {
    if let [only] = tools {
        return Some(&only.name);
    }
    let Ok(Value::Object(arguments)) = serde_json::from_str(arguments) else { return None };
    let has_all = |t: &&ToolSignature| arguments.keys().all(|key| t.arguments.contains(key));
    let mut fitting = tools.iter().filter(has_all);
    match (fitting.next(), fitting.next()) {
        (Some(tool), None) if !arguments.is_empty() => Some(&tool.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_all_forms() {
        let tools = [ToolSignature { name: "bare".into(), arguments: vec![] }];
        let named =
            |name: &str, id: Option<&str>| CallId::Named { name: name.into(), id: id.map(Into::into) };
        let cases = [
            ("functions.f:0", named("f", Some("functions.f:0"))),
            (" functions.f:12 ", named("f", Some("functions.f:12"))),
            ("search:2", named("search", Some("search:2"))),
            ("functions.a-b.c:1", named("a-b.c", Some("functions.a-b.c:1"))),
            ("functions.mcp:x:1", named("mcp:x", Some("functions.mcp:x:1"))),
            ("bare", named("bare", None)),
            ("functions.bare", named("bare", None)),
            ("0", CallId::Opaque { counter: Some(0) }),
            (":3", CallId::Opaque { counter: Some(3) }),
            ("", CallId::Opaque { counter: None }),
            ("call_0a1b", CallId::Opaque { counter: None }),
            ("functions.invalid.0", CallId::Malformed),
            ("some words", CallId::Malformed),
            ("名前", CallId::Malformed),
        ];
        for (raw, expected) in cases {
            assert_eq!(read(raw, &tools), expected, "{raw:?}");
        }
    }
}
