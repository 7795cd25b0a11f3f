//! What the HTTP server takes by itself: whole answers a second, many streams at once, and what one stream waits for it.
//!
//! The model behind it does nothing: it answers at once, or gives each of its streams a token at a fixed rate, all at the same
//! moment, as a batch does. Clients are raw sockets in this process, on one thread; what they take of the processor is said
//! too. Where the system tells no times of threads, they are left out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kimi_core::chat_model::FinishReason;
use kimi_core::engine::{EngineStats, Usage};
use kimi_core::{ChatError, ChatEvent, ChatRequest};
use kimi_server::http::{ChatEngine, EventSink, HttpConfig, Running, ServedModel, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

type Error = Box<dyn std::error::Error>;

/// Connections that ask for whole answers, one after another.
const CONNECTIONS: usize = 32;
/// Between two tokens of a stream: 50 a second.
const PACE: Duration = Duration::from_millis(20);
/// Between two tokens where there is one stream.
const SLOW_PACE: Duration = Duration::from_millis(2);

fn main() -> Result<(), Error> {
    let quick = std::env::args().any(|a| a == "--quick");
    let seconds = |full: u64| Duration::from_secs(if quick { 1 } else { full });
    println!("{} threads; tokens come in bursts, one for each stream", std::thread::available_parallelism()?);
    requests(seconds(10))?;
    alone(if quick { 100 } else { 2000 })?;
    streams(if quick { 100 } else { 1000 }, seconds(20))
}

/// Nanoseconds since the first call.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// Streams that get tokens from a thread.
#[derive(Clone, Default)]
struct Paced {
    sinks: Arc<Mutex<Vec<Stream>>>,
    end: Arc<AtomicBool>,
}

struct Stream {
    sink: EventSink,
    left: u32,
    cancelled: Arc<AtomicBool>,
}

impl Paced {
    /// Gives each stream a token, again and again.
    fn run(&self, pace: Duration) {
        let mut next = Instant::now();
        while !self.end.load(Ordering::Relaxed) {
            next += pace;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
            sinks.retain_mut(|stream| {
                if stream.cancelled.load(Ordering::Relaxed) {
                    return false;
                }
                stream.left -= 1;
                (stream.sink)(token());
                if stream.left == 0 {
                    (stream.sink)(end(FinishReason::Length));
                }
                stream.left > 0
            });
        }
    }
}

/// A token that says when it was made.
fn token() -> ChatEvent {
    ChatEvent::Content(format!("{:016}", now()))
}

fn end(reason: FinishReason) -> ChatEvent {
    let usage = Usage { prompt_tokens: 3, completion_tokens: 1, ..Usage::default() };
    ChatEvent::Finished { reason, usage }
}

struct Cancel(Arc<AtomicBool>);

impl Running for Cancel {
    fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl ChatEngine for Paced {
    fn id(&self) -> &str {
        "nothing"
    }

    fn context_tokens(&self) -> usize {
        1 << 20
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    fn down(&self) -> Option<String> {
        None
    }

    /// The first token comes at once, others at the pace.
    fn chat(&self, request: ChatRequest, mut sink: EventSink) -> Result<Box<dyn Running>, ChatError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        sink(token());
        match request.max_tokens.unwrap_or(1).saturating_sub(1) {
            0 => sink(end(FinishReason::Length)),
            left => {
                let stream = Stream { sink, left, cancelled: cancelled.clone() };
                self.sinks.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        }
        Ok(Box::new(Cancel(cancelled)))
    }
}

/// A server with a model that does nothing. Dropping it ends both.
struct Server {
    addr: SocketAddr,
    model: Paced,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(pace: Duration) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let addr = listener.local_addr()?;
        let model = Paced::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let (served, paced) = (ServedModel::new(model.clone()), model.clone());
        let config = HttpConfig { max_connections: 1200, max_chats: 1100, ..HttpConfig::default() };
        let server = std::thread::spawn(move || {
            let shutdown = async { drop(stopped.await) };
            runtime.block_on(serve(listener, vec![served], config, shutdown));
        });
        let pacer = std::thread::spawn(move || paced.run(pace));
        Ok(Self { addr, model, stop: Some(stop), threads: vec![server, pacer] })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.model.end.store(true, Ordering::Relaxed);
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A chat that wants so many tokens.
fn request(tokens: u32, stream: bool) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"nothing","messages":[{{"role":"user","content":"Hello! What are you?"}}],"temperature":0,"max_tokens":{tokens},"stream":{stream}}}"#
    );
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Whole answers, from many connections at a time.
fn requests(time: Duration) -> Result<(), Error> {
    let server = Server::start(PACE)?;
    let addr = server.addr;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cpu = Cpu::now();
    let begun = Instant::now();
    let mut times: Vec<u64> = runtime.block_on(async {
        let tasks: Vec<_> =
            (0..CONNECTIONS).map(|_| tokio::spawn(ask_again_and_again(addr, begun + time))).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.map_err(|error| error.to_string())??);
        }
        Ok::<_, String>(all)
    })?;
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    let [p50, p99] = percentiles(&mut times);
    println!(
        "whole answers, {CONNECTIONS} connections: {rate:.0} requests/s, p50 {:.2} ms, p99 {:.2} ms{}",
        millis(p50),
        millis(p99),
        cpu.since(times.len())
    );
    Ok(())
}

async fn ask_again_and_again(addr: SocketAddr, until: Instant) -> Result<Vec<u64>, String> {
    let request = request(1, false);
    let run = async {
        let mut socket = tokio::net::TcpStream::connect(addr).await?;
        socket.set_nodelay(true)?;
        let (mut times, mut answer) = (Vec::new(), Vec::new());
        while Instant::now() < until {
            let sent = now();
            tokio::io::AsyncWriteExt::write_all(&mut socket, &request).await?;
            answer.clear();
            while !is_whole(&answer) {
                if tokio::io::AsyncReadExt::read_buf(&mut socket, &mut answer).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            if !answer.starts_with(b"HTTP/1.1 200") {
                return Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
            }
            times.push(now() - sent);
        }
        Ok(times)
    };
    run.await.map_err(|error: std::io::Error| error.to_string())
}

/// Whether a response is there as far as its `content-length` says.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = find(answer, b"\r\n\r\n") else { return false };
    let name = b"content-length: ";
    let Some(at) = find(&answer[..head], name) else { return false };
    answer.len() >= head + 4 + number(&answer[at + name.len()..]) as usize
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn number(digits: &[u8]) -> u64 {
    digits
        .iter()
        .take_while(|digit| digit.is_ascii_digit())
        .fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
}

/// One stream at a time: what the server adds to its first token and to each further one.
fn alone(streams: usize) -> Result<(), Error> {
    let server = Server::start(SLOW_PACE)?;
    let mut socket = TcpStream::connect(server.addr)?;
    socket.set_nodelay(true)?;
    let (mut first, mut further, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    let request = request(4, true);
    for _ in 0..streams {
        let sent = now();
        socket.write_all(&request)?;
        let mut delays = Vec::new();
        rest.clear();
        while find(&rest, b"[DONE]").is_none() {
            let mut bytes = [0; 4096];
            let read = socket.read(&mut bytes)?;
            rest.extend_from_slice(&bytes[..read]);
            let came = now();
            let known = delays.len();
            delays.extend(made(&rest).skip(known).map(|made| (came - sent, came - made)));
        }
        // To the end of the last chunk.
        while !rest.ends_with(b"0\r\n\r\n") {
            let mut bytes = [0; 64];
            let read = socket.read(&mut bytes)?;
            rest.extend_from_slice(&bytes[..read]);
        }
        first.push(delays[0].0);
        further.extend(delays[1..].iter().map(|delay| delay.1));
    }
    let [first_p50, first_p99] = percentiles(&mut first);
    let [p50, p99] = percentiles(&mut further);
    println!(
        "one stream: first token after {:.3} ms, p99 {:.3} ms; each further one after {:.3} ms, p99 {:.3} ms",
        millis(first_p50),
        millis(first_p99),
        millis(p50),
        millis(p99)
    );
    Ok(())
}

/// When the tokens of a stream's text were made.
fn made(text: &[u8]) -> impl Iterator<Item = u64> {
    const BEFORE: &[u8] = b"\"content\":\"0";
    let mut at = 0;
    std::iter::from_fn(move || {
        let found = at + find(&text[at..], BEFORE)? + BEFORE.len();
        let digits = text.get(found..found + 15)?;
        at = found + 15;
        Some(number(digits))
    })
}

/// Many streams at once.
fn streams(count: usize, time: Duration) -> Result<(), Error> {
    let server = Server::start(PACE)?;
    let addr = server.addr;
    let tokens = (time.as_secs_f64() / PACE.as_secs_f64()) as u32;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begun = Arc::new(AtomicU64::new(0));
    let before = resident_bytes();
    let (mut delays, cpu, grown) = runtime.block_on(async {
        let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(follow(addr, tokens, begun.clone()))).collect();
        while (begun.load(Ordering::Relaxed) as usize) < count {
            tokio::time::sleep(PACE).await;
        }
        let cpu = Cpu::now();
        tokio::time::sleep(time / 2).await;
        let grown = resident_bytes().zip(before).map(|(now, before)| now.saturating_sub(before));
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.map_err(|error| error.to_string())??);
        }
        Ok::<_, String>((all, cpu, grown))
    })?;
    let received = delays.len();
    let [p50, p99] = percentiles(&mut delays);
    let memory = grown
        .map_or(String::new(), |bytes| format!(", {} KB a stream with its client", bytes / count / 1000));
    println!(
        "{count} streams of {:.0} tokens/s: {received} tokens, delay p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms{memory}{}",
        1.0 / PACE.as_secs_f64(),
        millis(p50),
        millis(p99),
        millis(delays[received - 1]),
        cpu.since(received)
    );
    Ok(())
}

/// Reads a stream to its end; the delays of its tokens.
async fn follow(addr: SocketAddr, tokens: u32, begun: Arc<AtomicU64>) -> Result<Vec<u64>, String> {
    let run = async {
        let mut socket = tokio::net::TcpStream::connect(addr).await?;
        tokio::io::AsyncWriteExt::write_all(&mut socket, &request(tokens, true)).await?;
        let (mut delays, mut text) = (Vec::with_capacity(tokens as usize), Vec::with_capacity(1024));
        loop {
            if tokio::io::AsyncReadExt::read_buf(&mut socket, &mut text).await? == 0 {
                return Err(std::io::Error::other(String::from_utf8_lossy(&text).into_owned()));
            }
            let (came, waited) = (now(), delays.is_empty());
            delays.extend(made(&text).map(|made| came - made));
            if waited && !delays.is_empty() {
                begun.fetch_add(1, Ordering::Relaxed);
            }
            if find(&text, b"[DONE]").is_some() {
                break;
            }
            // What is behind the last whole event is the beginning of the next one.
            if let Some(end) = text.windows(2).rposition(|two| two == b"\n\n") {
                text.drain(..end + 2);
            }
        }
        Ok(delays)
    };
    run.await.map_err(|error: std::io::Error| error.to_string())
}

/// The middle and the 99th of a hundred; sorts them.
fn percentiles(values: &mut [u64]) -> [u64; 2] {
    values.sort_unstable();
    [50, 99].map(|percent| values.get(values.len() * percent / 100).copied().unwrap_or_default())
}

fn millis(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// Nanoseconds of the processor that this thread and the whole process have used.
struct Cpu(Option<[u64; 2]>);

impl Cpu {
    fn now() -> Self {
        let first = |path: std::path::PathBuf| -> Option<u64> {
            Some(number(std::fs::read_to_string(path).ok()?.as_bytes()))
        };
        let all = || {
            let tasks = std::fs::read_dir("/proc/self/task").ok()?;
            tasks.filter_map(|task| Some(first(task.ok()?.path().join("schedstat")))).sum::<Option<u64>>()
        };
        Self(first("/proc/thread-self/schedstat".into()).zip(all()).map(|(own, all)| [own, all]))
    }

    /// What was used for each of `count` things, by the clients of this thread and by all else.
    fn since(&self, count: usize) -> String {
        let Some((before, now)) = self.0.zip(Self::now().0) else { return String::new() };
        let each = |nanoseconds: u64| nanoseconds as f64 / 1e3 / count as f64;
        let own = now[0] - before[0];
        let others = (now[1].saturating_sub(before[1])).saturating_sub(own);
        format!("; processor time each: server {:.1} us, client {:.1} us", each(others), each(own))
    }
}

fn resident_bytes() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}
