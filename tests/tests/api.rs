//! The HTTP API over the embedded model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use kimi_core::ChatRequest;
use kimi_core::chat_model::PAGE_TOKENS;
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, Streamed, request, tiny};
use serde_json::{Value, json};

/// A request that generates exactly `tokens` tokens, whatever the model says.
fn fixed(tokens: u32, extra: Value) -> Value {
    let mut body = json!({
        "model": "kimi-tiny",
        "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": true,
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn content(completion: &Value) -> &str {
    completion["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn streamed_and_whole_answers_agree() {
    let server = Server::tiny();
    let body = fixed(24, json!({"stream_options": {"include_usage": true}}));
    let whole = server.chat(&body).ok();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "kimi-tiny");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(whole["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(whole["system_fingerprint"].is_string());
    let choice = &whole["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["message"]["role"], "assistant");

    let stream = Streamed::read(server.stream(&body));
    assert!(stream.done);
    assert_eq!(stream.content, content(&whole));
    assert_eq!(stream.finish, "length");
    let (last, others) = stream.chunks.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    assert_eq!(others[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    for chunk in others {
        assert_eq!((&chunk["object"], &chunk["id"]), (&json!("chat.completion.chunk"), &last["id"]));
        assert_eq!((&chunk["model"], &chunk["usage"]), (&json!("kimi-tiny"), &Value::Null));
    }

    let plain = Streamed::read(server.stream(&fixed(4, json!({}))));
    assert!(plain.chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["choices"][0].is_object()));
}

#[test]
fn usage_counts_tokens() {
    let model = tiny();
    let body = fixed(5, json!({}));
    let messages = serde_json::from_value(body["messages"].clone()).unwrap();
    let prompt = model.prompt(&ChatRequest { messages, ..ChatRequest::default() }).unwrap().len();
    let server = Server::start(vec![ServedModel::new(model)], HttpConfig::default());
    let usage = |cached: usize| {
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": 5,
            "total_tokens": prompt + 5,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    };
    assert_eq!(server.chat(&body).ok()["usage"], usage(0));
    let shared = (prompt - 1) / PAGE_TOKENS * PAGE_TOKENS;
    assert_eq!(server.chat(&body).ok()["usage"], usage(shared), "the last token is always computed");
}

#[test]
fn a_second_turn_begins_with_the_first_ones_pages() {
    let server = Server::tiny();
    let mut messages = vec![
        json!({"role": "system", "content": "Answer briefly and politely. ".repeat(30)}),
        json!({"role": "user", "content": "What is kimi?"}),
    ];
    let turn = |messages: &[Value]| {
        server.chat(&json!({"messages": messages, "temperature": 0, "max_tokens": 20})).ok()
    };
    let first = turn(&messages);
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(cached(&first), 0);
    messages.push(json!({"role": "assistant", "content": content(&first)}));
    messages.push(json!({"role": "user", "content": "And who made it?"}));
    let second = turn(&messages);
    let pages = PAGE_TOKENS as u64;
    assert!(prompt > 2 * pages && cached(&second) >= prompt / pages * pages - pages, "{second}");
    // Another user with the same system prompt.
    messages.truncate(1);
    messages.push(json!({"role": "user", "content": "Name three animals."}));
    assert!(cached(&turn(&messages)) >= 2 * pages);
}

#[test]
fn a_seed_reproduces() {
    let server = Server::tiny();
    let text = |seed: i64| {
        let body = fixed(40, json!({"temperature": 1.5, "seed": seed}));
        content(&server.chat(&body).ok()).to_owned()
    };
    let first = text(7);
    assert_eq!(first, text(7));
    assert!((8..16).any(|seed| text(seed) != first), "eight other seeds make the same text");
}

#[test]
fn stop_strings_end_the_text() {
    let server = Server::tiny();
    let all = content(&server.chat(&fixed(32, json!({}))).ok()).to_owned();
    let chars: Vec<char> = all.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 3].iter().collect();
    let expected = &all[..all.find(&stop).unwrap()];
    let body = fixed(32, json!({"stop": ["\u{1}never", stop]}));
    let whole = server.chat(&body).ok();
    assert_eq!(content(&whole), expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() < 32);
    let stream = Streamed::read(server.stream(&body));
    assert_eq!((stream.content.as_str(), &stream.finish), (expected, &json!("stop")));
}

#[test]
fn logprobs_cover_every_token() {
    let server = Server::tiny();
    let body = fixed(12, json!({"logprobs": true, "top_logprobs": 2}));
    let whole = server.chat(&body).ok();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 12);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy: the likeliest token is the one chosen.
        assert_eq!((&top[0]["logprob"], &top[0]["bytes"]), (&token["logprob"], &token["bytes"]));
        assert!(
            token["logprob"].as_f64().unwrap() <= 0.0
                && top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64()
        );
    }
    let stream = Streamed::read(server.stream(&body));
    let streamed: Vec<Value> = stream
        .chunks
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(streamed, tokens);
    assert!(server.chat(&fixed(2, json!({}))).ok()["choices"][0]["logprobs"].is_null());
}

#[test]
fn two_chats_interleave() {
    let server = Server::tiny();
    let mut long = server.stream(&fixed(3000, json!({})));
    assert!(long.by_ref().nth(1).is_some());
    // While the long chat runs, a short one gets its whole answer.
    assert_eq!(server.chat(&fixed(8, json!({}))).ok()["usage"]["completion_tokens"], 8);
    // The short one's place is free a moment after its answer; the long one was far from its end then.
    let health = server
        .wait_for("only the long chat", |health| health["sequences"] == json!({"running": 1, "waiting": 0}));
    assert!(health["tokens_generated"].as_u64().unwrap() < 3000, "the long chat ended first: {health}");
    assert!(long.next().is_some());
}

#[test]
fn a_client_that_goes_away_frees_its_sequence() {
    let server = Server::tiny();
    let idle = |health: &Value| {
        health["sequences"] == json!({"running": 0, "waiting": 0}) && health["pages"]["used"] == 0
    };
    let busy = |health: &Value| health["sequences"]["running"] == 1;

    let mut events = server.stream(&fixed(3000, json!({})));
    assert!(events.by_ref().nth(2).is_some());
    server.wait_for("a running sequence", busy);
    drop(events);
    let health = server.wait_for("no sequence after a stream was left", idle);
    assert!(health["tokens_generated"].as_u64().unwrap() < 3000, "it was not cancelled, it ended: {health}");

    let body = fixed(3000, json!({})).to_string();
    let socket = server.send(&request("/v1/chat/completions", body.as_bytes()));
    server.wait_for("a running sequence", busy);
    drop(socket);
    let health = server.wait_for("no sequence after a whole answer was left", idle);
    assert!(health["tokens_generated"].as_u64().unwrap() < 3000, "it was not cancelled, it ended: {health}");
}

#[test]
fn models_and_health() {
    let served = ServedModel::new(tiny()).with_aliases(["kimi/tiny"]);
    let server = Server::start(vec![served], HttpConfig::default());
    let models = server.get("/v1/models").ok();
    assert_eq!((&models["object"], models["data"].as_array().unwrap().len()), (&json!("list"), 1));
    let model = &models["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!("kimi-tiny"), &json!("model")));
    for id in ["kimi-tiny", "kimi/tiny", "kimi%2Ftiny"] {
        assert_eq!(server.get(&format!("/v1/models/{id}")).ok(), *model);
    }
    let health = server.get("/health").ok();
    assert_eq!(health["status"], "ok");
    let model = &health["models"][0];
    assert_eq!((&model["id"], &model["stages"][0]["status"]), (&json!("kimi-tiny"), &json!("ok")));
    assert_eq!((&model["pages"]["used"], &model["pages"]["total"]), (&json!(0), &json!(192)));

    // An alias answers under the model's id; without a name the only model does.
    for name in [json!("kimi/tiny"), Value::Null] {
        assert_eq!(server.chat(&fixed(1, json!({"model": name}))).ok()["model"], "kimi-tiny");
    }
}

#[test]
fn a_prompt_over_the_context_is_refused_with_both_numbers() {
    let server = Server::tiny();
    let messages = json!([{"role": "user", "content": "lighthouse ".repeat(40_000)}]);
    let reply = server.chat(&fixed(1, json!({"messages": messages})));
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"]), (400, &json!("context_length_exceeded")));
    let numbers: Vec<u64> = error["message"]
        .as_str()
        .unwrap()
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(numbers.contains(&32768) && numbers.iter().any(|&n| n > 40_000), "{error}");
}
