//! Clients that go away, in every phase of a request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use kimi_tests::api::{PATIENCE, Server};
use serde_json::{Value, json};

use super::table::{Table, chat};

/// Tokens of the answer that nobody waits for.
const TOKENS: u64 = 4000;

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum End {
    /// As a program that ends: what it has not read is lost.
    Close,
    /// As a machine that has forgotten the connection.
    Reset,
    /// It closes its half first, and goes a moment later.
    HalfFirst,
}

impl End {
    fn of(self, socket: TcpStream) {
        match self {
            Self::Close => {}
            Self::Reset => socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap(),
            Self::HalfFirst => {
                socket.shutdown(Shutdown::Write).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        drop(socket);
    }
}

/// What a client has done when it goes.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// It has sent so much of its request, in thousandths of head and body.
    Sent(usize, usize),
    /// All of it, and something behind it.
    SentMore(&'static str),
    /// The answer is being computed.
    Running,
    /// It has read the head of the answer.
    ReadHead,
    /// It has read the first few thousand bytes.
    ReadSome,
}

#[test]
fn clients_that_go_away() {
    let server = Server::tiny();
    let mut table = Table::new("disconnects");
    let phases = [
        Phase::Sent(0, 0),
        Phase::Sent(20, 0),
        Phase::Sent(500, 0),
        Phase::Sent(999, 0),
        Phase::Sent(1000, 0),
        Phase::Sent(1000, 500),
        Phase::Sent(1000, 999),
        Phase::Sent(1000, 1000),
        Phase::SentMore("\r\n"),
        Phase::SentMore("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        Phase::Running,
    ];
    for end in [End::Close, End::Reset, End::HalfFirst] {
        for phase in phases {
            for stream in [false, true] {
                case(&mut table, &server, phase, end, stream);
            }
        }
        // A whole answer has no head before it is there.
        case(&mut table, &server, Phase::ReadHead, end, true);
        case(&mut table, &server, Phase::ReadSome, end, true);
    }
    table.end();
}

fn case(table: &mut Table, server: &Server, phase: Phase, end: End, stream: bool) {
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me a story"}],
        "max_tokens": TOKENS, "ignore_eos": true, "stream": stream,
    });
    let bytes = chat("", &body.to_string());
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let mut socket = TcpStream::connect(server.addr).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let before = tokens(&server.wait_for("any state", |_| true));
    match phase {
        Phase::Sent(of_head, of_body) => {
            let count = head * of_head / 1000 + (bytes.len() - head) * of_body / 1000;
            socket.write_all(&bytes[..count]).unwrap();
        }
        Phase::SentMore(more) => socket.write_all(&[&bytes, more.as_bytes()].concat()).unwrap(),
        Phase::Running => {
            socket.write_all(&bytes).unwrap();
            server.wait_for("a running sequence", |health| health["sequences"]["running"] == 1);
        }
        Phase::ReadHead | Phase::ReadSome => {
            socket.write_all(&bytes).unwrap();
            let read = if matches!(phase, Phase::ReadHead) { 20 } else { 4000 };
            socket.read_exact(&mut vec![0; read]).unwrap();
        }
    }
    end.of(socket);
    let idle = |health: &Value| health["sequences"] == json!({"running": 0, "waiting": 0});
    let computed = tokens(&server.wait_for("no sequence after its client left", idle)) - before;
    let outcome = match computed < TOKENS {
        true => Ok(()),
        false => Err("the answer was computed to its end".to_owned()),
    };
    table.case(&format!("{phase:?}, {end:?}, stream: {stream}"), server.addr, outcome);
}

fn tokens(health: &Value) -> u64 {
    health["tokens_generated"].as_u64().unwrap()
}
