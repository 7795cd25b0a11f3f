//! Which sequences compute which tokens in the next batch, and which cache pages they use.
//!
//! Pure bookkeeping: no clock, no thread, no channel. The caller asks for batches with [`Scheduler::next_batch`]
//! until there is none, has them computed in order, and reports each with [`Scheduler::complete`] or
//! [`Scheduler::failed`]. As many batches may be in flight as there are stages.
//!
//! * A sequence has *pending* tokens: its prompt, later the token that was sampled last. A batch takes them in
//!   order. The batch that takes the last one samples the next, so a decoding sequence is in one batch at most,
//!   while several chunks of one prompt may follow each other through the stages.
//! * Decode tokens come first; the rest of the token budget is shared evenly by the prompts. So a long prompt
//!   stalls nobody. With several stages the decoding sequences are spread over as many batches.
//! * Where a stage can be given a batch before the last one is done ([`SchedulerConfig::ahead`]), a batch of decode tokens
//!   is followed by one that takes its tokens before they are known, so that the device never waits for the host. A
//!   sequence that turns out to have ended has computed one token in vain. Whatever needs to know more (a prompt, a
//!   penalty that counts tokens, a page that must be taken from another) waits until nothing is in flight.
//! * Pages are taken when a batch needs them. If none is free, the youngest sequence gives up its pages and
//!   waits; later its prompt and what it has generated are prefilled again. As only a younger sequence is ever
//!   evicted, the oldest always goes on, so every sequence ends.

mod sequence;

use std::collections::{BTreeMap, VecDeque};

use crate::batch::{Batch, Output, SequenceId, SequenceSlice};
use crate::pages::PagePool;
use crate::stage::{SequenceOutput, StageError};

pub use sequence::{FinishReason, NewSequence, RequestError, SequenceError, SequenceEvent};
use sequence::{Sequence, State};

/// Sizes of a [`Scheduler`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Most tokens of a sequence, prompt and answer together.
    pub context_tokens: usize,
    /// Pages of the latent cache.
    pub pages: u32,
    /// Tokens in a page, at least 1.
    pub page_tokens: usize,
    /// Most new tokens in a batch, at least 1.
    pub token_budget: usize,
    /// Most sequences that run at once, at least 1; `token_budget` if that is less.
    pub max_sequences: usize,
    /// Most batches in flight, at least 1: the number of stages.
    pub depth: usize,
    /// Whether one batch more may be in flight that follows the last ([`Batch::follows`]). Only with one stage.
    pub ahead: bool,
}

impl SchedulerConfig {
    /// Most tokens that one sequence can have: the context, or the whole cache if that is smaller.
    pub fn limit(&self) -> usize {
        self.context_tokens.min(self.cache_tokens())
    }

    /// Whether a sequence with `prompt` tokens could be generated if it ran alone.
    ///
    /// # Errors
    /// [`RequestError`], except for tokens and sampling parameters, which are not looked at.
    pub fn check(&self, prompt: usize, max_tokens: Option<u32>) -> Result<(), RequestError> {
        let cache = self.cache_tokens();
        match prompt {
            0 => Err(RequestError::EmptyPrompt),
            _ if max_tokens == Some(0) => Err(RequestError::MaxTokens),
            found if found >= self.context_tokens => {
                Err(RequestError::Context { found, context: self.context_tokens })
            }
            found if found >= cache => Err(RequestError::Cache { found, cache }),
            _ => Ok(()),
        }
    }

    fn cache_tokens(&self) -> usize {
        (self.pages as usize).saturating_mul(self.page_tokens)
    }
}

/// Counts of a [`Scheduler`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that hold pages or are about to.
    pub running: usize,
    /// Sequences that wait for pages or for their turn.
    pub waiting: usize,
    /// Cache pages in use.
    pub pages_used: u32,
    /// Cache pages.
    pub pages_total: u32,
    /// How often a sequence had to give up its pages since the start.
    pub evictions: u64,
}

/// A batch that was handed out: its step, its sequences, and whether each of them samples.
#[derive(Debug)]
struct InFlight {
    step: u64,
    sequences: Vec<(SequenceId, bool)>,
    /// Whether each sequence has one token.
    decodes: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: PagePool,
    waiting: BTreeMap<SequenceId, Sequence>,
    /// Also sequences that have ended but whose pages a batch in flight still uses.
    running: BTreeMap<SequenceId, Sequence>,
    in_flight: VecDeque<InFlight>,
    next_id: u64,
    next_step: u64,
    evictions: u64,
}

impl Scheduler {
    /// A scheduler without sequences. Sizes of 0 that must be at least 1 are taken as 1.
    pub fn new(config: SchedulerConfig) -> Self {
        let token_budget = config.token_budget.max(1);
        let config = SchedulerConfig {
            page_tokens: config.page_tokens.max(1),
            token_budget,
            max_sequences: config.max_sequences.clamp(1, token_budget),
            depth: config.depth.max(1),
            ahead: config.ahead && config.depth <= 1,
            ..config
        };
        Self {
            pool: PagePool::new(config.pages, config.page_tokens),
            config,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            in_flight: VecDeque::new(),
            next_id: 0,
            next_step: 0,
            evictions: 0,
        }
    }

    /// Queues a sequence behind all others. Ids rise with age: a larger id is a younger sequence.
    ///
    /// # Errors
    /// [`RequestError`] if it could not be generated even alone, see [`SchedulerConfig::check`].
    pub fn add(&mut self, new: NewSequence) -> Result<SequenceId, RequestError> {
        self.config.check(new.prompt.len(), new.max_tokens)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.insert(id, Sequence::new(id, new, self.config.limit()));
        Ok(id)
    }

    /// Ends a sequence; its pages are free as soon as no batch in flight uses them. `None` if it has ended before.
    pub fn cancel(&mut self, id: SequenceId) -> Option<SequenceEvent> {
        let waiting = self.waiting.remove(&id);
        let generated = match &waiting {
            Some(sequence) => sequence.generated(),
            None => {
                let sequence = self.running.get_mut(&id).filter(|s| s.state != State::Ended)?;
                sequence.state = State::Ended;
                let generated = sequence.generated();
                self.settle(id);
                generated
            }
        };
        Some(SequenceEvent::Finished { id, reason: FinishReason::Cancelled, generated })
    }

    /// The next batch to compute; `None` while nothing can be computed before a batch in flight is back.
    pub fn next_batch(&mut self) -> Option<Batch> {
        if self.in_flight.len() > self.config.depth {
            return None;
        }
        self.admit();
        let step = self.next_step;
        let mut sequences = Vec::new();
        let follows = if self.in_flight.len() == self.config.depth {
            Some(self.follow(step, &mut sequences)?)
        } else {
            self.place_decodes(step, &mut sequences);
            self.place_prefills(step, &mut sequences);
            None
        };
        if sequences.is_empty() {
            return None;
        }
        self.next_step += 1;
        let used = sequences.iter().map(|s| (s.id, matches!(s.output, Output::Sample(_)))).collect();
        let decodes = sequences.iter().all(|s| s.tokens.len() == 1);
        self.in_flight.push_back(InFlight { step, sequences: used, decodes });
        Some(Batch { step, sequences, follows })
    }

    /// Takes the results of a batch. A step that is not in flight changes nothing.
    pub fn complete(&mut self, step: u64, outputs: Vec<SequenceOutput>) -> Vec<SequenceEvent> {
        let mut events = Vec::new();
        let mut outputs: BTreeMap<_, _> = outputs.into_iter().map(|o| (o.id, o.sampled)).collect();
        for (id, samples) in self.land(step) {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            if samples && sequence.state != State::Ended {
                match outputs.remove(&id).flatten() {
                    Some(Ok(sampled)) => sequence.accept(sampled, &mut events),
                    Some(Err(error)) => sequence.fail(error.into(), &mut events),
                    None => sequence.fail(SequenceError::NoToken { step }, &mut events),
                }
            }
            self.settle(id);
        }
        events
    }

    /// Takes the failure of a batch: its sequences fail, all others go on. A step that is not in flight changes
    /// nothing.
    pub fn failed(&mut self, step: u64, error: &StageError) -> Vec<SequenceEvent> {
        let mut events = Vec::new();
        for (id, _) in self.land(step) {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            if sequence.state != State::Ended {
                sequence.fail(error.clone().into(), &mut events);
            }
            self.settle(id);
        }
        events
    }

    /// Counts of the moment.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.live().count(),
            waiting: self.waiting.len() + self.running.values().filter(|s| s.state == State::Evicted).count(),
            pages_used: self.pool.used(),
            pages_total: self.pool.total(),
            evictions: self.evictions,
        }
    }

    /// The cache pages.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Lets waiting sequences run, oldest first, if their tokens fit beside what the running ones still need and
    /// one page of growth for each: otherwise they would soon be evicted again.
    fn admit(&mut self) {
        while self.live().count() < self.config.max_sequences {
            let Some((_, first)) = self.waiting.first_key_value() else { return };
            let promised: usize = self
                .live()
                .map(|s| 1 + self.pool.pages_for(s.tokens.len()).saturating_sub(s.pages.len()))
                .sum();
            let needed = self.pool.pages_for(first.tokens.len()) + promised;
            if !self.running.is_empty() && needed > self.pool.available() as usize {
                return;
            }
            if let Some((id, sequence)) = self.waiting.pop_first() {
                self.running.insert(id, sequence);
            }
        }
    }

    /// The sequences of the batch in flight once more, each with the token that is being chosen for it. Returns that
    /// batch's step; `None` if this can't be done or something else should come first.
    fn follow(&mut self, step: u64, batch: &mut Vec<SequenceSlice>) -> Option<u64> {
        let last = self.in_flight.back().filter(|last| self.config.ahead && last.decodes)?;
        let samples = |id| last.sequences.contains(&(id, true));
        if self.live().any(|s| s.pending() > 0 || !samples(s.id) || s.params.history_needed() > 0) {
            return None;
        }
        let (follows, page_tokens) = (last.step, self.config.page_tokens);
        let is_full = |s: &Sequence| s.pages.len() * page_tokens <= s.scheduled;
        let going_on = || self.live().filter(|s| !s.ends_next());
        if going_on().filter(|s| is_full(s)).count() > self.pool.available() as usize {
            return None;
        }
        for id in going_on().map(|s| s.id).collect::<Vec<_>>() {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            if is_full(sequence) {
                sequence.pages.extend(self.pool.allocate());
            }
            batch.push(sequence.slice(1, step));
        }
        Some(follows)
    }

    /// One token each for the sequences that have waited longest, at most a `depth`-th of all that decode.
    fn place_decodes(&mut self, step: u64, batch: &mut Vec<SequenceSlice>) {
        let decoding = self.live().filter(|s| s.pending() <= 1).count();
        let most = decoding.div_ceil(self.config.depth);
        let mut ready: Vec<_> =
            self.live().filter(|s| s.pending() == 1).map(|s| (s.last_step, s.id)).collect();
        ready.sort_unstable();
        for (_, id) in ready {
            if batch.len() == most {
                return;
            }
            self.place(id, 1, step, batch);
        }
    }

    /// Prompts share what is left of the token budget; what a short one does not use goes to the longer ones.
    fn place_prefills(&mut self, step: u64, batch: &mut Vec<SequenceSlice>) {
        let mut budget = self.config.token_budget.saturating_sub(batch.len());
        let mut ready: Vec<_> =
            self.live().filter(|s| s.pending() > 1).map(|s| (s.pending(), s.id)).collect();
        ready.sort_unstable();
        for (i, &(_, id)) in ready.iter().enumerate() {
            let share = budget.div_ceil(ready.len() - i);
            budget -= self.place(id, share, step, batch);
        }
    }

    /// Adds up to `most` pending tokens of a sequence to the batch, as many as there are pages for.
    fn place(&mut self, id: SequenceId, most: usize, step: u64, batch: &mut Vec<SequenceSlice>) -> usize {
        let count = self.grow(id, most);
        if count > 0
            && let Some(sequence) = self.running.get_mut(&id)
        {
            batch.push(sequence.slice(count, step));
        }
        count
    }

    /// Takes pages for up to `most` pending tokens of a sequence; says for how many there are pages now.
    fn grow(&mut self, id: SequenceId, most: usize) -> usize {
        loop {
            // An eviction on behalf of another may have removed it since it was looked up.
            let Some(sequence) = self.running.get_mut(&id) else { return 0 };
            let wanted = most.min(sequence.pending());
            let room = sequence.pages.len() * self.config.page_tokens - sequence.scheduled;
            if room >= wanted {
                return wanted;
            }
            match self.pool.allocate() {
                Some(page) => sequence.pages.push(page),
                None if self.evict_younger_than(id) => {}
                None => return room,
            }
        }
    }

    /// Takes the pages of the youngest sequence if it is younger than `id`; says whether pages are free now.
    ///
    /// If a batch in flight uses them they are free later, and one sequence at a time is enough to wait for.
    fn evict_younger_than(&mut self, id: SequenceId) -> bool {
        if self.running.values().any(|s| !s.is_live() && !s.pages.is_empty()) {
            return false;
        }
        let youngest = self.running.values_mut().rev().find(|s| s.is_live() && !s.pages.is_empty());
        let Some(victim) = youngest.filter(|s| s.id > id) else { return false };
        victim.state = State::Evicted;
        let victim = victim.id;
        self.evictions += 1;
        self.settle(victim)
    }

    /// Forgets a batch in flight; its sequences no longer count it.
    fn land(&mut self, step: u64) -> Vec<(SequenceId, bool)> {
        let found = self.in_flight.iter().position(|batch| batch.step == step);
        let landed = found.and_then(|i| self.in_flight.remove(i)).map_or_else(Vec::new, |b| b.sequences);
        for (id, _) in &landed {
            if let Some(sequence) = self.running.get_mut(id) {
                sequence.in_flight = sequence.in_flight.saturating_sub(1);
            }
        }
        landed
    }

    /// Frees the pages of a sequence that has ended or is evicted, unless a batch in flight uses them.
    fn settle(&mut self, id: SequenceId) -> bool {
        if self.running.get(&id).is_none_or(|s| s.is_live() || s.in_flight > 0) {
            return false;
        }
        let Some(mut sequence) = self.running.remove(&id) else { return false };
        for page in sequence.pages.drain(..) {
            if let Err(error) = self.pool.release(page) {
                tracing::error!(%error, ?id, "a cache page was released twice");
            }
        }
        if sequence.state == State::Evicted {
            sequence.state = State::Live;
            sequence.scheduled = 0;
            self.waiting.insert(id, sequence);
        }
        true
    }

    fn live(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().filter(|s| s.is_live())
    }
}
