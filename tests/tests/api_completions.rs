//! `/v1/completions`, `/v1/tokenize`, `/v1/detokenize`, and answers that go on after a given text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use kimi_tests::api::{Server, request};
use serde_json::{Value, json};
use std::io::Read;

fn post(server: &Server, path: &str, body: &Value) -> Value {
    server.post(path, body.to_string().as_bytes()).ok()
}

fn tokens(server: &Server, body: Value) -> Vec<u64> {
    let reply = post(server, "/v1/tokenize", &body);
    let tokens: Vec<u64> =
        reply["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(reply["count"], tokens.len());
    tokens
}

/// A prompt in the form of the model's template, so that it has something to say.
const PROMPT: &str = "<|im_user|>user<|im_middle|>Tell me a story about a lighthouse.<|im_end|><|im_assistant|>assistant<|im_middle|>";

fn fixed(extra: Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Of a stream, the text of each choice, its logprobs' tokens, and the last usage.
fn streamed(server: &Server, body: &Value, choices: usize) -> (Vec<String>, Vec<Vec<Value>>, Value) {
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let mut text = String::new();
    server.send(&request("/v1/completions", body.to_string().as_bytes())).read_to_string(&mut text).unwrap();
    let (head, events) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{text}");
    let mut all = (vec![String::new(); choices], vec![Vec::new(); choices], Value::Null);
    assert!(events.ends_with("data: [DONE]\n\n"));
    for data in
        events.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).filter(|data| *data != "[DONE]")
    {
        let chunk: Value = serde_json::from_str(data).unwrap();
        assert_eq!(chunk["object"], "text_completion");
        all.2 = chunk["usage"].clone();
        if let Some(choice) = chunk["choices"].as_array().unwrap().first() {
            let index = choice["index"].as_u64().unwrap() as usize;
            all.0[index].push_str(choice["text"].as_str().unwrap());
            all.1[index].extend(choice["logprobs"]["tokens"].as_array().cloned().unwrap_or_default());
        }
    }
    all
}

#[test]
fn whole_and_streamed_texts_agree() {
    let server = Server::tiny();
    let body = fixed(json!({"logprobs": 2}));
    let whole = post(&server, "/v1/completions", &body);
    assert_eq!(whole["object"], "text_completion");
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &whole["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    let text = choice["text"].as_str().unwrap();
    // The same as the chat's answer: the prompt is what the template makes.
    let chat = json!({"messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
        "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    let answer = server.chat(&chat).ok();
    let prompt = tokens(&server, json!({"prompt": PROMPT}));
    if tokens(&server, json!({"messages": chat["messages"]})) == prompt {
        assert_eq!(answer["choices"][0]["message"]["content"], text);
    }
    let logprobs = &choice["logprobs"];
    let of = |key: &str| logprobs[key].as_array().unwrap().clone();
    let joined: String = of("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    assert_eq!((joined.as_str(), of("tokens").len(), of("top_logprobs").len()), (text, 12, 12));
    assert_eq!(of("text_offset")[0], 0);
    assert!(of("token_logprobs").iter().all(|p| p.as_f64().unwrap() <= 0.0));
    assert_eq!(whole["usage"]["prompt_tokens"], prompt.len());

    let (texts, streamed_tokens, usage) = streamed(&server, &body, 1);
    assert_eq!((texts[0].as_str(), &streamed_tokens[0]), (text, &of("tokens")));
    assert_eq!(usage["completion_tokens"], 12);

    let alone = post(&server, "/v1/completions", &fixed(json!({"logprobs": 0})));
    let tops = alone["choices"][0]["logprobs"]["top_logprobs"].as_array().unwrap();
    assert!(tops.len() == 12 && tops.iter().all(|top| *top == json!({})), "{alone}");

    // Tokens in place of their text.
    let same = post(&server, "/v1/completions", &fixed(json!({"prompt": prompt})));
    assert_eq!(same["choices"][0]["text"], text);
    // Moonshot's and OpenAI's default.
    let short = json!({"prompt": PROMPT, "temperature": 0, "ignore_eos": true});
    assert_eq!(post(&server, "/v1/completions", &short)["usage"]["completion_tokens"], 16);
}

#[test]
fn several_prompts_and_echo() {
    let server = Server::tiny();
    let body = fixed(json!({"prompt": [PROMPT, "Once upon"], "n": 2, "best_of": 2, "echo": true}));
    let whole = post(&server, "/v1/completions", &body);
    let texts: Vec<&str> =
        whole["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert!(texts[0].starts_with(PROMPT) && texts[2].starts_with("Once upon"), "{texts:?}");
    assert_eq!((texts[0], texts[2]), (texts[1], texts[3]), "greedy");
    // Each prompt counts once.
    let prompts = [PROMPT, "Once upon"].map(|prompt| tokens(&server, json!({"prompt": prompt})).len());
    assert_eq!(whole["usage"]["prompt_tokens"], prompts[0] + prompts[1]);
    let (streamed, _, usage) = streamed(&server, &body, 4);
    assert_eq!(streamed, texts);
    assert_eq!(usage["prompt_tokens"], prompts[0] + prompts[1]);
}

#[test]
fn completions_that_are_refused() {
    let server = Server::tiny();
    let cases = [
        (json!({"prompt": null}), "missing_required_parameter", "prompt"),
        (json!({"prompt": []}), "empty_array", "prompt"),
        (json!({"prompt": {}}), "invalid_type", "prompt"),
        (json!({"prompt": ["a", {}]}), "invalid_type", "prompt[1]"),
        (json!({"prompt": [99999999]}), "invalid_value", "prompt"),
        (json!({"prompt": [99999999], "echo": true}), "invalid_value", "prompt"),
        (json!({"prompt": ""}), "invalid_value", "prompt"),
        (json!({"prompt": "lighthouse ".repeat(40_000)}), "context_length_exceeded", "prompt"),
        (json!({"prompt": "a", "suffix": "b"}), "unsupported_parameter", "suffix"),
        (json!({"prompt": "a", "n": 2, "best_of": 3}), "unsupported_parameter", "best_of"),
        (json!({"prompt": "a", "echo": true, "logprobs": 1}), "unsupported_parameter", "echo"),
        (json!({"prompt": "a", "logprobs": 99}), "integer_above_max_value", "logprobs"),
        (json!({"prompt": vec!["a"; 65], "n": 2}), "array_above_max_length", "prompt"),
    ];
    for (body, code, param) in cases {
        let reply = server.post("/v1/completions", body.to_string().as_bytes());
        let error = reply.json()["error"].clone();
        let found = (reply.status, error["code"].as_str(), error["param"].as_str());
        assert_eq!(found, (400, Some(code), Some(param)), "{error}");
        if code == "context_length_exceeded" {
            assert!(
                error["message"].as_str().unwrap().contains("maximum context length is 32768 tokens"),
                "{error}"
            );
        }
    }
}

#[test]
fn tokens_and_back() {
    let server = Server::tiny();
    let ids = tokens(&server, json!({"prompt": "Grüße, <|im_end|>!"}));
    let reply = post(&server, "/v1/detokenize", &json!({"tokens": ids}));
    assert_eq!(reply, json!({"prompt": "Grüße, <|im_end|>!"}));
    let named = post(&server, "/v1/tokenize", &json!({"prompt": "hi<|im_end|>", "return_token_strs": true}));
    assert_eq!(named["token_strs"].as_array().unwrap().last().unwrap(), "<|im_end|>");
    assert_eq!(named["max_model_len"], 32768);
    // A chat's tokens are those that its answer counts.
    let messages = json!([{"role": "user", "content": "hi <|im_end|>"}]);
    let counted =
        server.chat(&json!({"messages": messages, "max_tokens": 1})).ok()["usage"]["prompt_tokens"].clone();
    assert_eq!(counted, tokens(&server, json!({"messages": messages})).len());
    let estimated = post(&server, "/v1/tokenizers/estimate-token-count", &json!({"messages": messages}));
    assert_eq!(estimated, json!({"data": {"total_tokens": counted}}));
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": "a", "messages": messages}), "prompt"),
        (json!({"messages": []}), "messages"),
    ] {
        let reply = server.post("/v1/tokenize", body.to_string().as_bytes());
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{}", reply.body);
    }
    for tokens in [json!([99999999]), json!([-1]), json!("a"), json!(null)] {
        let reply = server.post("/v1/detokenize", json!({"tokens": tokens}).to_string().as_bytes());
        assert_eq!(reply.status, 400, "{}", reply.body);
    }
}

#[test]
fn an_answer_goes_on_after_a_partial_message() {
    let server = Server::tiny();
    let chat = |partial: Value| {
        json!({"temperature": 0, "max_tokens": 24, "ignore_eos": true, "messages": [
            {"role": "user", "content": "Tell me a story about a lighthouse."}, partial]})
    };
    let whole = chat(json!({"role": "assistant", "content": "Once upon a time", "partial": true}));
    let prompt = tokens(&server, whole.clone());
    let before = tokens(&server, json!({"messages": [whole["messages"][0]]}));
    let given = tokens(&server, json!({"prompt": "Once upon a time"}));
    assert_eq!(prompt, [before, given].concat(), "the text's tokens after the beginning of an answer");
    let answer = server.chat(&whole).ok();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.starts_with("Once") && !text.is_empty(), "{text}");
    // The same as vLLM's words ask for it, and not without them.
    let mut plain = chat(json!({"role": "assistant", "content": "Once upon a time"}));
    let new_turn = server.chat(&plain).ok();
    assert_ne!(new_turn["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    plain["continue_final_message"] = true.into();
    plain["add_generation_prompt"] = false.into();
    assert_eq!(server.chat(&plain).ok()["choices"], answer["choices"]);
}
