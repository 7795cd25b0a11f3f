//! What the model has sampled, so that it is the same tokens when it comes back in a history.
//!
//! A client sends an answer back as text, and the arguments of calls as JSON that it may have written anew. Encoded again,
//! that can be other tokens than those sampled: other pages, and a text that the model would not have written so. So the
//! tokens of recent answers are remembered by their text, from one control token to the next, and the text of calls by what
//! its JSON says. Whoever sends the same text back has these tokens in his prompt; anything else is encoded as ever.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::chat::Message;

/// Most tokens that are remembered; 4 bytes each.
const MAX_TOKENS: usize = 1 << 20;
/// Most bytes of calls' arguments.
const MAX_BYTES: usize = 4 << 20;
/// What an entry counts besides what it holds.
const ENTRY: usize = 32;

type Key = [u8; 32];

/// What was sampled lately.
#[derive(Debug)]
pub(super) struct Replay {
    texts: Mutex<Recent<Arc<[u32]>>>,
    calls: Mutex<Recent<Arc<str>>>,
}

impl Default for Replay {
    fn default() -> Self {
        Self { texts: Mutex::new(Recent::new(MAX_TOKENS)), calls: Mutex::new(Recent::new(MAX_BYTES)) }
    }
}

impl Replay {
    /// A text that stood between two control tokens was sampled as these.
    pub(super) fn remember_text(&self, text: &str, tokens: &[u32]) {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.insert(*blake3::hash(text.as_bytes()).as_bytes(), tokens.into(), tokens.len());
    }

    /// The tokens that a text was sampled as.
    pub(super) fn tokens(&self, text: &str) -> Option<Arc<[u32]>> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.get(blake3::hash(text.as_bytes()).as_bytes())
    }

    /// The arguments of a call were sampled as this text.
    pub(super) fn remember_call(&self, id: &str, arguments: &str) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.insert(call_key(id, arguments), arguments.into(), arguments.len());
    }

    /// Gives calls whose arguments say the same as sampled ones the text that was sampled.
    pub(super) fn restore_calls(&self, messages: &mut [Message]) {
        let of_assistant = messages.iter_mut().filter(|message| message.role == "assistant");
        for call in of_assistant.flat_map(|message| &mut message.tool_calls) {
            let key = call_key(&call.id, &call.function.arguments);
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(sampled) = calls.get(&key) {
                call.function.arguments = sampled.to_string();
            }
        }
    }
}

/// Names a call by its id and by what its arguments say.
fn call_key(id: &str, arguments: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(id.len() as u64).to_le_bytes());
    hasher.update(id.as_bytes());
    match serde_json::from_str::<Value>(arguments) {
        Ok(mut value) => {
            value.sort_all_objects();
            same_numbers(&mut value);
            hasher.update(b"json").update(value.to_string().as_bytes());
        }
        Err(_) => {
            hasher.update(b"text").update(arguments.trim().as_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

/// Writes whole numbers without a fraction, as JavaScript does with those that it has read.
fn same_numbers(value: &mut Value) {
    /// Whole numbers up to here are exact in 64 bits.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if !number.is_i64() && !number.is_u64() => {
            if let Some(whole) = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT) {
                *value = (whole as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(same_numbers),
        Value::Object(map) => map.values_mut().for_each(same_numbers),
        _ => {}
    }
}

/// Values by key, of which those that were unused for longest go when they become too many.
#[derive(Debug)]
struct Recent<T> {
    entries: HashMap<Key, Entry<T>>,
    /// First the one to go first.
    order: BTreeMap<u64, Key>,
    clock: u64,
    size: usize,
    max_size: usize,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    size: usize,
    used: u64,
}

impl<T: Clone> Recent<T> {
    fn new(max_size: usize) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), clock: 0, size: 0, max_size }
    }

    fn get(&mut self, key: &Key) -> Option<T> {
        let entry = self.entries.get_mut(key)?;
        self.clock += 1;
        self.order.remove(&std::mem::replace(&mut entry.used, self.clock));
        self.order.insert(self.clock, *key);
        Some(entry.value.clone())
    }

    fn insert(&mut self, key: Key, value: T, size: usize) {
        self.remove(&key);
        let size = size.saturating_add(ENTRY);
        if size > self.max_size {
            return;
        }
        while self.size + size > self.max_size {
            let Some(oldest) = self.order.first_key_value().map(|(_, key)| *key) else { return };
            self.remove(&oldest);
        }
        self.clock += 1;
        self.size += size;
        self.order.insert(self.clock, key);
        self.entries.insert(key, Entry { value, size, used: self.clock });
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.size -= entry.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{FunctionCall, ToolCall};

    fn restored(replay: &Replay, id: &str, arguments: &str) -> String {
        let function = FunctionCall { name: "f".into(), arguments: arguments.into() };
        let call = ToolCall { id: id.into(), kind: "function".into(), function };
        let assistant = Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() };
        let mut messages = [assistant];
        replay.restore_calls(&mut messages);
        messages[0].tool_calls[0].function.arguments.clone()
    }

    #[test]
    fn arguments_that_say_the_same_are_what_was_sampled() {
        let replay = Replay::default();
        let sampled = "\n{ \"b\": [1.0, 2.5], \"a\":\"\u{fc}\" } ";
        replay.remember_call("functions.f:0", sampled);
        for same in [sampled.trim(), r#"{"a":"\u00fc","b":[1,2.5]}"#, "{\"b\":[1, 2.50],\n\"a\":\"\u{fc}\"}"]
        {
            assert_eq!(restored(&replay, "functions.f:0", same), sampled, "{same}");
        }
        for other in [r#"{"a":"u","b":[1,2.5]}"#, r#"{"a":"\u00fc","b":[2.5,1]}"#, r#"{"a":"\u00fc"}"#, ""] {
            assert_eq!(restored(&replay, "functions.f:0", other), other);
        }
        assert_eq!(restored(&replay, "functions.f:1", sampled.trim()), sampled.trim(), "another call");
        replay.remember_call("functions.f:2", " not JSON ");
        assert_eq!(restored(&replay, "functions.f:2", "not JSON"), " not JSON ");
    }

    #[test]
    fn the_longest_unused_go_first() {
        let mut recent = Recent::new(3 * (ENTRY + 10));
        let key = |i: u8| [i; 32];
        (0..3).for_each(|i| recent.insert(key(i), i, 10));
        assert_eq!(recent.get(&key(0)), Some(0));
        recent.insert(key(3), 3, 10);
        recent.insert(key(3), 4, 10);
        let found: Vec<_> = (0..4).map(|i| recent.get(&key(i))).collect();
        assert_eq!(found, [Some(0), None, Some(2), Some(4)]);
        recent.insert(key(5), 5, usize::MAX);
        recent.insert(key(6), 6, 3 * (ENTRY + 10) - ENTRY);
        assert_eq!((recent.entries.len(), recent.order.len(), recent.size), (1, 1, recent.max_size));
    }
}
