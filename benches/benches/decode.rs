//! Decode and prefill of the embedded model: tokens a second with one and with eight sequences, on the CPU.

use std::sync::mpsc;
use std::time::Instant;

use kimi_core::engine::{Request, TokenEvent};
use kimi_core::{ChatModel, Checkpoint, ModelOptions};

const PROMPT: usize = 256;

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
    println!("kimi-tiny on the CPU, {} threads, f32 activations", std::thread::available_parallelism()?);
    println!("{:>9} {:>16} {:>16}", "sequences", "prefill tok/s", "decode tok/s");
    for sequences in [1, 2, 8] {
        let (prefill, decode) = run(&model, sequences, tokens)?;
        println!("{sequences:>9} {prefill:>16.0} {decode:>16.0}");
    }
    Ok(())
}

/// Prompt and generated tokens a second over all sequences together.
fn run(model: &ChatModel, sequences: usize, tokens: u32) -> Result<(f64, f64), Box<dyn std::error::Error>> {
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
    while finished < sequences {
        match events.recv()? {
            TokenEvent::Token { index: 0, .. } => {
                first_tokens += 1;
                if first_tokens == sequences {
                    all_first = Instant::now();
                }
            }
            TokenEvent::Token { .. } => {}
            TokenEvent::Finished { .. } => finished += 1,
            TokenEvent::Failed { error } => return Err(error.into()),
        }
    }
    let prefill = (sequences * PROMPT) as f64 / (all_first - start).as_secs_f64();
    let decode = (sequences as u32 * (tokens - 1)) as f64 / all_first.elapsed().as_secs_f64();
    Ok((prefill, decode))
}
