//! Clients that come and go for a while leave nothing behind: descriptors, threads and pages are as many as before.
//!
//! `KIMI_SOAK_SECONDS=1800 cargo test --release --test soak -- --nocapture` is the long form; memory is printed, not checked.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kimi_tests::api::{PATIENCE, Server};
use serde_json::{Value, json};

const CLIENTS: u64 = 8;
/// How long they go on where `KIMI_SOAK_SECONDS` does not say.
const SECONDS: u64 = 12;
/// Before counts are taken for the first time.
const WARM_UP: Duration = Duration::from_secs(3);

/// How long a client waits for bytes that may never come.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// What a process holds.
#[derive(Debug, PartialEq)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Pages of the cache that sequences use.
    pages: u64,
}

fn held(server: &Server) -> Held {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let pages = server.get("/health").json()["models"][0]["pages"]["used"].as_u64().unwrap();
    Held { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task"), pages }
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits until it is quiet and threads that wait for work have ended: the same three times in a row, over the time that tokio
/// keeps them.
fn settled(server: &Server) -> Held {
    let idle = |health: &Value| health["sequences"] == json!({"running": 0, "waiting": 0});
    server.wait_for("no sequence", idle);
    let begun = Instant::now();
    let (mut last, mut same) = (held(server), 0);
    while same < 3 {
        assert!(begun.elapsed() < PATIENCE, "it does not settle: {last:?}");
        std::thread::sleep(Duration::from_millis(4500));
        let now = held(server);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Numbers without much order (Marsaglia's xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A request of some kind.
fn request(dice: &mut Dice) -> Vec<u8> {
    let hello = json!([{"role": "user", "content": format!("Tell me story {}.", dice.below(5))}]);
    let tokens = 1 + dice.below(60);
    let stream = dice.below(2) == 0;
    let (path, mut body) = match dice.below(6) {
        0 => ("/v1/completions", json!({"prompt": ["Once", "Twice"], "max_tokens": tokens})),
        1 => ("/v1/messages", json!({"messages": hello, "max_tokens": tokens})),
        2 => ("/v1/responses", json!({"input": "Hello", "max_output_tokens": tokens, "store": false})),
        3 => ("/v1/chat/completions", json!({"messages": hello, "max_tokens": tokens, "n": 3})),
        4 => {
            let format = json!({"type": "json_object"});
            ("/v1/chat/completions", json!({"messages": hello, "max_tokens": 60, "response_format": format}))
        }
        _ => ("/v1/chat/completions", json!({"messages": hello, "max_tokens": 2000, "ignore_eos": true})),
    };
    body["stream"] = stream.into();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// One client's visit, which may end anywhere. Errors of its socket are part of the game.
fn visit(addr: SocketAddr, dice: &mut Dice) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    for _ in 0..=dice.below(3) {
        let bytes = request(dice);
        if dice.below(4) == 0 {
            socket.write_all(&bytes[..dice.below(bytes.len() as u64) as usize])?;
            break;
        }
        socket.write_all(&bytes)?;
        // Some bytes of the answer, sometimes more than there are soon.
        let wanted = [0, 50, 600, 3000][dice.below(4) as usize];
        socket.read_exact(&mut vec![0; wanted])?;
    }
    match dice.below(3) {
        0 => socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?,
        1 => socket.shutdown(Shutdown::Write)?,
        _ => {}
    }
    Ok(())
}

/// Lets clients come and go; gives the number of visits.
fn play(server: &Server, time: Duration) -> u64 {
    let until = Instant::now() + time;
    let visits = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for client in 1..=CLIENTS {
            let (visits, addr) = (&visits, server.addr);
            scope.spawn(move || {
                let mut dice = Dice(client.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                while Instant::now() < until {
                    let _ = visit(addr, &mut dice);
                    visits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    visits.into_inner()
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let seconds = std::env::var("KIMI_SOAK_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let server = Server::tiny();
    // Memory grows until each page of the cache was used once, which takes a while of a long run too.
    play(&server, WARM_UP.max(Duration::from_secs(seconds / 6)));
    let (before, kb_before) = (settled(&server), resident_kb());
    let visits = play(&server, Duration::from_secs(seconds));
    let (after, kb_after) = (settled(&server), resident_kb());
    let grown = 100.0 * (kb_after as f64 / kb_before as f64 - 1.0);
    println!(
        "{visits} visits in {seconds} s: {before:?}, then {after:?}; {kb_before} kB, then {kb_after} kB ({grown:+.1} %)"
    );
    assert_eq!(before, after);
    assert_eq!(after.pages, 0);
    assert!(visits > 0 && server.get("/v1/models").status == 200);
}
