//! Which sequences compute which tokens in the next batch, and which cache pages they use.
//!
//! Pure bookkeeping: no clock, no thread, no channel. The caller asks for batches with [`Scheduler::next_batch`]
//! until there is none, has them computed in order, and reports each with [`Scheduler::complete`] or
//! [`Scheduler::failed`]. How many batches may be in flight, and how many tokens of prompts a batch takes while others
//! decode, it is told ([`Scheduler::set_depth`], [`Scheduler::set_prompt_tokens`]) by whoever measures.
//!
//! # Phases
//! A sequence is in one of three [`Phase`]s. In `Prompt` batches take its tokens in order, and several chunks may follow
//! each other through the stages; the batch that takes the last one samples the next token. In `Decode` a batch takes the
//! token that was sampled last and samples the next, so it is in one batch at most. In `Verify` guesses at the tokens after
//! it are computed too, a token is sampled after each of them, and the sequence goes on behind the first that is not as
//! guessed.
//!
//! # Who comes first
//! * Decode tokens come first. With several batches in flight the decoding sequences are spread over them.
//! * Prompts share the rest. The oldest prompt gets at least half of it, so that a prompt of `n` tokens that has become the
//!   oldest is done after `2 n / budget` batches whatever else arrives. The other half goes to the shortest, so that a short
//!   one is done at once.
//! * While sequences decode, a batch takes only so many tokens of prompts, and of batches without a decode token fewer are
//!   in flight than there are stages: a decoding sequence always finds its place.
//! * A waiting sequence that does not fit may be passed by younger ones that do, until those have needed as many pages as it
//!   needs itself.
//! * Where stages queue ([`SchedulerConfig::queues`]), one batch of prompts more may be in flight while nobody decodes. Where
//!   one stage samples and embeds ([`SchedulerConfig::chains`]), one more may be in flight that is a batch of decode tokens which takes its tokens before they are known. A
//!   sequence that turns out to have ended has computed one token in vain. Whatever needs to know more (a prompt, a penalty
//!   that counts tokens, a constraint, a page that must be taken from another) waits.
//!
//! # Pages
//! Pages are taken when a batch needs them. If none is free, the youngest sequence gives up its pages and waits; a paused one
//! before all others. Later its prompt and what it has generated are prefilled again. As only a younger or a paused sequence is
//! ever evicted, the oldest that runs always goes on, so every sequence ends. A lost stage is the same for all sequences at
//! once ([`Scheduler::forget_cache`]).
//!
//! # Shared pages
//! A page that is full, and whose tokens were computed by batches that came back, becomes known by the hash of all tokens up
//! to its end ([`PageHash`](crate::prefix_cache::PageHash)), whether they are a prompt's or an answer's. A sequence begins
//! with the known pages of its tokens; at least its last token is computed. If the next page is one that an older sequence is
//! about to compute, it waits for that: a text that many begin with is computed once. Nobody waits for a younger sequence, or
//! for a paused one. Known pages that nobody holds are kept until pages are needed. What a sequence has computed that failed
//! is forgotten, and after the loss of a stage all is. Known pages may be stored elsewhere and brought back
//! ([`Scheduler::store_pages`]).

mod config;
mod drafts;
mod fill;
mod prefix;
mod sequence;
mod stored;

use std::collections::{BTreeMap, VecDeque};

use crate::batch::{Batch, Output, SequenceId, SequenceSlice};
use crate::pages::PagePool;
use crate::stage::{CacheConfig, SequenceOutput, StageError};

pub use config::SchedulerConfig;
use drafts::Guesses;
pub use drafts::{DraftCosts, DraftStats};
pub use prefix::PrefixStats;
pub use sequence::{FinishReason, NewSequence, Phase, RequestError, SequenceError, SequenceEvent};
use sequence::{Sequence, State};
use stored::Stored;
pub use stored::{Restore, Save};

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
    /// Batches in flight.
    pub in_flight: usize,
    /// Shared pages.
    pub prefix: PrefixStats,
    /// Guesses.
    pub drafts: DraftStats,
}

/// A sequence's share of a batch that was handed out.
#[derive(Debug, Clone, Copy)]
struct Share {
    id: SequenceId,
    /// Whether a token is sampled for it.
    samples: bool,
    /// Position of its first token in the batch.
    start: usize,
    /// The position after its last one, drafts included.
    end: usize,
}

impl From<&SequenceSlice> for Share {
    fn from(slice: &SequenceSlice) -> Self {
        let start = slice.start as usize;
        let samples = matches!(slice.output, Output::Sample(_));
        Self { id: slice.id, samples, start, end: start + slice.tokens.len() }
    }
}

/// A batch that was handed out.
#[derive(Debug)]
struct InFlight {
    step: u64,
    sequences: Vec<Share>,
    /// Whether each sequence is in [`Phase::Decode`].
    decodes: bool,
    /// Whether none is past its prompt.
    prompts: bool,
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
    depth: usize,
    prompt_tokens: usize,
    next_id: u64,
    next_step: u64,
    evictions: u64,
    prefix: PrefixStats,
    stored: Stored,
    drafts: DraftStats,
    /// What guesses cost; `None` while all are verified.
    draft_costs: Option<DraftCosts>,
}

impl Scheduler {
    /// A scheduler without sequences. Sizes of 0 that must be at least 1 are taken as 1.
    pub fn new(config: SchedulerConfig) -> Self {
        let token_budget = config.token_budget.max(1);
        let config = SchedulerConfig {
            cache: CacheConfig { page_tokens: config.cache.page_tokens.max(1), ..config.cache },
            token_budget,
            max_sequences: config.max_sequences.clamp(1, token_budget),
            stages: config.stages.max(1),
            chains: config.chains && config.stages <= 1,
            ..config
        };
        Self {
            pool: PagePool::new(config.cache),
            depth: config.stages,
            prompt_tokens: config.token_budget,
            config,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            in_flight: VecDeque::new(),
            next_id: 0,
            next_step: 0,
            evictions: 0,
            prefix: PrefixStats::default(),
            stored: Stored::default(),
            drafts: DraftStats::default(),
            draft_costs: None,
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
        let mut sequence = Sequence::new(id, new, self.config.limit());
        sequence.guesses = self.draft_costs.map(|_| Guesses::new(0));
        if self.config.prefix_cache {
            sequence.hash_pages(self.config.cache.page_tokens);
        }
        self.waiting.insert(id, sequence);
        Ok(id)
    }

    /// Ends a sequence; its pages are free as soon as no batch in flight uses them. `None` if it has ended before.
    pub fn cancel(&mut self, id: SequenceId) -> Option<SequenceEvent> {
        let event = |sequence: &Sequence| sequence.finished(FinishReason::Cancelled, sequence.generated());
        if let Some(waiting) = self.waiting.remove(&id) {
            return Some(event(&waiting));
        }
        let sequence = self.running.get_mut(&id).filter(|s| s.state != State::Ended)?;
        sequence.state = State::Ended;
        let event = event(sequence);
        self.settle(id);
        Some(event)
    }

    /// Lets a sequence rest while its caller takes no more tokens, or go on. It keeps its pages as long as nobody else needs
    /// them. A token that is being sampled still comes.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(sequence) = self.running.get_mut(&id).or_else(|| self.waiting.get_mut(&id)) {
            sequence.paused = paused;
        }
    }

    /// How many batches may be in flight; not fewer than there are stages.
    pub fn set_depth(&mut self, depth: usize) {
        self.depth = depth.max(self.config.stages);
    }

    /// How many tokens of prompts a batch takes while others decode, at least 1; never more than the token budget.
    pub fn set_prompt_tokens(&mut self, tokens: usize) {
        self.prompt_tokens = tokens.clamp(1, self.config.token_budget);
    }

    /// What guesses cost: sequences that are added from now on verify theirs where that pays. Before it is called all guesses
    /// are verified.
    pub fn set_draft_costs(&mut self, costs: DraftCosts) {
        self.draft_costs = Some(costs);
    }

    /// Whether there is a sequence that is not paused, so that devices should be ready for it.
    pub fn is_active(&self) -> bool {
        !self.in_flight.is_empty() || self.running.values().chain(self.waiting.values()).any(Sequence::runs)
    }

    /// Forgets batches in flight and all caches, after a stage was lost: every sequence waits, and is computed again from
    /// its tokens. Results of steps that were in flight change nothing.
    pub fn forget_cache(&mut self) {
        self.in_flight.clear();
        self.stored.forget_copies();
        self.pool = PagePool::new(self.config.cache);
        for (id, mut sequence) in std::mem::take(&mut self.running) {
            if sequence.state != State::Ended {
                sequence.rewind();
                self.waiting.insert(id, sequence);
            }
        }
    }

    /// The next batch to compute; `None` while nothing can be computed before a batch in flight is back.
    pub fn next_batch(&mut self) -> Option<Batch> {
        self.choose_drafts();
        let extra = self.in_flight.len() >= self.depth;
        if self.in_flight.len() >= self.depth + usize::from(self.config.queues || self.config.chains) {
            return None;
        }
        self.share_pages();
        if self.admit() {
            self.share_pages();
        }
        let step = self.next_step;
        let mut sequences = Vec::new();
        let follows = if extra { self.follow(step, &mut sequences) } else { None };
        if !extra {
            self.place_decodes(step, &mut sequences);
            self.place_prompts(step, &mut sequences);
        } else if follows.is_none() && self.config.queues && !self.live().any(|s| s.decodes()) {
            // Decoding sequences would be spread over one batch more, and each batch costs as much as a larger one.
            self.place_prompts(step, &mut sequences);
        }
        if sequences.is_empty() {
            return None;
        }
        self.next_step += 1;
        let phases = |phase| {
            let is = |s: &SequenceSlice| self.running.get(&s.id).is_some_and(|s| s.phase == phase);
            sequences.iter().all(is)
        };
        let (decodes, prompts) = (phases(Phase::Decode), phases(Phase::Prompt));
        let used = sequences.iter().map(Share::from).collect();
        self.in_flight.push_back(InFlight { step, sequences: used, decodes, prompts });
        Some(Batch { step, sequences, follows })
    }

    /// Takes the results of a batch. A step that is not in flight changes nothing.
    pub fn complete(&mut self, step: u64, outputs: Vec<SequenceOutput>) -> Vec<SequenceEvent> {
        let mut events = Vec::new();
        let mut outputs: BTreeMap<_, _> = outputs.into_iter().map(|o| (o.id, o.sampled)).collect();
        for Share { id, samples, start, end } in self.land(step) {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            if sequence.state != State::Ended {
                sequence.land(start, end);
                if samples {
                    sequence.accept(step, outputs.remove(&id).unwrap_or_default(), &mut events);
                }
                let verified = std::mem::take(&mut sequence.verified);
                self.drafts.drafted += verified.drafted;
                self.drafts.accepted += verified.accepted;
                if matches!(events.last(), Some(SequenceEvent::Failed { id: failed, .. }) if *failed == id) {
                    self.forget_pages(id);
                } else {
                    self.note_pages(id);
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
        for Share { id, .. } in self.land(step) {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            if sequence.state != State::Ended {
                sequence.fail(error.clone().into(), &mut events);
                self.forget_pages(id);
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
            in_flight: self.in_flight.len(),
            prefix: self.prefix_stats(),
            drafts: self.drafts,
        }
    }

    /// What a running sequence's next tokens are for; `None` if it waits or has ended.
    pub fn phase(&self, id: SequenceId) -> Option<Phase> {
        self.running.get(&id).map(|sequence| sequence.phase)
    }

    /// The cache pages.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Forgets a batch in flight; its sequences no longer count it.
    fn land(&mut self, step: u64) -> Vec<Share> {
        let found = self.in_flight.iter().position(|batch| batch.step == step);
        let landed = found.and_then(|i| self.in_flight.remove(i)).map_or_else(Vec::new, |b| b.sequences);
        for share in &landed {
            if let Some(sequence) = self.running.get_mut(&share.id) {
                sequence.in_flight = sequence.in_flight.saturating_sub(1);
            }
        }
        landed
    }

    /// Gives back the pages of a sequence that has ended or is evicted, unless a batch in flight uses them.
    fn settle(&mut self, id: SequenceId) -> bool {
        if self.running.get(&id).is_none_or(|s| s.is_live() || s.in_flight > 0) {
            return false;
        }
        let Some(mut sequence) = self.running.remove(&id) else { return false };
        self.pool.touch(&sequence.hashes[..sequence.noted]);
        self.stored.touch(&sequence.hashes[..sequence.noted]);
        for page in sequence.pages.drain(..) {
            if let Err(error) = self.pool.release(page) {
                tracing::error!(%error, ?id, "a cache page was released twice");
            }
        }
        if sequence.state == State::Evicted {
            sequence.rewind();
            self.waiting.insert(id, sequence);
        }
        true
    }

    fn live(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().filter(|s| s.is_live())
    }
}
