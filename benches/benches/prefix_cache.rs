//! The time to the first token of a chat's second turn, with the pages of the first and without, and with those that a disk
//! kept over a restart, on the CPU.

use std::path::Path;
use std::time::Duration;

use kimi_core::engine::{Request, TokenEvent, Usage};
use kimi_core::sampler::SamplingParams;
use kimi_core::{ChatModel, Checkpoint, ModelOptions};

/// New tokens of the second turn.
const TURN: usize = 32;
const ANSWER: u32 = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quick = std::env::args().any(|a| a == "--quick");
    println!(
        "kimi-tiny on the CPU, {} threads; second turn of {TURN} tokens",
        std::thread::available_parallelism()?
    );
    println!(
        "{:>11} {:>10} {:>10} {:>10} {:>8} {:>10} {:>8}",
        "first turn", "cached", "cold ms", "warm ms", "warm is", "disk ms", "disk is"
    );
    let lengths: &[usize] = if quick { &[1000] } else { &[500, 1000, 2000, 3500] };
    for &length in lengths {
        let (cold, warm) = (second_turn(length, Some(false), None)?, second_turn(length, Some(true), None)?);
        let folder = std::env::temp_dir().join(format!("kimi-bench-{}-{length}", std::process::id()));
        let disk = second_turn(length, None, Some(&folder))?;
        std::fs::remove_dir_all(&folder)?;
        assert_eq!(disk.cached_tokens, warm.cached_tokens, "pages are missing on the disk");
        let time = |usage: Usage| usage.time_to_first_token.unwrap_or_default();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let (cold, cached, warm, disk) = (time(cold), warm.cached_tokens, time(warm), time(disk));
        let share = |time: Duration| 100.0 * time.as_secs_f64() / cold.as_secs_f64();
        println!(
            "{length:>11} {cached:>10} {:>10.1} {:>10.1} {:>6.1} % {:>10.1} {:>6.1} %",
            milliseconds(cold),
            milliseconds(warm),
            share(warm),
            milliseconds(disk),
            share(disk)
        );
    }
    Ok(())
}

/// What the second of two turns takes; with a folder, after a restart.
fn second_turn(
    length: usize,
    prefix_cache: Option<bool>,
    folder: Option<&Path>,
) -> Result<Usage, Box<dyn std::error::Error>> {
    let prefix_cache_disk = folder.map(|folder| (folder.to_owned(), 1 << 30));
    let options = ModelOptions { prefix_cache, prefix_cache_disk, ..ModelOptions::default() };
    let mut model = ChatModel::on_cpu(&Checkpoint::kimi_tiny()?, &options)?;
    let mut prompt: Vec<u32> = (0..length).map(|i| 300 + (i * 7 % 3000) as u32).collect();
    let (answer, _) = answer(&model, prompt.clone())?;
    if folder.is_some() {
        model.engine().shutdown(Duration::from_secs(60));
        model = ChatModel::on_cpu(&Checkpoint::kimi_tiny()?, &options)?;
    }
    prompt.extend(answer);
    prompt.extend((0..TURN).map(|i| 400 + i as u32));
    Ok(self::answer(&model, prompt)?.1)
}

fn answer(model: &ChatModel, prompt: Vec<u32>) -> Result<(Vec<u32>, Usage), Box<dyn std::error::Error>> {
    let params = SamplingParams::greedy();
    let request =
        Request { prompt, params, max_tokens: Some(ANSWER), ignore_eos: true, ..Request::default() };
    let mut tokens = Vec::new();
    for event in model.engine().generate(request)? {
        match event {
            TokenEvent::Token { id, .. } => tokens.push(id),
            TokenEvent::Finished { usage, .. } => return Ok((tokens, usage)),
            TokenEvent::Failed { error } => return Err(error.into()),
        }
    }
    Err("the engine has stopped".into())
}
