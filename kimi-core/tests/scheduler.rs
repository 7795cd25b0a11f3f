//! The scheduler against a model-free simulator: whatever arrives, is cancelled or fails, every sequence gets the
//! tokens that it would get alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

mod toy;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kimi_core::batch::{Batch, Output, SequenceId};
use kimi_core::constraint::{Constrained, Constraint, Drafter, MinLength};
use kimi_core::prefix_cache::PageHash;
use kimi_core::sampler::{RawSamplingParams, SamplingParams, TokenCount, uniform};
use kimi_core::scheduler::{
    DraftCosts, FinishReason, NewSequence, Phase, RequestError, Restore, Save, Scheduler, SchedulerConfig,
    SequenceEvent,
};
use kimi_core::stage::{CacheConfig, Compute, Hidden, SequenceOutput, StageError, StageOutput};
use proptest::prelude::*;
use toy::{Alone, ToyStage, VOCAB, constrain, mix, sampled};

/// A request and what becomes of it, in simulator ticks.
#[derive(Debug, Clone)]
struct Arrival {
    at: u64,
    /// The arrival whose text comes before its prompt: a chat that goes on.
    continues: Option<usize>,
    prompt: Vec<u32>,
    max_tokens: Option<u32>,
    stop_ids: Vec<u32>,
    min_tokens: usize,
    seed: u64,
    cancel_after: Option<u64>,
    /// Whether it has a grammar.
    constrained: bool,
    /// Whether tokens are guessed for it, and how often out of four a guess is right.
    guessed: Option<u64>,
    /// When its client stops reading, and for how long.
    pause: Option<(u64, u64)>,
}

/// Allows two tokens of three; which ones depends on all tokens before.
#[derive(Debug, Clone, Copy, Default)]
struct Grammar(u64);

impl Grammar {
    fn after(self, tokens: &[u32]) -> Self {
        tokens.iter().fold(self, |state, &token| Self(mix(state.0, u64::from(token) + 1)))
    }

    fn allows(self, token: u32) -> bool {
        !mix(self.0, token.into()).is_multiple_of(3)
    }
}

impl Constraint for Grammar {
    fn accept(&mut self, token: u32) {
        *self = self.after(&[token]);
    }

    fn mask(&mut self, ahead: &[u32]) -> Option<Arc<[u32]>> {
        let state = self.after(ahead);
        let mut words = vec![0; VOCAB.div_ceil(32) as usize];
        (0..VOCAB).filter(|&t| state.allows(t)).for_each(|t| words[t as usize / 32] |= 1 << (t % 32));
        Some(words.into())
    }
}

/// Guesses from the text that a sequence will have; some guesses are wrong.
#[derive(Debug)]
struct Guesser {
    text: Vec<u32>,
    right: u64,
}

impl Drafter for Guesser {
    fn draft(&self, tokens: &[u32], max: usize) -> Vec<u32> {
        let from = tokens.len();
        let count = (mix(from as u64, self.right) % 6) as usize;
        let guess = |i: usize| {
            let right = mix(i as u64, from as u64) % 4 < self.right;
            self.text.get(i).map_or(0, |&token| if right { token } else { (token + 1) % VOCAB })
        };
        (from..from + count.min(max)).map(guess).collect()
    }
}

impl Arrival {
    fn sequence(&self, penalties: Penalties, text: &[u32]) -> NewSequence {
        let text = [&self.prompt, text].concat();
        NewSequence {
            prompt: self.prompt.clone(),
            params: Arc::new(penalties.params()),
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop_ids: self.stop_ids.clone(),
            min_length: MinLength::new(self.min_tokens, &self.stop_ids, VOCAB as usize),
            top_logprobs: 0,
            constraint: self.constrained.then(|| Constrained::new(Grammar::default())),
            drafter: self.guessed.map(|right| Arc::new(Guesser { text, right }) as _),
        }
    }

    /// The tokens and the end that it gets if it runs alone.
    fn alone(&self, stages: usize, limit: usize, penalties: Penalties) -> (Vec<u32>, FinishReason) {
        let mut model = Alone::new(stages, &self.prompt);
        let mut tokens = self.prompt.clone();
        loop {
            let counts = penalties.counts(&tokens, self.prompt.len());
            let grammar = Grammar::default().after(&tokens[self.prompt.len()..]);
            let token = model.next(uniform(self.seed, tokens.len() as u64), &counts);
            let goes_on = tokens.len() - self.prompt.len() < self.min_tokens;
            let token = constrain(token, |token| {
                (!self.constrained || grammar.allows(token)) && !(goes_on && self.stop_ids.contains(&token))
            });
            let answer = |tokens: &[u32]| tokens[self.prompt.len()..].to_vec();
            if self.stop_ids.contains(&token) {
                return (answer(&tokens), FinishReason::Stop);
            }
            tokens.push(token);
            model.feed(token);
            let answer = answer(&tokens);
            if tokens.len() == limit || Some(answer.len() as u32) == self.max_tokens {
                return (answer, FinishReason::Length);
            }
        }
    }
}

/// Which tokens a sequence's penalties count.
#[derive(Debug, Clone, Copy)]
enum Penalties {
    None,
    OfAnswer,
    OfPromptAndAnswer,
}

impl Penalties {
    fn params(self) -> SamplingParams {
        let (presence_penalty, repetition_penalty) = match self {
            Self::None => (0.0, 1.0),
            Self::OfAnswer => (0.5, 1.0),
            Self::OfPromptAndAnswer => (0.0, 1.1),
        };
        let raw = RawSamplingParams { presence_penalty, repetition_penalty, ..Default::default() };
        SamplingParams::new(raw).unwrap()
    }

    fn counts(self, tokens: &[u32], prompt: usize) -> Vec<TokenCount> {
        let counted = match self {
            Self::None => &[],
            Self::OfAnswer => &tokens[prompt..],
            Self::OfPromptAndAnswer => tokens,
        };
        let in_answer = |token| tokens[prompt..].iter().filter(|&&t| t == token).count() as u32;
        let distinct: BTreeSet<u32> = counted.iter().copied().collect();
        distinct.into_iter().map(|token| TokenCount { token, in_answer: in_answer(token) }).collect()
    }
}

/// What a sequence has got so far.
#[derive(Default)]
struct Answer {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    end: Option<SequenceEvent>,
}

/// What waits before a stage.
enum Work {
    /// A batch, with what the stage before made of it.
    Step(Batch, Option<Hidden>),
    /// A page to be copied out, by its ticket.
    Read(u64),
    /// A page to be put in.
    Write(u64),
}

impl Work {
    fn batch(&self) -> Option<&Batch> {
        match self {
            Self::Step(batch, _) => Some(batch),
            Self::Read(_) | Self::Write(_) => None,
        }
    }
}

/// A page on its way out of the stages or into them.
enum Copy {
    Save(Save, Vec<Vec<u64>>),
    Restore(Restore, Vec<Vec<u64>>, usize),
}

/// Stages that compute one batch at a time, each when it is told to.
struct Simulator {
    config: SchedulerConfig,
    scheduler: Scheduler,
    stages: Vec<ToyStage>,
    queues: Vec<VecDeque<Work>>,
    /// Stored pages, with the cells of each stage.
    disk: BTreeMap<PageHash, Vec<Vec<u64>>>,
    copies: BTreeMap<u64, Copy>,
    answers: BTreeMap<SequenceId, Answer>,
    /// Batches that may be in flight.
    depth: usize,
    /// Batches that verified guesses, and all.
    verified: usize,
    steps: usize,
}

impl Simulator {
    fn new(config: SchedulerConfig) -> Self {
        let stages = ToyStage::row(config.stages, config.cache.pages as u32, config.cache.page_tokens);
        let queues = (0..config.stages).map(|_| VecDeque::new()).collect();
        let (scheduler, depth) = (Scheduler::new(config.clone()), config.stages);
        let (disk, copies, answers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { scheduler, config, stages, queues, disk, copies, answers, depth, verified: 0, steps: 0 }
    }

    /// Deletes stored pages that may be wrong.
    fn delete_forgotten(&mut self) {
        for hash in self.scheduler.take_forgotten() {
            self.disk.remove(&hash);
        }
    }

    /// Does what is to be done for stored pages; some can't be read, and some are dropped. Says whether pages were wanted.
    fn keep_pages(&mut self, chance: u64) -> bool {
        self.delete_forgotten();
        drop(self.scheduler.take_used());
        if chance.is_multiple_of(11)
            && let Some(hash) = self.disk.keys().nth((chance >> 8) as usize % self.disk.len().max(1)).copied()
        {
            self.disk.remove(&hash);
            self.scheduler.unstored(&[hash]);
        }
        let restores = self.scheduler.take_restores();
        let wanted = !restores.is_empty();
        for restore in restores {
            match self.disk.get(&restore.hash).filter(|_| !chance.is_multiple_of(5)) {
                Some(page) => {
                    self.copies.insert(restore.ticket, Copy::Restore(restore, page.clone(), 0));
                    self.queues.iter_mut().for_each(|queue| queue.push_back(Work::Write(restore.ticket)));
                }
                None => {
                    self.disk.remove(&restore.hash);
                    self.scheduler.restored(restore.ticket, false);
                }
            }
        }
        if chance.is_multiple_of(2)
            && let Some(save) = self.scheduler.next_save()
        {
            self.copies.insert(save.ticket, Copy::Save(save, Vec::new()));
            self.queues.iter_mut().for_each(|queue| queue.push_back(Work::Read(save.ticket)));
        }
        wanted
    }

    /// A stage copies a page. Those of a copy are asked in any order, so that its parts are sorted by stage at the end.
    fn copy(&mut self, stage: usize, ticket: u64) {
        let stages = self.stages.len();
        match self.copies.get_mut(&ticket) {
            None => {} // a stage was lost since
            Some(Copy::Restore(restore, cells, done)) => {
                self.stages[stage].set_page(restore.page, &cells[stage]);
                *done += 1;
                if *done == stages {
                    self.copies.remove(&ticket);
                    self.scheduler.restored(ticket, true);
                }
            }
            Some(Copy::Save(save, parts)) => {
                parts.resize(stages, Vec::new());
                parts[stage] = self.stages[stage].page(save.page).to_vec();
                if parts.iter().all(|part| !part.is_empty()) {
                    if self.scheduler.is_saving(ticket) {
                        self.disk.insert(save.hash, std::mem::take(parts));
                    }
                    self.copies.remove(&ticket);
                    self.scheduler.saved(ticket, true);
                }
            }
        }
    }

    fn add(&mut self, sequence: NewSequence) -> Result<SequenceId, RequestError> {
        let answer = Answer { prompt: sequence.prompt.clone(), ..Answer::default() };
        let id = self.scheduler.add(sequence)?;
        assert!(self.answers.insert(id, answer).is_none(), "an id was given out twice");
        Ok(id)
    }

    /// Hands out a batch; says whether there was one.
    fn submit(&mut self) -> bool {
        let batch = self.scheduler.next_batch();
        let found = batch.is_some();
        let verifies =
            |batch: &Batch| batch.sequences.iter().any(|s| self.scheduler.phase(s.id) == Some(Phase::Verify));
        self.verified += usize::from(batch.as_ref().is_some_and(verifies));
        self.steps += usize::from(found);
        self.queues[0].extend(batch.map(|batch| Work::Step(batch, None)));
        self.check();
        found
    }

    /// Has one of the busy stages compute one batch; the last stage fails if `fail`. Says whether one was busy.
    fn advance(&mut self, choice: u64, fail: bool) -> bool {
        let busy: Vec<_> = (0..self.queues.len()).filter(|&i| !self.queues[i].is_empty()).collect();
        if busy.is_empty() {
            return false;
        }
        let stage = busy[choice as usize % busy.len()];
        let (batch, input) = match self.queues[stage].pop_front().unwrap() {
            Work::Step(batch, input) => (batch, input),
            Work::Read(ticket) | Work::Write(ticket) => {
                self.copy(stage, ticket);
                return true;
            }
        };
        if stage == 0 {
            self.check_tokens(&batch);
        }
        match self.stages[stage].run(&batch, input).unwrap() {
            StageOutput::Hidden(hidden) => self.queues[stage + 1].push_back(Work::Step(batch, Some(hidden))),
            StageOutput::Sequences(_) if fail => {
                self.stages.iter_mut().for_each(|stage| stage.spoil(&batch));
                let events = self.scheduler.failed(batch.step, &device_error());
                self.take(events);
            }
            StageOutput::Sequences(outputs) => {
                let events = self.scheduler.complete(batch.step, outputs);
                self.take(events);
            }
        }
        self.check();
        true
    }

    /// How many batches may be in flight from now on.
    fn set_depth(&mut self, depth: usize) {
        self.depth = depth.max(self.config.stages);
        self.scheduler.set_depth(depth);
    }

    /// Replaces a stage by one whose cache is empty. Batches before the later stages are not computed any more, or are, as
    /// `late` says: those on the way may still reach the stages, but no result of theirs is heard of.
    fn lose(&mut self, stage: usize, late: bool) {
        let config = &self.config;
        self.stages[stage] =
            ToyStage::new(stage, config.stages, config.cache.pages as u32, config.cache.page_tokens);
        for (i, queue) in self.queues.iter_mut().enumerate() {
            for work in queue.drain(..).filter(|_| late) {
                match (work, &self.copies) {
                    (Work::Step(batch, input), _) if batch.follows.is_none() => {
                        self.stages[i].run(&batch, input).unwrap();
                    }
                    (Work::Write(ticket), copies) => {
                        if let Some(Copy::Restore(restore, cells, _)) = copies.get(&ticket) {
                            self.stages[i].set_page(restore.page, &cells[i]);
                        }
                    }
                    _ => {}
                }
            }
        }
        self.copies.clear();
        self.scheduler.forget_cache();
        self.check();
        assert_eq!(self.scheduler.pool().used(), 0);
    }

    fn cancel(&mut self, id: SequenceId) {
        let events = self.scheduler.cancel(id);
        self.take(events);
        self.check();
    }

    fn take(&mut self, events: impl IntoIterator<Item = SequenceEvent>) {
        for event in events {
            let (SequenceEvent::Token { id, .. }
            | SequenceEvent::Finished { id, .. }
            | SequenceEvent::Failed { id, .. }) = event;
            let answer = self.answers.get_mut(&id).unwrap();
            assert!(answer.end.is_none(), "an event after the end: {event:?}");
            match event {
                SequenceEvent::Token { index, sampled, .. } => {
                    assert_eq!(index as usize, answer.tokens.len());
                    answer.tokens.push(sampled.token);
                }
                end => answer.end = Some(end),
            }
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let in_flight: Vec<_> = self.queues.iter().rev().flatten().filter_map(Work::batch).collect();
        // The depth may have been larger when they were handed out.
        assert!(in_flight.len() <= MAX_DEPTH + 1);
        if self.depth == MAX_DEPTH {
            let extra = usize::from(self.config.queues || self.config.chains);
            assert!(in_flight.len() <= self.depth + extra);
        }
        let mut owners = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for batch in in_flight {
            assert!(!batch.sequences.is_empty() && batch.sequences.len() <= self.config.max_sequences);
            assert!(batch.tokens() <= self.config.token_budget);
            let ids: BTreeSet<_> = batch.sequences.iter().map(|s| s.id).collect();
            assert_eq!(ids.len(), batch.sequences.len(), "a sequence is in a batch twice");
            for slice in &batch.sequences {
                let written = slice.start as usize / self.config.cache.page_tokens;
                for (i, &page) in slice.pages.iter().enumerate() {
                    let holders = self.scheduler.pool().holders(page);
                    assert!(holders > 0, "a batch in flight uses a freed page");
                    assert!(i < written || holders == 1, "a page is written that others read");
                    let may_share = i < written && self.config.prefix_cache;
                    let owner = *owners.entry(page).or_insert(slice.id);
                    assert!(may_share || owner == slice.id, "a page is used twice");
                }
                let samples = matches!(slice.output, Output::Sample(_));
                let end = (slice.start + slice.tokens.len() as u32, samples, batch.step);
                if let Some((before, sampled, step)) = ends.insert(slice.id, end) {
                    assert_eq!(before, slice.start, "chunks do not follow each other");
                    let waits = batch.follows != Some(step);
                    assert!(!(sampled && waits), "a batch takes a sampled token that it does not wait for");
                }
            }
        }
    }

    /// The pages of a sequence hold its tokens.
    fn check_tokens(&self, batch: &Batch) {
        for slice in &batch.sequences {
            let answer = &self.answers[&slice.id];
            if answer.end.is_some() {
                continue; // what else was in flight for it is worth nothing if it failed
            }
            let tokens = answer.prompt.iter().chain(&answer.tokens).map(|&token| u64::from(token));
            let cells = slice.pages.iter().flat_map(|&page| self.stages[0].page(page));
            for (i, (token, &cell)) in tokens.zip(cells).take(slice.start as usize).enumerate() {
                assert_eq!(
                    token,
                    cell,
                    "token {i} of {:?}, page {}",
                    slice.id,
                    i / self.config.cache.page_tokens
                );
            }
        }
    }

    /// Every known page holds in every stage what its text would leave there alone, as every stored page does; says how many
    /// known pages there are.
    fn check_known_pages(&self) -> usize {
        let page_tokens = self.config.cache.page_tokens;
        let (mut seen, mut stored) = (BTreeSet::new(), BTreeSet::new());
        for answer in self.answers.values() {
            let tokens = [answer.prompt.as_slice(), &answer.tokens].concat();
            let hashes = PageHash::of_pages(&tokens, page_tokens);
            let known = hashes.iter().map(|hash| self.scheduler.pool().find(hash));
            let known: Vec<_> = known.enumerate().filter_map(|(i, page)| Some((i, page?))).collect();
            let on_disk = hashes.iter().enumerate().filter(|(_, hash)| self.disk.contains_key(hash));
            let on_disk: Vec<_> = on_disk.filter(|(_, hash)| !stored.contains(*hash)).collect();
            if known.iter().all(|(_, page)| seen.contains(page)) && on_disk.is_empty() {
                continue;
            }
            let alone = Alone::new(self.config.stages, &tokens);
            for (i, &hash) in on_disk {
                stored.insert(hash);
                for (page, cells) in self.disk[&hash].iter().zip(alone.cells()) {
                    assert_eq!(page, &cells[i * page_tokens..][..page_tokens], "a stored page is wrong");
                }
            }
            for (i, page) in known {
                seen.insert(page);
                for (stage, cells) in self.stages.iter().zip(alone.cells()) {
                    assert_eq!(stage.page(page), &cells[i * page_tokens..][..page_tokens]);
                }
            }
        }
        assert_eq!(stored.len(), self.disk.len(), "a stored page is of no text");
        assert_eq!(seen.len(), self.scheduler.pool().known() as usize, "a known page is of no text");
        seen.len()
    }

    /// Runs until nothing is left to do.
    fn finish(&mut self) {
        let mut turns = 0;
        loop {
            let moved = self.submit() || self.advance(0, false);
            if !self.keep_pages(turns) && !moved && self.queues.iter().all(VecDeque::is_empty) {
                break;
            }
            turns += 1;
            assert!(turns < 20_000, "it goes on for ever: {:?}", self.scheduler);
        }
        let stats = self.scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.pages_used), (0, 0, 0));
        assert_eq!(stats.prefix.stored as usize, self.disk.len());
        self.check_known_pages();
    }
}

fn device_error() -> StageError {
    StageError::Backend(kimi_quant::BackendError::Device("test".into()))
}

/// Most batches in flight in the simulations.
const MAX_DEPTH: usize = 7;

/// Prompts of which many begin alike.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    let tail = |min| prop::collection::vec(0..VOCAB, min..12);
    let alike = (0..3u32, 0..40u32, tail(1)).prop_map(|(text, count, tail)| {
        let begin = (0..count).map(|i| (mix(text.into(), i.into()) % u64::from(VOCAB)) as u32);
        begin.chain(tail).collect()
    });
    prop_oneof![prop::collection::vec(0..VOCAB, 1..40), alike]
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let request = (
        0..60u64,
        prop::option::weighted(0.3, 0..14usize),
        any_prompt(),
        prop::option::of(1..20u32),
        (prop::collection::vec(0..VOCAB, 0..6), 0..12usize),
        any::<u64>(),
    );
    let events = (
        prop::option::weighted(0.2, 0..30u64),
        prop::bool::weighted(0.3),
        prop::option::weighted(0.4, 0..5u64),
        prop::option::weighted(0.2, (0..40u64, 1..60u64)),
    );
    (request, events).prop_map(
        |(
            (at, continues, prompt, max_tokens, (stop_ids, min_tokens), seed),
            (cancel_after, constrained, guessed, pause),
        )| {
            Arrival {
                at,
                continues,
                prompt,
                max_tokens,
                stop_ids,
                min_tokens,
                seed,
                cancel_after,
                constrained,
                guessed,
                pause,
            }
        },
    )
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    let stages = prop_oneof![
        (1..5usize, any::<bool>()).prop_map(|(stages, queues)| (stages, queues, false)),
        any::<bool>().prop_map(|queues| (1, queues, true))
    ];
    let features = (0..9usize, prop::bool::weighted(0.8));
    (2..100usize, 1..24usize, 1..9usize, 1..40usize, 1..8usize, stages, features).prop_map(
        |(context_tokens, pages, page_tokens, token_budget, max_sequences, stages, features)| {
            let (stages, queues, chains) = stages;
            let (max_drafts, prefix_cache) = features;
            SchedulerConfig {
                context_tokens,
                cache: CacheConfig { pages, page_tokens },
                token_budget,
                max_sequences,
                stages,
                queues,
                chains,
                max_drafts,
                prefix_cache,
            }
        },
    )
}

/// What becomes of one schedule besides its arrivals.
#[derive(Debug, Clone)]
struct Events {
    penalties: Penalties,
    /// About every so many batches one fails.
    failure_in: Option<u64>,
    /// About every so many ticks a stage is lost.
    loss_in: Option<u64>,
    /// Whether guesses are verified only where that pays, with costs that change.
    adaptive: bool,
    /// Whether pages are stored.
    stores: bool,
    chance: u64,
}

fn events() -> impl Strategy<Value = Events> {
    (
        prop::sample::select(vec![Penalties::None, Penalties::OfAnswer, Penalties::OfPromptAndAnswer]),
        prop::option::weighted(0.2, 5..50u64),
        prop::option::weighted(0.4, 4..60u64),
        any::<bool>(),
        prop::bool::weighted(0.6),
        any::<u64>(),
    )
        .prop_map(|(penalties, failure_in, loss_in, adaptive, stores, chance)| Events {
            penalties,
            failure_in,
            loss_in,
            adaptive,
            stores,
            chance,
        })
}

/// Runs a schedule; returns the simulator and what each sequence would get alone.
fn simulate(
    config: &SchedulerConfig,
    arrivals: &[Arrival],
    events: &Events,
) -> (Simulator, BTreeMap<SequenceId, (Vec<u32>, FinishReason)>) {
    let mut simulator = Simulator::new(config.clone());
    if events.stores {
        simulator.scheduler.store_pages([]);
    }
    let mut expected = BTreeMap::new();
    let (mut cancels, mut pauses) = (Vec::new(), Vec::new());
    let mut arrivals = arrivals.to_vec();
    for i in 0..arrivals.len() {
        let before = arrivals[i].continues.and_then(|before| arrivals[..i].get(before));
        let Some(before) = before.filter(|before| before.prompt.len() < config.limit()) else { continue };
        let answer = before.alone(config.stages, config.limit(), events.penalties).0;
        arrivals[i].prompt =
            [&before.prompt, &answer, &arrivals[i].prompt].into_iter().flatten().copied().collect();
    }
    for tick in 0..200 {
        let chance = mix(events.chance, tick);
        if tick % 64 == 63 {
            simulator.delete_forgotten();
            simulator.check_known_pages();
        }
        if events.adaptive && tick % 9 == 0 {
            let cost = 1 + (chance >> 28) % 8;
            let per_draft = [cost as f32 / 16.0; DraftCosts::SIZES];
            simulator.scheduler.set_draft_costs(DraftCosts { per_draft, waiting: 0.0 });
        }
        for arrival in arrivals.iter().filter(|a| a.at == tick) {
            let fits = arrival.prompt.len() < config.limit();
            let alone = match fits {
                true => arrival.alone(config.stages, config.limit(), events.penalties),
                false => (Vec::new(), FinishReason::Length),
            };
            let added = simulator.add(arrival.sequence(events.penalties, &alone.0));
            assert_eq!(added.is_ok(), fits, "{added:?}");
            if let Ok(id) = added {
                expected.insert(id, alone);
                cancels.extend(arrival.cancel_after.map(|after| (tick + after, id)));
                pauses.extend(arrival.pause.map(|(after, time)| (tick + after, tick + after + time, id)));
            }
        }
        cancels.iter().filter(|(at, _)| *at == tick).for_each(|(_, id)| simulator.cancel(*id));
        for &(from, to, id) in &pauses {
            if tick == from || tick == to {
                simulator.scheduler.set_paused(id, tick == from);
            }
        }
        if chance.is_multiple_of(7) {
            simulator.set_depth((chance >> 16) as usize % (MAX_DEPTH + 1));
            simulator.scheduler.set_prompt_tokens((chance >> 20) as usize % 50);
        }
        if events.loss_in.is_some_and(|n| (chance >> 24).is_multiple_of(n)) {
            simulator.lose((chance >> 32) as usize % config.stages, chance.is_multiple_of(2));
        }
        simulator.keep_pages(chance >> 12);
        if !chance.is_multiple_of(3) {
            simulator.submit();
        }
        if !chance.is_multiple_of(5) {
            let fail = events.failure_in.is_some_and(|n| chance.is_multiple_of(n));
            simulator.advance(chance >> 8, fail);
        }
    }
    pauses.iter().for_each(|(_, _, id)| simulator.scheduler.set_paused(*id, false));
    simulator.finish();
    (simulator, expected)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn every_sequence_gets_the_tokens_it_would_get_alone(
        config in config(),
        arrivals in prop::collection::vec(arrival(), 1..14),
        events in events(),
    ) {
        let (simulator, expected) = simulate(&config, &arrivals, &events);
        for (id, answer) in &simulator.answers {
            let (tokens, reason) = &expected[id];
            let generated = answer.tokens.len() as u32;
            match answer.end.as_ref().expect("every sequence ends") {
                SequenceEvent::Finished { reason: FinishReason::Cancelled, generated: n, .. }
                | SequenceEvent::Failed { generated: n, .. } => {
                    prop_assert!(tokens.starts_with(&answer.tokens));
                    prop_assert_eq!(*n, generated);
                }
                SequenceEvent::Finished { reason: found, generated: n, .. } => {
                    prop_assert_eq!((&answer.tokens, found), (tokens, reason));
                    prop_assert_eq!(*n, generated + u32::from(*found == FinishReason::Stop));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}

const DEFAULTS: SchedulerConfig = SchedulerConfig {
    context_tokens: 100_000,
    cache: CacheConfig { pages: 10_000, page_tokens: 16 },
    token_budget: 512,
    max_sequences: 32,
    stages: 1,
    queues: false,
    chains: false,
    max_drafts: 8,
    // Most tests count what each of several equal prompts takes.
    prefix_cache: false,
};

fn prompt(tokens: usize, max_tokens: u32) -> NewSequence {
    NewSequence {
        prompt: (0..tokens as u32).map(|i| i % VOCAB).collect(),
        params: Arc::new(Penalties::OfPromptAndAnswer.params()),
        seed: 1,
        max_tokens: Some(max_tokens),
        stop_ids: vec![],
        min_length: None,
        top_logprobs: 0,
        constraint: None,
        drafter: None,
    }
}

/// Id and number of new tokens of each sequence of a batch.
fn shares(batch: &Batch) -> Vec<(u64, usize)> {
    batch.sequences.iter().map(|s| (s.id.0, s.tokens.len())).collect()
}

/// Completes a batch with token 1 for each sequence that asks for one.
fn complete(scheduler: &mut Scheduler, batch: &Batch) -> Vec<SequenceEvent> {
    let asked = batch.sequences.iter().filter(|s| s.output != Output::None);
    let outputs = asked.map(|s| {
        let sampled = s.choices().iter().map(|_| Ok(sampled(1))).collect();
        SequenceOutput { id: s.id, sampled, logits: vec![] }
    });
    scheduler.complete(batch.step, outputs.collect())
}

#[test]
fn a_long_prompt_stalls_nobody() {
    let mut scheduler = Scheduler::new(DEFAULTS);
    scheduler.add(prompt(10, 100)).unwrap();
    let first = scheduler.next_batch().unwrap();
    complete(&mut scheduler, &first);
    scheduler.add(prompt(5000, 1)).unwrap();
    scheduler.add(prompt(300, 100)).unwrap();
    let steps: Vec<_> = std::iter::from_fn(|| {
        let batch = scheduler.next_batch()?;
        complete(&mut scheduler, &batch);
        Some(shares(&batch))
    })
    .take(3)
    .collect();
    // The decoding sequence is in every batch; the older prompt gets its half, the short one the other.
    assert_eq!(steps[0], [(0, 1), (1, 256), (2, 255)]);
    assert_eq!(steps[1], [(0, 1), (1, 466), (2, 45)]);
    assert_eq!(steps[2], [(0, 1), (2, 1), (1, 510)]);
}

#[test]
fn chunks_of_a_prompt_follow_each_other_through_the_stages() {
    let mut scheduler = Scheduler::new(SchedulerConfig { stages: 3, ..DEFAULTS });
    scheduler.add(prompt(1100, 5)).unwrap();
    let batches: Vec<_> = std::iter::from_fn(|| scheduler.next_batch()).collect();
    assert_eq!(batches.iter().map(|b| b.sequences[0].start).collect::<Vec<_>>(), [0, 512, 1024]);
    assert_eq!(batches.iter().map(|b| b.sequences[0].pages.len()).collect::<Vec<_>>(), [32, 64, 69]);
    assert!(complete(&mut scheduler, &batches[0]).is_empty());
    assert!(scheduler.next_batch().is_none(), "the next token is not known yet");
    complete(&mut scheduler, &batches[1]);
    assert_eq!(complete(&mut scheduler, &batches[2]).len(), 1);
    assert_eq!(shares(&scheduler.next_batch().unwrap()), [(0, 1)]);
}

#[test]
fn decoding_sequences_are_spread_over_the_stages() {
    let mut scheduler = Scheduler::new(SchedulerConfig { stages: 2, ..DEFAULTS });
    for _ in 0..4 {
        scheduler.add(prompt(10, 100)).unwrap();
    }
    let prefill = scheduler.next_batch().unwrap();
    assert_eq!(shares(&prefill).len(), 4);
    complete(&mut scheduler, &prefill);
    let (a, b) = (scheduler.next_batch().unwrap(), scheduler.next_batch().unwrap());
    assert_eq!((shares(&a), shares(&b)), (vec![(0, 1), (1, 1)], vec![(2, 1), (3, 1)]));
}

#[test]
fn a_batch_of_decodes_is_followed_before_it_is_done() {
    let mut scheduler = Scheduler::new(SchedulerConfig { chains: true, ..DEFAULTS });
    let greedy = |tokens, max_tokens| NewSequence {
        params: Arc::new(SamplingParams::greedy()),
        ..prompt(tokens, max_tokens)
    };
    for max_tokens in [3, 100] {
        scheduler.add(greedy(16, max_tokens)).unwrap();
    }
    let prefill = scheduler.next_batch().unwrap();
    assert!(scheduler.next_batch().is_none(), "a prompt is not followed");
    complete(&mut scheduler, &prefill);
    let (a, b) = (scheduler.next_batch().unwrap(), scheduler.next_batch().unwrap());
    assert_eq!((a.follows, b.follows), (None, Some(a.step)));
    assert_eq!((shares(&a), shares(&b)), (vec![(0, 1), (1, 1)], vec![(0, 1), (1, 1)]));
    assert_eq!((b.sequences[0].start, b.sequences[0].tokens[0]), (17, 0));
    assert!(scheduler.next_batch().is_none());
    complete(&mut scheduler, &a);
    let c = scheduler.next_batch().unwrap();
    assert_eq!((c.follows, shares(&c)), (Some(b.step), vec![(1, 1)]), "the first ends with its third token");

    scheduler.add(greedy(10, 5)).unwrap();
    complete(&mut scheduler, &b);
    assert!(scheduler.next_batch().is_none(), "a prompt waits");
    assert_eq!(complete(&mut scheduler, &c).len(), 1);
    assert_eq!(shares(&scheduler.next_batch().unwrap()), [(1, 1), (2, 10)]);
}

#[test]
fn penalties_need_to_know_the_last_token() {
    let mut scheduler = Scheduler::new(SchedulerConfig { chains: true, ..DEFAULTS });
    scheduler.add(prompt(10, 5)).unwrap();
    for _ in 0..2 {
        let batch = scheduler.next_batch().unwrap();
        assert!(scheduler.next_batch().is_none());
        complete(&mut scheduler, &batch);
    }
}

#[test]
fn the_youngest_gives_up_its_pages_and_loses_nothing() {
    let config = SchedulerConfig { cache: CacheConfig { pages: 4, page_tokens: 4 }, stages: 2, ..DEFAULTS };
    let mut simulator = Simulator::new(config);
    for _ in 0..2 {
        simulator.add(prompt(4, 12)).unwrap();
    }
    simulator.finish();
    assert!(simulator.scheduler.stats().evictions > 0);
    let alone = Arrival {
        at: 0,
        continues: None,
        prompt: vec![0, 1, 2, 3],
        max_tokens: Some(12),
        stop_ids: vec![],
        min_tokens: 0,
        seed: 1,
        cancel_after: None,
        constrained: false,
        guessed: None,
        pause: None,
    };
    let (tokens, _) = alone.alone(2, 16, Penalties::OfPromptAndAnswer);
    assert!(simulator.answers.values().all(|answer| answer.tokens == tokens));
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut scheduler = Scheduler::new(SchedulerConfig { context_tokens: 100, ..DEFAULTS });
    assert_eq!(scheduler.add(prompt(0, 1)), Err(RequestError::EmptyPrompt));
    assert_eq!(scheduler.add(prompt(1, 0)), Err(RequestError::MaxTokens));
    let error = scheduler.add(prompt(100, 1)).unwrap_err();
    assert_eq!(error, RequestError::Context { found: 100, context: 100 });
    assert!(error.to_string().contains("100 tokens") && error.to_string().contains("at most 99"), "{error}");
    assert!(scheduler.add(prompt(99, 1)).is_ok());

    let mut scheduler =
        Scheduler::new(SchedulerConfig { cache: CacheConfig { pages: 2, ..DEFAULTS.cache }, ..DEFAULTS });
    assert_eq!(scheduler.add(prompt(32, 1)), Err(RequestError::Cache { found: 32, cache: 32 }));
    assert!(scheduler.add(prompt(31, 1)).is_ok());
}

#[test]
fn a_full_context_ends_a_sequence() {
    let mut simulator = Simulator::new(SchedulerConfig { context_tokens: 12, ..DEFAULTS });
    let id = simulator.add(prompt(10, 50)).unwrap();
    simulator.finish();
    let end = simulator.answers[&id].end.as_ref();
    assert!(
        matches!(end, Some(SequenceEvent::Finished { reason: FinishReason::Length, generated: 2, .. })),
        "{end:?}"
    );
}

#[test]
fn a_cancelled_sequence_keeps_its_pages_while_a_batch_uses_them() {
    let mut scheduler = Scheduler::new(DEFAULTS);
    let id = scheduler.add(prompt(20, 5)).unwrap();
    let batch = scheduler.next_batch().unwrap();
    assert!(scheduler.cancel(id).is_some());
    assert!(scheduler.cancel(id).is_none());
    assert_eq!(scheduler.pool().used(), 2);
    assert!(complete(&mut scheduler, &batch).is_empty());
    assert_eq!(scheduler.pool().used(), 0);

    let id = scheduler.add(prompt(20, 5)).unwrap();
    assert!(scheduler.cancel(id).is_some(), "a waiting sequence can be cancelled too");
    assert!(scheduler.next_batch().is_none());
}

#[test]
fn a_failed_batch_fails_its_sequences_only() {
    let mut scheduler = Scheduler::new(SchedulerConfig { stages: 2, max_sequences: 2, ..DEFAULTS });
    scheduler.add(prompt(600, 5)).unwrap();
    let first = scheduler.next_batch().unwrap();
    scheduler.add(prompt(10, 5)).unwrap();
    let second = scheduler.next_batch().unwrap();
    assert_eq!(shares(&second), [(0, 88), (1, 10)]);
    let events = scheduler.failed(first.step, &device_error());
    assert!(matches!(events[..], [SequenceEvent::Failed { id: SequenceId(0), .. }]), "{events:?}");
    assert!(scheduler.failed(first.step, &device_error()).is_empty(), "the step is not in flight any more");
    let events = complete(&mut scheduler, &second);
    assert!(matches!(events[..], [SequenceEvent::Token { id: SequenceId(1), .. }]), "{events:?}");
    assert_eq!(scheduler.pool().used(), 1);
}

#[test]
fn a_missing_token_fails_the_sequence() {
    let mut scheduler = Scheduler::new(DEFAULTS);
    scheduler.add(prompt(10, 5)).unwrap();
    let batch = scheduler.next_batch().unwrap();
    let events = scheduler.complete(batch.step, vec![]);
    assert!(matches!(events[..], [SequenceEvent::Failed { .. }]), "{events:?}");
    assert_eq!(scheduler.pool().used(), 0);
}

/// Steps until `done`, each completed before the next; the shares of each.
fn run_until(scheduler: &mut Scheduler, mut done: impl FnMut(&Batch) -> bool) -> Vec<Vec<(u64, usize)>> {
    let mut steps = Vec::new();
    loop {
        let batch = scheduler.next_batch().expect("something to do");
        complete(scheduler, &batch);
        steps.push(shares(&batch));
        assert!(steps.len() < 10_000, "it never came");
        if done(&batch) {
            return steps;
        }
    }
}

#[test]
fn a_short_prompt_is_done_at_once_beside_long_ones() {
    let mut scheduler = Scheduler::new(DEFAULTS);
    for _ in 0..24 {
        scheduler.add(prompt(1500, 100)).unwrap();
    }
    let first = scheduler.next_batch().unwrap();
    let id = scheduler.add(prompt(20, 100)).unwrap();
    complete(&mut scheduler, &first);
    let batch = scheduler.next_batch().unwrap();
    let slice = batch.sequences.iter().find(|s| s.id == id).expect("it is in the next batch");
    assert!(slice.tokens.len() == 20 && slice.output != Output::None);
}

#[test]
fn a_waiting_prompt_is_passed_by_no_more_pages_than_it_needs() {
    // 64 pages of 16 tokens. One sequence holds half of them; another needs 40.
    let mut scheduler =
        Scheduler::new(SchedulerConfig { cache: CacheConfig { pages: 64, ..DEFAULTS.cache }, ..DEFAULTS });
    scheduler.add(prompt(500, 400)).unwrap();
    run_until(&mut scheduler, |_| true);
    let large = scheduler.add(prompt(640, 1)).unwrap();
    let mut passed = 0;
    let mut admitted = BTreeSet::new();
    for _ in 0..200 {
        let small = scheduler.add(prompt(60, 1)).unwrap();
        let batch = scheduler.next_batch().unwrap();
        if batch.sequences.iter().any(|s| s.id == large) {
            break;
        }
        let new = batch.sequences.iter().filter(|s| s.id >= small && admitted.insert(s.id)).count();
        passed += 4 * new;
        complete(&mut scheduler, &batch);
    }
    assert_eq!(
        passed, 40,
        "small ones pass, of four pages each, until that is as much as the large one needs"
    );
}

#[test]
fn decoding_sequences_find_a_place_beside_prompts() {
    let mut scheduler = Scheduler::new(SchedulerConfig { stages: 3, ..DEFAULTS });
    scheduler.add(prompt(10, 100)).unwrap();
    run_until(&mut scheduler, |_| true);
    scheduler.set_prompt_tokens(40);
    scheduler.add(prompt(5000, 1)).unwrap();
    let mut batches: VecDeque<_> = std::iter::from_fn(|| scheduler.next_batch()).collect();
    assert_eq!(
        batches.iter().map(shares).collect::<Vec<_>>(),
        [vec![(0, 1), (1, 40)], vec![(1, 40)], vec![(1, 40)]]
    );
    for _ in 0..20 {
        complete(&mut scheduler, &batches.pop_front().unwrap());
        batches.extend(std::iter::from_fn(|| scheduler.next_batch()));
        let prompts = batches.iter().filter(|batch| !shares(batch).contains(&(0, 1))).count();
        assert!(prompts < 3 && batches.iter().any(|batch| shares(batch).contains(&(0, 1))));
        assert!(batches.iter().all(|batch| batch.tokens() <= 41));
    }
}

#[test]
fn a_prompt_alone_is_not_cut() {
    let mut scheduler = Scheduler::new(SchedulerConfig { stages: 2, queues: true, ..DEFAULTS });
    scheduler.set_prompt_tokens(40);
    scheduler.add(prompt(5000, 1)).unwrap();
    let batches: Vec<_> = std::iter::from_fn(|| scheduler.next_batch()).collect();
    assert_eq!(batches.iter().map(Batch::tokens).collect::<Vec<_>>(), [512; 3], "one more than stages");
}

#[test]
fn a_paused_sequence_rests_and_goes_on() {
    let mut scheduler =
        Scheduler::new(SchedulerConfig { cache: CacheConfig { pages: 4, page_tokens: 4 }, ..DEFAULTS });
    let (slow, quick) = (scheduler.add(prompt(4, 12)).unwrap(), scheduler.add(prompt(4, 5)).unwrap());
    let first = scheduler.next_batch().unwrap();
    scheduler.set_paused(slow, true);
    assert_eq!(complete(&mut scheduler, &first).len(), 2, "a token that was under way comes");
    while let Some(batch) = scheduler.next_batch() {
        assert_eq!(shares(&batch), [(quick.0, 1)]);
        complete(&mut scheduler, &batch);
    }
    assert!(!scheduler.is_active());
    let large = scheduler.add(prompt(14, 1)).unwrap();
    let batch = scheduler.next_batch().unwrap();
    assert_eq!(shares(&batch), [(large.0, 14)], "others may have its pages");
    complete(&mut scheduler, &batch);
    scheduler.set_paused(slow, false);
    let batch = scheduler.next_batch().unwrap();
    assert_eq!(shares(&batch), [(slow.0, 5)], "it is computed again");
}

#[test]
fn guesses_that_come_true_save_steps() {
    let tokens = |guessed, adaptive| {
        let config = SchedulerConfig { stages: 2, ..DEFAULTS };
        let arrival = Arrival {
            at: 0,
            continues: None,
            prompt: vec![3, 1, 4],
            max_tokens: Some(60),
            stop_ids: vec![],
            min_tokens: 0,
            seed: 9,
            cancel_after: None,
            constrained: true,
            guessed,
            pause: None,
        };
        let events = Events {
            penalties: Penalties::OfAnswer,
            failure_in: None,
            loss_in: None,
            adaptive,
            stores: false,
            chance: 1,
        };
        let (simulator, expected) = simulate(&config, &[arrival], &events);
        let (id, answer) = simulator.answers.iter().next().unwrap();
        assert_eq!(answer.tokens, expected[id].0);
        (simulator.verified, simulator.steps)
    };
    let (plain, some, all) = (tokens(None, false), tokens(Some(2), false), tokens(Some(4), false));
    assert_eq!(plain, (0, 60));
    assert!(some.0 > 5 && some.1 < 50, "{some:?}");
    assert!(all.0 > 5 && all.1 < 25, "{all:?}");
    // Those that are always wrong are not verified where that is measured; those that are right are, after a while.
    assert_eq!(tokens(Some(0), true), (0, 60));
    let all = tokens(Some(4), true);
    assert!(all.0 > 3 && all.1 < 45, "{all:?}");
}

/// Guesses what is always wrong, or always right.
#[derive(Debug)]
struct Same(u32);

impl Drafter for Same {
    fn draft(&self, _: &[u32], max: usize) -> Vec<u32> {
        vec![self.0; max]
    }
}

#[test]
fn steps_follow_each_other_while_no_guesses_are_verified() {
    for (guess, right) in [(1, true), (2, false)] {
        let mut scheduler = Scheduler::new(SchedulerConfig { chains: true, ..DEFAULTS });
        scheduler.set_draft_costs(DraftCosts { per_draft: [0.1; DraftCosts::SIZES], waiting: 0.1 });
        let params = Arc::new(SamplingParams::greedy());
        scheduler
            .add(NewSequence { params, drafter: Some(Arc::new(Same(guess))), ..prompt(10, 200) })
            .unwrap();
        let mut in_flight = VecDeque::new();
        let (mut followed, mut verified, mut steps) = (0, 0, 0);
        loop {
            in_flight.extend(std::iter::from_fn(|| scheduler.next_batch()));
            let Some(batch) = in_flight.pop_front() else { break };
            steps += 1;
            followed += usize::from(batch.follows.is_some());
            verified += usize::from(batch.sequences[0].choices().len() > 1);
            complete(&mut scheduler, &batch);
        }
        let stats = scheduler.stats().drafts;
        if right {
            assert!(verified > 15 && steps < 60, "{verified} of {steps} verified guesses");
            // The last step, which ends the answer, is not counted.
            assert!(
                stats.drafted == stats.accepted && stats.accepted as usize + 9 >= 200 - steps,
                "{stats:?}"
            );
        } else {
            assert!(verified == 0 && followed > 190, "{followed} of {steps} followed, {verified} verified");
            assert_eq!(stats.drafted, 0);
        }
    }
}
