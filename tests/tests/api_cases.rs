//! Requests of real clients that once failed, over HTTP and the embedded model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::fs;

use kimi_core::{ChatModel, Checkpoint, ModelOptions};
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, Streamed};
use serde_json::{Value, json};

/// The part of Kimi-K2.5's template that this needs: thinking is on unless a variable switches it off.
const SWITCHED: &str = "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}<|im_assistant|>{{ m.get('name') or m['role'] }}<|im_middle|>{%- if preserve_thinking is defined and preserve_thinking -%}<think>{{ m.get('reasoning_content', '') }}</think>{%- else -%}<think></think>{%- endif -%}{%- else -%}<|im_user|>{{ m['role'] }}<|im_middle|>{%- endif -%}{{ m['content'] }}<|im_end|>{%- endfor -%}{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- if thinking is defined and thinking is false -%}<think></think>{%- else -%}<think>{%- endif -%}{%- endif -%}";

/// A server of the embedded model with another chat template.
fn with_template(template: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let files = ["config.json", "generation_config.json", "tokenizer_config.json", "tiktoken.model"];
    for name in files.into_iter().chain(["model.safetensors.index.json", "model.safetensors"]) {
        fs::write(folder.path().join(name), checkpoint.file(name).unwrap().unwrap()).unwrap();
    }
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let model = ChatModel::on_cpu(&checkpoint, &ModelOptions::default()).unwrap();
    Server::start(vec![ServedModel::new(model)], HttpConfig::default())
}

/// A chat that has called a tool, and asks a question that the model would answer with a call.
fn after_a_call(extra: Value) -> Value {
    let function = json!({"name": "get_weather", "arguments": "{\"city\": \"Berlin\"}"});
    let call = json!({"id": "functions.get_weather:0", "type": "function", "function": function});
    let mut body = json!({
        "messages": [
            {"role": "user", "content": "What is the weather in Berlin?"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "functions.get_weather:0", "content": "{\"temp\": 21, \"sky\": \"sunny\"}"},
            {"role": "assistant", "content": "In Berlin it is 21 degrees, sunny."},
            {"role": "user", "content": "What is the weather in Oslo?"},
        ],
        "temperature": 0,
        "max_tokens": 60,
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn without_tools_none_are_called_and_no_markup_is_shown() {
    let server = Server::tiny();
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let function = json!({"name": "get_weather", "description": "Get the current weather for a city", "parameters": parameters});
    let tools = json!([{"type": "function", "function": function}]);
    for fields in [
        json!({}),
        json!({"tools": []}),
        json!({"tools": null}),
        json!({"tools": tools, "tool_choice": "none"}),
    ] {
        let body = after_a_call(fields.clone());
        let whole = server.chat(&body).ok();
        let choice = &whole["choices"][0];
        assert!(choice["message"].get("tool_calls").is_none(), "{fields}: {choice}");
        let content = choice["message"]["content"].as_str().unwrap();
        assert!(!content.contains("<|"), "{fields}: {content}");
        assert!(
            ["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()),
            "{fields}: {choice}"
        );
        let stream = Streamed::read(server.stream(&body));
        assert_eq!(
            (stream.content.as_str(), &stream.finish),
            (content, &choice["finish_reason"]),
            "{fields}"
        );
    }
}

#[test]
fn thinking_is_switched_in_every_apis_words() {
    let server = with_template(SWITCHED);
    let ask = |fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "What is the capital of Egypt?"}],
            "temperature": 0, "max_tokens": 8, "ignore_eos": true});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        let answer = server.chat(&body).ok();
        let message = answer["choices"][0]["message"].clone();
        let stream = Streamed::read(server.stream(&body));
        assert_eq!(stream.content, message["content"].as_str().unwrap_or_default(), "{fields}");
        (answer["usage"].clone(), message)
    };
    let (usage, on) = ask(json!({}));
    assert!(on["content"] == "" && !on["reasoning_content"].as_str().unwrap().is_empty(), "{on}");
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 8);
    let off = [
        json!({"thinking": {"type": "disabled"}}),
        json!({"reasoning_effort": "none"}),
        json!({"enable_thinking": false}),
        json!({"chat_template_kwargs": {"thinking": false}}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
    ];
    for fields in off {
        let (found, message) = ask(fields.clone());
        assert!(message.get("reasoning_content").is_none(), "{fields}: {message}");
        assert_eq!(found["prompt_tokens"], usage["prompt_tokens"].as_u64().unwrap() + 1, "{fields}");
        assert_eq!(found["completion_tokens_details"]["reasoning_tokens"], 0, "{fields}");
    }
    assert_eq!(ask(json!({"thinking": {"type": "enabled"}})).1, on);
    let model = &server.get("/v1/models").ok()["data"][0];
    let sampling =
        json!({"temperature": 1.0, "top_p": 0.95, "without_thinking": {"temperature": 0.6, "top_p": 0.95}});
    assert_eq!(model["default_sampling"], sampling);
}

#[test]
fn a_partial_message_goes_on_within_its_thinking() {
    let server = with_template(SWITCHED);
    let ask = |partial: Value| {
        let question = json!({"role": "user", "content": "Tell me a story about a lighthouse."});
        let body =
            json!({"messages": [question, partial], "temperature": 0, "max_tokens": 8, "ignore_eos": true});
        server.chat(&body).ok()["choices"][0]["message"].clone()
    };
    let thinking =
        ask(json!({"role": "assistant", "content": "", "reasoning_content": "Once upon", "partial": true}));
    assert!(
        thinking["content"] == ""
            && thinking["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()),
        "{thinking}"
    );
    let answering = ask(
        json!({"role": "assistant", "content": "Once upon", "reasoning_content": "Hm.", "partial": true}),
    );
    assert!(answering.get("reasoning_content").is_none() && answering["content"] != "", "{answering}");
}

#[test]
fn a_message_of_thinking_alone_is_taken() {
    let server = Server::tiny();
    let turn = json!({"role": "user", "content": "What is the weather?"});
    let thought = json!({"role": "assistant", "content": null, "reasoning_content": "thought"});
    server.chat(&json!({"messages": [turn, thought, turn], "max_tokens": 4})).ok();
}

#[test]
fn what_the_server_said_is_taken_back() {
    let server = Server::tiny();
    for name in ["get weather", "搜索", "functions:get_weather", "functions/get_weather", "get_weather(city)"]
    {
        let id = format!("functions.{name}:0");
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{\"city\": \"Oslo\"}"}});
        server
            .chat(&json!({"max_tokens": 1, "messages": [
                {"role": "user", "content": "What is the weather?"},
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": id, "content": "no such tool"},
                {"role": "user", "content": "What is the weather?"},
            ]}))
            .ok();
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let server = Server::tiny();
    let body = br#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}"#;
    server.post("/v1/chat/completions", &[b"\xef\xbb\xbf".as_slice(), body].concat()).ok();
}

#[test]
fn tokens_that_end_an_answer() {
    let server = Server::tiny();
    let mut body = json!({"messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
        "temperature": 0, "max_tokens": 30, "ignore_eos": true});
    let whole = server.chat(&body).ok();
    assert_eq!(whole["usage"]["completion_tokens"], 30);
    body["stop_token_ids"] = (0..1000).collect();
    let ended = server.chat(&body).ok();
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert!(ended["usage"]["completion_tokens"].as_u64().unwrap() < 30, "{ended}");
    body["logit_bias"] = json!({"191222": -100});
    let reply = server.chat(&body);
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("191222"), "{}", reply.body);
}

#[test]
fn what_runs_on_moonshots_servers_is_named() {
    let server = Server::tiny();
    let search = json!({"type": "builtin_function", "function": {"name": "$web_search"}});
    let reply = server.chat(&json!({"messages": [{"role": "user", "content": "hi"}], "tools": [search]}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("tools[0].type")));
    assert!(reply.body.contains("$web_search"), "{}", reply.body);
}
