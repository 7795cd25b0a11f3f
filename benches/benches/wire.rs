//! The wire: round trips of a step over loopback TCP, through the whole driver, encrypted and plain in turn, beside a bare
//! socket's and beside what it takes to hand a word to a task of the same runtime and get one back, which the driver does
//! for each step.
//!
//! `cargo bench -p kimi-benches --bench wire` prints a table; `-- --quick` takes a tenth of the samples.
//! Each round trip sends a tensor to a worker that sends it back, so its bytes cross twice.

use std::{
    error::Error,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use kimi_net::{
    Assign, Bytes, ClusterKey, Config, Coordinator, Event, Fingerprint, Forward, LayerState, LinkError,
    Listener, Ready, SequenceStep, StepResult, Trust, Tuning, Worker, connect,
};

/// Width of Kimi-K2's hidden state.
const WIDTH: u32 = 7168;
/// Encrypted and plain links and the bare socket are measured in turn, so that a change of the machine's pace meets all.
const TURNS: usize = 20;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let share = if std::env::args().any(|arg| arg == "--quick") { 10 } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let encrypted = runtime.block_on(serve(Trust::Key(ClusterKey::generate()?)))?;
    let plain = runtime.block_on(serve(Trust::Insecure))?;
    if let Some(socket) = plain.socket() {
        println!("socket: {socket:?}");
    }
    println!(
        "{:<40} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "round trip", "samples", "p10 us", "median us", "p90 us", "p99 us", "MB/s"
    );
    let mut step = 0;
    for (name, rows, samples) in [("decode, 1 row", 1, 4000), ("prefill, 512 rows", 512, 100)] {
        let samples = samples / share;
        let bytes = rows as usize * WIDTH as usize * 4;
        let (mut times, mut bare, mut handed) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
        let mut socket = BareSocket::connect(bytes)?;
        for _ in 0..TURNS {
            bare.extend(socket.times(samples / TURNS)?);
            handed.extend(runtime.block_on(hand_over_times(samples / TURNS)));
            for (link, times) in [&plain, &encrypted].into_iter().zip(&mut times) {
                times.extend(runtime.block_on(driver_times(link, &mut step, rows, samples / TURNS))?);
            }
        }
        let [plain, encrypted] = times.map(sorted);
        let (bare, handed) = (sorted(bare), sorted(handed));
        let [encryption, driver] = [(&encrypted, &plain), (&plain, &bare)]
            .map(|(more, less)| (median(more).as_secs_f64() - median(less).as_secs_f64()) * 1e6);
        print_row(&format!("{name}, {bytes} B, encrypted"), bytes, &encrypted);
        print_row("  plain", bytes, &plain);
        print_row("  a bare blocking socket", bytes, &bare);
        print_row("  to a task and back, without a socket", 0, &handed);
        println!(
            "  the driver costs {driver:.1} us a round trip, encryption {encryption:.1} us more (medians)"
        );
    }
    for (name, link) in [("encrypted", encrypted), ("plain", plain)] {
        if let Some(ping) = link.stats().min_round_trip {
            println!("shortest ping, {name}: {} us", ping.as_micros());
        }
        runtime.block_on(link.close("measured"));
    }
    Ok(())
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}

fn median(times: &[Duration]) -> Duration {
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// One line: percentiles, and megabytes (10^6) a second in both directions together at the median.
fn print_row(name: &str, bytes: usize, times: &[Duration]) {
    let at =
        |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default().as_secs_f64();
    let rate = 2.0 * bytes as f64 / at(50) / 1e6;
    let [p10, p50, p90, p99] = [10, 50, 90, 99].map(|percent| at(percent) * 1e6);
    let samples = times.len();
    println!("{name:<40} {samples:>7} {p10:>10.1} {p50:>10.1} {p90:>10.1} {p99:>10.1} {rate:>10.0}");
}

/// A link to a worker that returns its input.
async fn serve(trust: Trust) -> Result<Coordinator, LinkError> {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), trust.clone(), Tuning::default()).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { echo(listener.accept().await?.handshake(Config::new("worker")).await?).await });
    let link = connect(addr, &trust, &Tuning::default(), Config::new("coordinator")).await?;
    let stage = Assign {
        model: "echo".into(),
        fingerprint: Fingerprint([0; 32]),
        description: Vec::new(),
        layers: 0..1,
        first: false,
        precision: kimi_net::Precision::Exact,
        state: LayerState::LatentPages,
        cache_pages: 32,
        page_tokens: 64,
        max_tokens: 512,
        hidden_size: WIDTH,
        session: 1,
        resume: false,
    };
    link.assign(stage, |_| ()).await?;
    Ok(link)
}

async fn echo(mut worker: Worker) -> Result<(), LinkError> {
    let sender = worker.sender();
    loop {
        match worker.next().await? {
            Event::Assigned(_) => {
                let device = "none".into();
                sender.ready(Ready { weight_bytes: 0, cache_bytes: 0, load_micros: 0, device })?;
            }
            Event::Forward(forward, payload) => {
                let Forward { step, rows, cols, .. } = forward;
                let header =
                    StepResult { step, rows, cols, compute_micros: 0, device_micros: 0, queue_micros: 0 };
                sender.result(header, payload)?;
            }
            _ => {}
        }
    }
}

async fn driver_times(
    link: &Coordinator,
    step: &mut u64,
    rows: u32,
    samples: usize,
) -> Result<Vec<Duration>, LinkError> {
    let payload = Bytes::from(vec![1; rows as usize * WIDTH as usize * 4]);
    let mut times = Vec::with_capacity(samples);
    for warm in 0..samples + samples / 10 {
        *step += 1;
        let sequence =
            SequenceStep { id: 1, start: 1000, count: rows, tokens: Vec::new(), pages: (0..32).collect() };
        let header = Forward { step: *step, sequences: vec![sequence], rows, cols: WIDTH };
        let begun = Instant::now();
        link.forward(header, payload.clone()).await?;
        if warm >= samples / 10 {
            times.push(begun.elapsed());
        }
    }
    Ok(times)
}

/// Words to a task and back.
async fn hand_over_times(samples: usize) -> Vec<Duration> {
    let (words, mut received) = tokio::sync::mpsc::unbounded_channel::<tokio::sync::oneshot::Sender<()>>();
    tokio::spawn(async move {
        while let Some(back) = received.recv().await {
            let _ = back.send(()); // whoever asked waits for it
        }
    });
    let mut times = Vec::with_capacity(samples);
    for warm in 0..samples + samples / 10 {
        let (back, answer) = tokio::sync::oneshot::channel();
        let begun = Instant::now();
        if words.send(back).is_err() || answer.await.is_err() {
            break;
        }
        if warm >= samples / 10 {
            times.push(begun.elapsed());
        }
    }
    times
}

/// The same bytes without frames and without tokio: what the system itself takes.
struct BareSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl BareSocket {
    /// Connects to a thread that returns what it gets, until the connection ends.
    fn connect(bytes: usize) -> Outcome<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut buffer = vec![0; bytes];
            loop {
                stream.read_exact(&mut buffer)?;
                stream.write_all(&buffer)?;
            }
        });
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![1; bytes] })
    }

    fn times(&mut self, samples: usize) -> Outcome<Vec<Duration>> {
        let mut times = Vec::with_capacity(samples);
        for warm in 0..samples + samples / 10 {
            let begun = Instant::now();
            self.stream.write_all(&self.buffer)?;
            self.stream.read_exact(&mut self.buffer)?;
            if warm >= samples / 10 {
                times.push(begun.elapsed());
            }
        }
        Ok(times)
    }
}
