//! Guesses by prompt lookup change no answer, on a real model: greedy, with a seed, within a grammar, over stages.
#![cfg(feature = "tiny")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use kimi_core::Checkpoint;
use kimi_core::constraint::{Constrained, Constraint};
use kimi_core::engine::{Engine, EngineConfig, Request, Speculation, TokenEvent};
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{CacheConfig, Stage, StageRunner, StageThread};
use kimi_quant::Cpu;

const CACHE: CacheConfig = CacheConfig { pages: 64, page_tokens: 16 };

fn start(stages: usize, speculation: Speculation) -> Engine {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let layers = checkpoint.config().num_hidden_layers;
    let backend = Arc::new(Cpu::new());
    let stages = (0..stages).map(|i| -> Box<dyn StageRunner> {
        let layers = i * layers / stages..(i + 1) * layers / stages;
        let stage = Stage::load(&checkpoint, backend.clone(), layers, CACHE, &mut |_| {}).unwrap();
        Box::new(StageThread::spawn(Box::new(stage), false).unwrap())
    });
    let vocabulary = checkpoint.config().vocab_size as u32;
    let config = EngineConfig { speculation, ..EngineConfig::new(vocabulary, 1024, CACHE) };
    Engine::start(stages.collect(), config).unwrap()
}

/// A text goes round: after the `i`-th of some tokens only the next one is allowed, and one other.
#[derive(Debug)]
struct Round {
    tokens: Vec<u32>,
    accepted: usize,
    words: usize,
}

impl Constraint for Round {
    fn accept(&mut self, _: u32) {
        self.accepted += 1;
    }

    fn mask(&mut self, ahead: &[u32]) -> Option<Arc<[u32]>> {
        let place = self.accepted + ahead.len();
        let mut words = vec![0; self.words];
        for token in [self.tokens[place % self.tokens.len()], 900 + u32::from(place.is_multiple_of(50))] {
            words[token as usize / 32] |= 1 << (token % 32);
        }
        Some(words.into())
    }
}

/// Prompts that repeat themselves, and one that does not.
fn requests() -> Vec<Request> {
    let round = |length: u32| (0..120).map(|i| 400 + i % length).collect::<Vec<u32>>();
    let request = |prompt: Vec<u32>, temperature: f32| {
        let raw = RawSamplingParams { temperature, seed: Some(11), ..Default::default() };
        Request {
            prompt,
            params: SamplingParams::new(raw).unwrap(),
            max_tokens: Some(60),
            ignore_eos: true,
            ..Request::default()
        }
    };
    vec![
        request(round(7), 0.0),
        request(round(20), 0.8),
        request((0..100).map(|i| 300 + i * 29 % 3000).collect(), 0.0),
        request(round(11), 1.2),
    ]
}

fn answers(engine: &Engine, together: bool) -> Vec<Vec<u32>> {
    let words = engine.config().vocab_size.div_ceil(32) as usize;
    let mut requests = requests();
    for i in [0, 1] {
        let constraint =
            Constrained::new(Round { tokens: vec![500, 501, 502, 503, 504], accepted: 0, words });
        requests.push(Request { constraint: Some(constraint), ..requests[i].clone() });
    }
    let ids = |events: &mut dyn Iterator<Item = TokenEvent>| {
        let id = |event| match event {
            TokenEvent::Token { id, .. } => Some(id),
            TokenEvent::Failed { error } => panic!("{error}"),
            TokenEvent::Finished { .. } => None,
        };
        events.filter_map(id).collect::<Vec<_>>()
    };
    if together {
        let mut running: Vec<_> = requests.into_iter().map(|r| engine.generate(r).unwrap()).collect();
        running.iter_mut().map(|events| ids(events)).collect()
    } else {
        requests.into_iter().map(|r| ids(&mut engine.generate(r).unwrap())).collect()
    }
}

#[test]
fn the_answers_are_the_same() {
    let expected = answers(&start(1, Speculation::Off), false);
    assert!(expected.iter().all(|tokens| tokens.len() == 60));
    for (stages, speculation) in [
        (1, Speculation::Fixed(5)),
        (2, Speculation::Fixed(3)),
        (1, Speculation::Auto),
        (2, Speculation::Auto),
    ] {
        let engine = start(stages, speculation);
        assert_eq!(answers(&engine, false), expected, "{stages} stages, {speculation:?}");
        assert_eq!(answers(&engine, true), expected, "{stages} stages, {speculation:?}, together");
        let stats = engine.stats();
        let drafts = stats.scheduler.drafts;
        assert!(drafts.accepted <= drafts.drafted, "{drafts:?}");
        if let Speculation::Fixed(_) = speculation {
            assert!(drafts.accepted > 100, "{drafts:?}");
            assert!(stats.steps < 12 * 60, "{} steps", stats.steps);
        }
    }
}
