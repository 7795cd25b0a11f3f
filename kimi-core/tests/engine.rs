//! The engine and its pipeline over the toy model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

mod toy;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kimi_core::batch::Batch;
use kimi_core::constraint::Drafter;
use kimi_core::engine::{
    Engine, EngineConfig, EngineError, FinishReason, LostStage, Request, RequestError, SubmitError,
    TokenEvent, Usage,
};
use kimi_core::pipeline::{Pipeline, PipelineError, PipelineEvent, StepOutput};
use kimi_core::sampler::{RawSamplingParams, SampleError, SamplingParams};
use kimi_core::scheduler::SequenceError;
use kimi_core::stage::{
    CacheConfig, Compute, Done, Finish, Hidden, LossWatch, StageError, StageOutput, StageRunner, StageSpan,
};
use kimi_quant::BackendError;
use toy::{ToyStage, VOCAB, on_thread, span};

const PAGES: u32 = 64;
const PAGE_TOKENS: usize = 8;
const CACHE: CacheConfig = CacheConfig { pages: PAGES as usize, page_tokens: PAGE_TOKENS };
const LONG: Duration = Duration::from_secs(20);

fn config() -> EngineConfig {
    EngineConfig::new(VOCAB, 400, CACHE)
}

fn row(stages: usize) -> Vec<Box<dyn StageRunner>> {
    ToyStage::row(stages, PAGES, PAGE_TOKENS).into_iter().map(on_thread).collect()
}

fn engine(stages: Vec<Box<dyn StageRunner>>) -> Engine {
    Engine::start(stages, config()).unwrap()
}

fn request(prompt: &[u32], max_tokens: u32) -> Request {
    let params = SamplingParams::new(RawSamplingParams { seed: Some(7), ..Default::default() }).unwrap();
    Request { prompt: prompt.to_vec(), params, max_tokens: Some(max_tokens), ..Request::default() }
}

/// The tokens of an answer, and its last event.
fn collect(events: impl IntoIterator<Item = TokenEvent>) -> (Vec<u32>, TokenEvent) {
    let mut tokens = Vec::new();
    let mut last = None;
    for event in events {
        assert!(last.is_none(), "an event after the end: {event:?}");
        match event {
            TokenEvent::Token { id, index, .. } => {
                assert_eq!(index as usize, tokens.len());
                tokens.push(id);
            }
            end => last = Some(end),
        }
    }
    (tokens, last.expect("every request ends"))
}

fn finished(end: &TokenEvent) -> (FinishReason, Usage) {
    let TokenEvent::Finished { reason, usage } = end else { panic!("{end:?}") };
    (*reason, *usage)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A stage that computes a batch only when it gets a word; an error instead of a word is returned.
struct Gate {
    stage: ToyStage,
    words: Receiver<Option<StageError>>,
}

impl Compute for Gate {
    fn span(&self) -> StageSpan {
        self.stage.span()
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        match self.words.recv() {
            Ok(Some(error)) => Err(error),
            _ => self.stage.start(batch, input),
        }
    }
}

fn gated() -> (Engine, Sender<Option<StageError>>) {
    let (sender, words) = mpsc::channel();
    let stage = ToyStage::new(0, 1, PAGES, PAGE_TOKENS);
    (engine(vec![on_thread(Gate { stage, words })]), sender)
}

#[test]
fn an_answer_does_not_depend_on_the_split_or_on_who_else_runs() {
    let alone: Vec<_> =
        (0..3).map(|i| collect(engine(row(2)).generate(request(&[i, 2, 3], 40)).unwrap()).0).collect();
    let engine = engine(row(2));
    let running: Vec<_> = (0..3).map(|i| engine.generate(request(&[i, 2, 3], 40)).unwrap()).collect();
    for (tokens, alone) in running.into_iter().zip(alone) {
        let (answer, end) = collect(tokens);
        assert_eq!(answer, alone);
        let (reason, usage) = finished(&end);
        assert_eq!((reason, usage.prompt_tokens, usage.completion_tokens), (FinishReason::Length, 3, 40));
        assert!(usage.time_to_first_token.is_some());
    }
}

#[test]
fn two_generations_interleave() {
    let (engine, gate) = gated();
    let (sender, events) = mpsc::channel();
    let generations: Vec<_> = (0..2u32)
        .map(|who| {
            let sender = sender.clone();
            engine.submit(request(&[who], 10), move |event| sender.send((who, event)).unwrap()).unwrap()
        })
        .collect();
    wait_until("the second request", || {
        let stats = engine.stats();
        stats.scheduler.running + stats.scheduler.waiting == 2
    });
    (0..12).for_each(|_| gate.send(None).unwrap());
    let tokens = events.iter().take(22).filter(|(_, event)| matches!(event, TokenEvent::Token { .. }));
    let order: Vec<_> = tokens.map(|(who, _)| who).collect();
    assert_eq!(order.len(), 20);
    let switches = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(switches >= 16, "{order:?}");
    drop(generations);
}

#[test]
fn eos_and_stop_ids_end_an_answer() {
    let plain = collect(engine(row(1)).generate(request(&[5], 60)).unwrap()).0;
    let stop = plain[10];
    let first = plain.iter().position(|&token| token == stop).unwrap();
    let start = |eos_ids| Engine::start(row(1), EngineConfig { eos_ids, ..config() });

    let with_eos = start(vec![stop]).unwrap();
    let (tokens, end) = collect(with_eos.generate(request(&[5], 60)).unwrap());
    assert_eq!(tokens, plain[..first], "the stop token itself is not part of the answer");
    let (reason, usage) = finished(&end);
    assert_eq!((reason, usage.completion_tokens as usize), (FinishReason::Stop, first + 1));

    let ignoring = Request { ignore_eos: true, ..request(&[5], 60) };
    assert_eq!(collect(with_eos.generate(ignoring.clone()).unwrap()).0, plain);
    let (tokens, _) = collect(with_eos.generate(Request { stop_ids: vec![stop], ..ignoring }).unwrap());
    assert_eq!(tokens, plain[..first]);
}

#[test]
fn cancel_and_drop_free_the_pages() {
    let (engine, gate) = gated();
    let mut cancelled = engine.generate(request(&[1; 100], 300)).unwrap();
    let dropped = engine.generate(request(&[2; 100], 300)).unwrap();
    gate.send(None).unwrap();
    assert!(matches!(cancelled.next(), Some(TokenEvent::Token { .. })));
    assert!(engine.stats().scheduler.pages_used > 0);
    cancelled.cancel();
    drop(dropped);
    let (_, end) = collect(cancelled.by_ref().map(|event| match event {
        TokenEvent::Token { id, logprob, top, index } => {
            TokenEvent::Token { id, logprob, top, index: index - 1 }
        }
        end => end,
    }));
    assert_eq!(finished(&end).0, FinishReason::Cancelled);
    (0..3).for_each(|_| gate.send(None).unwrap());
    wait_until("the last page", || {
        let stats = engine.stats().scheduler;
        (stats.pages_used, stats.running, stats.waiting) == (0, 0, 0)
    });
}

#[test]
fn a_failed_batch_fails_its_requests_and_the_engine_goes_on() {
    let (engine, gate) = gated();
    let failing = engine.generate(request(&[1], 5)).unwrap();
    let full = BackendError::OutOfMemory { what: "activations", needed: 2, available: 1 };
    gate.send(Some(full.into())).unwrap();
    let (_, end) = collect(failing);
    assert!(matches!(&end, TokenEvent::Failed { error: EngineError::Sequence(_) }), "{end:?}");
    assert!(engine.down().is_none());
    (0..5).for_each(|_| gate.send(None).unwrap());
    assert_eq!(collect(engine.generate(request(&[1], 5)).unwrap()).0.len(), 5);
}

#[test]
fn a_failed_device_takes_the_engine_down() {
    let (engine, gate) = gated();
    let running = engine.generate(request(&[1], 5)).unwrap();
    gate.send(Some(BackendError::Device("test".into()).into())).unwrap();
    let (_, end) = collect(running);
    assert!(matches!(&end, TokenEvent::Failed { error: EngineError::Down { .. } }), "{end:?}");
    assert!(engine.down().is_some());
}

#[test]
fn a_lost_stage_takes_the_engine_down() {
    let (engine, gate) = gated();
    let running: Vec<_> = (0..3).map(|i| engine.generate(request(&[i], 50)).unwrap()).collect();
    gate.send(None).unwrap();
    gate.send(Some(StageError::Lost { node: "studio".into(), reason: "no answer".into() })).unwrap();
    for tokens in running {
        let (_, end) = collect(tokens);
        let TokenEvent::Failed { error: EngineError::Down { reason } } = end else { panic!("{end:?}") };
        assert!(reason.contains("studio") && reason.contains("no answer"), "{reason}");
    }
    let refused = engine.generate(request(&[1], 5)).unwrap_err();
    assert!(matches!(refused, SubmitError::Engine(EngineError::Down { .. })), "{refused:?}");
    assert!(engine.down().is_some());
    assert!(engine.shutdown(LONG));
}

/// A stage that can choose no token for a sequence whose last token is even.
struct Choosy(ToyStage);

impl Compute for Choosy {
    fn span(&self) -> StageSpan {
        self.0.span()
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let mut output = self.0.run(batch, input)?;
        if let StageOutput::Sequences(outputs) = &mut output {
            for (output, slice) in outputs.iter_mut().zip(&batch.sequences) {
                if slice.tokens.last().is_some_and(|token| token % 2 == 0) {
                    output.sampled = vec![Err(SampleError::NothingAllowed { vocabulary: VOCAB as usize })];
                }
            }
        }
        Ok(Box::new(move || Ok(output)))
    }
}

#[test]
fn a_failed_choice_fails_its_request_only() {
    let stage = Choosy(ToyStage::new(0, 1, PAGES, PAGE_TOKENS));
    let engine = engine(vec![on_thread(stage)]);
    let [lucky, unlucky] = [5, 4].map(|token| engine.generate(request(&[token], 1)).unwrap());
    let (tokens, end) = collect(unlucky);
    assert!(tokens.is_empty());
    let TokenEvent::Failed { error: EngineError::Sequence(SequenceError::Sample(error)) } = end else {
        panic!("{end:?}")
    };
    assert_eq!(error, SampleError::NothingAllowed { vocabulary: VOCAB as usize });
    assert_eq!(finished(&collect(lucky).1).0, FinishReason::Length);
    assert!(engine.down().is_none());
}

/// A stage whose thread dies.
struct Dying;

impl Compute for Dying {
    fn span(&self) -> StageSpan {
        span(1, 3)
    }

    fn start(&mut self, _: &Batch, _: Option<Hidden>) -> Result<Finish, StageError> {
        panic!("on purpose")
    }
}

#[test]
fn a_stage_that_dies_takes_the_engine_down() {
    let mut stages = row(3);
    stages[1] = on_thread(Dying);
    let engine = engine(stages);
    let (_, end) = collect(engine.generate(request(&[1], 5)).unwrap());
    let TokenEvent::Failed { error: EngineError::Down { reason } } = end else { panic!("{end:?}") };
    assert!(reason.contains("stage of the pipeline has stopped"), "{reason}");
    assert!(engine.shutdown(LONG));
}

#[test]
fn a_shutdown_ends_what_runs() {
    let engine = engine(row(3));
    let running = engine.generate(request(&[1], 390)).unwrap();
    let clone = engine.clone();
    assert!(engine.shutdown(LONG));
    let (tokens, end) = collect(running);
    match end {
        TokenEvent::Failed { error: EngineError::Down { .. } } => assert!(tokens.len() < 390),
        end => assert_eq!(finished(&end).1.completion_tokens, 390),
    }
    assert!(matches!(clone.generate(request(&[1], 5)), Err(SubmitError::Engine(EngineError::Down { .. }))));
}

#[test]
fn the_last_handle_stops_the_engine() {
    let (engine, gate) = gated();
    let running = engine.generate(request(&[1], 5)).unwrap();
    drop(engine);
    let (_, end) = collect(running);
    assert!(matches!(end, TokenEvent::Failed { error: EngineError::Down { .. } }), "{end:?}");
    drop(gate);
}

/// A stage whose results are there when it gets a word.
struct Late {
    stage: ToyStage,
    words: Arc<Mutex<Receiver<()>>>,
    started: Sender<()>,
}

impl Compute for Late {
    fn span(&self) -> StageSpan {
        self.stage.span()
    }

    fn queues(&self) -> bool {
        true
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let (output, words) = (self.stage.run(batch, input)?, self.words.clone());
        self.started.send(()).unwrap();
        Ok(Box::new(move || {
            words.lock().unwrap().recv().unwrap();
            Ok(output)
        }))
    }
}

#[test]
fn a_shutdown_waits_for_what_a_device_computes() {
    let ((word, words), (started, start)) = (mpsc::channel(), mpsc::channel());
    let words = Arc::new(Mutex::new(words));
    let stage = ToyStage::new(0, 1, PAGES, PAGE_TOKENS);
    let engine = engine(vec![on_thread(Late { stage, words, started })]);
    let _tokens = engine.generate(request(&[1, 2], 5)).unwrap();
    start.recv().unwrap();
    assert!(!engine.shutdown(Duration::from_millis(50)), "a batch is still computed");
    word.send(()).unwrap();
    assert!(engine.shutdown(LONG));
}

#[test]
fn a_shutdown_does_not_wait_for_a_stage_that_hangs() {
    let (engine, _gate) = gated();
    let running = engine.generate(request(&[1], 5)).unwrap();
    wait_until("the first batch", || engine.stats().scheduler.running == 1);
    let started = Instant::now();
    assert!(!engine.shutdown(Duration::from_millis(50)), "the stage still hangs");
    assert!(started.elapsed() < Duration::from_secs(4));
    let (_, end) = collect(running);
    assert!(matches!(end, TokenEvent::Failed { .. }), "{end:?}");
}

#[test]
fn two_hundred_requests_at_once() {
    let engine = engine(row(2));
    let lone = |i: u32| request(&[i % VOCAB, i / VOCAB], 1 + i % 23);
    let workers: Vec<_> = (0..200)
        .map(|i| {
            let engine = engine.clone();
            std::thread::spawn(move || collect(engine.generate(lone(i)).unwrap()))
        })
        .collect();
    let mut total = 0;
    for (i, worker) in workers.into_iter().enumerate() {
        let (tokens, end) = worker.join().unwrap();
        assert_eq!(tokens.len(), 1 + i % 23);
        assert_eq!(finished(&end).0, FinishReason::Length);
        total += tokens.len() as u64;
    }
    wait_until("the idle engine", || engine.stats().scheduler.running == 0);
    let stats = engine.stats();
    assert_eq!((stats.tokens_generated, stats.scheduler.pages_used), (total, 0));
    assert!(stats.steps < total, "requests share batches: {} steps for {total} tokens", stats.steps);
    assert_eq!(stats.stages.len(), 2);
    assert!(
        stats.stages.iter().all(|stage| stage.steps == stats.steps && stage.time.compute > Duration::ZERO)
    );
}

#[test]
fn a_listener_that_goes_away_harms_nobody() {
    let engine = engine(row(2));
    let (sender, events) = mpsc::channel();
    let deaf = engine.submit(request(&[1], 100), move |event| drop(sender.send(event))).unwrap();
    drop(events);
    assert_eq!(collect(engine.generate(request(&[2], 100)).unwrap()).0.len(), 100);
    wait_until("the end of the first", || engine.stats().tokens_generated == 200);
    drop(deaf);
}

#[test]
fn too_many_requests_are_refused() {
    let (sender, words) = mpsc::channel();
    let stage = ToyStage::new(0, 1, PAGES, PAGE_TOKENS);
    let stages = vec![on_thread(Gate { stage, words })];
    let engine = Engine::start(stages, EngineConfig { max_requests: 2, ..config() }).unwrap();
    let running: Vec<_> = (0..2).map(|i| engine.generate(request(&[i], 1)).unwrap()).collect();
    let refused = engine.generate(request(&[3], 1)).unwrap_err();
    assert!(matches!(refused, SubmitError::Engine(EngineError::Busy { limit: 2 })), "{refused:?}");
    (0..4).for_each(|_| sender.send(None).unwrap());
    running.into_iter().for_each(|tokens| drop(collect(tokens)));
    wait_until("room", || engine.generate(request(&[3], 1)).is_ok());
}

#[test]
fn bad_requests_are_refused() {
    let engine = engine(row(1));
    let refuse = |request: Request| match engine.generate(request) {
        Err(SubmitError::Request(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse(request(&[], 5)), RequestError::EmptyPrompt);
    assert_eq!(refuse(request(&[1], 0)), RequestError::MaxTokens);
    let outside = RequestError::Token { position: 1, token: VOCAB, last: VOCAB - 1 };
    assert_eq!(refuse(request(&[1, VOCAB], 5)), outside);
    assert_eq!(refuse(request(&[1; 400], 5)), RequestError::Context { found: 400, context: 400 });
}

#[test]
fn a_bad_configuration_is_refused() {
    let config = EngineConfig { cache: CacheConfig { page_tokens: 0, ..CACHE }, ..config() };
    let error = Engine::start(row(1), config).unwrap_err();
    assert!(
        matches!(error, EngineError::Config { name: "cache.page_tokens", found: 0, min: 1 }),
        "{error:?}"
    );
}

/// A stage that is lost once a number of batches has come, and whose replacement is not.
struct Mortal {
    stage: ToyStage,
    left: Arc<AtomicI64>,
    /// Whether it is lost when a batch comes, or when its result is due.
    late: bool,
}

impl Compute for Mortal {
    fn span(&self) -> StageSpan {
        self.stage.span()
    }

    fn queues(&self) -> bool {
        self.late
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let lost = self.left.fetch_sub(1, Ordering::SeqCst) == 0;
        let error = || StageError::Lost { node: "studio".into(), reason: "its cable was pulled".into() };
        match lost {
            true if self.late => Ok(Box::new(move || Err(error()))),
            true => Err(error()),
            false => self.stage.start(batch, input),
        }
    }
}

/// Guesses the answer's own tokens, and sometimes others.
#[derive(Debug)]
struct Guesser(Vec<u32>);

impl Drafter for Guesser {
    fn draft(&self, tokens: &[u32], max: usize) -> Vec<u32> {
        let rest = self.0.iter().skip(tokens.len()).take(max.min(3));
        rest.enumerate()
            .map(|(i, &token)| if (tokens.len() + i).is_multiple_of(5) { 1 } else { token })
            .collect()
    }
}

/// Requests whose prompts take several batches, one that decodes plainly and one whose guesses are verified.
fn requests() -> Vec<Request> {
    let plain = [request(&[7; 30], 12), request(&(0..45).collect::<Vec<_>>(), 15)];
    let alone = collect(engine(row(3)).generate(plain[1].clone()).unwrap()).0;
    let text = [&plain[1].prompt[..], &alone].concat();
    let guessed = Request { drafter: Some(Arc::new(Guesser(text))), ..plain[1].clone() };
    [&plain[..], &[guessed]].concat()
}

fn recovering() -> EngineConfig {
    EngineConfig { recovery: LONG, token_budget: 16, ..config() }
}

#[test]
fn a_stage_that_dies_at_any_step_changes_no_text() {
    let requests = requests();
    let expected: Vec<_> =
        requests.iter().map(|r| collect(engine(row(3)).generate(r.clone()).unwrap()).0).collect();
    let mut losses = 0;
    for (stage, late) in [(0, false), (1, false), (1, true), (2, false), (2, true)] {
        for step in 0.. {
            // The other two stages are made once, and only lend their places to the engine.
            let left = Arc::new(AtomicI64::new(step));
            let toy = || ToyStage::new(stage, 3, PAGES, PAGE_TOKENS);
            let mut stages = row(3);
            stages[stage] = on_thread(Mortal { stage: toy(), left: left.clone(), late });
            let engine = Engine::start(stages, recovering()).unwrap();
            let replaced = Arc::new(AtomicI64::new(0));
            let count = replaced.clone();
            let replacement = move |lost: &LostStage| {
                assert!(lost.stage == stage && lost.reason.contains("cable"), "{lost:?}");
                count.fetch_add(1, Ordering::SeqCst);
                Ok(on_thread(ToyStage::new(stage, 3, PAGES, PAGE_TOKENS)))
            };
            engine.recover_with(replacement).unwrap();
            let running: Vec<_> = requests.iter().map(|r| engine.generate(r.clone()).unwrap()).collect();
            for (tokens, expected) in running.into_iter().zip(&expected) {
                let (answer, end) = collect(tokens);
                assert_eq!((&answer, finished(&end).0), (expected, FinishReason::Length));
            }
            wait_until("the last page", || engine.stats().scheduler.pages_used == 0);
            let stats = engine.stats();
            let lost = u64::from(left.load(Ordering::SeqCst) < 0);
            assert_eq!((stats.losses, replaced.load(Ordering::SeqCst)), (lost, lost as i64));
            assert!(engine.down().is_none() && engine.lost().is_none());
            losses += lost;
            if lost == 0 {
                assert!(step > 20, "the schedule has {step} steps");
                break;
            }
        }
    }
    assert!(losses > 100, "{losses}");
}

/// A stage that says that it is lost when it gets a word, with nothing to compute.
struct Watched {
    stage: Box<dyn StageRunner>,
    words: Option<Receiver<()>>,
}

impl StageRunner for Watched {
    fn span(&self) -> StageSpan {
        self.stage.span()
    }

    fn submit(&mut self, batch: Arc<Batch>, input: Option<Hidden>, done: Done) {
        self.stage.submit(batch, input, done);
    }

    fn watch(&mut self, lost: LossWatch) {
        let words = self.words.take().unwrap();
        std::thread::spawn(move || {
            if words.recv().is_ok() {
                lost(StageError::Lost { node: "studio".into(), reason: "the link is closed".into() });
            }
        });
    }
}

fn watched(config: EngineConfig) -> (Engine, Sender<()>) {
    let (word, words) = mpsc::channel();
    let mut stages = row(2);
    let stage = stages.remove(0);
    stages.insert(0, Box::new(Watched { stage, words: Some(words) }));
    (Engine::start(stages, config).unwrap(), word)
}

#[test]
fn a_stage_lost_while_idle_is_seen_and_waited_for() {
    let (engine, word) = watched(recovering());
    let expected = collect(engine.generate(request(&[1, 2], 9)).unwrap()).0;
    word.send(()).unwrap();
    wait_until("the loss", || engine.lost().is_some());
    let lost = engine.lost().unwrap();
    assert!(lost.stage == 0 && lost.reason.contains("the link is closed"), "{lost:?}");
    let waiting = engine.generate(request(&[1, 2], 9)).unwrap();
    let wrong = engine.replace_stage(0, on_thread(ToyStage::new(1, 2, PAGES, PAGE_TOKENS))).unwrap_err();
    assert!(wrong.to_string().contains("stage 0 holds layers 0..1"), "{wrong}");
    let nowhere = engine.replace_stage(5, on_thread(ToyStage::new(1, 2, PAGES, PAGE_TOKENS))).unwrap_err();
    assert!(nowhere.to_string().contains("no stage 5"), "{nowhere}");
    assert!(engine.lost().is_some());
    engine.replace_stage(0, on_thread(ToyStage::new(0, 2, PAGES, PAGE_TOKENS))).unwrap();
    assert_eq!(collect(waiting).0, expected);
    assert!(engine.lost().is_none());
    // One that works can be replaced too.
    engine.replace_stage(1, on_thread(ToyStage::new(1, 2, PAGES, PAGE_TOKENS))).unwrap();
    assert_eq!(collect(engine.generate(request(&[1, 2], 9)).unwrap()).0, expected);
}

#[test]
fn a_stage_lost_while_idle_takes_an_engine_without_recovery_down() {
    let (engine, word) = watched(config());
    word.send(()).unwrap();
    wait_until("the end", || engine.down().is_some());
    assert!(engine.down().unwrap().to_string().contains("the link is closed"));
}

#[test]
fn nobody_waits_for_ever_for_a_lost_stage() {
    let (engine, word) = watched(EngineConfig { recovery: Duration::from_millis(30), ..config() });
    word.send(()).unwrap();
    wait_until("the loss", || engine.lost().is_some());
    // The second one comes when the time is over already.
    for _ in 0..2 {
        let (_, end) = collect(engine.generate(request(&[1], 5)).unwrap());
        let TokenEvent::Failed { error: error @ EngineError::StageLost { .. } } = end else {
            panic!("{end:?}")
        };
        assert!(error.to_string().contains("no other came within 0.03 s"), "{error}");
    }
    assert_eq!(engine.stats().scheduler.pages_used, 0);
    // Late is not never.
    engine.replace_stage(0, on_thread(ToyStage::new(0, 2, PAGES, PAGE_TOKENS))).unwrap();
    let (tokens, end) = collect(engine.generate(request(&[1], 5)).unwrap());
    assert_eq!(tokens.len(), 5, "{end:?}");

    let (engine, word) = watched(recovering());
    engine.recover_with(|_| Err("the studio is on fire".into())).unwrap();
    let running = engine.generate(request(&[1], 5)).unwrap();
    collect(running);
    word.send(()).unwrap();
    wait_until("the end", || engine.down().is_some());
    assert!(engine.down().unwrap().to_string().contains("on fire"));
}

#[test]
fn a_paused_request_rests() {
    let (engine, gate) = gated();
    let (sender, events) = mpsc::channel();
    let running = engine.submit(request(&[1], 20), move |event| sender.send(event).unwrap()).unwrap();
    (0..3).for_each(|_| gate.send(None).unwrap());
    let mut seen = 0;
    while seen < 3 {
        assert!(matches!(events.recv_timeout(LONG).unwrap(), TokenEvent::Token { .. }));
        seen += 1;
    }
    running.set_paused(true);
    (0..40).for_each(|_| gate.send(None).unwrap());
    // At most the batches that were made before the word came.
    let mut more = 0;
    while events.recv_timeout(Duration::from_millis(200)).is_ok() {
        more += 1;
    }
    assert!(more <= 2, "{more} tokens came");
    assert!(engine.stats().scheduler.pages_used > 0);
    running.set_paused(false);
    let rest: Vec<_> = events.iter().take(17 - more + 1).collect();
    assert!(matches!(rest.last(), Some(TokenEvent::Finished { .. })), "{rest:?}");
}

/// A stage that does nothing, for its span alone.
struct Idle(StageSpan);

impl StageRunner for Idle {
    fn span(&self) -> StageSpan {
        self.0.clone()
    }

    fn submit(&mut self, batch: Arc<Batch>, _: Option<Hidden>, done: Done) {
        let what = format!("step {}", batch.step);
        done.finish(Err(StageError::Input { span: self.span(), what }), Default::default());
    }
}

/// A pipeline of stages that do nothing, and what it reports.
fn idle(
    spans: impl IntoIterator<Item = StageSpan>,
) -> Result<(Pipeline, Receiver<PipelineEvent>), PipelineError> {
    let (sender, events) = mpsc::channel();
    let stages = spans.into_iter().map(|span| Box::new(Idle(span)) as Box<dyn StageRunner>).collect();
    Ok((Pipeline::new(stages, move |event| sender.send(event).unwrap())?, events))
}

#[test]
fn stages_that_make_up_no_model_are_refused() {
    assert_eq!(idle([]).unwrap_err(), PipelineError::Empty);
    let complaint = |spans: Vec<StageSpan>| idle(spans).unwrap_err().to_string();
    let gap = complaint(vec![span(0, 3), span(2, 3)]);
    assert!(gap.contains("stage 1 of 2: its first layer is 2, expected 1"), "{gap}");
    let headless = complaint(vec![span(0, 3), span(1, 3)]);
    assert!(headless.contains("stage 1 of 2: having the head is false, expected true"), "{headless}");
    let doubled = complaint(vec![span(0, 1), span(1, 2)]);
    assert!(doubled.contains("stage 0 of 2: having the head is true, expected false"), "{doubled}");
    let beheaded = complaint(vec![span(1, 2)]);
    assert!(beheaded.contains("stage 0 of 1: its first layer is 1, expected 0"), "{beheaded}");
}

#[test]
fn errors_of_a_stage_come_out_in_order() {
    let (pipeline, events) = idle([span(0, 3), span(1, 3), span(2, 3)]).unwrap();
    for step in 0..5 {
        pipeline.submit(Batch { step, ..Default::default() });
    }
    for expected in 0..5 {
        let PipelineEvent::Step(StepOutput { step, result, times }) = events.recv().unwrap() else {
            panic!()
        };
        assert_eq!((step, times.len()), (expected, 1), "the stages after it are spared");
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("stage 0-0: step {step}")), "{error}");
    }
}

#[test]
fn an_answer_does_not_stop_before_its_least_length() {
    let engine = engine(row(1));
    let (tokens, _) = collect(engine.generate(request(&[1, 2, 3], 40)).unwrap());
    let stop_ids = vec![tokens[0], tokens[5]];
    let short = Request { stop_ids: stop_ids.clone(), ..request(&[1, 2, 3], 40) };
    let (answer, end) = collect(engine.generate(short.clone()).unwrap());
    assert_eq!((answer.len(), finished(&end).0), (0, FinishReason::Stop));
    let (answer, _) = collect(engine.generate(Request { min_tokens: 40, ..short.clone() }).unwrap());
    assert_eq!(answer.len(), 40);
    assert!(answer.iter().all(|token| !stop_ids.contains(token)), "{answer:?}");
    // Once it is long enough any token may end it.
    let all: Vec<u32> = (0..VOCAB).filter(|&token| token != 7).collect();
    let (answer, end) =
        collect(engine.generate(Request { min_tokens: 3, stop_ids: all, ..short.clone() }).unwrap());
    assert!(answer.starts_with(&[7, 7, 7]), "{answer:?}");
    assert!(answer.len() == 40 || finished(&end).0 == FinishReason::Stop);
    let error = engine.generate(Request { min_tokens: 41, ..short }).unwrap_err();
    assert_eq!(error.to_string(), "min_tokens is 41, but max_tokens is 40; give a min_tokens of at most 40");
}

#[test]
fn parameters_that_name_tokens_outside_the_vocabulary_are_refused() {
    let engine = engine(row(1));
    let biased = |token| {
        let raw = RawSamplingParams { logit_bias: vec![(1, 1.0), (token, -100.0)], ..Default::default() };
        Request { params: SamplingParams::new(raw).unwrap(), ..request(&[1], 2) }
    };
    engine.generate(biased(VOCAB - 1)).unwrap();
    let error = engine.generate(biased(VOCAB)).unwrap_err().to_string();
    assert!(error.starts_with("logit_bias: there is no token 97, the model's ids end at 96;"), "{error}");
    let stopped = Request { stop_ids: vec![3, u32::MAX], ..request(&[1], 2) };
    let error = engine.generate(stopped).unwrap_err().to_string();
    assert!(error.starts_with("stop_token_ids: there is no token 4294967295,"), "{error}");
}
