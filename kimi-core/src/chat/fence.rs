//! Keeps what users write from becoming control tokens.
//!
//! A template mixes its own control tokens with users' strings in ways that cannot be told apart afterwards.
//! So before rendering a mark is put into those strings of a user that hold a special token's name, or end
//! with the beginning of one that the next string might complete. After rendering the marks are taken out
//! again, and a **fence** stays where each was: a byte offset that no control token may span. A prompt of
//! honest messages is rendered from exactly the strings that the reference renders, and comes out as exactly
//! the reference's text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::tokenizer::{RenderedPrompt, SpecialTokens};

/// One rendering's mark: a character that occurs in none of its strings.
pub(super) struct Fence<'a> {
    mark: char,
    special: &'a SpecialTokens,
}

/// Characters that serve as marks: the noncharacters that Unicode keeps for such uses, then a private-use
/// plane.
fn candidates() -> impl Iterator<Item = char> {
    ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}')
}

fn is_candidate(c: char) -> bool {
    ('\u{fdd0}'..='\u{fdef}').contains(&c) || ('\u{f0000}'..='\u{ffffd}').contains(&c)
}

impl<'a> Fence<'a> {
    /// Chooses a mark that is in none of the strings; `None` if they hold all 65,566 candidates.
    pub(super) fn new<'s>(
        special: &'a SpecialTokens,
        strings: impl IntoIterator<Item = &'s str>,
    ) -> Option<Self> {
        let used: HashSet<char> =
            strings.into_iter().flat_map(|s| s.chars().filter(|&c| is_candidate(c))).collect();
        candidates().find(|c| !used.contains(c)).map(|mark| Self { mark, special })
    }

    /// The character itself.
    pub(super) fn mark(&self) -> char {
        self.mark
    }

    /// A user's string with the marks that it needs.
    pub(super) fn string<'s>(&self, text: &'s str) -> Cow<'s, str> {
        let mut cuts = self.inside(text);
        // A template may trim what it prints, so the end counts with and without white space.
        for end in [text.trim_end(), text] {
            if self.ends_with_beginning(end) {
                cuts.push(end.len());
            }
        }
        if cuts.is_empty() {
            return Cow::Borrowed(text);
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut out = String::with_capacity(text.len() + 4 * cuts.len());
        let mut from = 0;
        for cut in cuts {
            out.push_str(&text[from..cut]);
            out.push(self.mark);
            from = cut;
        }
        out.push_str(&text[from..]);
        Cow::Owned(out)
    }

    /// After the first character of every special name in the text.
    fn inside(&self, text: &str) -> Vec<usize> {
        let bytes = text.as_bytes();
        text.char_indices()
            .filter(|&(at, _)| self.special.may_begin_with(bytes[at]) && self.special.at(bytes, at).is_some())
            .map(|(at, c)| at + c.len_utf8())
            .collect()
    }

    fn ends_with_beginning(&self, text: &str) -> bool {
        let (longest, bytes) = (self.special.longest_name(), text.as_bytes());
        text.char_indices()
            .rev()
            .take_while(|(at, _)| text.len() - at < longest)
            .any(|(at, _)| self.special.may_begin_with(bytes[at]) && self.special.is_beginning(&text[at..]))
    }

    /// A user's JSON value with the marks that its strings and keys need.
    pub(super) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.string(text).into_owned()),
            Value::Array(items) => Value::Array(items.iter().map(|v| self.value(v)).collect()),
            Value::Object(map) => {
                let entries = map.iter().map(|(k, v)| (self.string(k).into_owned(), self.value(v)));
                Value::Object(entries.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    /// The same of a value that others hold too; copied only if it needs a mark.
    pub(super) fn shared(&self, value: &Arc<Value>) -> Arc<Value> {
        if self.touches(value) { Arc::new(self.value(value)) } else { value.clone() }
    }

    fn touches(&self, value: &Value) -> bool {
        let touches = |text: &str| matches!(self.string(text), Cow::Owned(_));
        match value {
            Value::String(text) => touches(text),
            Value::Array(items) => items.iter().any(|v| self.touches(v)),
            Value::Object(map) => map.iter().any(|(k, v)| touches(k) || self.touches(v)),
            _ => false,
        }
    }

    /// Takes the marks out of what was rendered.
    pub(super) fn open(&self, rendered: &str) -> RenderedPrompt {
        let (mut text, mut fences) = (String::with_capacity(rendered.len()), Vec::new());
        for (at, part) in rendered.split(self.mark).enumerate() {
            if at > 0 {
                fences.push(text.len());
            }
            text.push_str(part);
        }
        fences.dedup();
        RenderedPrompt::fenced(text, fences)
    }
}
