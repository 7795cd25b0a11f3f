//! The time to the first token of a chat's second turn, with the pages of the first and without, on the CPU.

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
    println!("{:>11} {:>10} {:>10} {:>10} {:>8}", "first turn", "cached", "cold ms", "warm ms", "warm is");
    let lengths: &[usize] = if quick { &[1000] } else { &[500, 1000, 2000, 3500] };
    for &length in lengths {
        let (cold, warm) = (second_turn(length, false)?, second_turn(length, true)?);
        let time = |usage: Usage| usage.time_to_first_token.unwrap_or_default();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let (cold, cached, warm) = (time(cold), warm.cached_tokens, time(warm));
        println!(
            "{length:>11} {cached:>10} {:>10.1} {:>10.1} {:>6.1} %",
            milliseconds(cold),
            milliseconds(warm),
            100.0 * warm.as_secs_f64() / cold.as_secs_f64()
        );
    }
    Ok(())
}

/// What the second of two turns takes.
fn second_turn(length: usize, prefix_cache: bool) -> Result<Usage, Box<dyn std::error::Error>> {
    let options = ModelOptions { prefix_cache: Some(prefix_cache), ..ModelOptions::default() };
    let model = ChatModel::on_cpu(&Checkpoint::kimi_tiny()?, &options)?;
    let mut prompt: Vec<u32> = (0..length).map(|i| 300 + (i * 7 % 3000) as u32).collect();
    let (answer, _) = answer(&model, prompt.clone())?;
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
