//! What the HTTP API says to requests that it cannot serve: status, code and the field at fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::io::{Read, Write};

use kimi_tests::api::{Reply, Server, request};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

/// Checks an error's shape and contents. `param` is empty for an error without one.
fn check(reply: &Reply, status: u16, code: &str, param: &str, what: &str) {
    assert_eq!(reply.status, status, "{what}: {}", reply.body);
    let body = reply.json();
    let error = &body["error"];
    assert_eq!((body.as_object().unwrap().len(), error.as_object().unwrap().len()), (1, 4), "{what}: {body}");
    assert_eq!(error["code"], code, "{what}: {body}");
    assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{what}: {body}");
    assert!(error["message"].as_str().unwrap().len() > 15, "{what}: {body}");
    assert_eq!(error["type"], "invalid_request_error", "{what}: {body}");
}

#[test]
fn fields_out_of_their_types_and_ranges() {
    let server = Server::tiny();
    let user = json!([{"role": "user", "content": "hi"}]);
    let message = |fields: Value| json!([fields]);
    let tool = |function: Value| json!([{"type": "function", "function": function}]);
    let mut cases = vec![
        // (field, value, code, param)
        ("messages", json!([]), "empty_array", "messages"),
        ("messages", Value::Null, "missing_required_parameter", "messages"),
        ("messages", json!("hi"), "invalid_type", "messages"),
        ("messages", json!(["hi"]), "invalid_type", "messages[0]"),
        ("messages", message(json!({"content": "hi"})), "missing_required_parameter", "messages[0].role"),
        ("messages", message(json!({"role": "king", "content": "hi"})), "invalid_value", "messages[0].role"),
        ("messages", message(json!({"role": 3, "content": "hi"})), "invalid_type", "messages[0].role"),
        ("messages", message(json!({"role": "user"})), "missing_required_parameter", "messages[0].content"),
        ("messages", message(json!({"role": "user", "content": 5})), "invalid_type", "messages[0].content"),
        ("messages", message(json!({"role": "user", "content": []})), "empty_array", "messages[0].content"),
        (
            "messages",
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})),
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (
            "messages",
            message(json!({"role": "user", "content": [{"type": "text", "text": null}]})),
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
        (
            "messages",
            message(json!({"role": "tool", "content": "42"})),
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (
            "messages",
            message(
                json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": [1]}}]}),
            ),
            "invalid_type",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("model", json!(5), "invalid_type", "model"),
        ("stream", json!("yes"), "invalid_type", "stream"),
        ("stream_options", json!({"include_usage": 1}), "invalid_type", "stream_options.include_usage"),
        ("n", json!(129), "integer_above_max_value", "n"),
        ("n", json!(0), "integer_below_min_value", "n"),
        ("stop", json!([5]), "invalid_type", "stop[0]"),
        ("stop", json!({}), "invalid_type", "stop"),
        ("stop", json!([""]), "invalid_value", "stop"),
        ("stop", json!(vec!["x"; 65]), "invalid_value", "stop"),
        ("logprobs", json!(3), "invalid_type", "logprobs"),
        ("options", json!({"temperature": 0}), "unsupported_parameter", "options"),
        ("extra_body", json!({"top_k": 1}), "unsupported_parameter", "extra_body"),
        ("top_logprobs", json!(3), "invalid_value", "top_logprobs"),
        ("top_logprobs", json!(21), "integer_above_max_value", "top_logprobs"),
        ("seed", json!(1.5), "invalid_type", "seed"),
        ("seed", json!(u64::MAX), "integer_above_max_value", "seed"),
        ("top_k", json!(-2), "invalid_value", "top_k"),
        ("top_k", json!(0.5), "invalid_type", "top_k"),
        ("logit_bias", json!([]), "invalid_type", "logit_bias"),
        ("logit_bias", json!({"x": 1}), "invalid_value", "logit_bias.x"),
        ("logit_bias", json!({"-1": 1}), "invalid_value", "logit_bias.-1"),
        ("logit_bias", json!({"1": "1"}), "invalid_type", "logit_bias.1"),
        ("logit_bias", json!({"1": 101}), "invalid_value", "logit_bias"),
        ("tools", json!({}), "invalid_type", "tools"),
        ("tools", json!([{"function": {"name": "f"}}]), "missing_required_parameter", "tools[0].type"),
        ("tools", json!([{"type": "web_search"}]), "unsupported_value", "tools[0].type"),
        ("tools", tool(json!({"name": "a b"})), "invalid_value", "tools[0].function.name"),
        ("tools", tool(json!({"name": "<|im_end|>"})), "invalid_value", "tools[0].function.name"),
        (
            "tools",
            tool(json!({"name": "f", "parameters": 5})),
            "invalid_type",
            "tools[0].function.parameters",
        ),
        ("tool_choice", json!({"type": "function"}), "missing_required_parameter", "tool_choice.function"),
        ("tool_choice", json!({"type": "web_search"}), "unsupported_value", "tool_choice.type"),
        (
            "tool_choice",
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
            "invalid_value",
            "tool_choice.allowed_tools.tools",
        ),
        ("tool_choice", json!("maybe"), "invalid_value", "tool_choice"),
        ("tool_choice", json!(1), "invalid_type", "tool_choice"),
        ("response_format", json!({"type": "xml"}), "invalid_value", "response_format.type"),
        (
            "response_format",
            json!({"type": "json_schema"}),
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        ("guided_choice", json!("a"), "invalid_type", "guided_choice"),
        ("logit_bias", json!({"191222": -100}), "invalid_value", "logit_bias"),
        ("stop_token_ids", json!([0, "1"]), "invalid_type", "stop_token_ids[1]"),
        ("stop_token_ids", json!([99999999]), "invalid_value", "stop_token_ids"),
        ("min_tokens", json!(-1), "integer_below_min_value", "min_tokens"),
        ("min_tokens", json!(2), "integer_above_max_value", "min_tokens"),
        ("best_of", json!(2), "unsupported_parameter", "best_of"),
        ("echo", json!(true), "unsupported_parameter", "echo"),
        ("thinking", json!({"type": "off"}), "invalid_value", "thinking.type"),
        ("reasoning_effort", json!("lots"), "invalid_value", "reasoning_effort"),
        ("continue_final_message", json!(true), "invalid_value", "continue_final_message"),
        ("add_generation_prompt", json!(false), "unsupported_value", "add_generation_prompt"),
        (
            "messages",
            json!([{"role": "assistant", "content": "a", "partial": true}, {"role": "user", "content": "b"}]),
            "invalid_value",
            "messages[0].partial",
        ),
        (
            "messages",
            message(json!({"role": "user", "content": "a", "partial": true})),
            "invalid_value",
            "messages[0].partial",
        ),
        (
            "messages",
            json!([{"role": "user", "content": "a"}, {"role": "tool", "tool_call_id": "x", "content": "b"}]),
            "invalid_value",
            "messages[1].tool_call_id",
        ),
        (
            "messages",
            json!([
                {"role": "assistant", "tool_calls": [{"id": "call_a", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "call_b", "content": "b"},
            ]),
            "invalid_value",
            "messages[1].tool_call_id",
        ),
        ("response_format", json!("text"), "invalid_type", "response_format"),
        ("functions", json!([]), "unsupported_parameter", "functions"),
        ("grammar", json!("root ::= \"a\""), "unsupported_parameter", "grammar"),
        ("mirostat", json!(2), "unsupported_parameter", "mirostat"),
        ("web_search_options", json!({}), "unsupported_parameter", "web_search_options"),
        ("messages", message(json!([])), "invalid_type", "messages[0]"),
        (
            "messages",
            json!([{"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": 5}]}]),
            "invalid_type",
            "messages[1].content[0].text",
        ),
        (
            "tools",
            json!([{"type": "builtin_function", "function": {"name": "$web_search"}}]),
            "unsupported_value",
            "tools[0].type",
        ),
        ("modalities", json!(["audio"]), "unsupported_value", "modalities[0]"),
        ("chat_template_kwargs", json!([]), "invalid_type", "chat_template_kwargs"),
        ("ignore_eos", json!(0), "invalid_type", "ignore_eos"),
    ];
    for key in ["temperature", "top_p", "min_p", "repetition_penalty"] {
        cases.push((key, json!(-0.5), "invalid_value", key));
    }
    for key in
        ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
    {
        cases.push((key, json!(10.5), "invalid_value", key));
        cases.push((key, json!(1e300), "invalid_value", key));
        cases.push((key, json!("NaN"), "invalid_type", key));
        cases.push((key, json!([0.5]), "invalid_type", key));
    }
    for key in ["max_tokens", "max_completion_tokens"] {
        cases.push((key, json!(0), "integer_below_min_value", key));
        cases.push((key, json!(-2), "integer_below_min_value", key));
        cases.push((key, json!(1e30), "integer_above_max_value", key));
        cases.push((key, json!("9"), "invalid_type", key));
    }
    for (field, value, code, param) in cases {
        let mut body = json!({"messages": user, "max_tokens": 1});
        let what = format!("{field}: {value}");
        body[field] = value;
        check(&server.chat(&body), 400, code, param, &what);
    }
    // Nothing of this is left behind, and the server goes on.
    let health = server.wait_for("any state", |_| true);
    assert_eq!((&health["steps"], &health["sequences"]["running"]), (&json!(0), &json!(0)));
    server.chat(&json!({"messages": user, "max_tokens": 1})).ok();
}

#[test]
fn bodies_that_are_no_requests() {
    let server = Server::tiny();
    let post = |body: &[u8]| server.post(PATH, body);
    check(&post(b""), 400, "invalid_json", "", "nothing");
    check(&post(b"{\"messages\": [}"), 400, "invalid_json", "", "broken JSON");
    assert!(post(b"{\n\"messages\": [}").body.contains("line 2 column 14"));
    check(&post(b"{\"temperature\": NaN}"), 400, "invalid_json", "", "NaN");
    check(&post(b"{\"temperature\": 1e999}"), 400, "invalid_json", "", "1e999");
    check(&post(b"{\"user\": \"\xff\xfe\"}"), 400, "invalid_utf8", "", "not UTF-8");
    check(&post(b"[1]"), 400, "invalid_type", "", "an array");
    check(&post("[".repeat(1 << 20).as_bytes()), 400, "json_too_deep", "", "brackets");
    let nested = format!("{{\"metadata\": {}1{}}}", "{\"a\":".repeat(200), "}".repeat(200));
    check(&post(nested.as_bytes()), 400, "json_too_deep", "", "nested objects");
    check(&post(format!("[{}1]", "1,".repeat(2 << 20)).as_bytes()), 400, "json_too_large", "", "values");
}

#[test]
fn content_types() {
    let server = Server::tiny();
    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}"#;
    let post = |header: &str| {
        let head = format!("POST {PATH} HTTP/1.0\r\n{header}Content-Length: {}\r\n\r\n{body}", body.len());
        Reply::read(server.send(head.as_bytes()))
    };
    for header in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"]
    {
        check(&post(header), 415, "unsupported_media_type", "", header);
    }
    let zipped = post("Content-Type: application/json\r\nContent-Encoding: gzip\r\n");
    check(&zipped, 415, "unsupported_content_encoding", "", "gzip");
    assert!(zipped.body.contains("gzip"), "{}", zipped.body);
    post("Content-Type: Application/JSON; charset=utf-8\r\nContent-Encoding: identity\r\n").ok();
}

#[test]
fn models_paths_and_methods_that_are_not_there() {
    let server = Server::tiny();
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]});
    let reply = server.chat(&body);
    check(&reply, 404, "model_not_found", "model", "another model");
    assert!(reply.body.contains("kimi-tiny"), "{}", reply.body);
    check(&server.get("/v1/models/gpt-4o"), 404, "model_not_found", "model", "another model");
    for path in ["/v1/models/", "/v1/chat/completions/", "/chat/completions"] {
        check(&server.get(path), 404, "unknown_url", "", path);
    }
    let hint = server.post("/chat/completions", b"{}");
    assert!(hint.body.contains("did you mean /v1/chat/completions?"), "{}", hint.body);
    check(&server.post("/v1/embeddings", b"{}"), 404, "unsupported_endpoint", "", "embeddings");
    let reply = server.get(PATH);
    check(&reply, 405, "method_not_allowed", "", "GET");
    assert!(reply.head.contains("\r\nallow: post"), "{}", reply.head);
    check(&server.post("/v1/models", b"{}"), 405, "method_not_allowed", "", "POST");
    check(&server.post("/health", b"{}"), 405, "method_not_allowed", "", "POST");
}

#[test]
fn hosts_that_are_not_this_machine() {
    let server = Server::tiny();
    let get = |host: &str| {
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        Reply::read(server.send(head.as_bytes()))
    };
    for host in ["evil.example", "localhost.evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[::2]"] {
        check(&get(host), 403, "host_not_allowed", "", host);
    }
    for host in
        ["", "localhost:abc", "localhost:65536", "user@localhost", "localhost, evil.example", "[::1", "a b"]
    {
        check(&get(host), 400, "invalid_host", "", host);
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:52415", "127.9.9.9", "[::1]:8080"] {
        assert_eq!(get(host).status, 200, "{host}");
    }
}

#[test]
fn a_request_names_one_host() {
    let server = Server::tiny();
    let ask = |line: &str, headers: &str| {
        Reply::read(server.send(format!("{line}\r\n{headers}Connection: close\r\n\r\n").as_bytes()))
    };
    let line = "GET /v1/models HTTP/1.1";
    check(&ask(line, ""), 400, "invalid_host", "", "no host");
    let twice = "Host: localhost\r\nHost: localhost\r\n";
    check(&ask(line, twice), 400, "invalid_host", "", "two hosts");
    check(&ask("GET /v1/models HTTP/1.0", twice), 400, "invalid_host", "", "two hosts");
    assert_eq!(ask("GET /v1/models HTTP/1.0", "").status, 200);
    // The target's host counts.
    let absolute = |host: &str| format!("GET http://{host}/v1/models HTTP/1.1");
    assert_eq!(ask(&absolute("127.0.0.1:80"), "Host: localhost\r\n").status, 200);
    for host in ["evil.example", "localhost.evil.example"] {
        check(&ask(&absolute(host), "Host: localhost\r\n"), 403, "host_not_allowed", "", host);
    }
    check(&ask(&absolute("localhost"), "Host: evil.example\r\n"), 403, "host_not_allowed", "", "header");
    check(&ask(&absolute("localhost"), ""), 400, "invalid_host", "", "no host");
}

#[test]
fn bodies_over_the_limit() {
    let server = Server::tiny();
    let mut socket = server.send(
        format!("POST {PATH} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 33554433\r\n\r\n")
            .as_bytes(),
    );
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.0 413") && text.contains("request_too_large"), "{text}");

    // Without a length, it is noticed on the way.
    let mut socket = server.send(
        format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            .as_bytes(),
    );
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..33 {
        if socket.write_all(&chunk).is_err() {
            break; // it has answered and closed
        }
    }
    let mut answer = vec![0; 12];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[test]
fn other_clients_lose_nothing() {
    let server = Server::tiny();
    let good = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8, "ignore_eos": true});
    let expected = server.chat(&good).ok()["choices"].clone();
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| {
            for _ in 0..20 {
                server.post(PATH, b"{\"messages\": 1e999}");
                drop(server.send(b"GARBAGE\r\n\r\n"));
                drop(server.send(&request(PATH, b"{")[..20]));
            }
        });
        for _ in 0..3 {
            assert_eq!(server.chat(&good).ok()["choices"], expected);
        }
        bad.join().unwrap();
    });
}
