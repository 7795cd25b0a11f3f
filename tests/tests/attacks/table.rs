//! Running cases, and counting those that went as they should.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use kimi_tests::api::PATIENCE;

/// The path of chats.
pub(super) const CHATS: &str = "/v1/chat/completions";

/// A body that is answered with one token.
pub(super) const CHAT: &str = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}"#;

/// What went wrong, of all cases of a kind.
#[derive(Debug)]
pub(super) struct Table {
    kind: &'static str,
    cases: usize,
    failures: Vec<String>,
}

impl Table {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, cases: 0, failures: Vec::new() }
    }

    /// Counts a case, and asks `server` whether it still answers.
    pub(super) fn case(&mut self, name: &str, server: SocketAddr, outcome: Result<(), String>) {
        self.cases += 1;
        let health =
            exchange(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let alive = match statuses(&health) == [200] {
            true => Ok(()),
            false => Err(format!("afterwards /health answers {:?}", String::from_utf8_lossy(&health))),
        };
        if let Err(error) = outcome.and(alive) {
            self.failures.push(format!("{name}: {error}"));
        }
    }

    /// Prints the figure.
    ///
    /// # Panics
    /// If a case failed.
    pub(super) fn end(self) {
        let good = self.cases - self.failures.len();
        println!("{}: {good} of {}", self.kind, self.cases);
        assert!(
            self.failures.is_empty(),
            "{}: {good} of {}\n{}",
            self.kind,
            self.cases,
            self.failures.join("\n")
        );
    }
}

/// Sends bytes, closes this half, and reads whatever comes back until the server closes the other.
pub(super) fn exchange(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    // A server that refuses what it has read so far need not take the rest.
    if socket.write_all(bytes).is_ok() {
        let _ = socket.shutdown(Shutdown::Write);
    }
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = socket.read(&mut piece) {
        all.extend_from_slice(&piece[..read]);
    }
    all
}

/// The statuses of all responses in what came back.
pub(super) fn statuses(reply: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(reply);
    let lines = text.split("HTTP/1.").skip(1);
    lines.filter_map(|rest| rest.get(2..5)?.parse().ok()).collect()
}

/// A request's bytes: its line, further headers, and a body without a length.
pub(super) fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("{line}\r\nHost: localhost\r\n{headers}\r\n{body}").into_bytes()
}

/// A chat's bytes, with the length of its body.
pub(super) fn chat(headers: &str, body: &str) -> Vec<u8> {
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n{headers}", body.len());
    request(&format!("POST {CHATS} HTTP/1.1"), &headers, body)
}
