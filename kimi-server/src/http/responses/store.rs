//! Responses that are kept for later requests, in memory, as long as there is room.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Most responses that are kept.
const MAX_RESPONSES: usize = 4096;
/// Most bytes of all of them together.
const MAX_BYTES: usize = 64 << 20;
/// What a response takes beside its texts.
const OVERHEAD: usize = 512;
/// What an id of an item takes in the index.
const ID_BYTES: usize = 160;

/// A response and the input that it answers, as JSON. Conversations share their earlier turns.
#[derive(Debug)]
pub(super) struct Turn {
    /// The response.
    pub(super) response: String,
    /// The items of the request.
    pub(super) input: String,
}

impl Turn {
    /// The items of the request, oldest first.
    pub(super) fn input(&self) -> Vec<Value> {
        serde_json::from_str(&self.input).unwrap_or_default()
    }

    /// The items of the answer.
    pub(super) fn output(&self) -> Vec<Value> {
        let mut response: Value = serde_json::from_str(&self.response).unwrap_or_default();
        match response["output"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }

    fn bytes(&self) -> usize {
        self.response.len() + self.input.len() + OVERHEAD
    }
}

/// A conversation up to a response, oldest turn first.
pub(super) type Conversation = Vec<Arc<Turn>>;

/// Keeps responses by their ids. Where there is no room for a new one, those go that nobody has asked for the longest time.
#[derive(Debug)]
pub(in crate::http) struct Store {
    kept: Mutex<Kept>,
    max_responses: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<String, Entry>,
    /// Ids of responses by when they were used last.
    by_use: BTreeMap<u64, String>,
    /// Ids of responses by those of their items.
    by_item: HashMap<String, String>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    turns: Conversation,
    items: Vec<String>,
    last_use: u64,
    bytes: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(MAX_RESPONSES, MAX_BYTES)
    }
}

impl Store {
    fn new(max_responses: usize, max_bytes: usize) -> Self {
        Self { kept: Mutex::default(), max_responses, max_bytes }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response to a conversation. One that is larger than all the room there is is not kept.
    pub(super) fn keep(&self, id: &str, before: &[Arc<Turn>], turn: Turn) {
        let mut turns = before.to_vec();
        let items: Vec<String> =
            turn.output().iter().filter_map(|item| Some(item["id"].as_str()?.to_owned())).collect();
        turns.push(Arc::new(turn));
        // What several responses share counts for each: any of them alone keeps it in memory.
        let bytes = turns.iter().map(|turn| turn.bytes()).sum::<usize>() + items.len() * ID_BYTES;
        if bytes > self.max_bytes {
            tracing::warn!(id, bytes, limit = self.max_bytes, "a response is too large to be stored");
            return;
        }
        let mut kept = self.kept();
        while kept.by_id.len() >= self.max_responses || kept.bytes + bytes > self.max_bytes {
            let Some((_, oldest)) = kept.by_use.pop_first() else { break };
            kept.remove(&oldest);
        }
        for item in &items {
            kept.by_item.insert(item.clone(), id.to_owned());
        }
        kept.bytes += bytes;
        let last_use = kept.next_use();
        kept.by_use.insert(last_use, id.to_owned());
        kept.by_id.insert(id.to_owned(), Entry { turns, items, last_use, bytes });
    }

    /// The conversation that ends with a response.
    pub(super) fn conversation(&self, id: &str) -> Option<Conversation> {
        let mut kept = self.kept();
        kept.touch(id);
        Some(kept.by_id.get(id)?.turns.clone())
    }

    /// A response and its input.
    pub(super) fn turn(&self, id: &str) -> Option<Arc<Turn>> {
        self.conversation(id)?.pop()
    }

    /// An item of a response's output.
    pub(super) fn item(&self, id: &str) -> Option<Value> {
        let response = self.kept().by_item.get(id)?.clone();
        self.turn(&response)?.output().into_iter().find(|item| item["id"] == id)
    }

    /// Forgets a response; whether there was one.
    pub(super) fn delete(&self, id: &str) -> bool {
        self.kept().remove(id)
    }
}

impl Kept {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn touch(&mut self, id: &str) {
        let now = self.next_use();
        if let Some(entry) = self.by_id.get_mut(id) {
            self.by_use.remove(&entry.last_use);
            entry.last_use = now;
            self.by_use.insert(now, id.to_owned());
        }
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(entry) = self.by_id.remove(id) else { return false };
        self.by_use.remove(&entry.last_use);
        self.bytes -= entry.bytes;
        for item in &entry.items {
            self.by_item.remove(item);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn turn(id: &str, text: &str) -> Turn {
        let response = json!({"id": id, "output": [{"id": format!("msg_{id}"), "text": text}]});
        Turn { response: response.to_string(), input: "[]".to_owned() }
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let store = Store::new(2, 1 << 20);
        for id in ["a", "b"] {
            store.keep(id, &[], turn(id, "x"));
        }
        assert!(store.turn("a").is_some());
        store.keep("c", &[], turn("c", "x"));
        assert!(store.turn("a").is_some() && store.turn("b").is_none() && store.turn("c").is_some());
        assert_eq!(store.item("msg_c").unwrap()["text"], "x");
        assert_eq!(store.item("msg_b"), None);
        assert!(store.delete("c") && !store.delete("c"));
        assert_eq!(store.item("msg_c"), None);
    }

    #[test]
    fn bytes_are_bounded_with_all_that_is_kept_alive() {
        let store = Store::new(1000, 20_000);
        let mut before = Vec::new();
        for i in 0..200 {
            let id = i.to_string();
            store.keep(&id, &before, turn(&id, &"x".repeat(300)));
            before = store.conversation(&id).unwrap_or_default();
            let kept = store.kept();
            let counted: usize = kept.by_id.values().map(|entry| entry.bytes).sum();
            assert!(kept.bytes == counted && kept.bytes <= 20_000);
            assert_eq!((kept.by_use.len(), kept.by_item.len()), (kept.by_id.len(), kept.by_id.len()));
        }
        store.keep("large", &[], turn("large", &"x".repeat(30_000)));
        assert!(store.turn("large").is_none());
        for id in 0..200 {
            store.delete(&id.to_string());
        }
        assert_eq!(store.kept().bytes, 0);
    }
}
