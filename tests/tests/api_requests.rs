//! What the HTTP API makes of a request's fields: what the model is asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use kimi_core::chat_model::{OutputFormat, ToolChoice};
use kimi_core::sampler::RawSamplingParams;
use kimi_core::{ChatEvent, ChatRequest};
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, Streamed};
use kimi_tests::script::Script;
use serde_json::{Value, json};

/// What a model is asked for a chat with these fields, one request for each choice.
fn asked(fields: Value) -> Vec<ChatRequest> {
    let script = Script { events: vec![ChatEvent::Content("ok".to_owned())], ..Script::default() };
    let asked = script.asked.clone();
    let server = Server::start(vec![ServedModel::new(script)], HttpConfig::default());
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    server.chat(&body).ok();
    let mut asked = asked.lock().unwrap();
    std::mem::take(&mut *asked)
}

fn one(fields: Value) -> ChatRequest {
    let mut all = asked(fields);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn tools() -> Value {
    json!(["f", "g"].map(
        |name| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    ))
}

#[test]
fn every_field_arrives() {
    let chat = one(json!({
        "model": "script", "parallel_tool_calls": false,
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -100}, "seed": -1,
        "max_completion_tokens": 9, "min_tokens": 3, "stop": "END", "stop_token_ids": [5, 6.0],
        "logprobs": true, "top_logprobs": 3, "ignore_eos": true, "chat_template_kwargs": {"x": 1}, "n": 1,
        "response_format": {"type": "text"}, "tool_choice": "auto", "user": 5, "metadata": {}, "store": true,
        "service_tier": "auto", "modalities": ["text"], "tools": tools(),
    }));
    let params = RawSamplingParams {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.1,
        repetition_penalty: 1.1,
        presence_penalty: -1.0,
        frequency_penalty: 2.0,
        logit_bias: vec![(7, -100.0)],
        seed: Some(u64::MAX),
    };
    assert_eq!(RawSamplingParams::from(chat.params), params);
    assert_eq!((chat.max_tokens, chat.min_tokens, chat.stop), (Some(9), 3, vec!["END".to_owned()]));
    assert_eq!((chat.stop_token_ids, chat.ignore_eos), (vec![5, 6], true));
    assert_eq!((chat.logprobs, chat.top_logprobs, chat.parallel_tool_calls), (true, 3, false));
    assert_eq!(Value::Object(chat.template_kwargs), json!({"x": 1}));
    assert_eq!((chat.tools.len(), chat.tool_choice), (2, ToolChoice::Auto));
}

#[test]
fn null_is_absent() {
    let chat =
        one(json!({"stop": null, "temperature": null, "tools": null, "stream": null, "thinking": null}));
    assert!(chat.stop.is_empty() && chat.tools.is_empty());
    assert_eq!((chat.params.temperature(), chat.params.top_p(), chat.thinking), (0.6, 1.0, None));
}

#[test]
fn limits_of_the_same_thing_must_agree() {
    assert_eq!(one(json!({"max_tokens": 4, "max_completion_tokens": 4})).max_tokens, Some(4));
    assert_eq!(one(json!({"max_tokens": -1})).max_tokens, None);
    assert_eq!(one(json!({})).max_tokens, None);
    let server = Server::start(vec![ServedModel::new(Script::default())], HttpConfig::default());
    let messages = json!([{"role": "user", "content": "hi"}]);
    let reply = server.chat(&json!({"messages": messages, "max_tokens": 4, "max_completion_tokens": 5}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("max_tokens")));
}

#[test]
fn each_choice_has_a_seed_of_its_own() {
    let seeds: Vec<_> = asked(json!({"n": 3, "seed": 7})).iter().map(|chat| chat.params.seed()).collect();
    assert_eq!(seeds, [Some(7), Some(8), Some(9)]);
    let unsaid: Vec<_> = asked(json!({"n": 2})).iter().map(|chat| chat.params.seed()).collect();
    assert_eq!(unsaid, [None, None]);
}

#[test]
fn choices_are_answered_side_by_side() {
    let events = ["Once ", "upon"].map(|text| ChatEvent::Content(text.to_owned())).to_vec();
    let server =
        Server::start(vec![ServedModel::new(Script { events, ..Script::default() })], HttpConfig::default());
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "n": 3, "stream_options": {"include_usage": true}});
    let whole = server.chat(&body).ok();
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]["content"]), (&json!(i), &json!("Once upon")));
    }
    // Of one prompt and three answers.
    let usage = ["prompt_tokens", "completion_tokens"].map(|key| whole["usage"][key].as_u64().unwrap());
    assert_eq!(usage, [3, 12]);

    let stream = Streamed::read(server.stream(&body));
    assert_eq!(stream.chunks.last().unwrap()["usage"], whole["usage"]);
    let texts = [0, 1, 2].map(|index| {
        let of = stream.chunks.iter().filter_map(|chunk| chunk["choices"].as_array()?.first());
        let of = of.filter(|choice| choice["index"] == index);
        of.filter_map(|choice| choice["delta"]["content"].as_str()).collect::<String>()
    });
    assert_eq!(texts, ["Once upon"; 3]);
    assert!(stream.done);
}

#[test]
fn tool_choices_arrive() {
    let choice = |choice: Value| one(json!({"tools": tools(), "tool_choice": choice}));
    let none = choice(json!("none"));
    assert_eq!((none.tool_choice, none.tools.len()), (ToolChoice::None, 2));
    assert_eq!(choice(json!("required")).tool_choice, ToolChoice::Required);
    let named = json!({"type": "function", "function": {"name": "g"}});
    assert_eq!(choice(named).tool_choice, ToolChoice::Named("g".to_owned()));
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {
        "mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "g"}],
    }});
    let names = vec!["f".to_owned(), "g".to_owned()];
    assert_eq!(choice(allowed).tool_choice, ToolChoice::Allowed { required: true, names });
}

#[test]
fn forms_of_answers_arrive() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let of = |name: &str, strict| OutputFormat::JsonSchema {
        name: name.to_owned(),
        schema: schema.clone(),
        strict,
    };
    let output = |fields: Value| one(fields).output;
    let format = |format: Value| output(json!({"response_format": format}));
    assert_eq!(format(json!({"type": "json_object"})), OutputFormat::JsonObject);
    let strict =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
    assert_eq!(format(strict), of("x", true));
    assert_eq!(format(json!({"type": "json_object", "schema": schema})), of("", false));
    assert_eq!(format(json!({"type": "regex", "regex": "a+"})), OutputFormat::Regex("a+".to_owned()));
    assert_eq!(
        format(json!({"type": "lark", "lark": "start: /a/"})),
        OutputFormat::Lark("start: /a/".to_owned())
    );
    assert_eq!(output(json!({"guided_json": schema})), of("", false));
    assert_eq!(output(json!({"guided_json": schema.to_string()})), of("", false));
    assert_eq!(output(json!({"structured_outputs": {"json": schema}})), of("", false));
    let choice = OutputFormat::Choice(vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(output(json!({"structured_outputs": {"choice": ["a", "b"]}})), choice);
    assert_eq!(output(json!({"guided_choice": ["a", "b"], "response_format": {"type": "text"}})), choice);
}

#[test]
fn thinking_and_its_history_arrive() {
    assert_eq!(one(json!({"thinking": {"type": "disabled"}})).thinking, Some(false));
    assert_eq!(one(json!({"reasoning_effort": "none"})).thinking, Some(false));
    let kept = one(json!({"thinking": {"type": "enabled", "keep": "all"}}));
    assert_eq!(
        (kept.thinking, Value::Object(kept.template_kwargs)),
        (Some(true), json!({"preserve_thinking": true}))
    );
}

#[test]
fn messages_are_read() {
    let call =
        json!({"id": "f:0", "type": "function", "function": {"name": "get weather", "arguments": "{}"}});
    let messages = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "f:0", "content": "42"},
        {"role": "assistant", "content": null, "reasoning_content": "only thought"},
        {"role": "user", "content": "go on"},
        {"role": "assistant", "name": "Bo", "content": "The", "partial": true},
    ]);
    let chat = one(json!({"messages": messages}));
    assert!(chat.continue_last);
    let messages = chat.messages;
    let text = |i: usize| messages[i].content.as_ref().map(|c| c.text());
    assert_eq!((messages[0].role.as_str(), text(0).as_deref()), ("system", Some("be brief")));
    assert_eq!((messages[1].name.as_deref(), text(1).as_deref()), (Some("ann"), Some("ab")));
    assert_eq!((messages[2].reasoning_content.as_deref(), text(2)), (Some("hm"), None));
    assert_eq!(messages[2].tool_calls[0].function.name, "get weather");
    assert_eq!((messages[3].tool_call_id.as_deref(), text(3).as_deref()), (Some("f:0"), Some("42")));
    assert_eq!((messages[4].reasoning_content.as_deref(), text(4)), (Some("only thought"), None));
    assert_eq!((messages[6].name.as_deref(), text(6).as_deref()), (Some("Bo"), Some("The")));
    // As kimi-cli writes a call without a text, and a result without output.
    let bare = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": [], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "f:0", "content": []},
    ]);
    let bare = one(json!({"messages": bare})).messages;
    let texts: Vec<_> = bare.iter().map(|m| m.content.as_ref().map(|c| c.text())).collect();
    assert_eq!(texts, ["a", "", ""].map(|text| Some(text.to_owned())));
    let continued = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let fields =
        json!({"messages": continued, "continue_final_message": true, "add_generation_prompt": false});
    assert!(one(fields).continue_last);
    assert!(!one(json!({"messages": continued})).continue_last);
}

#[test]
fn histories_of_other_servers_are_taken() {
    let call = json!({"id": "a", "function": {"name": "f", "arguments": {"city": "Oslo", "days": [1]}}});
    let chat = one(json!({"model": "", "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]}));
    // As models write them.
    assert_eq!(chat.messages[1].tool_calls[0].function.arguments, "{\"city\": \"Oslo\", \"days\": [1]}");
}
