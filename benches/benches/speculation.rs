//! Decode with guesses by prompt lookup and without, on the CPU: of a text that repeats itself, and of one that does not.
//!
//! `auto` should be as fast as the better of the two for each text.

use std::sync::Arc;
use std::time::Instant;

use kimi_core::constraint::{Constrained, Constraint};
use kimi_core::engine::{Request, Speculation, TokenEvent};
use kimi_core::sampler::SamplingParams;
use kimi_core::{ChatModel, Checkpoint, ModelOptions};

const MODES: [(&str, Speculation); 4] = [
    ("off", Speculation::Off),
    ("auto", Speculation::Auto),
    ("4", Speculation::Fixed(4)),
    ("8", Speculation::Fixed(8)),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quick = std::env::args().any(|a| a == "--quick");
    let (rounds, tokens) = if quick { (1, 64) } else { (7, 400) };
    println!("kimi-tiny on the CPU, {} threads; {tokens} tokens", std::thread::available_parallelism()?);
    println!(
        "{:>12} {:>12} {:>12} {:>10} {:>10} {:>10}",
        "text", "speculation", "tokens/s", "to off", "drafted", "accepted"
    );
    let models = MODES.map(|(name, speculation)| {
        let options = ModelOptions { speculation, prefix_cache: Some(false), ..ModelOptions::default() };
        ChatModel::on_cpu(&Checkpoint::kimi_tiny().ok()?, &options).ok().map(|model| (name, model))
    });
    for (text, is_new) in [("repeats", false), ("is new", true)] {
        // In turn, since a machine's speed changes while it is measured.
        let mut rates = [const { Vec::new() }; MODES.len()];
        for _ in 0..rounds {
            for (rates, model) in rates.iter_mut().zip(&models) {
                let (_, model) = model.as_ref().ok_or("kimi-tiny can't be loaded")?;
                rates.push(rate(model, is_new, tokens)?);
            }
        }
        let medians = rates.map(|mut rates| {
            rates.sort_unstable_by(f64::total_cmp);
            rates[rates.len() / 2]
        });
        for (median, (name, model)) in medians.iter().zip(models.iter().flatten()) {
            let drafts = model.stats().scheduler.drafts;
            let ratio = median / medians[0];
            println!(
                "{text:>12} {name:>12} {median:>12.0} {ratio:>10.2} {:>10} {:>10}",
                drafts.drafted, drafts.accepted
            );
        }
    }
    Ok(())
}

/// Allows a few tokens at each place, others than before: kimi-tiny repeats itself otherwise.
#[derive(Debug)]
struct New {
    place: usize,
    words: usize,
}

impl Constraint for New {
    fn accept(&mut self, _: u32) {
        self.place += 1;
    }

    fn mask(&mut self, ahead: &[u32]) -> Option<Arc<[u32]>> {
        let mut words = vec![0; self.words];
        words[10 + (self.place + ahead.len()) * 37 % (self.words - 20)] = u32::MAX;
        Some(words.into())
    }
}

/// Tokens a second after the first.
fn rate(model: &ChatModel, is_new: bool, tokens: u32) -> Result<f64, Box<dyn std::error::Error>> {
    let words = model.engine().config().vocab_size.div_ceil(32) as usize;
    let request = Request {
        prompt: (0..200).map(|i| 300 + i % 25).collect(),
        params: SamplingParams::greedy(),
        max_tokens: Some(tokens),
        ignore_eos: true,
        constraint: is_new.then(|| Constrained::new(New { place: 0, words })),
        ..Request::default()
    };
    let mut first = None;
    for event in model.engine().generate(request)? {
        match event {
            TokenEvent::Token { .. } => drop(first.get_or_insert_with(Instant::now)),
            TokenEvent::Finished { .. } => break,
            TokenEvent::Failed { error } => return Err(error.into()),
        }
    }
    let first = first.ok_or("no token")?;
    Ok(f64::from(tokens - 1) / first.elapsed().as_secs_f64())
}
