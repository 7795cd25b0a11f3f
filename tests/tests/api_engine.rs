//! The HTTP API over a model that does as it is told: tool calls, failures, and slow answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use kimi_core::ChatEvent;
use kimi_core::engine::EngineError;
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Reply, Server, Streamed, request};
use kimi_tests::script::{Script, two_calls};
use serde_json::{Value, json};

fn serve(script: Script, config: HttpConfig) -> Server {
    Server::start(vec![ServedModel::new(script)], config)
}

fn body(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn tool_calls_and_reasoning() {
    let server = serve(Script { events: two_calls(), ..Script::default() }, HttpConfig::default());
    let whole = server.chat(&body(json!({}))).ok();
    let choice = &whole["choices"][0];
    let call = |i: usize, city: &str| {
        let function = json!({"name": "weather", "arguments": format!("{{\"city\": \"{city}\"}}")});
        json!({"id": format!("functions.weather:{i}"), "type": "function", "function": function})
    };
    let message = json!({
        "role": "assistant",
        "content": null,
        "refusal": null,
        "reasoning_content": "Two cities.",
        "tool_calls": [call(0, "Oslo"), call(1, "京都")],
    });
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));
    let cached = json!({"cached_tokens": 2});
    let usage = json!({
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": cached,
        "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(whole["usage"], usage);

    let stream = Streamed::read(server.stream(&body(json!({}))));
    let deltas: Vec<&Value> = stream.chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let begin = json!({"index": 1, "id": "functions.weather:1", "type": "function", "function": {"name": "weather", "arguments": ""}});
    assert_eq!(*deltas[1], json!({"reasoning_content": "Two "}));
    assert!(deltas.contains(&&json!({"tool_calls": [begin]})));
    assert!(deltas.contains(&&json!({"tool_calls": [{"index": 1, "function": {"arguments": "\"京都\"}"}}]})));
    assert_eq!((stream.finish, stream.done), (json!("tool_calls"), true));

    let one = server.chat(&body(json!({"parallel_tool_calls": false}))).ok();
    assert_eq!(one["choices"][0]["message"]["tool_calls"], json!([call(0, "Oslo")]));
    assert_eq!(one["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn a_model_that_cannot_answer() {
    let busy = Script { refuse: Some(|| EngineError::Busy { limit: 9 }), ..Script::default() };
    let reply = serve(busy, HttpConfig::default()).chat(&body(json!({"stream": true})));
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status, &error["code"], &error["type"]),
        (429, &json!("queue_full"), &json!("rate_limit_error"))
    );
    assert!(reply.head.contains("\r\nretry-after: 1"), "{}", reply.head);

    let down = Script {
        refuse: Some(|| EngineError::Down { reason: "x".to_owned() }),
        down: true,
        ..Script::default()
    };
    let server = serve(down, HttpConfig::default());
    let reply = server.chat(&body(json!({})));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("engine_unavailable")));
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("unavailable")));
    assert_eq!(health.json()["models"][0]["reason"], "a worker is lost");
}

#[test]
fn a_failure_on_the_way() {
    let failed = ChatEvent::Failed(EngineError::Down { reason: "a worker is lost".to_owned() });
    let events = vec![ChatEvent::Content("Once".to_owned()), failed];
    let server = serve(Script { events, ..Script::default() }, HttpConfig::default());
    let reply = server.chat(&body(json!({})));
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (503, &json!("server_error")));
    let events: Vec<Value> =
        server.stream(&body(json!({}))).map(|data| serde_json::from_str(&data).unwrap()).collect();
    // The role, the text, the error; no [DONE], which would not have parsed.
    assert_eq!(events.len(), 3);
    assert_eq!(events[1]["choices"][0]["delta"]["content"], "Once");
    assert_eq!(events[2]["error"]["code"], "engine_unavailable");
    assert!(events[2]["error"]["message"].as_str().unwrap().contains("a worker is lost"));
}

#[test]
fn comments_keep_a_silent_stream_alive() {
    let config = HttpConfig { keepalive: Duration::from_millis(50), ..HttpConfig::default() };
    let script = Script { pause: Duration::from_millis(500), events: two_calls(), ..Script::default() };
    let server = serve(script, config);
    let mut events = server.stream(&body(json!({})));
    let lines: Vec<String> = std::iter::from_fn(|| events.line()).collect();
    let comments = lines.iter().filter(|line| line.starts_with(':')).count();
    assert!((3..=10).contains(&comments), "{comments} comments in {lines:#?}");
    assert_eq!(lines.iter().rev().find(|line| !line.is_empty()).unwrap(), "data: [DONE]");
}

/// Claude Code and Codex give up on a stream that brings no event for five minutes, and count no comment as one.
#[test]
fn events_keep_a_silent_stream_alive_where_the_api_has_one() {
    let config = HttpConfig { keepalive: Duration::from_millis(50), ..HttpConfig::default() };
    let script = Script { pause: Duration::from_millis(500), events: two_calls(), ..Script::default() };
    let server = serve(script, config);
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (path, fields, kind) in [
        ("/v1/messages", json!({"messages": hi, "max_tokens": 9}), "ping"),
        ("/v1/responses", json!({"input": "hi"}), "response.in_progress"),
    ] {
        let events = server.named_events(path, &fields);
        let (idle, others): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event["type"] == kind);
        assert!((4..=30).contains(&idle.len()) && others.len() > 5, "{path}: {idle:?}");
    }
}

#[test]
fn slow_clients_are_given_up() {
    let config = HttpConfig {
        header_timeout: Duration::from_millis(200),
        body_timeout: Duration::from_millis(200),
        max_connections: 1,
        ..HttpConfig::default()
    };
    let server = serve(Script::default(), config);
    let begun = Instant::now();
    let mut rest = Vec::new();
    // A head that never ends, and a connection that says nothing. Each takes the only place until it is given up.
    for bytes in [b"GET /health HTTP/1.1\r\nHost:".as_slice(), b""] {
        server.send(bytes).read_to_end(&mut rest).unwrap();
        server.get("/health").ok();
    }
    // A connection that is kept open after a request.
    let mut socket = server.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.read_to_end(&mut rest).unwrap();
    // A body that never comes.
    let whole = request("/v1/chat/completions", body(json!({})).to_string().as_bytes());
    let reply = Reply::read(server.send(&whole[..whole.len() - 1]));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (408, &json!("request_timeout")));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn a_connection_serves_several_requests() {
    let server = serve(Script::default(), HttpConfig::default());
    let mut socket = server.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut first = [0; 15];
    socket.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    socket.write_all(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("HTTP/1.1 404 "), "{rest}");
}

#[test]
fn a_shutdown_lets_answers_end() {
    let script = Script { pause: Duration::from_millis(300), events: two_calls(), ..Script::default() };
    let mut server = serve(script, HttpConfig::default());
    let socket = server.send(&request("/v1/chat/completions", body(json!({})).to_string().as_bytes()));
    std::thread::sleep(Duration::from_millis(100));
    server.join();
    assert_eq!(Reply::read(socket).ok()["choices"][0]["finish_reason"], "tool_calls");
    assert!(std::net::TcpStream::connect(server.addr).is_err(), "it still accepts connections");
}

#[test]
fn a_shutdown_does_not_wait_for_ever() {
    let script = Script { pause: Duration::from_secs(30), ..Script::default() };
    let config = HttpConfig { shutdown_grace: Duration::from_millis(100), ..HttpConfig::default() };
    let mut server = serve(script, config);
    let _socket = server.send(&request("/v1/chat/completions", body(json!({})).to_string().as_bytes()));
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    server.join();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn several_models() {
    let other = Script { id: "other", ..Script::default() };
    let models = vec![ServedModel::new(Script::default()), ServedModel::new(other)];
    let server = Server::start(models, HttpConfig::default());
    assert_eq!(server.chat(&body(json!({"model": "other"}))).ok()["model"], "other");
    let error = server.chat(&body(json!({}))).json()["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&json!("missing_required_parameter"), &json!("model")));
    assert!(error["message"].as_str().unwrap().contains("script, other"), "{error}");
}
