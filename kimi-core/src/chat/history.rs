//! Tool-call ids in a conversation's history.

use std::collections::HashSet;

use super::message::Message;
use super::tool_id;

/// A call that waits for its answer: the id that the client gave it, and the one that it has now.
struct Pending {
    old: String,
    new: String,
    name: String,
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
    let mut pending: Vec<Pending> = Vec::new();
    for message in messages {
        if !message.tool_calls.is_empty() {
            pending.clear();
        }
        for call in &mut message.tool_calls {
            let name = call.function.name.clone();
            let mut id = call.id.clone();
            if !tool_id::is_canonical(&id, &name) {
                let mut free = counter;
                id = tool_id::canonical(&name, free);
                while !used.insert(id.clone()) {
                    free += 1;
                    id = tool_id::canonical(&name, free);
                }
            }
            counter += 1;
            pending.push(Pending { old: std::mem::replace(&mut call.id, id.clone()), new: id, name });
        }
        if message.role == "tool"
            && let Some(at) = answered(message, &pending)
        {
            message.tool_call_id = Some(pending.remove(at).new);
        }
    }
}

/// Which pending call a tool message answers: the one that it names; without an id, the next one (of its
/// name, if it has one). An id that no pending call has is the client's business and stays.
fn answered(message: &Message, pending: &[Pending]) -> Option<usize> {
    match message.tool_call_id.as_deref() {
        Some(id) if !id.is_empty() => pending.iter().position(|p| p.old == id || p.new == id),
        _ => {
            let of_name = |name: &str| pending.iter().position(|p| p.name == name);
            message.name.as_deref().and_then(of_name).or(if pending.is_empty() { None } else { Some(0) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
