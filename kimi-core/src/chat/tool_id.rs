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

/// Longest id and name of a call, in bytes.
pub(super) const MAX_ID_BYTES: usize = 1024;

/// Whether a call in an answer may have this name, and thus a call in a conversation's history, which a client sends back:
/// any text of at most 1,024 bytes without control characters. Models call functions that nobody declared, by names with
/// spaces, in any script.
pub fn is_call_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= MAX_ID_BYTES && !name.contains(char::is_control)
}

/// What an id, as the model wrote it, tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallId {
    /// It names a function. With `id`, the id can stand as it is; else `counter` may be part of a new one.
    Named { name: String, id: Option<String>, counter: Option<u64> },
    /// It is a bare counter, so the function is the only declared one, or is told from the arguments.
    Counter(Option<u64>),
    /// It is a random id, so the function is told from the arguments, which must fit the only declared one, too.
    Random,
    /// It is none of these.
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

/// Reads an id leniently. One that spells a declared name in any way is that function's: without the prefix or with
/// another sign after it, with any sign before the counter or none. One that names another function is never taken for a
/// declared one's.
pub(super) fn read(raw: &str, tools: &[ToolSignature]) -> CallId {
    let id = raw.trim();
    if let Some((head, counter)) = id.rsplit_once(':')
        && is_counter(counter.trim())
    {
        let name = head.strip_prefix(PREFIX).unwrap_or(head).trim();
        let is_declared = tools.iter().any(|t| t.name == name);
        return match (name, if is_declared { None } else { spelled(id, tools) }) {
            ("", _) => CallId::Counter(counter.trim().parse().ok()),
            (_, Some((name, counter))) => CallId::Named { name, id: None, counter },
            (name, None) if is_call_name(name) => {
                CallId::Named { name: name.to_owned(), id: Some(id.to_owned()), counter: None }
            }
            _ => CallId::Malformed,
        };
    }
    if id.is_empty() || is_counter(id) {
        return CallId::Counter(id.parse().ok());
    }
    if let Some((name, counter)) = spelled(id, tools) {
        return CallId::Named { name, id: None, counter };
    }
    if is_random(id) {
        return CallId::Random;
    }
    // The client can say that it has no such function. Without any there are no calls.
    let name = without_prefix(id).unwrap_or(id);
    let head = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let (head, digits) = (head.trim_end_matches(SIGNS), &name[head.len()..]);
    if tools.is_empty()
        || !head.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
        || !is_call_name(head)
    {
        return CallId::Malformed;
    }
    CallId::Named { name: head.to_owned(), id: None, counter: digits.parse().ok() }
}

/// Signs that models put between the parts of an id.
const SIGNS: [char; 7] = [':', '.', '_', '-', '/', '#', ' '];

fn without_prefix(id: &str) -> Option<&str> {
    let rest = id.strip_prefix("functions").or_else(|| id.strip_prefix("function"))?;
    Some(rest.trim_start_matches(SIGNS))
}

/// The declared function whose name the id spells, and the counter after it: of several the longest name, in its own
/// spelling before one that differs by case or signs.
fn spelled(id: &str, tools: &[ToolSignature]) -> Option<(String, Option<u64>)> {
    let id = id.trim_matches(['"', '\'', '`', ' ']);
    let forms = || [Some(id), without_prefix(id)].into_iter().flatten();
    let exact = |a: u8, b: u8| a == b;
    longest(forms(), tools, exact).or_else(|| longest(forms(), tools, |a, b| folded(a) == folded(b)))
}

fn longest<'i>(
    forms: impl Iterator<Item = &'i str>,
    tools: &[ToolSignature],
    same: impl Fn(u8, u8) -> bool,
) -> Option<(String, Option<u64>)> {
    let mut best: Option<(&str, Option<u64>)> = None;
    for form in forms {
        for tool in tools.iter().filter(|t| !t.name.is_empty()) {
            let name = tool.name.as_str();
            let begins = form.len() >= name.len() && form.bytes().zip(name.bytes()).all(|(a, b)| same(a, b));
            let counter = form.get(name.len()..).filter(|_| begins).and_then(counter_after);
            let Some(counter) = counter else { continue };
            if best.is_none_or(|(found, _)| name.len() > found.len()) {
                best = Some((name, counter));
            }
        }
    }
    best.map(|(name, counter)| (name.to_owned(), counter))
}

fn folded(byte: u8) -> u8 {
    if SIGNS.contains(&char::from(byte)) { b'_' } else { byte.to_ascii_lowercase() }
}

/// What stands after a name: nothing, or a counter, or arguments in brackets. `None` if it is something else, which makes
/// it another name.
fn counter_after(rest: &str) -> Option<Option<u64>> {
    let rest = rest.trim_start_matches(['"', '\'', '`']);
    let rest = match rest.split_once(')') {
        Some((arguments, rest)) if arguments.starts_with('(') => rest,
        _ => rest,
    };
    let digits = rest.trim_start_matches(SIGNS).trim_end();
    match digits {
        "" => Some(None),
        _ if is_counter(digits) => Some(digits.parse().ok()),
        _ => None,
    }
}

/// Whether an id is one that servers make up: `call_9f2c`, `toolu_01A...`, a UUID or other hexadecimal digits.
fn is_random(id: &str) -> bool {
    const PREFIXES: [&str; 6] = ["call", "toolu", "chatcmpl-tool", "tool_call", "fc", "tc"];
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let has_digit = id.bytes().any(|b| b.is_ascii_digit());
    let prefixed =
        PREFIXES.iter().any(|p| id.strip_prefix(p).is_some_and(|rest| rest.starts_with(['_', '-'])));
    let hexadecimal = id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    id.bytes().all(word) && has_digit && (prefixed || hexadecimal)
}

/// The declared tool that is meant when the id does not say: the only one that has all these arguments.
pub(super) fn infer<'t>(arguments: &str, tools: &'t [ToolSignature]) -> Option<&'t str> {
    let Ok(Value::Object(arguments)) = serde_json::from_str(arguments) else { return None };
    let has_all = |t: &&ToolSignature| arguments.keys().all(|key| t.arguments.contains(key));
    let mut fitting = tools.iter().filter(has_all);
    match (fitting.next(), fitting.next()) {
        (Some(tool), None) if !arguments.is_empty() || tools.len() == 1 => Some(&tool.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Vec<ToolSignature> {
        names.iter().map(|&name| ToolSignature { name: name.into(), arguments: vec![] }).collect()
    }

    /// The name, the id if it stands, and the counter for a new one.
    fn named(id: &CallId) -> Option<(&str, Option<&str>, Option<u64>)> {
        match id {
            CallId::Named { name, id, counter } => Some((name, id.as_deref(), *counter)),
            _ => None,
        }
    }

    #[test]
    fn ids_in_kimis_own_form() {
        let cases = [
            ("functions.f:0", "f", "functions.f:0"),
            (" functions.f:12 ", "f", "functions.f:12"),
            ("search:2", "search", "search:2"),
            ("functions.a-b.c:1", "a-b.c", "functions.a-b.c:1"),
            ("functions.mcp:x:1", "mcp:x", "functions.mcp:x:1"),
            ("functions.get weather:0", "get weather", "functions.get weather:0"),
            ("functions.搜索:0", "搜索", "functions.搜索:0"),
            ("functions/get_weather:0", "functions/get_weather", "functions/get_weather:0"),
        ];
        for (raw, name, id) in cases {
            for tools in [&[][..], &tools(&["other"])] {
                assert_eq!(named(&read(raw, tools)), Some((name, Some(id), None)), "{raw:?}");
            }
        }
    }

    #[test]
    fn an_id_that_spells_a_declared_name_is_that_function() {
        let declared =
            ["read_file", "exec", "exec5", "read", "search_2", "functions_x", "mcp.fs-list", "搜索", "Grep"];
        let cases = [
            ("functions_read_file_1", "read_file", Some(1)),
            ("functions.read_file", "read_file", None),
            ("functions.read_file-1", "read_file", Some(1)),
            ("functions.read_file.7", "read_file", Some(7)),
            ("functions:read_file:1", "read_file", Some(1)),
            ("functions/read_file:1", "read_file", Some(1)),
            ("function.read_file:1", "read_file", Some(1)),
            ("functions.read_file(path):3", "read_file", Some(3)),
            ("functions.functions_x:3", "functions_x", None),
            ("functions_x_3", "functions_x", Some(3)),
            ("read_file", "read_file", None),
            ("`read_file`", "read_file", None),
            ("read", "read", None),
            ("functions.exec7", "exec", Some(7)),
            ("functions.exec5", "exec5", None),
            ("functions.exec51", "exec5", Some(1)),
            ("functions_search_2", "search_2", None),
            ("functions_search_2_4", "search_2", Some(4)),
            ("functions.mcp_fs_list:4", "mcp.fs-list", Some(4)),
            ("Functions.exec: 5", "Functions.exec", None),
            ("functions.grep:0", "Grep", Some(0)),
            ("functions.Read_File_2", "read_file", Some(2)),
            ("functions.搜索1", "搜索", Some(1)),
        ];
        for (raw, name, counter) in cases {
            let id = read(raw, &tools(&declared));
            let found = named(&id).map(|(name, _, counter)| (name, counter));
            let kept = matches!(&id, CallId::Named { id: Some(_), .. });
            assert_eq!(found, Some((name, if kept { None } else { counter })), "{raw:?}");
        }
    }

    #[test]
    fn an_id_that_names_another_function_is_not_given_to_a_declared_one() {
        let only = tools(&["get_weather"]);
        let cases = [
            ("functions_delete_file_1", Some("delete_file")),
            ("delete_file", Some("delete_file")),
            ("functions.delete_file", Some("delete_file")),
            ("base64_encode", Some("base64_encode")),
            ("functions.get_weather_now_2", Some("get_weather_now")),
            ("get_weathers", Some("get_weathers")),
            ("名前", Some("名前")),
            ("some words", None),
            ("functions.\n:0", None),
        ];
        for (raw, name) in cases {
            assert_eq!(named(&read(raw, &only)).map(|n| n.0), name, "{raw:?}");
        }
        assert_eq!(read("functions.invalid.0", &[]), CallId::Malformed);
    }

    #[test]
    fn ids_without_a_name() {
        let only = tools(&["get_weather"]);
        for (raw, counter) in [("0", Some(0)), (":3", Some(3)), ("functions.:3", Some(3)), ("", None)] {
            assert_eq!(read(raw, &only), CallId::Counter(counter), "{raw:?}");
        }
        for raw in ["call_0a1b", "chatcmpl-tool-8a", "toolu_01X", "0f8fad5b-d9cb-469f-a165-70867728950e"] {
            assert_eq!(read(raw, &only), CallId::Random, "{raw:?}");
        }
    }
}
