//! Strings: lengths, patterns and formats.

use std::collections::BTreeMap;

use llguidance::derivre::RegexBuilder;
use serde_json::{Map, Value};

use super::{Keywords, count, fault};
use crate::chat_model::GrammarFault;

/// Longest string that a schema may demand, in characters.
const MAX_MIN_LENGTH: usize = 1 << 16;
/// A longer string fits no context anyway.
const MAX_MAX_LENGTH: usize = 1 << 20;
/// White space as ECMA-262 and Rust agree on it.
const SPACE: &str = r"\t\n\x0B\x0C\r\x20\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000";

/// Writes the keywords of strings.
pub(super) fn strings(
    keywords: &Keywords,
    path: &str,
    base: &mut Map<String, Value>,
) -> Result<(), GrammarFault> {
    if let Some(min) = count(keywords, "minLength", path)? {
        if min > MAX_MIN_LENGTH {
            let reason = format!(
                "{min} characters are more than an answer has room for; at most {MAX_MIN_LENGTH} are taken"
            );
            return Err(fault(path, "minLength", reason));
        }
        base.insert("minLength".into(), min.into());
    }
    if let Some(max) = count(keywords, "maxLength", path)? {
        base.insert("maxLength".into(), max.min(MAX_MAX_LENGTH).into());
    }
    if let Some(pattern) = keywords.get("pattern") {
        let pattern = pattern.as_str().ok_or_else(|| fault(path, "pattern", "expected a string"))?;
        let pattern = expression(pattern).map_err(|reason| fault(path, "pattern", reason))?;
        base.insert("pattern".into(), pattern.into());
    }
    if let Some(format) = keywords.get("format") {
        let name = format.as_str().ok_or_else(|| fault(path, "format", "expected a string"))?;
        match (known_format(name), base.contains_key("pattern")) {
            (Some(Format::Library(name)), _) => drop(base.insert("format".into(), name.into())),
            (Some(Format::Pattern(pattern)), false) => drop(base.insert("pattern".into(), pattern.into())),
            (Some(Format::Pattern(_)), true) => {
                return Err(fault(
                    path,
                    "format",
                    format!("{name:?} beside a pattern is not supported; leave one out"),
                ));
            }
            // Validators take a format that they don't know for a remark.
            (None, _) => {}
        }
    }
    Ok(())
}

enum Format {
    /// llguidance has it.
    Library(&'static str),
    Pattern(&'static str),
}

fn known_format(name: &str) -> Option<Format> {
    Some(match name {
        "email" | "idn-email" => Format::Pattern(
            r"^[a-zA-Z0-9_+-]{1,24}(\.[a-zA-Z0-9_+-]{1,12}){0,3}@([a-zA-Z][a-zA-Z0-9]{0,20}(-[a-zA-Z0-9]{1,20})?\.){1,4}[a-zA-Z]{2,12}$",
        ),
        "hostname" | "idn-hostname" => Format::Pattern(
            r"^([a-zA-Z][a-zA-Z0-9]{0,20}(-[a-zA-Z0-9]{1,20})?\.){0,4}[a-zA-Z][a-zA-Z0-9]{0,20}(-[a-zA-Z0-9]{1,20})?$",
        ),
        "ipv4" => Format::Library("ipv4"),
        "ipv6" => Format::Pattern(
            r"^([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}$|^::([0-9a-fA-F]{1,4}:){0,5}[0-9a-fA-F]{1,4}$",
        ),
        "uuid" => Format::Library("uuid"),
        "uri" | "iri" => Format::Pattern(
            r"^[a-zA-Z][a-zA-Z0-9+.-]{0,20}:(//[a-zA-Z0-9._~-]+(:[0-9]{1,5})?)?(/[a-zA-Z0-9._~!$&'()*+,;=:@-]+)*/?(\?[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?(#[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?$",
        ),
        "uri-reference" | "iri-reference" => Format::Pattern(
            r"^([a-zA-Z][a-zA-Z0-9+.-]{0,20}://[a-zA-Z0-9._~-]+(:[0-9]{1,5})?)?(/[a-zA-Z0-9._~!$&'()*+,;=@-]+)*/?(\?[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?(#[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?$",
        ),
        "date" => Format::Pattern(DATE),
        "time" => Format::Pattern(
            r"^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
        ),
        "date-time" => Format::Pattern(DATE_TIME),
        "duration" => Format::Pattern(
            r"^P([0-9]{1,9}W|[0-9]{1,9}Y([0-9]{1,9}M([0-9]{1,9}D)?)?|[0-9]{1,9}M([0-9]{1,9}D)?|[0-9]{1,9}D|([0-9]{1,9}D)?T([0-9]{1,9}H([0-9]{1,9}M([0-9]{1,9}S)?)?|[0-9]{1,9}M([0-9]{1,9}S)?|[0-9]{1,9}S))$",
        ),
        "json-pointer" => Format::Pattern(r"^(/([^~/]|~[01])*)*$"),
        "relative-json-pointer" => Format::Pattern(r"^(0|[1-9][0-9]*)(#|(/([^~/]|~[01])*)*)$"),
        "regex" => Format::Pattern(r"^([a-zA-Z0-9 _:;,<>=!@#%&/-]|\.\*|\\[dws.]|\[[a-z0-9]+\]\+)*$"),
        "uri-template" => Format::Pattern(r"^([a-zA-Z0-9._~:/?#=&-]|\{[a-z]+\})*$"),
        _ => return None,
    })
}

/// Days that there are, leap years' included; no year 0.
macro_rules! days {
    () => {
        concat!(
            r"([0-9]{3}[1-9]|[1-9][0-9]{2}0)-",
            r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|",
            r"[1-9][0-9](0[48]|[2468][048]|[13579][26])-02-29"
        )
    };
}

const DATE: &str = concat!("^(", days!(), ")$");
const DATE_TIME: &str = concat!(
    "^(",
    days!(),
    r")[tT]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
);

/// A pattern of ECMA-262 in the dialect that llguidance reads, checked.
pub(in crate::grammar) fn expression(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len());
    let (mut escaped, mut in_class) = (false, false);
    for c in pattern.chars() {
        if std::mem::take(&mut escaped) {
            match c {
                '0' => out.push_str(r"\x00"),
                'd' => out.push_str("[0-9]"),
                'D' => out.push_str("[^0-9]"),
                'w' => out.push_str("[0-9A-Za-z_]"),
                'W' => out.push_str("[^0-9A-Za-z_]"),
                's' => out.push_str(&format!("[{SPACE}]")),
                'S' => out.push_str(&format!(r"[^{SPACE}\u0085\uFEFF]")),
                'b' | 'B' if !in_class => {
                    return Err("word boundaries (\\b) are not supported; leave them out".into());
                }
                '1'..='9' | 'k' => {
                    return Err("references to groups are not supported; write the pattern out".into());
                }
                // Rust's expressions have escapes of letters of their own; any other character stands for itself.
                c if c.is_ascii_alphanumeric() => out.extend(['\\', c]),
                c => out.push_str(&regex_escape(c)),
            }
            continue;
        }
        match c {
            '\\' => escaped = true,
            '[' if in_class => out.push_str(r"\["),
            '[' => {
                in_class = true;
                out.push(c);
            }
            ']' if in_class => {
                in_class = false;
                out.push(c);
            }
            // Rust's classes have operators: &&, -- and ~~.
            '&' | '~' if in_class => out.extend(['\\', c]),
            '.' if !in_class => out.push_str(r"[^\n\r\u2028\u2029]"),
            c => out.push(c),
        }
    }
    if pattern.contains("(?=")
        || pattern.contains("(?!")
        || pattern.contains("(?<=")
        || pattern.contains("(?<!")
    {
        return Err("looking around ((?=, (?!) is not supported; write the pattern without it".into());
    }
    let mut builder = RegexBuilder::new();
    let checked = builder.mk_regex_for_serach(&out);
    checked.map(|_| out).map_err(|e| format!("{pattern:?} is no pattern that can be enforced: {e:#}"))
}

/// An expression for all names but these: what ends before one does, differs from it, or goes on after it.
pub(super) fn others<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut root = Node::default();
    for name in names {
        let mut node = &mut root;
        for c in name.chars() {
            node = node.next.entry(c).or_default();
        }
        node.ends = true;
    }
    let mut out = String::from("^(");
    root.write(&mut out);
    out.push_str(")$");
    out
}

/// A tree of names by their characters.
#[derive(Default)]
struct Node {
    next: BTreeMap<char, Node>,
    ends: bool,
}

impl Node {
    /// Writes what may follow so that the whole is no name of the tree.
    fn write(&self, out: &mut String) {
        const ANY: &str = r"[\x{0}-\x{10ffff}]";
        let character = |c: &char| format!("\\x{{{:x}}}", *c as u32);
        if self.next.is_empty() {
            out.push_str(ANY);
            out.push_str(if self.ends { "+" } else { "*" });
            return;
        }
        let known: String = self.next.keys().map(character).collect();
        out.push_str(&format!("[^{known}]{ANY}*"));
        for (c, node) in &self.next {
            out.push_str(&format!("|{}(", character(c)));
            node.write(out);
            out.push(')');
        }
        if !self.ends {
            out.push('|');
        }
    }
}

fn regex_escape(c: char) -> String {
    if c.is_ascii() { format!("\\{c}") } else { c.to_string() }
}
