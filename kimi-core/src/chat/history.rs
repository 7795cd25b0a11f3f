//! Tool-call ids in a conversation's history.

use std::collections::{HashMap, HashSet, VecDeque};

use super::message::Message;
use super::tool_id;

/// Calls with something in common that wait for their answers: by group, in order within each. A group is the calls that
/// assistant messages make in a row; those of one turn may come in several messages.
#[derive(Default)]
struct Waiting(Vec<(usize, VecDeque<usize>)>);

impl Waiting {
    fn push(&mut self, group: usize, place: usize) {
        match self.0.last_mut() {
            Some((last, places)) if *last == group => places.push_back(place),
            _ => self.0.push((group, VecDeque::from([place]))),
        }
    }

    /// The first that still waits, of the latest group: what came before was probably never answered.
    fn take(&mut self, new_ids: &mut [(String, bool)]) -> Option<String> {
        while let Some((_, places)) = self.0.last_mut() {
            while let Some(place) = places.pop_front() {
                if let Some((id, waits)) = new_ids.get_mut(place).filter(|(_, waits)| *waits) {
                    *waits = false;
                    return Some(id.clone());
                }
            }
            self.0.pop();
        }
        None
    }
}

/// The calls of a conversation. Every look-up is one in a map, however many there are.
#[derive(Default)]
struct Calls {
    /// The new id of each call, in order, and whether it waits for its answer.
    new_ids: Vec<(String, bool)>,
    /// Calls by the id that the client gave them, by name, and all.
    by_id: HashMap<String, Waiting>,
    by_name: HashMap<String, Waiting>,
    all: Waiting,
    /// The new id of the call with this old one that was answered last.
    answered: HashMap<String, String>,
    group: usize,
}

impl Calls {
    fn push(&mut self, old: String, new: String, name: String) {
        let place = self.new_ids.len();
        if !old.is_empty() {
            self.by_id.entry(old).or_default().push(self.group, place);
        }
        self.by_name.entry(name).or_default().push(self.group, place);
        self.all.push(self.group, place);
        self.new_ids.push((new, true));
    }

    /// The new id of the call that a tool message answers: the one that it names, again if it was answered already; without
    /// an id, the next one (of its name, if it has one). `None` for an id that no call up to here has.
    fn answer(&mut self, message: &Message) -> Option<String> {
        if let Some(id) = message.tool_call_id.as_deref().filter(|id| !id.is_empty()) {
            let waiting = self.by_id.get_mut(id);
            let new = waiting.and_then(|calls| calls.take(&mut self.new_ids));
            if let Some(new) = &new {
                self.answered.insert(id.to_owned(), new.clone());
            }
            return new.or_else(|| self.answered.get(id).cloned());
        }
        let of_name = message.name.as_ref().and_then(|name| self.by_name.get_mut(name));
        of_name.and_then(|calls| calls.take(&mut self.new_ids)).or_else(|| self.all.take(&mut self.new_ids))
    }
}

/// Gives every call an id of the form `functions.NAME:COUNTER` of its own, the counter running over the whole conversation
/// from 0, and the same to the tool messages that answer it. An id that has this form with the call's name stays as it is,
/// unless an earlier call has it.
///
/// The model sees the ids and has only learnt that form; with others it often stops at once. Moonshot's own API does the
/// same. Calls of one turn may come in several messages, and answers in any order, after other messages, or more than once.
/// The id of an answer to no call stays.
pub fn normalize_tool_call_ids(messages: &mut [Message]) {
    let mut used: HashSet<String> =
        messages.iter().flat_map(|m| &m.tool_calls).map(|c| c.id.clone()).collect();
    let mut own = HashSet::new();
    let mut counter = 0;
    // The counters of a name up to here are known to be in use.
    let mut next_free: HashMap<String, u64> = HashMap::new();
    let mut calls = Calls::default();
    let mut early = Vec::new();
    for (at, message) in messages.iter_mut().enumerate() {
        if message.tool_calls.is_empty() && message.role != "assistant" {
            calls.group += 1;
        }
        for call in &mut message.tool_calls {
            let name = call.function.name.clone();
            let mut id = call.id.clone();
            if !tool_id::is_canonical(&id, &name) || !own.insert(id.clone()) {
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
            calls.push(std::mem::replace(&mut call.id, id.clone()), id, name);
        }
        if message.role == "tool" {
            match calls.answer(message) {
                Some(id) => message.tool_call_id = Some(id),
                None => early.push(at),
            }
        }
    }
    // Answers that stand before their calls.
    for at in early {
        if let Some(message) = messages.get_mut(at)
            && let Some(id) = calls.answer(message)
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

    fn answer(id: &str) -> serde_json::Value {
        json!({"role": "tool", "tool_call_id": id, "content": id})
    }

    #[test]
    fn parallel_calls_may_come_in_several_messages() {
        let messages = json!([
            calls(&[("call_a", "f")]),
            calls(&[("call_b", "g")]),
            {"role": "assistant", "content": "I called two."},
            answer("call_a"),
            answer("call_b"),
        ]);
        assert_eq!(ids(messages), ["functions.f:0", "functions.g:1", "functions.f:0", "functions.g:1"]);
    }

    #[test]
    fn answers_may_come_late_early_and_twice() {
        let messages = json!([
            calls(&[("call_a", "f"), ("call_b", "g")]),
            answer("call_a"),
            calls(&[("call_c", "h")]),
            answer("call_b"),
            {"role": "user", "content": "go on"},
            answer("call_c"),
            answer("call_a"),
            answer("call_d"),
            calls(&[("call_d", "f")]),
        ]);
        let expected = ["f:0", "g:1", "f:0", "h:2", "g:1", "h:2", "f:0", "f:3", "f:3"];
        assert_eq!(ids(messages), expected.map(|id| format!("functions.{id}")));
    }

    #[test]
    fn ids_that_repeat_are_told_apart() {
        // Each answer is of the latest calls that have its id; of split ones, in order.
        let messages = json!([
            calls(&[("call_0", "f")]),
            {"role": "user", "content": "never mind"},
            calls(&[("call_0", "g")]),
            calls(&[("call_0", "h")]),
            answer("call_0"),
            answer("call_0"),
            calls(&[("call_0", "f")]),
            answer("call_0"),
        ]);
        let expected = ["f:0", "g:1", "h:2", "g:1", "h:2", "f:3", "f:3"];
        assert_eq!(ids(messages), expected.map(|id| format!("functions.{id}")));
        // Kimi's own form is no exception.
        let messages = json!([
            calls(&[("functions.f:0", "f")]),
            answer("functions.f:0"),
            calls(&[("functions.f:0", "f"), ("functions.g:1", "f")]),
            answer("functions.g:1"),
            answer("functions.f:0"),
        ]);
        let expected = ["f:0", "f:0", "f:1", "f:2", "f:2", "f:1"];
        assert_eq!(ids(messages), expected.map(|id| format!("functions.{id}")));
    }

    #[test]
    fn what_the_parser_names_a_function_keeps_its_id() {
        for name in
            ["get weather", "搜索", "functions:get_weather", "functions/get_weather", "get_weather(city)"]
        {
            let id = format!("functions.{name}:0");
            let messages = json!([calls(&[(&id, name)]), answer(&id)]);
            assert_eq!(ids(messages), [id.clone(), id]);
        }
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
