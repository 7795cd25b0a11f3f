//! Decode and prefill of the embedded model: tokens a second with one and with eight sequences, on the CPU. And what a decoded
//! token costs beside its arithmetic: context switches of all threads (on Linux) and allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use kimi_benches::context_switches;
use kimi_core::engine::{Request, TokenEvent};
use kimi_core::{ChatModel, Checkpoint, ModelOptions};

const PROMPT: usize = 256;

/// Counts what the system's allocator is asked for.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(block, layout) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quick = std::env::args().any(|a| a == "--quick");
    let tokens = if quick { 16 } else { 256 };
    let options = ModelOptions {
        context_tokens: Some(1024),
        cache_tokens: Some(8 * 1024),
        prefix_cache: Some(false), // every prompt is to be computed
        ..ModelOptions::default()
    };
    let model = ChatModel::on_cpu(&Checkpoint::kimi_tiny()?, &options)?;
    println!("kimi-tiny on the CPU, {} threads, --precision auto", std::thread::available_parallelism()?);
    println!(
        "{:>9} {:>14} {:>14} {:>18} {:>18}",
        "sequences", "prefill tok/s", "decode tok/s", "switches a token", "allocations"
    );
    for sequences in [1, 2, 8] {
        let Speed { prefill, decode, switches, allocations } = run(&model, sequences, tokens)?;
        let switches = switches.map_or("unknown".to_owned(), |switches| format!("{switches:.1}"));
        println!("{sequences:>9} {prefill:>14.0} {decode:>14.0} {switches:>18} {allocations:>18.0}");
    }
    Ok(())
}

/// Over all sequences together.
struct Speed {
    /// Tokens of prompts a second.
    prefill: f64,
    /// Generated tokens a second.
    decode: f64,
    /// Context switches a generated token.
    switches: Option<f64>,
    /// Allocations a generated token.
    allocations: f64,
}

fn run(model: &ChatModel, sequences: usize, tokens: u32) -> Result<Speed, Box<dyn std::error::Error>> {
    let (sender, events) = mpsc::channel();
    let start = Instant::now();
    let mut running = Vec::new();
    for s in 0..sequences {
        let prompt = (0..PROMPT).map(|i| 300 + ((i * 7 + s * 131) % 3000) as u32).collect();
        let request = Request { prompt, max_tokens: Some(tokens), ignore_eos: true, ..Request::default() };
        let sender = sender.clone();
        running.push(model.engine().submit(request, move |event| {
            let _ = sender.send(event);
        })?);
    }
    let (mut first_tokens, mut all_first, mut finished) = (0, start, 0);
    let counts = || (context_switches(), ALLOCATIONS.load(Ordering::Relaxed));
    let mut before = counts();
    while finished < sequences {
        match events.recv()? {
            TokenEvent::Token { index: 0, .. } => {
                first_tokens += 1;
                if first_tokens == sequences {
                    all_first = Instant::now();
                    before = counts();
                }
            }
            TokenEvent::Token { .. } => {}
            TokenEvent::Finished { .. } => finished += 1,
            TokenEvent::Failed { error } => return Err(error.into()),
        }
    }
    let prefill = (sequences * PROMPT) as f64 / (all_first - start).as_secs_f64();
    let generated = (sequences as u32 * (tokens - 1)) as f64;
    let decode = generated / all_first.elapsed().as_secs_f64();
    let after = counts();
    let switches =
        before.0.zip(after.0).map(|(before, after)| after.saturating_sub(before) as f64 / generated);
    Ok(Speed { prefill, decode, switches, allocations: (after.1 - before.1) as f64 / generated })
}
