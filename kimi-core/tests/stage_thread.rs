//! Where a stage of this process computes: on its own thread, or on the thread of whoever submits to it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::stage::{
    Compute, Done, Finish, Hidden, StageError, StageOutput, StageResult, StageRunner, StageSpan, StageThread,
};

/// A step of so many tokens takes long.
const MANY: usize = 5;
/// A token that nothing can be computed for.
const UNLUCKY: u32 = 13;
const LONG: Duration = Duration::from_secs(20);

/// Notes which thread computes.
struct Watched {
    steady: bool,
    threads: Arc<Mutex<Vec<ThreadId>>>,
}

impl Compute for Watched {
    fn span(&self) -> StageSpan {
        StageSpan { layers: 0..1, first: true, last: true }
    }

    fn steady(&self) -> bool {
        self.steady
    }

    fn start(&mut self, batch: &Batch, _: Option<Hidden>) -> Result<Finish, StageError> {
        assert_ne!(batch.ids(), [UNLUCKY], "on purpose");
        if batch.tokens() >= MANY {
            thread::sleep(Duration::from_millis(50));
        }
        self.threads.lock().unwrap().push(thread::current().id());
        Ok(Box::new(|| Ok(StageOutput::Sequences(vec![]))))
    }
}

/// A step and what became of it.
type Told = (u64, StageResult);

struct Stage {
    runner: StageThread,
    threads: Arc<Mutex<Vec<ThreadId>>>,
    results: (Sender<Told>, Receiver<Told>),
    steps: u64,
}

impl Stage {
    fn new(steady: bool) -> Self {
        let threads = Arc::default();
        let stage = Watched { steady, threads: Arc::clone(&threads) };
        let runner = StageThread::spawn(Box::new(stage), false).unwrap();
        Self { runner, threads, results: mpsc::channel(), steps: 0 }
    }

    fn submit(&mut self, tokens: Vec<u32>) {
        let (pages, output) = (vec![0], Output::None);
        let slice = SequenceSlice { id: SequenceId(0), start: 0, tokens, pages, output };
        let batch = Batch { step: self.steps, sequences: vec![slice], ..Batch::default() };
        self.steps += 1;
        let (step, sender) = (batch.step, self.results.0.clone());
        let done = Done::new(move |result, _| sender.send((step, result)).unwrap());
        self.runner.submit(Arc::new(batch), None, done);
    }

    /// Has a step computed; says whether this thread did it.
    fn computes_here(&mut self, tokens: usize) -> bool {
        self.submit(vec![1; tokens]);
        let (step, result) = self.results.1.recv_timeout(LONG).unwrap();
        assert!(result.is_ok() && step + 1 == self.steps, "{result:?}");
        *self.threads.lock().unwrap().last().unwrap() == thread::current().id()
    }

    /// Repeats a step until this thread computes it: a machine that is busy may make a step or two look long.
    fn until_here(&mut self, tokens: usize) {
        let begun = Instant::now();
        while !self.computes_here(tokens) {
            assert!(begun.elapsed() < LONG, "steps of {tokens} tokens are never computed here");
        }
    }
}

#[test]
fn short_steps_are_computed_by_whoever_submits_them_and_in_order() {
    let mut stage = Stage::new(true);
    stage.runner.compute_here();
    assert!(!stage.computes_here(1), "nothing is known of its time yet");
    stage.until_here(1);
    assert!(!stage.computes_here(MANY), "more tokens than were ever known to be short");
    assert!(!stage.computes_here(MANY), "it took long");
    stage.until_here(1);
    // A short one behind a long one waits for it.
    stage.submit(vec![1; MANY]);
    stage.submit(vec![1]);
    let order = [(); 2].map(|()| stage.results.1.recv_timeout(LONG).unwrap().0);
    assert_eq!(order, [stage.steps - 2, stage.steps - 1]);
    let threads = stage.threads.lock().unwrap();
    assert!(threads.iter().rev().take(2).all(|&id| id != thread::current().id()));
}

#[test]
fn only_a_steady_stage_that_may_computes_elsewhere_than_on_its_thread() {
    for (steady, may) in [(true, false), (false, true)] {
        let mut stage = Stage::new(steady);
        if may {
            stage.runner.compute_here();
        }
        assert!((0..20).all(|_| !stage.computes_here(1)), "{steady} {may}");
    }
}

#[test]
fn a_panic_stops_the_stage_and_not_who_submits() {
    let mut stage = Stage::new(true);
    stage.runner.compute_here();
    stage.until_here(1);
    for tokens in [vec![UNLUCKY], vec![1]] {
        stage.submit(tokens);
        let (_, result) = stage.results.1.recv_timeout(LONG).unwrap();
        assert!(matches!(result, Err(StageError::Stopped)), "{result:?}");
    }
}
