//! `kimi top` and `/metrics` of the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Running, http, json, run, stderr, stdout};

/// A port at which nobody listens.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_server_is_shown() {
    let server = Running::start(&[
        "serve",
        "kimi-tiny",
        "--port",
        "0",
        "--wait-for-peers",
        "0",
        "--backend",
        "cpu",
        "--json",
    ]);
    let address = server.address();
    let chat = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": true}"#;
    assert_eq!(http(&address, "POST", "/v1/chat/completions", chat).0, 200);

    let now = json(&run(&["top", &address, "--json"]));
    let model = &now["models"][0];
    assert_eq!((&model["id"], &model["status"]), (&"kimi-tiny".into(), &"ok".into()));
    assert_eq!(model["tokens_generated"], 4);
    assert_eq!(now["slow"], serde_json::Value::Null);

    // Its stdout is no terminal.
    let output = run(&["top", &format!("http://{address}/v1")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = stdout(&output);
    assert!(page.contains(&format!("at {address}, up for")), "{page}");
    assert!(page.contains("kimi-tiny  ok\n  0.0 tokens/s, prompts 0.0 tokens/s, 0.0 steps/s\n"), "{page}");
    assert!(page.contains("this process: "), "{page}");

    let (status, metrics) = http(&address, "GET", "/metrics", "");
    assert_eq!(status, 200);
    assert!(metrics.contains("kimi_generated_tokens_total{model=\"kimi-tiny\"} 4.0\n"), "{metrics}");
}

#[test]
fn nobody_is_there() {
    let output = run(&["top", &format!("http://127.0.0.1:{}", free_port()), "--once"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("no kimi answers at 127.0.0.1:") && said.contains("kimi serve MODEL"), "{said}");
    let output = run(&["top", "https://127.0.0.1"]);
    assert!(stderr(&output).contains("the API is http"), "{}", stderr(&output));
}
