//! OpenAI's Responses API: items, events, and what is stored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use kimi_core::chat::{Content, Message};
use kimi_core::chat_model::{OutputFormat, ToolChoice};
use kimi_core::engine::EngineError;
use kimi_core::{ChatEvent, ChatRequest};
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Reply, Server};
use kimi_tests::script::{Script, two_calls};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

fn post(server: &Server, body: &Value) -> Reply {
    server.post(PATH, body.to_string().as_bytes())
}

fn serve(events: Vec<ChatEvent>) -> Server {
    Server::start(vec![ServedModel::new(Script { events, ..Script::default() })], HttpConfig::default())
}

/// Reasoning, text and two calls.
fn everything() -> Vec<ChatEvent> {
    let mut events = two_calls();
    let text = ["Let me ", "see."].map(|text| ChatEvent::Content(text.to_owned()));
    events.splice(2..2, text);
    events
}

/// Without what is new each time: ids keep their prefixes.
fn stable(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                let new_id = matches!(key.as_str(), "id" | "item_id");
                *field = match field.take() {
                    Value::String(id) if new_id => id.split_inclusive('_').next().unwrap_or_default().into(),
                    Value::Number(_) if key.ends_with("_at") => Value::Null,
                    other => stable(other),
                };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = stable(item.take())),
        _ => {}
    }
    value
}

fn text(response: &Value) -> String {
    let parts = response["output"].as_array().unwrap().iter().flat_map(|item| item["content"].as_array());
    parts
        .flatten()
        .filter(|part| part["type"] == "output_text")
        .filter_map(|part| part["text"].as_str())
        .collect()
}

#[test]
fn the_whole_answer_and_its_events_say_the_same() {
    let server = serve(everything());
    let whole = post(&server, &json!({"input": "hi"})).ok();
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["error"]),
        (&json!("response"), &json!("completed"), &Value::Null)
    );
    let call = |i: usize, city: &str| {
        json!({
            "id": "fc_", "type": "function_call", "status": "completed", "call_id": format!("functions.weather:{i}"),
            "name": "weather", "arguments": format!("{{\"city\": \"{city}\"}}"),
        })
    };
    let part = json!({"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []});
    let thought = json!({"type": "reasoning_text", "text": "Two cities."});
    let items = json!([
        {"id": "rs_", "type": "reasoning", "status": "completed", "summary": [], "content": [thought]},
        {"id": "msg_", "type": "message", "role": "assistant", "status": "completed", "content": [part]},
        call(0, "Oslo"),
        call(1, "京都"),
    ]);
    assert_eq!(stable(whole["output"].clone()), items);
    let usage = json!({
        "input_tokens": 3, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7,
    });
    assert_eq!(whole["usage"], usage);

    let events = server.named_events(PATH, &json!({"input": "hi"}));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ];
    let said = |what: &'static str| {
        [
            "response.output_item.added".to_owned(),
            "response.content_part.added".to_owned(),
            format!("response.{what}.delta"),
            format!("response.{what}.delta"),
            format!("response.{what}.done"),
            "response.content_part.done".to_owned(),
            "response.output_item.done".to_owned(),
        ]
    };
    let mut expected = vec!["response.created".to_owned(), "response.in_progress".to_owned()];
    expected.extend(said("reasoning_text").into_iter().chain(said("output_text")));
    expected.extend(call.iter().chain(&call).map(ToString::to_string));
    expected.push("response.completed".to_owned());
    assert_eq!(kinds, expected);
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i, "{event}");
    }
    let last = &events.last().unwrap()["response"];
    assert_eq!(stable(last.clone()), stable(whole));
    // Every item is what its events made of it, under the same id.
    let items = last["output"].as_array().unwrap();
    for event in &events[2..events.len() - 1] {
        let item = &items[event["output_index"].as_u64().unwrap() as usize];
        let id = event.get("item_id").unwrap_or(&event["item"]["id"]);
        assert_eq!(*id, item["id"], "{event}");
        if event["type"] == "response.output_item.done" {
            assert_eq!(event["item"], *item);
        }
    }
    assert_eq!(events[0]["response"]["status"], "in_progress");
    assert_eq!(events[0]["response"]["id"], last["id"]);
}

#[test]
fn thinking_is_a_summary_for_those_who_ask_for_one() {
    let server = serve(everything());
    let body = json!({"input": "hi", "reasoning": {"effort": "high", "summary": "auto"}});
    let whole = post(&server, &body).ok();
    assert_eq!(whole["reasoning"], json!({"effort": "high", "summary": "auto"}));
    let thought = json!([{"type": "summary_text", "text": "Two cities."}]);
    assert_eq!(whole["output"][0]["summary"], thought);
    let events = server.named_events(PATH, &body);
    let deltas = events.iter().filter(|event| event["type"] == "response.reasoning_summary_text.delta");
    let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, "Two cities.");
    assert!(events.iter().any(|event| event["type"] == "response.reasoning_summary_part.done"));
    assert!(events.iter().all(|event| event["type"] != "response.reasoning_text.delta"));
}

/// What the model is asked for a request with these fields.
fn asked(fields: Value) -> ChatRequest {
    let script = Script { events: vec![ChatEvent::Content("ok".to_owned())], ..Script::default() };
    let asked = script.asked.clone();
    let server = Server::start(vec![ServedModel::new(script)], HttpConfig::default());
    let mut body = json!({"input": "hi"});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    post(&server, &body).ok();
    asked.lock().unwrap().remove(0)
}

#[test]
fn every_field_arrives() {
    let schema = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let weather = json!({"type": "function", "name": "weather", "description": "d", "parameters": schema, "strict": true});
    let chat = asked(json!({
        "model": "script", "instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9,
        "parallel_tool_calls": false, "tools": [weather], "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": true}, "verbosity": "low"},
        "reasoning": {"effort": "none"}, "top_logprobs": 2, "metadata": {"a": "b"}, "store": false,
        "include": ["reasoning.encrypted_content"], "truncation": "disabled", "user": "u", "service_tier": "auto",
        "prompt_cache_key": "k", "stream_options": {"include_obfuscation": false}, "background": false,
    }));
    assert_eq!(chat.messages, [Message::new("system", "Be brief."), Message::new("user", "hi")]);
    let tool = json!({"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema, "strict": true}});
    assert_eq!(**chat.tools[0].json(), tool);
    assert_eq!(chat.tool_choice, ToolChoice::Named("weather".to_owned()));
    assert_eq!(chat.output, OutputFormat::JsonSchema { name: "x".to_owned(), schema, strict: true });
    assert_eq!((chat.max_tokens, chat.params.temperature(), chat.params.top_p()), (Some(9), 0.5, 0.9));
    assert_eq!((chat.thinking, chat.logprobs, chat.top_logprobs), (Some(false), true, 2));
    assert!(!chat.parallel_tool_calls);

    let f = json!({"type": "function", "name": "f"});
    let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [f]});
    let chat =
        asked(json!({"tools": [f], "tool_choice": allowed, "text": {"format": {"type": "json_object"}}}));
    assert_eq!(chat.tool_choice, ToolChoice::Allowed { required: true, names: vec!["f".to_owned()] });
    assert_eq!((chat.output, chat.thinking), (OutputFormat::JsonObject, None));
    let chat = asked(json!({"reasoning": {"context": "all_turns", "mode": "standard"}}));
    assert_eq!(chat.template_kwargs.get("preserve_thinking"), Some(&json!(true)));

    // As Codex has it by default.
    let chat = asked(json!({"tools": [f, {"type": "web_search", "external_web_access": false}]}));
    assert_eq!(chat.tools.len(), 1);
}

#[test]
fn a_conversation_is_stored() {
    let server = Server::tiny();
    let instructions = "Be brief.";
    let first = post(
        &server,
        &json!({"input": "Hello! What are you?", "instructions": instructions, "temperature": 0}),
    )
    .ok();
    assert!(text(&first).contains("kimi-tiny"), "{first}");
    let id = first["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("{PATH}/{id}")).ok(), first);

    let items = server.get(&format!("{PATH}/{id}/input_items")).ok();
    assert_eq!((&items["object"], &items["has_more"]), (&json!("list"), &json!(false)));
    let item = &items["data"][0];
    assert_eq!(item["content"], json!([{"type": "input_text", "text": "Hello! What are you?"}]));
    assert_eq!((&item["id"], &item["id"]), (&items["first_id"], &items["last_id"]));

    // By the id, with all items, and with a reference: the same prompt. Instructions are not carried over.
    let next = json!({"role": "user", "content": "What is 2 + 3?"});
    let second = post(&server, &json!({"input": [next], "previous_response_id": id, "temperature": 0})).ok();
    assert_eq!(second["previous_response_id"], id);
    let output = first["output"].as_array().unwrap();
    let mut all = vec![item.clone()];
    all.extend(output.iter().cloned());
    all.push(next.clone());
    let stateless = post(&server, &json!({"input": all, "temperature": 0, "store": false})).ok();
    all[1] = json!({"type": "item_reference", "id": output[0]["id"]});
    let referred = post(&server, &json!({"input": all, "temperature": 0})).ok();
    for other in [&stateless, &referred] {
        assert_eq!(text(other), text(&second));
        assert_eq!(other["usage"]["input_tokens"], second["usage"]["input_tokens"]);
    }
    assert!(second["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64());
    let unstored = stateless["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("{PATH}/{unstored}")).status, 404);

    // A streamed one is stored when it ends, and goes on although the first one is deleted.
    let body = json!({"input": "Thanks", "previous_response_id": second["id"], "temperature": 0});
    let third = server.named_events(PATH, &body).pop().unwrap()["response"].clone();
    let deleted = server.delete(&format!("{PATH}/{id}")).ok();
    assert_eq!(deleted, json!({"id": id, "object": "response", "deleted": true}));
    let reply = server.get(&format!("{PATH}/{id}"));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("response_not_found")));
    let body = json!({"input": "Bye", "previous_response_id": third["id"], "temperature": 0});
    let fourth = post(&server, &body).ok();
    assert!(fourth["usage"]["input_tokens"].as_u64() > third["usage"]["input_tokens"].as_u64());

    let reply = post(&server, &json!({"input": "hi", "previous_response_id": id}));
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"]), (400, &json!("previous_response_not_found")));
    assert_eq!(error["param"], "previous_response_id");
    let cancel = server.post(&format!("{PATH}/{}/cancel", third["id"].as_str().unwrap()), b"{}");
    assert_eq!(cancel.status, 400, "{}", cancel.body);
}

#[test]
fn input_items_come_in_pages() {
    let server = serve(Vec::new());
    let items: Vec<Value> =
        (0..5).map(|i| json!({"role": "user", "content": i.to_string(), "id": format!("msg_{i}")})).collect();
    let response = post(&server, &json!({"input": items})).ok();
    let path = format!("{PATH}/{}/input_items", response["id"].as_str().unwrap());
    let ids = |query: &str| {
        let page = server.get(&format!("{path}?{query}")).ok();
        let ids = page["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned());
        (ids.collect::<Vec<_>>().join(" "), page["has_more"].as_bool().unwrap())
    };
    assert_eq!(ids(""), ("msg_4 msg_3 msg_2 msg_1 msg_0".to_owned(), false));
    assert_eq!(ids("order=asc&limit=2"), ("msg_0 msg_1".to_owned(), true));
    assert_eq!(ids("order=asc&limit=2&after=msg_2"), ("msg_3 msg_4".to_owned(), false));
    for query in ["order=up", "limit=0", "limit=101", "limit=x", "after=msg_9"] {
        assert_eq!(server.get(&format!("{path}?{query}")).status, 400, "{query}");
    }
    assert_eq!(server.get(&format!("{PATH}/resp_0/input_items")).status, 404);
    assert_eq!(server.post(&path, b"{}").status, 405);
    assert_eq!(server.get(&format!("{path}/more")).status, 404);
}

#[test]
fn tools_are_called_and_answered() {
    let server = Server::tiny();
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let weather = json!({
        "type": "function", "name": "get_weather", "description": "Get the current weather for a city", "parameters": parameters,
    });
    let body = json!({"input": "What is the weather in Berlin?", "tools": [weather], "temperature": 0});
    let first = post(&server, &body).ok();
    let call = &first["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("get_weather")));
    assert_eq!(call["arguments"], "{\"city\": \"Berlin\"}");
    let streamed = server.named_events(PATH, &body).pop().unwrap()["response"].clone();
    assert_eq!(stable(streamed["output"].clone()), stable(first["output"].clone()));
    let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "{\"temp\": 21, \"sky\": \"sunny\"}"});
    let body =
        json!({"input": [result], "previous_response_id": first["id"], "tools": [weather], "temperature": 0});
    let second = post(&server, &body).ok();
    assert!(text(&second).contains("21"), "{second}");
}

#[test]
fn limits_and_probabilities() {
    let server = Server::tiny();
    let body =
        json!({"input": "Hello! What are you?", "temperature": 0, "max_output_tokens": 3, "top_logprobs": 2});
    let whole = post(&server, &body).ok();
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]),
        (&json!("incomplete"), &json!({"reason": "max_output_tokens"}))
    );
    assert_eq!(whole["output"][0]["status"], "incomplete");
    let part = &whole["output"][0]["content"][0];
    let logprobs = part["logprobs"].as_array().unwrap();
    let tokens: String = logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!((tokens.as_str(), logprobs.len()), (part["text"].as_str().unwrap(), 3));
    assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    let events = server.named_events(PATH, &body);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(stable(last["response"].clone()), stable(whole.clone()));
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    assert_eq!(deltas.map(|event| event["logprobs"].as_array().unwrap().len()).sum::<usize>(), 3);

    let count = server.post("/v1/responses/input_tokens", body.to_string().as_bytes()).ok();
    assert_eq!(
        count,
        json!({"object": "response.input_tokens", "input_tokens": whole["usage"]["input_tokens"]})
    );
}

#[test]
fn a_failure_on_the_way() {
    let failed = ChatEvent::Failed(EngineError::Down { reason: "a worker is lost".to_owned() });
    let server = serve(vec![ChatEvent::Content("Once".to_owned()), failed]);
    let reply = post(&server, &json!({"input": "hi"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("engine_unavailable")));
    let events = server.named_events(PATH, &json!({"input": "hi"}));
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
    let id = last["response"]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("{PATH}/{id}")).status, 404);
}

#[test]
fn mistakes_are_named() {
    let server = serve(vec![ChatEvent::Content("ok".to_owned())]);
    let tool = |tool: Value| json!({"input": "hi", "tools": [tool]});
    let with = |field: &str, value: Value| json!({"input": "hi", field: value});
    let mut cases = vec![
        (json!({}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": [], "instructions": "x"}), "input"),
        (json!({"input": {}}), "input"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "poem"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": "x"}, {"type": "reasoning", "summary": 5}]}),
            "input[1].summary",
        ),
        (tool(json!({"type": "function", "name": "a b"})), "tools[0].name"),
        (tool(json!({"type": "function", "function": {"name": "f"}})), "tools[0].name"),
        (tool(json!({"type": "function", "name": "f", "parameters": "{}"})), "tools[0].parameters"),
        (tool(json!({"type": "function", "name": "f", "strict": "yes"})), "tools[0].strict"),
        (tool(json!({"name": "f"})), "tools[0].type"),
        (tool(json!("f")), "tools[0]"),
        (with("tools", json!({})), "tools"),
        (with("tool_choice", json!("sometimes")), "tool_choice"),
        (with("tool_choice", json!({"type": "file_search"})), "tool_choice.type"),
        (with("text", json!({"format": {"type": "yaml"}})), "text.format.type"),
        (with("text", json!({"format": {"type": "json_schema", "name": "x"}})), "text.format.schema"),
        (with("text", json!("x")), "text"),
        (with("reasoning", json!({"effort": "lots"})), "reasoning.effort"),
        (with("reasoning", json!({"mode": "pro"})), "reasoning.mode"),
        (with("reasoning", json!({"context": "some"})), "reasoning.context"),
        (with("context_management", json!([{"type": "compaction"}])), "context_management"),
        (with("moderation", json!({"model": "m"})), "moderation"),
        (with("max_output_tokens", json!(0)), "max_output_tokens"),
        (with("max_output_tokens", json!("many")), "max_output_tokens"),
        (with("temperature", json!(3)), "temperature"),
        (with("top_logprobs", json!(99)), "top_logprobs"),
        (with("truncation", json!("auto")), "truncation"),
        (with("truncation", json!("often")), "truncation"),
        (with("background", json!(true)), "background"),
        (with("conversation", json!("conv_1")), "conversation"),
        (with("prompt", json!({"id": "x"})), "prompt"),
        (with("max_tool_calls", json!(3)), "max_tool_calls"),
        (with("include", json!(["everything"])), "include[0]"),
        (with("metadata", json!({"a": 1})), "metadata.a"),
        (with("n", json!(2)), "n"),
        (with("stream", json!("yes")), "stream"),
    ];
    for kind in [
        "web_search",
        "file_search",
        "code_interpreter",
        "computer_use_preview",
        "mcp",
        "local_shell",
        "custom",
    ] {
        cases.push((tool(json!({"type": kind})), "tools[0].type"));
    }
    for (body, path) in cases {
        let reply = post(&server, &body);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, error["param"].as_str()), (400, Some(path)), "{body}: {}", reply.body);
    }
    let reply = post(&server, &json!({"input": "hi", "model": "nobody"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    let deep = format!("{{\"input\": {}", "[".repeat(1_000_000));
    assert_eq!(server.post(PATH, deep.as_bytes()).json()["error"]["code"], "json_too_deep");
    let items = vec![json!({"role": "user", "content": "x"}); 100_000];
    let reply = post(&server, &json!({"input": items}));
    assert!([200, 400].contains(&reply.status), "{}", reply.body);
    assert_eq!(server.get(PATH).status, 405);
}

/// A message without content is what was said last before a call.
#[test]
fn calls_go_back_as_they_came() {
    let chat = asked(json!({"input": [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "functions.f:0", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "functions.f:0", "output": "1"},
    ]}));
    let call = &chat.messages[1];
    assert_eq!((call.reasoning_content.as_deref(), &call.content), (Some("hm"), &None));
    assert_eq!(call.tool_calls[0].id, "functions.f:0");
    assert_eq!(chat.messages[2].content, Some(Content::Text("1".to_owned())));
}
