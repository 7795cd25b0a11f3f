//! Filling a batch: which sequences run, and which of their tokens and guesses a batch takes.

use super::{Phase, Scheduler, Sequence, State};
use crate::batch::{SequenceId, SequenceSlice};

impl Scheduler {
    /// Lets waiting sequences run, oldest first, if their tokens fit beside what the running ones still need and
    /// one page of growth for each: otherwise they would soon be evicted again. Those that do not fit may be passed. Pages of
    /// paused sequences count as free, and pages that others share with it do not count. Says whether there is a new one.
    pub(super) fn admit(&mut self) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let running = || self.live().filter(|s| s.runs());
        let still_needed =
            |s: &Sequence| self.pages_for(s).saturating_sub(s.pages.len().max(self.pages_to_come(s)));
        let mut promised: usize = running().map(|s| 1 + still_needed(s)).sum();
        let before = running().count();
        let mut count = before;
        while count < self.config.max_sequences {
            let paused: usize = self.live().filter(|s| s.paused).map(|s| s.pages.len()).sum();
            let room = (self.pool.available() as usize + paused).saturating_sub(promised);
            let mut may_pass = usize::MAX;
            let mut found = None;
            for (place, (id, sequence)) in self.waiting.iter().filter(|(_, s)| s.runs()).enumerate() {
                let mut needed = self.pages_for(sequence);
                if needed > room.min(may_pass) {
                    needed -= self.shared_pages(place, sequence);
                }
                if (needed <= room || count == 0) && needed <= may_pass {
                    found = Some((*id, needed));
                    break;
                }
                may_pass = may_pass.min(needed.saturating_sub(sequence.passed_by));
            }
            let Some((id, needed)) = found else { break };
            self.waiting.range_mut(..id).for_each(|(_, passed)| passed.passed_by += needed);
            if let Some(mut sequence) = self.waiting.remove(&id) {
                sequence.passed_by = 0;
                self.running.insert(id, sequence);
            }
            promised += 1 + needed;
            count += 1;
        }
        count > before
    }

    /// Pages that a sequence's tokens fill.
    fn pages_for(&self, sequence: &Sequence) -> usize {
        self.pool.pages_for(sequence.tokens.len())
    }

    /// The sequences of the batch in flight once more, each with the token that is being chosen for it. Returns that
    /// batch's step; `None` if this can't be done or something else should come first.
    pub(super) fn follow(&mut self, step: u64, batch: &mut Vec<SequenceSlice>) -> Option<u64> {
        let last = self.in_flight.back().filter(|last| self.config.chains && last.decodes)?;
        let samples = |id| last.sequences.iter().any(|share| share.id == id && share.samples);
        let running = || self.live().filter(|s| s.runs());
        if running().any(|s| s.pending() > 0 || !samples(s.id) || s.needs_last_token()) {
            return None;
        }
        let (follows, page_tokens) = (last.step, self.config.cache.page_tokens);
        let is_full = |s: &Sequence| s.pages.len() * page_tokens <= s.scheduled;
        let going_on = || running().filter(|s| !s.ends_next());
        let full = going_on().filter(|s| is_full(s)).count();
        if full > self.pool.available() as usize || going_on().count() > self.config.max_sequences {
            return None;
        }
        let ids: Vec<_> = going_on().map(|s| s.id).collect();
        for id in ids {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            if is_full(sequence) {
                sequence.pages.extend(self.pool.allocate());
            }
            batch.push(sequence.slice(1, step));
        }
        (!batch.is_empty()).then_some(follows)
    }

    /// Has each sequence verify as many guesses as pays.
    pub(super) fn choose_drafts(&mut self) {
        let Some(costs) = self.draft_costs else { return };
        let together = self.max_decodes();
        for sequence in self.running.values_mut() {
            if let Some(guesses) = &mut sequence.guesses {
                guesses.choose(&costs, together, self.config.max_drafts);
            }
        }
    }

    /// Most sequences that decode in one batch: at most a `depth`-th of all that do.
    fn max_decodes(&self) -> usize {
        let decoding = self.live().filter(|s| s.decodes()).count();
        // Sequences that were paused may be more than are admitted.
        decoding.div_ceil(self.depth).min(self.config.max_sequences)
    }

    /// One token each, with drafts, for the sequences that have waited longest, at most a `depth`-th of all that decode.
    pub(super) fn place_decodes(&mut self, step: u64, batch: &mut Vec<SequenceSlice>) {
        let max = self.max_decodes();
        let mut ready: Vec<_> =
            self.live().filter(|s| s.decodes() && s.pending() == 1).map(|s| (s.last_step, s.id)).collect();
        ready.sort_unstable();
        // Every sequence of the batch has room for its token before any has drafts.
        let mut spare = self.config.token_budget.saturating_sub(max.min(ready.len()));
        for (_, id) in ready {
            if batch.len() == max {
                return;
            }
            if self.grow(id, 1) == 1 {
                spare -= self.place_drafts(id, spare.min(self.config.max_drafts));
                batch.extend(self.running.get_mut(&id).map(|sequence| sequence.slice(1, step)));
            }
        }
    }

    /// Has a sequence guess at most `max` tokens, and takes free pages for them; says how many there are.
    fn place_drafts(&mut self, id: SequenceId, max: usize) -> usize {
        let Some(sequence) = self.running.get_mut(&id) else { return 0 };
        let wanted = sequence.draft(max);
        let room = |s: &Sequence| s.pages.len() * self.config.cache.page_tokens - s.scheduled - 1;
        while room(sequence) < wanted {
            match self.pool.allocate() {
                Some(page) => sequence.pages.push(page),
                None => break,
            }
        }
        let count = wanted.min(room(sequence));
        sequence.keep_drafts(count);
        count
    }

    /// Prompts take what is left of the token budget; while others decode, only so many tokens.
    pub(super) fn place_prompts(&mut self, step: u64, batch: &mut Vec<SequenceSlice>) {
        let taken = batch.iter().map(|s| s.tokens.len()).sum();
        let mut budget = self.config.token_budget.saturating_sub(taken);
        if self.live().any(|s| s.decodes()) {
            budget = budget.min(self.prompt_tokens);
            // Decoding sequences that are in no batch now wait for pages, which this batch may bring nearer.
            let coming_back = self.live().any(|s| s.decodes() && s.pending() == 0);
            let without_decodes = self.in_flight.iter().filter(|batch| batch.prompts).count();
            if batch.is_empty() && coming_back && without_decodes + 1 >= self.config.stages {
                return;
            }
        }
        if batch.len() == self.config.max_sequences {
            return;
        }
        let prompts = self.live().filter(|s| s.phase == Phase::Prompt && s.pending() > 0);
        let prompts = prompts.filter(|s| !self.waits_for_page(s));
        let mut ready: Vec<_> = prompts.map(|s| (s.pending(), s.id)).collect();
        let Some(&(_, oldest)) = ready.iter().min_by_key(|(_, id)| *id) else { return };
        ready.sort_unstable();
        let others: usize = ready.iter().filter(|(_, id)| *id != oldest).map(|(pending, _)| pending).sum();
        budget -= self.place(oldest, (budget - others.min(budget / 2)).max(1).min(budget), step, batch);
        for (_, id) in ready {
            if id != oldest && budget > 0 && batch.len() < self.config.max_sequences {
                budget -= self.place(id, budget, step, batch);
            }
        }
    }

    /// Adds up to `max` pending tokens of a sequence to the batch, as many as there are pages for.
    fn place(&mut self, id: SequenceId, max: usize, step: u64, batch: &mut Vec<SequenceSlice>) -> usize {
        let count = self.grow(id, max);
        if count > 0
            && let Some(sequence) = self.running.get_mut(&id)
        {
            let first = (!sequence.started).then_some(sequence.cached);
            batch.push(sequence.slice(count, step));
            first.into_iter().for_each(|cached| self.count_prefix(cached));
        }
        count
    }

    /// Takes pages for up to `max` pending tokens of a sequence; says for how many there are pages now.
    fn grow(&mut self, id: SequenceId, max: usize) -> usize {
        loop {
            // An eviction on behalf of another may have removed it since it was looked up.
            let Some(sequence) = self.running.get_mut(&id) else { return 0 };
            let wanted = max.min(sequence.pending());
            let room = sequence.pages.len() * self.config.cache.page_tokens - sequence.scheduled;
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

    /// Takes the pages of a paused sequence, else of the youngest if it is younger than `id`; says whether pages are free now.
    ///
    /// If a batch in flight uses them they are free later, and one sequence at a time is enough to wait for.
    fn evict_younger_than(&mut self, id: SequenceId) -> bool {
        if self.running.values().any(|s| !s.is_live() && !s.pages.is_empty()) {
            return false;
        }
        let holders = || self.running.values().rev().filter(|s| s.is_live() && !s.pages.is_empty());
        let paused = holders().find(|s| s.paused).map(|s| s.id);
        let youngest = holders().next().map(|s| s.id).filter(|youngest| *youngest > id);
        let Some(victim) = paused.or(youngest) else { return false };
        if let Some(victim) = self.running.get_mut(&victim) {
            victim.state = State::Evicted;
        }
        self.evictions += 1;
        self.settle(victim)
    }
}
