//! Tool-call ids in a conversation's history.

use std::collections::{HashMap, HashSet, VecDeque};

use super::message::Message;
use super::tool_id;

/// The calls of one message that wait for their answers. Every look-up is one in a map, however many there are.
#[derive(Default)]
struct Pending {
    /// The new id of each call, in order; `None` once it is answered.
    new_ids: Vec<Option<String>>,
    /// Calls by the id that the client gave them, and by the one that they have now.
    by_id: HashMap<String, VecDeque<usize>>,
    by_name: HashMap<String, VecDeque<usize>>,
    /// No call before this one waits.
    first: usize,
}

impl Pending {
    fn push(&mut self, old: String, new: String, name: String) {
        let place = self.new_ids.len();
        if old != new {
            self.by_id.entry(old).or_default().push_back(place);
        }
        self.by_id.entry(new.clone()).or_default().push_back(place);
        self.by_name.entry(name).or_default().push_back(place);
        self.new_ids.push(Some(new));
    }

    /// The new id of the call that a tool message answers: the one that it names; without an id, the next one (of
    /// its name, if it has one). An id that no pending call has is the client's business and stays.
    fn answer(&mut self, message: &Message) -> Option<String> {
        if let Some(id) = message.tool_call_id.as_deref().filter(|id| !id.is_empty()) {
            return take(self.by_id.get_mut(id)?, &mut self.new_ids);
        }
        let of_name = message.name.as_ref().and_then(|name| self.by_name.get_mut(name));
        of_name.and_then(|places| take(places, &mut self.new_ids)).or_else(|| {
            while self.new_ids.get(self.first).is_some_and(Option::is_none) {
                self.first += 1;
            }
            self.new_ids.get_mut(self.first)?.take()
        })
    }
}

/// The new id of the first of some calls that still waits.
fn take(places: &mut VecDeque<usize>, new_ids: &mut [Option<String>]) -> Option<String> {
    while let Some(place) = places.pop_front() {
        if let Some(id) = new_ids.get_mut(place).and_then(Option::take) {
            return Some(id);
        }
    }
    None
}

/// Rewrites ids that are not Kimi's own (`call_ab12`, ...) to `functions.NAME:COUNTER`, the counter running
/// over the whole conversation from 0, in the calls and in the tool messages that answer them. An id that
/// already has this form with the call's name stays as it is.
///
/// The model sees the ids and has only learnt that form; with others it often stops at once. Moonshot's own
/// API does the same.
pub fn normalize_tool_call_ids(messages: &mut [Message]) {
    let mut used: HashSet<String> = messages
        .iter()
        .flat_map(|m| &m.tool_calls)
        .filter(|c| tool_id::is_canonical(&c.id, &c.function.name))
        .map(|c| c.id.clone())
        .collect();
    let mut counter = 0;
    // The counters of a name up to here are known to be in use.
    let mut next_free: HashMap<String, u64> = HashMap::new();
    let mut pending = Pending::default();
    for message in messages {
        if !message.tool_calls.is_empty() {
            pending = Pending::default();
        }
        for call in &mut message.tool_calls {
            let name = call.function.name.clone();
            let mut id = call.id.clone();
            if !tool_id::is_canonical(&id, &name) {
                let next = next_free.entry(name.clone()).or_default();
                let mut free = counter.max(*next);
                id = tool_id::canonical(&name, free);
                while !used.insert(id.clone()) {
                    free += 1;
                    id = tool_id::canonical(&name, free);
                }
                *next = free + 1;
            }
            counter += 1;
            pending.push(std::mem::replace(&mut call.id, id.clone()), id, name);
        }
        if message.role == "tool"
            && let Some(id) = pending.answer(message)
        {
            message.tool_call_id = Some(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{FunctionCall, ToolCall};
    use serde_json::json;

    fn ids(messages: serde_json::Value) -> Vec<String> {
        let mut messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        normalize_tool_call_ids(&mut messages);
        let of = |m: &Message| {
            m.tool_calls.iter().map(|c| c.id.clone()).chain(m.tool_call_id.clone()).collect::<Vec<_>>()
        };
        messages.iter().flat_map(of).collect()
    }

    fn calls(list: &[(&str, &str)]) -> serde_json::Value {
        let call =
            |(id, name): &(&str, &str)| json!({"id": id, "function": {"name": name, "arguments": "{}"}});
        json!({"role": "assistant", "content": null, "tool_calls": list.iter().map(call).collect::<Vec<_>>()})
    }

    #[test]
    fn kimis_own_ids_stay() {
        let messages =
            json!([calls(&[("functions.f:7", "f")]), {"role": "tool", "tool_call_id": "functions.f:7"}]);
        assert_eq!(ids(messages), ["functions.f:7", "functions.f:7"]);
    }

    #[test]
    fn foreign_ids_are_counted_over_the_conversation() {
        let messages = json!([
            calls(&[("call_a", "f"), ("call_b", "g")]),
            {"role": "tool", "tool_call_id": "call_b", "content": "2"},
            {"role": "tool", "tool_call_id": "call_a", "content": "1"},
            calls(&[("call_a", "f")]),
            {"role": "tool", "tool_call_id": "call_a", "content": "3"},
        ]);
        let expected = [
            "functions.f:0",
            "functions.g:1",
            "functions.g:1",
            "functions.f:0",
            "functions.f:2",
            "functions.f:2",
        ];
        assert_eq!(ids(messages), expected);
    }

    #[test]
    fn equal_and_missing_ids_are_answered_in_order() {
        let messages = json!([
            calls(&[("", "f"), ("", "g"), ("x", "h")]),
            {"role": "tool", "name": "g"},
            {"role": "tool"},
            {"role": "tool", "tool_call_id": "unknown"},
            {"role": "tool", "tool_call_id": "x"},
        ]);
        let expected = [
            "functions.f:0",
            "functions.g:1",
            "functions.h:2",
            "functions.g:1",
            "functions.f:0",
            "unknown",
            "functions.h:2",
        ];
        assert_eq!(ids(messages), expected);
    }

    #[test]
    fn a_new_id_is_never_one_in_use() {
        let messages = json!([
            calls(&[("call_a", "f")]),
            calls(&[("functions.f:0", "f")]),
            calls(&[("functions.g:1", "f")])
        ]);
        assert_eq!(ids(messages), ["functions.f:1", "functions.f:0", "functions.f:2"]);
    }

    /// Calls that are answered from the last to the first, and ids that are all in use already: with look-ups that
    /// go through all the others this would not end.
    #[test]
    fn many_calls_take_one_look_up_each() {
        const CALLS: usize = 200_000;
        let call = |id: String| ToolCall {
            id,
            kind: "function".into(),
            function: FunctionCall { name: "f".into(), arguments: String::new() },
        };
        let own = (0..CALLS).map(|i| call(format!("functions.f:{}", CALLS + i)));
        let foreign = (0..CALLS).map(|i| call(format!("call_{i}")));
        let assistant = Message { role: "assistant".into(), ..Message::default() };
        let answer = |i: usize| Message {
            role: "tool".into(),
            tool_call_id: Some(format!("call_{i}")),
            ..Message::default()
        };
        let mut messages = vec![
            Message { tool_calls: own.collect(), ..assistant.clone() },
            Message { tool_calls: foreign.collect(), ..assistant },
        ];
        messages.extend((0..CALLS).rev().map(answer));
        normalize_tool_call_ids(&mut messages);
        let last = format!("functions.f:{}", 3 * CALLS - 1);
        assert_eq!(messages[1].tool_calls[CALLS - 1].id, last);
        assert_eq!(messages[2].tool_call_id, Some(last));
        assert_eq!(messages[CALLS + 1].tool_call_id, Some(format!("functions.f:{}", 2 * CALLS)));
    }
}
