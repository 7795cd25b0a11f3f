//! Stages that work at the same time: steps a second of `kimi-tiny` with 1 to 8 sequences over 1 to 3 stages, links with and
//! without delay; and how long others wait for prompts. Workers run in this process, on links over loopback TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use kimi_core::engine::{EngineStats, Request, TokenEvent};
use kimi_core::plan::{ModelBytes, Plan};
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::{ChatFiles, ChatModel, Checkpoint, DeviceChoice, ModelOptions};
use kimi_net::{ClusterKey, Listener, Trust, Tuning};
use kimi_server::cluster::{self, Dialer, LoadWatch, Placement, Wanted, worker};
use kimi_server::models::Lookup;
use kimi_server::placement::local_plan;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WAIT: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let checkpoint = Checkpoint::kimi_tiny()?;
    let tokens = if quick { 8 } else { 200 };
    println!(
        "kimi-tiny on the CPU, {} threads; decode steps a second",
        std::thread::available_parallelism()?
    );
    println!(
        "{:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "stages", "delay", "sequences", "steps/s", "ratio", "tokens/s", "in flight"
    );
    let delays = [Duration::ZERO, Duration::from_millis(5)];
    for (stages, delay) in [(1, delays[0]), (2, delays[0]), (3, delays[0]), (2, delays[1]), (3, delays[1])] {
        let model = load(&runtime, &checkpoint, stages, delay)?;
        decode(&model, 1, 20)?;
        let mut one = None;
        for sequences in [1, 2, 4, 8] {
            let (steps, rate) = decode(&model, sequences, tokens)?;
            let ratio = steps / *one.get_or_insert(steps);
            let depth = model.stats().depth;
            println!(
                "{stages:>6} {:>6} ms {sequences:>9} {steps:>9.0} {ratio:>9.2} {rate:>9.0} {depth:>9}",
                delay.as_millis()
            );
        }
    }
    println!("\nwaiting for prompts, milliseconds");
    println!(
        "{:>6} {:>22} {:>9} {:>9} {:>9} {:>28}",
        "stages", "one stream: median gap", "p99", "largest", "prompt", "\"Hello\" beside 24 prompts"
    );
    for stages in [1, 2, 3] {
        let model = load(&runtime, &checkpoint, stages, Duration::ZERO)?;
        let Gaps { median, p99, largest, prompt } = gaps(&model, if quick { 300 } else { 3_700 })?;
        let hello = hello(&model, if quick { 3 } else { 24 })?;
        println!("{stages:>6} {median:>22.1} {p99:>9.1} {largest:>9.1} {prompt:>9.0} {hello:>28.0}");
    }
    Ok(())
}

/// A model over workers in this process, each behind a link that takes `delay` each way.
fn load(runtime: &Runtime, checkpoint: &Checkpoint, stages: usize, delay: Duration) -> Result<ChatModel> {
    let options = ModelOptions::default();
    let cache = options.cache(checkpoint);
    let mut names: Vec<_> = (1..stages).map(|i| format!("worker-{i}")).collect();
    let mut wanted = Vec::new();
    let trust = Trust::Key(ClusterKey::generate()?);
    for id in &names {
        let address = runtime.block_on(start_worker(id, checkpoint, trust.clone(), delay))?;
        wanted.push(Wanted::at(id.clone(), address.to_string()));
    }
    names.push("coordinator".to_owned());
    let plan: Plan = local_plan(&ModelBytes::of(checkpoint)?, &names, cache.tokens())?;
    let dialer = Dialer::new("coordinator", trust);
    let workers = runtime.block_on(cluster::connect(&wanted, wanted.len(), WAIT, &dialer))?;
    let placement = Placement::new(plan, cache, "kimi-tiny", DeviceChoice::cpu(), dialer);
    let watch: LoadWatch = Arc::new(|_, _| {});
    let built = cluster::build(checkpoint, &placement, workers, runtime.handle(), &watch)?;
    Ok(ChatModel::start(ChatFiles::open(checkpoint)?, checkpoint, built.stages, &options)?)
}

/// Starts a worker and returns where to reach it.
async fn start_worker(
    id: &str,
    checkpoint: &Checkpoint,
    trust: Trust,
    delay: Duration,
) -> Result<SocketAddr> {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), trust, Tuning::default()).await?;
    let address = listener.local_addr()?;
    let config = worker::WorkerConfig {
        node_id: id.to_owned(),
        model: Some(checkpoint.clone()),
        lookup: Lookup::of_this_machine(None)?,
        device: DeviceChoice::cpu(),
    };
    tokio::spawn(worker::serve(listener, config, std::future::pending()));
    if delay.is_zero() { Ok(address) } else { delayed(address, delay).await }
}

/// A proxy that passes everything on after a delay, each way.
async fn delayed(target: SocketAddr, delay: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let streams = [near, far];
            streams.iter().for_each(|stream| drop(stream.set_nodelay(true)));
            let [(near_in, near_out), (far_in, far_out)] = streams.map(TcpStream::into_split);
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
                tokio::spawn(async move {
                    while let Some((due, bytes)) = pieces.recv().await {
                        tokio::time::sleep_until(due.into()).await;
                        if to.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                });
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 20];
                    while let Ok(count @ 1..) = from.read(&mut buffer).await {
                        if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    Ok(address)
}

/// A request of so many prompt tokens, and its events with their times.
fn ask(model: &ChatModel, who: usize, prompt: usize, tokens: u32) -> Result<Stream> {
    let params = SamplingParams::new(RawSamplingParams {
        temperature: 1.0,
        seed: Some(who as u64),
        ..RawSamplingParams::default()
    })?;
    let prompt = (0..prompt).map(|i| 300 + ((i * 7 + who * 131) % 3000) as u32).collect();
    let request =
        Request { prompt, params, max_tokens: Some(tokens), ignore_eos: true, ..Request::default() };
    let (sender, events) = mpsc::channel();
    let generation = model.engine().submit(request, move |event| {
        let _ = sender.send((Instant::now(), event));
    })?;
    Ok(Stream { start: Instant::now(), events, _generation: generation })
}

struct Stream {
    start: Instant,
    events: Receiver<(Instant, TokenEvent)>,
    _generation: kimi_core::engine::Generation,
}

impl Stream {
    /// When each token came.
    fn times(self) -> Result<Vec<Instant>> {
        let mut times = Vec::new();
        for (at, event) in self.events {
            match event {
                TokenEvent::Token { .. } => times.push(at),
                TokenEvent::Finished { .. } => break,
                TokenEvent::Failed { error } => return Err(error.into()),
            }
        }
        Ok(times)
    }
}

/// Steps and tokens a second of so many sequences at once.
fn decode(model: &ChatModel, sequences: usize, tokens: u32) -> Result<(f64, f64)> {
    let streams = (0..sequences).map(|i| ask(model, i, 16, tokens)).collect::<Result<Vec<_>>>()?;
    let before: EngineStats = model.stats();
    let start = Instant::now();
    let mut count = 0;
    for stream in streams {
        count += stream.times()?.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(((model.stats().steps - before.steps) as f64 / seconds, count as f64 / seconds))
}

/// Milliseconds.
struct Gaps {
    median: f64,
    p99: f64,
    largest: f64,
    /// Until the prompt's first token.
    prompt: f64,
}

/// Gaps between the tokens of a stream while a prompt is computed beside it.
fn gaps(model: &ChatModel, prompt: usize) -> Result<Gaps> {
    let stream = ask(model, 0, 16, 3_000)?;
    std::thread::sleep(Duration::from_millis(200));
    let beside = ask(model, 1, prompt, 1)?;
    let begin = beside.start;
    let end = *beside.times()?.first().ok_or("no token")?;
    let Stream { events, _generation, .. } = stream;
    let until = Instant::now();
    drop(_generation); // enough
    let times: Vec<_> = events.iter().map(|(at, _)| at).filter(|at| *at <= until).collect();
    let within = times.windows(2).filter(|pair| pair[1] >= begin && pair[0] <= end);
    let mut gaps: Vec<_> = within.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).collect();
    gaps.sort_by(f64::total_cmp);
    let at = |share: f64| gaps.get((gaps.len() as f64 * share) as usize).copied().unwrap_or_default();
    let largest = gaps.last().copied().unwrap_or_default();
    Ok(Gaps { median: at(0.5), p99: at(0.99), largest, prompt: (end - begin).as_secs_f64() * 1e3 })
}

/// Milliseconds until the first token of a short request beside so many prompts of 1,500 tokens.
fn hello(model: &ChatModel, prompts: usize) -> Result<f64> {
    let beside = (0..prompts).map(|i| ask(model, i, 1_500, 20)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_millis(300));
    let stream = ask(model, 999, 20, 5)?;
    let start = stream.start;
    let first = *stream.times()?.first().ok_or("no token")?;
    for stream in beside {
        stream.times()?;
    }
    Ok((first - start).as_secs_f64() * 1e3)
}
