//! Clients that are slow, silent or too many.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{PATIENCE, Server, tiny};
use serde_json::{Value, json};

use super::table::{CHAT, Table, chat, exchange, statuses};

const GET: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Sends a byte after the other until the server has had enough, and returns what it said.
fn trickle(server: &Server, first: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut socket = server.send(first);
    let mut reader = socket.try_clone().unwrap();
    let writer = std::thread::spawn({
        let rest = rest.to_vec();
        move || {
            for byte in rest {
                if socket.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let (mut reply, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = reader.read(&mut piece) {
        reply.extend_from_slice(&piece[..read]);
    }
    drop(reader);
    writer.join().unwrap();
    reply
}

/// Whether the server closes a connection by itself.
fn closes(mut socket: TcpStream) -> Result<(), String> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err("it is not closed".to_owned()),
        _ => Ok(()),
    }
}

fn are(found: &[u16], good: &[&[u16]]) -> Result<(), String> {
    if good.contains(&found) { Ok(()) } else { Err(format!("{found:?}, expected one of {good:?}")) }
}

fn all(mut socket: TcpStream) -> Vec<u8> {
    let mut reply = Vec::new();
    // A reset ends the reply too.
    let _ = socket.read_to_end(&mut reply);
    reply
}

#[test]
fn slow_silent_and_many() {
    let short = Duration::from_millis(400);
    let config = HttpConfig {
        max_connections: 64,
        max_connections_per_address: Some(48),
        max_chats: 8,
        first_request_timeout: short,
        header_timeout: short,
        body_timeout: short,
        ..HttpConfig::default()
    };
    let server = Server::start(vec![ServedModel::new(tiny())], config);
    let addr = server.addr;
    let mut table = Table::new("idle, slow and many");
    let head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ".as_slice();
    let long = [b'a'; 1000];
    let post = chat("", &format!("{CHAT}{}", " ".repeat(2000)));
    let (post_head, post_body) = post.split_at(post.len() - 2000);

    table.case("a head that trickles", addr, are(&statuses(&trickle(&server, head, &long)), &[&[], &[408]]));
    table.case(
        "a body that trickles",
        addr,
        are(&statuses(&trickle(&server, post_head, post_body)), &[&[408]]),
    );
    table.case("a body that stops", addr, are(&statuses(&all(server.send(post_head))), &[&[408]]));
    table.case("a connection without a request", addr, closes(server.send(b"")));
    table.case("a head that stops", addr, closes(server.send(head)));
    table.case("a connection after its request", addr, closes(server.send(GET)));
    let chunked =
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
    let chunks = b"1\r\n \r\n".repeat(200);
    table.case("chunks that trickle", addr, are(&statuses(&trickle(&server, chunked, &chunks)), &[&[408]]));

    let quiet: Vec<_> = (0..100).map(|_| server.send(b"")).collect();
    table.case("100 quiet connections", addr, Ok(()));
    drop(quiet);
    let half: Vec<_> = (0..100).map(|_| server.send(head)).collect();
    table.case("100 unfinished heads", addr, Ok(()));
    let chats = statuses(&exchange(addr, &chat("Connection: close\r\n", CHAT)));
    table.case("a chat beside 100 unfinished heads", addr, are(&chats, &[&[200]]));
    drop(half);
    for _ in 0..2000 {
        drop(server.send(b""));
    }
    table.case("2000 connections that end at once", addr, Ok(()));
    for _ in 0..500 {
        drop(server.send(b"\x16\x03\x01\x02\0\x01\0garbage\r\n\r\n"));
    }
    table.case("500 of garbage", addr, Ok(()));
    let many = statuses(&exchange(addr, &GET.repeat(1000)));
    table.case("1000 requests on one connection", addr, are(&many, &[&[200; 1000]]));

    let body: Value = serde_json::from_str(CHAT).unwrap();
    let stories =
        json!({"messages": body["messages"], "max_tokens": 200, "ignore_eos": true, "stream": true});
    let bytes = chat("Connection: close\r\n", &stories.to_string());
    let sockets: Vec<_> = (0..40).map(|_| server.send(&bytes)).collect();
    let busy = Server::get(&server, "/health").status;
    table.case("/health beside 40 chats", addr, are(&[busy], &[&[200]]));
    let replies: Vec<_> = sockets.into_iter().map(all).collect();
    let whole = replies.iter().filter(|r| r.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n")).count();
    let refused = replies.iter().filter(|r| [[429], [503]].iter().any(|s| statuses(r) == s)).count();
    let outcome = match whole + refused == 40 && whole >= 8 {
        true => Ok(()),
        false => Err(format!("{whole} whole answers and {refused} refusals of 40")),
    };
    table.case("40 chats at once", addr, outcome);

    let unread: Vec<_> = (0..8).map(|_| server.send(&bytes)).collect();
    std::thread::sleep(short);
    drop(unread);
    let idle = |health: &Value| health["sequences"] == json!({"running": 0, "waiting": 0});
    server.wait_for("no sequence of those who do not read", idle);
    table.case("8 clients that do not read", addr, Ok(()));

    let large = chat("", &" ".repeat(4 << 20));
    let unfinished: Vec<_> = (0..40).map(|_| server.send(&large[..1 << 16])).collect();
    let chats = statuses(&exchange(addr, &chat("Connection: close\r\n", CHAT)));
    table.case("a chat beside 40 unfinished bodies", addr, are(&chats, &[&[200]]));
    // Each is told, or was closed to give its place to another.
    let found: Vec<_> = unfinished.into_iter().map(|socket| statuses(&all(socket))).collect();
    let told = found.iter().try_for_each(|found| are(found, &[&[], &[408]]));
    table.case("40 unfinished bodies", addr, told);
    table.end();
}
