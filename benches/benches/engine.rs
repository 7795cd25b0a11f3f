//! The engine's own share of a token: a stage that computes nothing, so that what is left is the scheduler and the events,
//! which another thread hears of. Beside it what two bare hand-overs between threads take on this machine.

use std::sync::mpsc;
use std::time::Instant;

use kimi_core::batch::{Batch, Output};
use kimi_core::engine::{Engine, EngineConfig, Request, TokenEvent};
use kimi_core::sampler::{Sampled, SamplingParams};
use kimi_core::stage::{
    CacheConfig, Compute, Finish, Hidden, SequenceOutput, StageError, StageOutput, StageSpan, StageThread,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Chooses token 7 for everybody, at once.
struct Nothing;

impl Compute for Nothing {
    fn span(&self) -> StageSpan {
        StageSpan { layers: 0..1, first: true, last: true }
    }

    fn steady(&self) -> bool {
        true // as a stage on the CPU
    }

    fn start(&mut self, batch: &Batch, _: Option<Hidden>) -> std::result::Result<Finish, StageError> {
        let asked = batch.sequences.iter().filter(|slice| slice.output != Output::None);
        let outputs = asked.map(|slice| {
            let sampled = vec![Ok(Sampled { token: 7, logprob: 0.0, top: Vec::new() })];
            SequenceOutput { id: slice.id, sampled, logits: Vec::new() }
        });
        let output = StageOutput::Sequences(outputs.collect());
        Ok(Box::new(move || Ok(output)))
    }
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let (rounds, steps) = if quick { (1, 100) } else { (9, 5000) };
    println!("a stage that computes nothing, {} threads", std::thread::available_parallelism()?);
    println!("{:>10} {:>12} {:>12} {:>18}", "sequences", "us a step", "us a token", "two hand-overs us");
    for sequences in [1, 8, 32] {
        let engine = engine()?;
        let (mut engines, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            engines.push(step(&engine, sequences, steps)?);
            bare.push(hand_overs(steps)?);
        }
        let [engine, bare] = [engines, bare].map(|mut times| {
            times.sort_unstable_by(f64::total_cmp);
            times[times.len() / 2] * 1e6
        });
        println!("{sequences:>10} {engine:>12.1} {:>12.2} {bare:>18.1}", engine / f64::from(sequences));
    }
    Ok(())
}

fn engine() -> Result<Engine> {
    let cache = CacheConfig { pages: 8192, page_tokens: 64 };
    let stage = StageThread::spawn(Box::new(Nothing), false)?;
    let config = EngineConfig { prefix_cache: true, ..EngineConfig::new(163_840, 16_384, cache) };
    Ok(Engine::start(vec![Box::new(stage)], config)?)
}

/// Seconds of a step that decodes so many sequences.
fn step(engine: &Engine, sequences: u32, steps: u32) -> Result<f64> {
    let request = |i: u32| Request {
        prompt: vec![i; 100],
        params: SamplingParams::greedy(),
        max_tokens: Some(steps),
        ..Request::default()
    };
    let begun = Instant::now();
    let running: std::result::Result<Vec<_>, _> =
        (0..sequences).map(|i| engine.generate(request(i))).collect();
    for tokens in running? {
        for event in tokens {
            if let TokenEvent::Failed { error } = event {
                return Err(error.into());
            }
        }
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(steps))
}

/// Seconds in which a word goes to another thread and back.
fn hand_overs(count: u32) -> Result<f64> {
    let (there, words) = mpsc::channel::<u32>();
    let (back, answers) = mpsc::channel();
    let echo = std::thread::spawn(move || words.into_iter().all(|word| back.send(word).is_ok()));
    let begun = Instant::now();
    for i in 0..count {
        there.send(i)?;
        answers.recv()?;
    }
    let time = begun.elapsed().as_secs_f64();
    drop(there);
    echo.join().map_err(|_| "the other thread has died")?;
    Ok(time / f64::from(count))
}
