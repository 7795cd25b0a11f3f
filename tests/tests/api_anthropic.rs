//! Anthropic's Messages API: blocks, events, and the shape of errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use kimi_core::chat::Message;
use kimi_core::chat_model::{OutputFormat, ToolChoice};
use kimi_core::engine::EngineError;
use kimi_core::{ChatEvent, ChatRequest};
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Reply, Server};
use kimi_tests::script::{Script, two_calls};
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";

fn post(server: &Server, body: &Value) -> Reply {
    server.post(PATH, body.to_string().as_bytes())
}

fn serve(script: Script) -> Server {
    Server::start(vec![ServedModel::new(script)], HttpConfig::default())
}

fn body(extra: Value) -> Value {
    let mut body = json!({"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A message put together from its events, as clients do it.
fn put_together(events: &[Value]) -> Value {
    let mut message = events[0]["message"].clone();
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events[1], json!({"type": "ping"}));
    let mut json_text = String::new();
    for event in &events[2..] {
        let index = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(content.len(), index);
                content.push(event["content_block"].clone());
                json_text.clear();
            }
            "content_block_delta" => {
                let (delta, block) = (&event["delta"], &mut message["content"][index]);
                let field = match delta["type"].as_str().unwrap() {
                    "text_delta" => "text",
                    "thinking_delta" => "thinking",
                    "signature_delta" => "signature",
                    "input_json_delta" => {
                        json_text.push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    other => panic!("{other}"),
                };
                let text = format!("{}{}", block[field].as_str().unwrap(), delta[field].as_str().unwrap());
                block[field] = text.into();
            }
            "content_block_stop" => {
                let block = &mut message["content"][index];
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&json_text).unwrap();
                }
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                for (field, count) in event["usage"].as_object().unwrap() {
                    message["usage"][field] = count.clone();
                }
            }
            "message_stop" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    message
}

#[test]
fn the_whole_answer_and_its_events_say_the_same() {
    let mut events = two_calls();
    events.insert(2, ChatEvent::Content("Let me see.".to_owned()));
    let server = serve(Script { events, ..Script::default() });
    let mut whole = post(&server, &body(json!({}))).ok();
    assert!(whole["id"].as_str().unwrap().starts_with("msg_"));
    let call = |i: usize, city: &str| json!({"type": "tool_use", "id": format!("functions_weather_{i}"), "name": "weather", "input": {"city": city}, "caller": {"type": "direct"}});
    whole["id"] = "x".into();
    let expected = json!({
        "id": "x", "type": "message", "role": "assistant", "model": "script",
        "content": [
            {"type": "thinking", "thinking": "Two cities.", "signature": "kimi"},
            {"type": "text", "text": "Let me see."},
            call(0, "Oslo"),
            call(1, "京都"),
        ],
        "stop_reason": "tool_use", "stop_sequence": null, "stop_details": null, "container": null,
        "usage": {
            "input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 4,
            "output_tokens_details": {"thinking_tokens": 0}, "server_tool_use": null,
            "cache_creation": null, "service_tier": null, "inference_geo": null,
        },
    });
    assert_eq!(whole, expected);
    let events = server.named_events(PATH, &body(json!({})));
    // What of the prompt was cached comes at the end.
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 3);
    let mut streamed = put_together(&events);
    streamed["id"] = "x".into();
    assert_eq!(streamed, whole);

    let one =
        post(&server, &body(json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}})))
            .ok();
    assert_eq!((one["content"].as_array().unwrap().len(), &one["stop_reason"]), (3, &json!("tool_use")));
}

/// What the model is asked for a request with these fields.
fn asked(fields: Value) -> ChatRequest {
    let script = Script { events: vec![ChatEvent::Content("ok".to_owned())], ..Script::default() };
    let asked = script.asked.clone();
    post(&serve(script), &body(fields)).ok();
    asked.lock().unwrap().remove(0)
}

#[test]
fn every_field_arrives() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let weather = json!({"name": "weather", "description": "d", "input_schema": schema, "cache_control": {"type": "ephemeral"}});
    let custom = json!({"type": "custom", "name": "news", "input_schema": schema, "strict": true});
    let chat = asked(json!({
        "model": "script", "system": "Be brief.", "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["END"],
        "tools": [weather, custom], "tool_choice": {"type": "tool", "name": "news", "disable_parallel_tool_use": true},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"}, "service_tier": "auto",
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": schema}}, "mcp_servers": [],
    }));
    assert_eq!(chat.messages, [Message::new("system", "Be brief."), Message::new("user", "hi")]);
    let tool = json!({"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema}});
    assert_eq!(**chat.tools[0].json(), tool);
    assert!(chat.tools[1].strict());
    assert_eq!(chat.tool_choice, ToolChoice::Named("news".to_owned()));
    assert_eq!(chat.output, OutputFormat::JsonSchema { name: String::new(), schema, strict: false });
    assert_eq!((chat.params.temperature(), chat.params.top_p(), chat.params.top_k()), (0.5, 0.9, 7));
    assert_eq!(
        (chat.max_tokens, chat.stop.as_slice(), chat.thinking),
        (Some(100), ["END".to_owned()].as_slice(), Some(true))
    );
    assert!(!chat.parallel_tool_calls && !chat.continue_last);

    let any =
        asked(json!({"tools": [weather], "tool_choice": {"type": "any"}, "thinking": {"type": "disabled"}}));
    assert_eq!((any.tool_choice, any.thinking), (ToolChoice::Required, Some(false)));
    let none =
        asked(json!({"tools": [weather], "tool_choice": {"type": "none"}, "thinking": {"type": "adaptive"}}));
    assert_eq!((none.tool_choice, none.thinking), (ToolChoice::None, Some(true)));
    let prefill = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Well,"}]}]);
    let prefill = asked(json!({"messages": prefill}));
    assert!(prefill.continue_last);
    assert_eq!(prefill.messages[1], Message::new("assistant", "Well,"));
}

#[test]
fn kimi_tiny_answers() {
    let server = Server::tiny();
    let hello = json!([{"role": "user", "content": "Hello! What are you?"}]);
    let fields = json!({"messages": hello, "system": "You are brief.", "temperature": 0, "max_tokens": 64});
    let whole = post(&server, &fields).ok();
    assert!(whole["content"][0]["text"].as_str().unwrap().contains("kimi-tiny"), "{whole}");
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let count = server.post("/v1/messages/count_tokens", fields.to_string().as_bytes()).ok();
    assert_eq!(count, json!({"input_tokens": whole["usage"]["input_tokens"]}));
    let streamed = put_together(&server.named_events(PATH, &fields));
    assert_eq!((&streamed["content"], &streamed["stop_reason"]), (&whole["content"], &whole["stop_reason"]));
    assert_eq!(streamed["usage"]["output_tokens"], whole["usage"]["output_tokens"]);

    let with = |key: &str, value: Value| {
        let mut fields = fields.clone();
        fields[key] = value;
        fields
    };
    let stopping = with("stop_sequences", json!(["never", "tiny"]));
    let stopped = post(&server, &stopping).ok();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!("tiny"))
    );
    assert!(!stopped["content"][0]["text"].as_str().unwrap().contains("tiny"));
    let streamed = put_together(&server.named_events(PATH, &stopping));
    assert_eq!((&streamed["stop_sequence"], &streamed["content"]), (&json!("tiny"), &stopped["content"]));
    let short = post(&server, &with("max_tokens", json!(3))).ok();
    assert_eq!((&short["stop_reason"], &short["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(3)));

    // A prefill is gone on with, and is not part of the answer.
    let text = whole["content"][0]["text"].as_str().unwrap();
    let begun = text.split_inclusive("kimi").next().unwrap();
    let messages = json!([hello[0], {"role": "assistant", "content": begun}]);
    let rest = post(&server, &with("messages", messages)).ok();
    assert_eq!(format!("{begun}{}", rest["content"][0]["text"].as_str().unwrap()), text);
}

#[test]
fn tools_are_called_and_answered() {
    let server = Server::tiny();
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let weather = json!({"name": "get_weather", "description": "Get the current weather for a city", "input_schema": schema});
    let ask = json!({"role": "user", "content": "What is the weather in Berlin?"});
    let fields = |messages: Value| json!({"messages": messages, "tools": [weather], "max_tokens": 100, "temperature": 0});
    let first = post(&server, &fields(json!([ask]))).ok();
    let call = first["content"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&call["name"], &call["input"]), (&json!("get_weather"), &json!({"city": "Berlin"})));
    assert_eq!(first["stop_reason"], "tool_use");
    assert_eq!(put_together(&server.named_events(PATH, &fields(json!([ask]))))["content"], first["content"]);
    // Under the id that the server gave, and under one of Anthropic's own, as after a change of models.
    let second = |id: &Value| {
        let mut call = call.clone();
        call["id"] = id.clone();
        let result = json!({"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": "{\"temp\": 21, \"sky\": \"sunny\"}"}]});
        let messages =
            json!([ask, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]);
        post(&server, &fields(messages)).ok()
    };
    let own = second(&call["id"]);
    assert!(own["content"][0]["text"].as_str().unwrap().contains("21"), "{own}");
    let foreign = second(&json!("toolu_01A09q90qw90lq917835lq9"));
    assert_eq!(foreign["content"], own["content"]);
}

fn kind(reply: &Reply) -> (u16, String) {
    let error = reply.json();
    assert_eq!(error["type"], "error", "{error}");
    assert!(error["error"]["message"].is_string() && error["request_id"].is_string(), "{error}");
    (reply.status, error["error"]["type"].as_str().unwrap().to_owned())
}

#[test]
fn errors_have_anthropics_shape() {
    let server = serve(Script::default());
    let is = |reply: Reply, status: u16, wanted: &str| {
        assert_eq!(kind(&reply), (status, wanted.to_owned()), "{}", reply.body)
    };
    is(post(&server, &json!({"messages": []})), 400, "invalid_request_error");
    is(server.post(PATH, b"{"), 400, "invalid_request_error");
    is(post(&server, &body(json!({"model": "nobody"}))), 404, "not_found_error");
    is(server.get(PATH), 405, "invalid_request_error");
    is(server.get("/v1/messages/batches"), 404, "not_found_error");
    let busy = Script { refuse: Some(|| EngineError::Busy { limit: 9 }), ..Script::default() };
    is(post(&serve(busy), &body(json!({}))), 429, "rate_limit_error");
    let down = Script { refuse: Some(|| EngineError::Down { reason: "x".to_owned() }), ..Script::default() };
    is(post(&serve(down), &body(json!({}))), 503, "overloaded_error");
    let config = HttpConfig { max_body_bytes: 100, ..HttpConfig::default() };
    let small = Server::start(vec![ServedModel::new(Script::default())], config);
    is(post(&small, &body(json!({"system": "x".repeat(200)}))), 413, "request_too_large");
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(50_000)}], "max_tokens": 1});
    let reply = post(&Server::tiny(), &long);
    assert!(reply.body.contains("prompt is too long: "), "{}", reply.body);
    is(reply, 400, "invalid_request_error");

    let failed = ChatEvent::Failed(EngineError::Down { reason: "a worker is lost".to_owned() });
    let server =
        serve(Script { events: vec![ChatEvent::Content("Once".to_owned()), failed], ..Script::default() });
    let events = server.named_events(PATH, &body(json!({})));
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("overloaded_error")));
    assert!(last["error"]["message"].as_str().unwrap().contains("a worker is lost"));
}

#[test]
fn mistakes_are_named() {
    let server = serve(Script::default());
    let tool = |tool: Value| json!({"tools": [tool]});
    let mut cases = vec![
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "document"}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"system": 5}), "system"),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (tool(json!({"name": "f"})), "tools[0].input_schema"),
        (tool(json!({"name": "f", "input_schema": []})), "tools[0].input_schema"),
        (tool(json!({"name": "a b", "input_schema": {}})), "tools[0].name"),
        (tool(json!(5)), "tools[0]"),
        (json!({"tool_choice": {"type": "some"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name"),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"thinking": {"type": "often"}}), "thinking.type"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 0}}), "thinking.budget_tokens"),
        (json!({"output_config": {"format": {"type": "yaml"}}}), "output_config.format.type"),
        (json!({"mcp_servers": [{"url": "x"}]}), "mcp_servers"),
        (json!({"container": "x"}), "container"),
        (json!({"thread": {"type": "create"}}), "thread"),
        (json!({"stream": "yes"}), "stream"),
    ];
    for kind in [
        "web_search_20250305",
        "bash_20250124",
        "text_editor_20250728",
        "computer_20250124",
        "memory_20250818",
    ] {
        cases.push((tool(json!({"type": kind, "name": "x"})), "tools[0].type"));
    }
    for (fields, path) in cases {
        let reply = post(&server, &body(fields.clone()));
        assert_eq!(kind(&reply), (400, "invalid_request_error".to_owned()), "{fields}");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(&format!("{path}: ")), "{fields}: {message}");
    }
    // The package's tool runner sends all messages after this one.
    let reply = post(&server, &body(json!({"thread": {"type": "create"}})));
    assert_eq!(reply.json()["error"]["details"], json!({"error_code": "thread_unsupported_request"}));
    let deep = format!("{{\"messages\": {}", "[".repeat(1_000_000));
    assert_eq!(server.post(PATH, deep.as_bytes()).status, 400);
    let blocks = vec![json!({"type": "text", "text": "x"}); 100_000];
    let reply = post(&server, &body(json!({"messages": [{"role": "user", "content": blocks}]})));
    assert!([200, 400].contains(&reply.status), "{}", reply.body);
}
