//! What large, slow and many requests may take of the server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::io::{Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use kimi_core::engine::EngineStats;
use kimi_core::{ChatError, ChatRequest};
use kimi_server::http::{ChatEngine, EventSink, HttpConfig, Running, ServedModel};
use kimi_tests::api::{PATIENCE, Reply, Server, request};
use kimi_tests::script::{Script, two_calls};
use serde_json::{Map, Value, json};

const PATH: &str = "/v1/chat/completions";

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
}

/// A chat with a tool of so many bytes, in many small values.
fn with_schema(bytes: usize) -> Value {
    let one = json!({"type": "string"});
    let properties: Map<String, Value> = (0..bytes / 40).map(|i| (format!("p{i:06}"), one.clone())).collect();
    let required: Vec<_> = properties.keys().cloned().collect();
    let parameters = json!({"type": "object", "properties": properties, "required": required});
    let mut body = chat();
    body["tools"] = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    body
}

#[test]
fn all_bodies_share_one_budget() {
    let config = HttpConfig { max_bodies_memory: 2 << 20, ..HttpConfig::default() };
    let server = Server::start(vec![ServedModel::new(Script::default())], config);
    // Announcing a body costs nothing; what has come of it counts.
    let large = request(PATH, &vec![b' '; 8 << 20]);
    let _announced: Vec<_> = (0..20).map(|_| server.send(&large[..200])).collect();
    server.chat(&chat()).ok();
    let mut unfinished = server.send(&large[..600 << 10]);
    let begun = Instant::now();
    let refused = loop {
        // Until the first one's bytes are read, the second one's may find room.
        let reply = server.post(PATH, &vec![b' '; 700 << 10]);
        match reply.status {
            400 if begun.elapsed() < PATIENCE => {}
            _ => break reply,
        }
    };
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("server_busy")));
    assert!(refused.head.contains("\r\nretry-after: 1"), "{}", refused.head);
    // A chat of usual size is not kept out, and there is room again once the large body is gone.
    server.chat(&chat()).ok();
    unfinished.write_all(b" ").unwrap();
    drop(unfinished);
    while server.post(PATH, &vec![b' '; 700 << 10]).status != 400 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tools_that_cannot_fit_are_refused() {
    let server = Server::tiny();
    for bytes in [200_000, 3_000_000] {
        let reply = server.chat(&with_schema(bytes));
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
        assert!(error["message"].as_str().unwrap().contains("32768"), "{error}");
    }
    let reply = server.chat(&with_schema(20_000_000));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("json_too_large")));
    server.chat(&chat()).ok();
}

/// Resident memory of a process in MiB: now, and at its highest.
#[cfg(target_os = "linux")]
fn memory(process: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let of = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

#[cfg(target_os = "linux")]
#[test]
fn twenty_megabytes_of_tools_take_little_memory() {
    use std::io::BufRead;
    let mut serve = kimi_tests::binary::kimi()
        .args(["serve", "kimi-tiny", "--port", "0", "--json", "--backend", "cpu"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(serve.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let addr: std::net::SocketAddr = ready["address"].as_str().unwrap().parse().unwrap();
    let post = |body: &Value| {
        let mut socket = std::net::TcpStream::connect(addr).unwrap();
        socket.write_all(&request(PATH, body.to_string().as_bytes())).unwrap();
        Reply::read(socket)
    };
    assert_eq!(post(&chat()).status, 200);
    let (before, _) = memory(serve.id());
    let mut text = chat();
    text["tools"] =
        json!([{"type": "function", "function": {"name": "f", "description": "tool ".repeat(4_000_000)}}]);
    for body in [with_schema(20_000_000), with_schema(3_000_000)] {
        assert_eq!(post(&body).status, 400);
    }
    // The allocator keeps what was in many small pieces unless it is told not to.
    let (after, _) = memory(serve.id());
    assert_eq!(post(&text).status, 400);
    let (_, peak) = memory(serve.id());
    serve.kill().unwrap();
    serve.wait().unwrap();
    assert!(peak - before < 150, "{before} MiB before, {peak} MiB at most");
    assert!(after.saturating_sub(before) < 40, "{before} MiB before, {after} MiB after");
}

/// Reads a prompt until it is told that nobody waits for it.
struct Slow(Sender<&'static str>);

impl ChatEngine for Slow {
    fn id(&self) -> &str {
        "slow"
    }

    fn context_tokens(&self) -> usize {
        100
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    fn down(&self) -> Option<String> {
        None
    }

    fn chat(&self, request: ChatRequest, _: EventSink) -> Result<Box<dyn Running>, ChatError> {
        self.0.send("begun").unwrap();
        while !request.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.send("cancelled").unwrap();
        Err(kimi_core::engine::EngineError::Busy { limit: 0 }.into())
    }
}

#[test]
fn a_prompt_is_given_up_with_its_client() {
    let (sender, events) = channel();
    let server = Server::start(vec![ServedModel::new(Slow(sender))], HttpConfig::default());
    let socket = server.send(&request(PATH, chat().to_string().as_bytes()));
    assert_eq!(events.recv_timeout(PATIENCE), Ok("begun"));
    drop(socket);
    assert_eq!(events.recv_timeout(PATIENCE), Ok("cancelled"));
}

#[test]
fn quiet_connections_give_way() {
    let config = HttpConfig { max_connections: 8, max_chats: 2, ..HttpConfig::default() };
    let server = Server::start(vec![ServedModel::new(Script::default())], config);
    let mut quiet: Vec<_> = (0..32).map(|_| server.send(b"")).collect();
    // Each of these takes the place of a quiet one.
    server.get("/health").ok();
    server.chat(&chat()).ok();
    let mut rest = Vec::new();
    assert_eq!(quiet[0].read_to_end(&mut rest).unwrap(), 0);
    // So does one that has begun to send its head, and sends no more of it.
    let _slow: Vec<_> = (0..32).map(|_| server.send(b"GET /health HTTP/1.1\r\nHost:")).collect();
    server.get("/health").ok();
}

#[test]
fn a_silent_connection_has_less_time_than_one_between_requests() {
    let config = HttpConfig { first_request_timeout: Duration::from_millis(100), ..HttpConfig::default() };
    let server = Server::start(vec![ServedModel::new(Script::default())], config);
    let get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut kept = server.send(get);
    let mut rest = Vec::new();
    for bytes in [b"".as_slice(), b"GET / HT"] {
        assert_eq!(server.send(bytes).read_to_end(&mut rest).unwrap(), 0);
    }
    kept.write_all(get).unwrap();
    kept.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
}

#[test]
fn chats_wait_and_health_answers() {
    let config = HttpConfig { max_connections: 12, max_chats: 2, ..HttpConfig::default() };
    let script = Script { pause: Duration::from_secs(3), ..Script::default() };
    let server = Server::start(vec![ServedModel::new(script)], config);
    let bytes = request(PATH, chat().to_string().as_bytes());
    // Two are answered, four may wait.
    let mut sockets: Vec<_> = (0..7).map(|_| server.send(&bytes)).collect();
    server.get("/health").ok();
    let replies: Vec<_> = sockets.drain(..).map(Reply::read).collect();
    let of = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((of(200), of(503)), (6, 1), "{replies:?}");
    let refused = replies.iter().find(|reply| reply.status == 503).unwrap();
    assert_eq!(refused.json()["error"]["code"], "server_busy");
    assert!(refused.head.contains("\r\nretry-after: 1"), "{}", refused.head);
}

#[test]
fn a_whole_answer_ends_with_its_client_whatever_it_sent_behind() {
    let server = Server::tiny();
    let mut body = chat();
    (body["max_tokens"], body["ignore_eos"]) = (json!(4000), json!(true));
    let bytes = request(PATH, body.to_string().as_bytes());
    for more in [b"\r\n".as_slice(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GARBAGE"] {
        let socket = server.send(&[&bytes, more].concat());
        server.wait_for("a running sequence", |health| health["sequences"]["running"] == 1);
        let before = server.wait_for("any state", |_| true)["tokens_generated"].as_u64().unwrap();
        drop(socket);
        let idle = |health: &Value| health["sequences"] == json!({"running": 0, "waiting": 0});
        let health = server.wait_for("no sequence after its client left", idle);
        let tokens = health["tokens_generated"].as_u64().unwrap() - before;
        assert!(tokens < 3500, "it was not cancelled, it ended: {health}");
    }
}

#[test]
fn a_client_may_close_its_half() {
    let script = Script { pause: Duration::from_millis(500), events: two_calls(), ..Script::default() };
    let server = Server::start(vec![ServedModel::new(script)], HttpConfig::default());
    let ask = |stream: bool| {
        let mut body = chat();
        body["stream"] = stream.into();
        let socket = server.send(&request(PATH, body.to_string().as_bytes()));
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        Reply::read(socket)
    };
    assert_eq!(ask(false).ok()["choices"][0]["finish_reason"], "tool_calls");
    let streamed = ask(true);
    assert!(streamed.status == 200 && streamed.body.ends_with("data: [DONE]\n\n"), "{streamed:?}");
    let get = server.send(b"GET /health HTTP/1.0\r\n\r\n");
    get.shutdown(std::net::Shutdown::Write).unwrap();
    Reply::read(get).ok();
}

#[test]
fn a_shutdown_tells_whom_it_cuts_short() {
    let script = Script { pause: Duration::from_secs(30), ..Script::default() };
    let config = HttpConfig { shutdown_grace: Duration::from_millis(100), ..HttpConfig::default() };
    let mut server = Server::start(vec![ServedModel::new(script)], config);
    let bytes = request(PATH, chat().to_string().as_bytes());
    let whole = server.send(&bytes);
    let unfinished = server.send(&bytes[..bytes.len() - 1]);
    let mut stream = server.stream(&chat());
    assert!(stream.next().unwrap().contains("assistant"));
    let begun = Instant::now();
    server.join();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let last: Vec<String> = stream.collect();
    let error: Value = serde_json::from_str(&last[0]).unwrap();
    assert_eq!((&error["error"]["code"], last[1].as_str()), (&json!("server_shutdown"), "[DONE]"));
    assert_eq!(last.len(), 2);
    for socket in [whole, unfinished] {
        let reply = Reply::read(socket);
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("server_shutdown")));
    }
}
