//! Answers of the embedded model that clients ask to have a form, with bodies as OpenAI's clients send them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use kimi_tests::api::{Server, Streamed};
use serde_json::{Value, json};

fn body(extra: Value) -> Value {
    let mut body = json!({
        "model": "kimi-tiny",
        "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
        "temperature": 0,
        "max_completion_tokens": 600,
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Two tools that are strict.
fn tools() -> Value {
    let tool = |name: &str, properties: Value, required: Value| {
        let parameters = json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
        let function =
            json!({"name": name, "description": "A tool.", "parameters": parameters, "strict": true});
        json!({"type": "function", "function": function})
    };
    let from = json!({"type": "string", "enum": ["OSL", "BER"]});
    let seats = json!({"type": "integer", "minimum": 1, "maximum": 9});
    let flight = tool("book_flight", json!({"from": from, "seats": seats}), json!(["from", "seats"]));
    let text = json!({"type": "string", "maxLength": 30});
    json!([flight, tool("take_note", json!({"text": text}), json!(["text"]))])
}

/// A schema of reviews.
fn review() -> Value {
    let stars = json!({"type": "integer", "minimum": 1, "maximum": 5});
    let tags = json!({"type": "array", "items": {"enum": ["sea", "night"]}, "minItems": 1, "maxItems": 2});
    json!({
        "type": "object",
        "properties": {"stars": stars, "tags": tags},
        "required": ["stars", "tags"],
        "additionalProperties": false,
    })
}

fn of_schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "review", "strict": true, "schema": schema}})
}

fn check_review(text: &str) {
    let review: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    assert!((1..=5).contains(&review["stars"].as_i64().unwrap()), "{review}");
    let tags = review["tags"].as_array().unwrap();
    assert!(matches!(tags.len(), 1 | 2) && tags.iter().all(|tag| tag == "sea" || tag == "night"), "{review}");
}

fn check_flight(arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
    let fields = value.as_object().unwrap();
    assert!(["OSL", "BER"].contains(&fields["from"].as_str().unwrap()), "{arguments}");
    assert!((1..=9).contains(&fields["seats"].as_i64().unwrap()) && fields.len() == 2, "{arguments}");
}

#[test]
fn tool_calls_are_forced() {
    let server = Server::tiny();
    let by_name = json!({"type": "function", "function": {"name": "book_flight"}});
    let allowed = json!({"mode": "required", "tools": [by_name]});
    let allowed = json!({"type": "allowed_tools", "allowed_tools": allowed});
    for choice in [by_name, allowed] {
        let body = body(json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false}));
        let whole = server.chat(&body).ok();
        let answer = &whole["choices"][0];
        assert_eq!(answer["finish_reason"], "tool_calls", "{whole}");
        let call = &answer["message"]["tool_calls"][0];
        assert_eq!(
            (&call["id"], &call["function"]["name"]),
            (&json!("functions.book_flight:0"), &json!("book_flight"))
        );
        check_flight(call["function"]["arguments"].as_str().unwrap());
        assert_eq!(answer["message"]["content"], Value::Null);

        let stream = Streamed::read(server.stream(&body));
        let parts = stream.chunks.iter().filter_map(|chunk| {
            chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
        });
        check_flight(&parts.collect::<String>());
        assert_eq!(stream.finish, "tool_calls");
    }
    let any = server.chat(&body(json!({"tools": tools(), "tool_choice": "required"}))).ok();
    let calls = any["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    assert!(!calls.is_empty(), "{any}");
    for (place, call) in calls.iter().enumerate() {
        let name = call["function"]["name"].as_str().unwrap();
        assert_eq!(call["id"], format!("functions.{name}:{place}"));
        if name == "book_flight" {
            check_flight(call["function"]["arguments"].as_str().unwrap());
        }
    }
}

#[test]
fn texts_have_the_form_of_response_format() {
    let server = Server::tiny();
    let content = |format: Value| {
        let whole = server.chat(&body(json!({"response_format": format}))).ok();
        assert_eq!(whole["choices"][0]["finish_reason"], "stop", "{whole}");
        whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    check_review(&content(of_schema(&review())));
    let object = content(json!({"type": "json_object"}));
    assert!(serde_json::from_str::<Value>(&object).is_ok_and(|value| value.is_object()), "{object}");
}

#[test]
fn an_answer_that_has_begun_goes_on_in_its_form() {
    let server = Server::tiny();
    let ask = |begun: &str, format: Value| {
        let messages = json!([
            {"role": "user", "content": "What do you think of the lighthouse?"},
            {"role": "assistant", "content": begun, "partial": true},
        ]);
        server.chat(&body(json!({"messages": messages, "response_format": format})))
    };
    for begun in ["{\"stars\": 4, \"ta", "{", "{\"stars\": 5, \"tags\": [\"sea\""] {
        let whole = ask(begun, of_schema(&review())).ok();
        let rest = whole["choices"][0]["message"]["content"].as_str().unwrap();
        check_review(&format!("{begun}{rest}"));
    }
    for begun in ["Well", "{\"stars\": 6", "{\"tags\": 1"] {
        let error = ask(begun, of_schema(&review()));
        let text = error.json()["error"].to_string();
        assert_eq!(
            (error.status, &error.json()["error"]["param"]),
            (400, &json!("response_format")),
            "{text}"
        );
        assert!(text.contains("beginning"), "{text}");
    }
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let server = Server::tiny();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?!x)y"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let error = server.chat(&body(json!({"response_format": format})));
    let text = error.json()["error"].to_string();
    assert_eq!(error.status, 400, "{text}");
    assert!(text.contains("response_format") && text.contains("#/properties/a/pattern"), "{text}");

    let tool = json!([{"type": "function", "function": {"name": "f", "parameters": schema, "strict": true}}]);
    let error = server.chat(&body(json!({"tools": tool})));
    assert_eq!(
        (error.status, &error.json()["error"]["param"]),
        (400, &json!("tools[0].function.parameters"))
    );
    let error = server.chat(&body(
        json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "g"}}}),
    ));
    assert_eq!(error.status, 400);
    let error = server.chat(&body(json!({"tool_choice": "required"})));
    assert_eq!(error.status, 400);
}
