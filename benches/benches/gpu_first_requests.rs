//! What the first requests to a GPU wait for: the first token of the first and of the second request, and the largest gap
//! between two tokens of a stream the first time that 2, 8 and 32 streams run together.
//!
//! `cargo bench --features gpu --bench gpu_first_requests` prints the table for 4 layers of Kimi-K2 with random weights;
//! `-- --on-demand` without the kernels that are made beforehand; `--store=FOLDER` with machine code kept there;
//! `--as-metal[=CHIP]` with the kernels of one of Apple's; `--quick` shrinks everything for a software adapter. Drivers keep
//! machine code too: NVIDIA's does not with `__GL_SHADER_DISK_CACHE=0`.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kimi_benches::gpu_options;
use kimi_core::device::LoadedStage;
use kimi_core::engine::{Engine, EngineConfig, Request, TokenEvent};
use kimi_core::kernel_store::KernelStore;
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{CacheConfig, Stage, TOKEN_BUDGET};
use kimi_core::synthetic::{Synthetic, SyntheticShape};
use kimi_quant::{Backend, BitWidth, Gpu};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const STREAMS: [usize; 4] = [2, 4, 8, 32];

fn main() -> Outcome<()> {
    let has = |name: &str| std::env::args().any(|a| a == name);
    let (quick, on_demand) = (has("--quick"), has("--on-demand"));
    let folder = std::env::args().find_map(|a| a.strip_prefix("--store=").map(PathBuf::from));
    let (shape, layers, experts) = match quick {
        true => (SyntheticShape::Tiny, 3, None),
        false => (SyntheticShape::KimiK2, 4, Some(64)),
    };
    let config = shape.config(layers, experts)?;
    let vocabulary = config.vocab_size as u32;
    let gpu = Arc::new(Gpu::new(&gpu_options()?)?);
    let cache = CacheConfig { pages: 600, page_tokens: 64 };
    println!("{}; {layers} layers", gpu.name());

    let store = folder.zip(gpu.machine_code_key()).map(|(folder, key)| KernelStore::new(&folder, &key));
    let start = Instant::now();
    let kept = store.as_ref().and_then(KernelStore::read);
    if store.is_some() {
        // SAFETY: what the store returns is, by its hash, what this program wrote under the same key.
        unsafe { gpu.keep_machine_code(kept.as_deref()) };
    }
    let reading = start.elapsed();
    let source = Synthetic::new(config, BitWidth::B4);
    let mut stage = Stage::load_from(&source, gpu.clone(), 0..layers, cache, &mut |_| {})?;
    let loaded = start.elapsed();
    if !on_demand {
        let mut noted = loaded;
        stage.make_kernels(TOKEN_BUDGET, &mut |made, _| {
            if made == 0 {
                noted = start.elapsed();
            }
        })?;
        println!(
            "{} kernels: {:.2} s to know them, {:.2} s to make them ({} bytes of machine code kept, read in {:.3} s)",
            gpu.kernels(),
            (noted - loaded).as_secs_f64(),
            (start.elapsed() - noted).as_secs_f64(),
            kept.as_ref().map_or(0, Vec::len),
            reading.as_secs_f64(),
        );
    }
    if let Some((store, code)) = store.zip(gpu.machine_code()) {
        store.write(&code);
    }
    let before = Instant::now();
    if !quick {
        stage.warm_up()?;
    }
    println!("warmed up in {:.2} s, {} kernels", before.elapsed().as_secs_f64(), gpu.kernels());

    let runner = LoadedStage::new(stage, gpu.adapter().is_hardware())?.runner;
    let config = EngineConfig { max_sequences: 64, ..EngineConfig::new(vocabulary, 8192, cache) };
    let engine = Engine::start(vec![runner], config)?;
    let mut seed = 0;
    let mut request = |prompt: u32, tokens: u32| -> Outcome<Request> {
        seed += 1;
        let raw = RawSamplingParams { temperature: 0.6, top_p: 0.95, ..RawSamplingParams::default() };
        Ok(Request {
            prompt: (0..prompt).map(|t| (t * 31 + seed * 7919) % vocabulary).collect(),
            params: SamplingParams::new(raw)?,
            max_tokens: Some(tokens),
            ..Request::default()
        })
    };
    let mut firsts = Vec::new();
    for name in ["first", "second", "third"] {
        let (first, _) = run(&engine, request(300, 8)?)?;
        println!(
            "{:<28} {:>9.1} ms to the first token",
            format!("{name} request"),
            first.as_secs_f64() * 1e3
        );
        firsts.push(first.as_secs_f64());
    }
    println!("{:<28} {:>9.2}", "first over second", firsts[0] / firsts[1]);
    let made = gpu.kernels();
    for streams in STREAMS {
        for name in ["first", "second"] {
            let tokens = if quick { 8 } else { 48 };
            let requests = (0..streams).map(|_| request(100, tokens)).collect::<Outcome<Vec<_>>>()?;
            let results: Vec<_> = thread::scope(|scope| {
                let run = |request| scope.spawn(|| run(&engine, request).map_err(|e| e.to_string()));
                let running: Vec<_> = requests.into_iter().map(run).collect();
                running
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or(Err("panicked".to_owned())))
                    .collect()
            });
            let gaps = results.into_iter().map(|r| r.map(|(_, gap)| gap)).collect::<Result<Vec<_>, _>>()?;
            let largest = gaps.into_iter().max().unwrap_or_default();
            let what = format!("{streams} streams, {name} time");
            println!("{what:<28} {:>9.1} ms largest gap", largest.as_secs_f64() * 1e3);
        }
    }
    let later = gpu.kernels() - made;
    println!("{} kernels made in steps, {later} of them for streams", gpu.kernels_made_in_steps());
    // NVIDIA's driver crashed once in six runs where the process ended while the engine's threads freed the device's memory.
    match engine.shutdown(Duration::from_secs(30)) {
        true => Ok(()),
        false => Err("the engine's threads still run after 30 s".into()),
    }
}

/// Time to the first token, and the largest gap between two.
fn run(engine: &Engine, request: Request) -> Outcome<(Duration, Duration)> {
    let start = Instant::now();
    let (mut first, mut last, mut gap) = (None, start, Duration::ZERO);
    for event in engine.generate(request)? {
        match event {
            TokenEvent::Token { .. } => {
                let now = Instant::now();
                match first {
                    None => first = Some(now - start),
                    Some(_) => gap = gap.max(now - last),
                }
                last = now;
            }
            TokenEvent::Failed { error } => return Err(error.to_string().into()),
            TokenEvent::Finished { .. } => {}
        }
    }
    Ok((first.ok_or("no token came")?, gap))
}
