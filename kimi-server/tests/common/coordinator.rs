//! A coordinator with workers on ports of this machine, and streamed answers of it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Running, http, wait_until};

pub const LONG: Duration = Duration::from_secs(60);
pub const TOKENS: u32 = 400;

/// The program with the key of the tests' cluster.
pub fn kimi() -> Command {
    super::with_key(super::kimi())
}

/// A worker, on a port of its own choice or the one it had before.
pub fn worker(port: &str) -> Running {
    named_worker("w", port)
}

pub fn named_worker(id: &str, port: &str) -> Running {
    Running::spawn(kimi().args(["worker", "--node-id", id, "--node-port", port, "--json"]))
}

pub fn port(address: &str) -> String {
    address.rsplit(':').next().unwrap().to_owned()
}

/// A coordinator and its folder.
pub struct Server {
    pub running: Running,
    pub folder: tempfile::TempDir,
}

impl Server {
    /// Serves kimi-tiny with workers at these ports.
    pub fn start(workers: &[(&str, String)], more: &[&str]) -> Server {
        Self::start_in(workers, more, |_| {})
    }

    /// The same in an environment of its own.
    pub fn start_in(
        workers: &[(&str, String)],
        more: &[&str],
        environment: impl FnOnce(&mut Command),
    ) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("discovery.json");
        write_peers(&file, workers);
        let mut command = serve(&file, more);
        environment(&mut command);
        let running = Running::spawn(command.stderr(std::process::Stdio::inherit()));
        Server { running, folder }
    }

    pub fn health(&self) -> (u16, Value) {
        health(&self.running.address())
    }

    /// Waits until `/health` shows something.
    pub fn wait(&self, what: &str, mut holds: impl FnMut(u16, &Value) -> bool) -> Value {
        let mut seen = Value::Null;
        let holds = wait_until(LONG, || {
            let (status, health) = self.health();
            seen = health;
            holds(status, &seen["models"][0])
        });
        assert!(holds, "{what}: {seen:#}");
        seen["models"][0].clone()
    }

    /// Begins a streamed answer.
    pub fn stream(&self) -> Stream {
        Stream::open(&self.running.address())
    }

    pub fn ask(&self) -> (u16, String) {
        http(&self.running.address(), "POST", "/v1/chat/completions", &request(8, false))
    }
}

/// A discovery file with a coordinator and workers at these ports.
pub fn write_peers(file: &Path, workers: &[(&str, String)]) {
    let peer = |port: &str| {
        json!({ "address": "127.0.0.1", "port": port.parse::<u16>().unwrap(),
            "device_capabilities": { "model": "PC", "chip": "x", "memory": 4096 } })
    };
    let mut peers = serde_json::Map::from_iter([("me".to_owned(), peer("1"))]);
    peers.extend(workers.iter().map(|(id, port)| ((*id).to_owned(), peer(port))));
    std::fs::write(file, json!({ "peers": peers }).to_string()).unwrap();
}

pub fn serve(discovery: &Path, more: &[&str]) -> Command {
    let mut command = kimi();
    command.args(["serve", "--default-model", "kimi-tiny", "--context", "1024", "--json"]);
    if !more.contains(&"--port") {
        command.args(["--port", "0"]);
    }
    command.args(["--node-id", "me", "--wait-for-peers", "1", "--discovery-config-path"]).arg(discovery);
    command.args(more);
    command
}

pub fn health(address: &str) -> (u16, Value) {
    let (status, body) = http(address, "GET", "/health", "");
    (status, serde_json::from_str(&body).unwrap())
}

pub fn request(tokens: u32, stream: bool) -> String {
    json!({ "model": "kimi-tiny", "max_tokens": tokens, "temperature": 1, "seed": 7, "ignore_eos": true,
        "stream": stream, "messages": [{ "role": "user", "content": "Hello" }] })
    .to_string()
}

/// A streamed answer under way.
pub struct Stream {
    pub events: Receiver<Value>,
    pub text: String,
}

impl Stream {
    pub fn open(address: &str) -> Stream {
        let mut socket = TcpStream::connect(address).unwrap();
        let body = request(TOKENS, true);
        let length = body.len();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        socket.write_all(head.as_bytes()).unwrap();
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(socket).lines().map_while(Result::ok) {
                let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
                    continue;
                };
                if sender.send(serde_json::from_str(data).unwrap()).is_err() {
                    return;
                }
            }
        });
        Stream { events, text: String::new() }
    }

    /// The next event that is there in time.
    pub fn next(&mut self) -> Option<Value> {
        let event = self.events.recv_timeout(LONG).ok()?;
        self.text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        Some(event)
    }

    /// Reads until some of the answer is there.
    pub fn begin(mut self) -> Stream {
        while self.text.len() < 40 {
            self.next().expect("an answer begins");
        }
        self
    }

    /// The whole text.
    pub fn end(mut self) -> String {
        let mut last = Value::Null;
        while let Some(event) = self.next() {
            last = event;
        }
        assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
        self.text
    }

    /// The error that ends it.
    pub fn error(mut self) -> String {
        let mut last = Value::Null;
        while let Some(event) = self.next() {
            last = event;
        }
        last["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {last}")).to_owned()
    }
}

/// The text of an answer in one process.
pub fn expected() -> String {
    let alone = ["serve", "kimi-tiny", "--port", "0", "--context", "1024", "--json"];
    let alone = Running::start(&alone);
    Stream::open(&alone.address()).end()
}

pub fn signal(running: &Running, name: &str) {
    let id = running.child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}
