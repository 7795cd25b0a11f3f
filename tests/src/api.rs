//! An API server in this process, and a client of a few lines.
#![allow(clippy::expect_used, clippy::panic)] // for tests only

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kimi_core::{ChatModel, Checkpoint, ModelOptions};
use kimi_server::http::{HttpConfig, ServedModel, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// How long to wait for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The embedded checkpoint, loaded.
///
/// # Panics
/// If it can't be.
pub fn tiny() -> ChatModel {
    let checkpoint = Checkpoint::kimi_tiny().expect("the embedded checkpoint");
    // Room for three long chats at once.
    let options = ModelOptions { cache_tokens: Some(3 * 4096), ..ModelOptions::default() };
    ChatModel::on_cpu(&checkpoint, &options).expect("a model")
}

/// A server on a port of its own. Dropping it shuts it down.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `models`.
    ///
    /// # Panics
    /// If there is no port or no thread.
    pub fn start(models: Vec<ServedModel>, config: HttpConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let addr = listener.local_addr().expect("its number");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let shutdown = async {
                // Also ready if the sender is dropped.
                let _ = stopped.await;
            };
            runtime.block_on(serve(listener, models, config, shutdown));
        });
        Self { addr, stop: Some(stop), thread: Some(thread) }
    }

    /// Serves the embedded model.
    pub fn tiny() -> Self {
        Self::start(vec![ServedModel::new(tiny())], HttpConfig::default())
    }

    /// Begins the shutdown and returns at once.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for the end of the shutdown.
    ///
    /// # Panics
    /// If the server panicked.
    pub fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic in the server");
        }
    }

    /// Sends raw bytes over a connection of its own.
    ///
    /// # Panics
    /// If the server can't be reached.
    pub fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(self.addr).expect("a connection");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.write_all(bytes).expect("a request taken");
        socket
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Reply {
        Reply::read(self.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()))
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Reply {
        Reply::read(self.send(format!("DELETE {path} HTTP/1.0\r\n\r\n").as_bytes()))
    }

    /// `POST path` that is streamed: its events with their names, to the end.
    ///
    /// # Panics
    /// If there is no stream, or an event has another name than its data says.
    pub fn named_events(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let reply = self.post(path, body.to_string().as_bytes());
        assert!(reply.status == 200 && reply.head.contains("text/event-stream"), "{}", reply.body);
        let events = reply.body.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        let event = |text: &str| {
            let (name, data) = text.split_once('\n').expect("a name and data");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str(), "{text}");
            data
        };
        events.map(event).collect()
    }

    /// `POST path` with a body of JSON.
    pub fn post(&self, path: &str, body: &[u8]) -> Reply {
        Reply::read(self.send(&request(path, body)))
    }

    /// A chat completion that is not streamed.
    pub fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body.to_string().as_bytes())
    }

    /// A chat completion that is streamed: its events' data.
    pub fn stream(&self, body: &Value) -> Events {
        let mut body = body.clone();
        body["stream"] = true.into();
        let socket = self.send(&request("/v1/chat/completions", body.to_string().as_bytes()));
        let mut events = Events { lines: BufReader::new(socket), seen: String::new() };
        let head = events.line().expect("a status line");
        assert!(head.contains(" 200 "), "{head}");
        while !events.line().expect("a header").is_empty() {}
        events.seen.clear();
        events
    }

    /// Waits until `/health` is as wanted, of the first model.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let health = self.get("/health").json()["models"][0].clone();
            if wanted(&health) {
                return health;
            }
            assert!(begun.elapsed() < PATIENCE, "waited for {what} in vain: {health}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in the server shows in its output.
            let _ = thread.join();
        }
    }
}

/// A request's bytes, with a body of JSON. HTTP/1.0, so that the response ends with the connection.
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Reads a response to its end.
    ///
    /// # Panics
    /// If it is not one.
    pub fn read(mut socket: TcpStream) -> Self {
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("a response");
        let (head, body) = text.split_once("\r\n\r\n").expect("the end of the headers");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let reply = Self { status, head: head.to_lowercase(), body: body.to_owned() };
        keep(status, reply.header("content-type").unwrap_or_default(), body);
        reply
    }

    /// The value of a header, in lower case; `name` too.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The body of an answer whose status is 200.
    ///
    /// # Panics
    /// If the status is another.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }
}

/// Adds a response to those in the folder that `KIMI_ANSWERS` names, if it is set: tests/clients/openapi.py checks them.
fn keep(status: u16, content_type: &str, body: &str) {
    let Some(folder) = std::env::var_os("KIMI_ANSWERS") else { return };
    let path = Path::new(&folder).join(format!("{}.jsonl", std::process::id()));
    let line = json!({"status": status, "type": content_type, "body": body}).to_string() + "\n";
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.expect("a file for answers").write_all(line.as_bytes()).expect("an answer kept");
}

/// Data of a stream's events. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    lines: BufReader<TcpStream>,
    /// All lines so far.
    seen: String,
}

impl Drop for Events {
    fn drop(&mut self) {
        keep(200, "text/event-stream", &self.seen);
    }
}

impl Events {
    /// The next line without its end; `None` at the end of the stream.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).expect("a line of the stream");
        self.seen.push_str(&line);
        (read > 0).then(|| line.trim_end().to_owned())
    }
}

impl Iterator for Events {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let line = self.line()?;
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.to_owned());
            }
            assert!(line.is_empty() || line.starts_with(':'), "not an event: {line:?}");
        }
    }
}

/// A streamed answer, put together.
#[derive(Debug, Default)]
pub struct Streamed {
    /// All chunks.
    pub chunks: Vec<Value>,
    /// The text.
    pub content: String,
    /// `finish_reason` of the last choice.
    pub finish: Value,
    /// Whether `[DONE]` came last.
    pub done: bool,
}

impl Streamed {
    /// Reads a stream to its end.
    ///
    /// # Panics
    /// If an event is not JSON.
    pub fn read(events: Events) -> Self {
        let mut all = Self::default();
        for data in events {
            assert!(!all.done, "after [DONE]: {data}");
            if data == "[DONE]" {
                all.done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(&data).expect("a chunk of JSON");
            let choice = &chunk["choices"][0];
            all.content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            if !choice["finish_reason"].is_null() {
                all.finish = choice["finish_reason"].clone();
            }
            all.chunks.push(chunk);
        }
        all
    }
}
