//! What a server says of its requests, and how it ends while it answers.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Running, http, kimi, wait_until};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn serve(log: &Path, more: &[&str]) -> Running {
    let mut command = kimi();
    command.args(["serve", "kimi-tiny", "--json", "--no-mdns", "--backend", "cpu", "--port", "0"]).args(more);
    Running::spawn(command.stderr(File::create(log).unwrap()))
}

fn lines(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
}

/// The first line of a log of JSON that is wanted, once it is there.
fn line(log: &Path, wanted: impl Fn(&Value) -> bool) -> Value {
    let find = || lines(log).iter().filter_map(|line| serde_json::from_str(line).ok()).find(&wanted);
    assert!(wait_until(LONG, || find().is_some()), "not in the log: {:#?}", lines(log));
    find().unwrap()
}

fn body(content: &str) -> String {
    json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 20})
        .to_string()
}

#[test]
fn each_request_is_a_line_without_content() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let server = serve(&log, &["--log-format", "json", "--api-key", "secret-key"]);
    let address = server.address();
    let mut socket = TcpStream::connect(&address).unwrap();
    let text = body("What is a zeppelin?");
    let head = format!(
        "POST /v1/chat/completions?key=in-the-query HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nx-request-id: mine-7\r\n\
         authorization: Bearer secret-key\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let found = line(&log, |line| line["request_id"] == "mine-7");
    let expected = json!(["INFO", "POST", "/v1/chat/completions", 200, "kimi-tiny", "api-key", "answered"]);
    let got: Vec<_> = ["level", "method", "path", "status", "model", "key", "message"]
        .map(|name| found[name].clone())
        .into();
    assert_eq!(json!(got), expected, "{found}");
    assert!(
        found["prompt_tokens"].as_u64().unwrap() > 5 && found["answer_tokens"].as_u64().unwrap() > 0,
        "{found}"
    );
    assert!(["stop", "length"].contains(&found["outcome"].as_str().unwrap()), "{found}");
    let (first, total) = (found["first_token_ms"].as_f64().unwrap(), found["total_ms"].as_f64().unwrap());
    assert!(0.0 < first && first <= total, "{found}");
    // Who is refused is logged too; monitors are not.
    assert_eq!(http(&address, "GET", "/health", "").0, 200);
    assert_eq!(http(&address, "GET", "/v1/models", "").0, 401);
    let refused = line(&log, |line| line["status"] == 401);
    assert!(
        refused["key"].is_null() && refused["request_id"].as_str().unwrap().starts_with("req_"),
        "{refused}"
    );
    let all = lines(&log).join("\n");
    for word in ["zeppelin", "secret-key", "in-the-query", "/health"] {
        assert!(!all.contains(word), "{word} in {all}");
    }
}

#[test]
fn content_is_logged_where_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let server = serve(&log, &["--log-prompts"]);
    let (status, answer) = http(&server.address(), "POST", "/v1/chat/completions", &body("Hello zeppelin"));
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let said = answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let there = || lines(&log).iter().any(|line| line.contains("Hello zeppelin") && line.contains(&said));
    assert!(wait_until(LONG, there), "no {said:?} in {:#?}", lines(&log));
}

#[test]
fn a_server_that_ends_says_goodbye_to_every_stream() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut server = serve(&log, &["--shutdown-grace", "0", "--log-format", "json"]);
    let address = server.address();
    let request = json!({
        "messages": [{"role": "user", "content": "Tell me a story"}],
        "stream": true, "max_tokens": 3900, "ignore_eos": true,
    });
    let text = request.to_string();
    let mut streams: Vec<_> = (0..4)
        .map(|_| {
            let mut socket = TcpStream::connect(&address).unwrap();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            );
            socket.write_all(head.as_bytes()).unwrap();
            BufReader::new(socket)
        })
        .collect();
    for stream in &mut streams {
        // Text has come, so that the answer runs.
        let mut line = String::new();
        while !line.contains("\"content\":") || line.contains("\"content\":\"\"") {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended");
        }
    }
    let kill = Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    for mut stream in streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        let events: Vec<&str> = rest.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let [.., error, done] = events.as_slice() else { panic!("{rest}") };
        assert!(error.contains("server_shutdown") && *done == "[DONE]", "{error} {done}");
    }
    assert!(wait_until(LONG, || server.child.try_wait().unwrap().is_some()), "it does not end");
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status}");
    let cut = lines(&log).iter().filter(|line| line.contains("\"outcome\":\"cancelled\"")).count();
    assert_eq!(cut, 4, "{:#?}", lines(&log));
}
