//! How much memory requests may take of a server, and what it keeps of that.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kimi_tests::api::PATIENCE;
use serde_json::{Value, json};

use super::serve::{Serve, same, serve};
use super::table::{CHAT, Table, chat, exchange, statuses};

/// Most MiB that the process may grow by, whatever it is sent.
const MAX_GROWTH: u64 = 150;
/// Most MiB that it may keep of that.
const MAX_KEPT: u64 = 60;

#[test]
fn memory() {
    let server = Serve::start(&mut serve("kimi-tiny"));
    server.chat().unwrap();
    let mut table = Table::new("memory");
    let body = |fields: Value| {
        let mut body: Value = serde_json::from_str(CHAT).unwrap();
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        chat("Connection: close\r\n", &body.to_string())
    };
    let text = "word ".repeat(4_000_000);
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let messages: Vec<_> = (0..300_000).map(|_| json!({"role": "user", "content": "a"})).collect();
    let chunks = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec(),
        b"1\r\n \r\n".repeat(2_000_000),
        b"0\r\n\r\n".to_vec(),
    ]
    .concat();
    let large = body(json!({"messages": [{"role": "user", "content": text}]}));
    let requests: Vec<(&str, Vec<u8>)> = vec![
        ("20 MB of text", large.clone()),
        ("20 MB in a tool's description", body(function(json!({"name": "f", "description": text})))),
        ("20 MB in a tool's name", body(function(json!({"name": text})))),
        ("300,000 messages", body(json!({"messages": messages}))),
        ("a million stop strings", body(json!({"stop": vec!["x"; 1_000_000]}))),
        ("a million numbers", body(json!({"logit_bias": vec![1; 1_000_000]}))),
        ("10 MB of empty arrays", body(json!({"messages": vec![json!([]); 3_000_000]}))),
        ("10 MB of brackets", chat("Connection: close\r\n", &"[".repeat(10_000_000))),
        (
            "10 MB of escapes",
            chat("Connection: close\r\n", &CHAT.replace("hi", &"\\u0041".repeat(1_700_000))),
        ),
        ("2,000,000 chunks", chunks),
        ("30 MB of white space", chat("Connection: close\r\n", &" ".repeat(30 << 20))),
    ];
    let (before, _) = server.memory();
    let bounded =
        |server: &Serve| within(server, before, MAX_GROWTH).and_then(|()| given_back(server, before));
    for (name, bytes) in &requests {
        let found = statuses(&exchange(server.addr, bytes));
        let outcome = same(&found, &vec![400]).and_then(|()| bounded(&server));
        table.case(name, server.addr, outcome);
    }
    // Many at once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| exchange(server.addr, &large));
        }
    });
    table.case("8 of 20 MB at once", server.addr, within(&server, before, 250));
    table.case("8 of 20 MB, given back", server.addr, given_back(&server, before));
    let unfinished: Vec<_> = (0..40)
        .map(|_| {
            let mut socket = TcpStream::connect(server.addr).unwrap();
            // A server that has no room for it does not take it.
            let _ = socket.write_all(&large[..10 << 20]);
            socket
        })
        .collect();
    table.case("40 of 20 MB unfinished", server.addr, within(&server, before, 250));
    drop(unfinished);
    table.case("40 of 20 MB, given back", server.addr, given_back(&server, before));
    let heads: Vec<_> = (0..300)
        .map(|_| {
            let mut socket = TcpStream::connect(server.addr).unwrap();
            let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: {}", "a".repeat(60_000));
            let _ = socket.write_all(head.as_bytes());
            socket
        })
        .collect();
    table.case("300 unfinished heads of 60 kB", server.addr, within(&server, before, 150));
    drop(heads);
    table.end();
}

/// Whether the process has never had so many MiB more than before.
fn within(server: &Serve, before: u64, growth: u64) -> Result<(), String> {
    let (_, peak) = server.memory();
    match peak < before + growth {
        true => Ok(()),
        false => Err(format!("{before} MiB before, {peak} MiB at most")),
    }
}

/// Waits until the process has about as much memory as before; its highest is then counted anew.
fn given_back(server: &Serve, before: u64) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let (now, _) = server.memory();
        if now < before + MAX_KEPT {
            fs::write(format!("/proc/{}/clear_refs", server.process.id()), "5").unwrap();
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{before} MiB before, {now} MiB after"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
