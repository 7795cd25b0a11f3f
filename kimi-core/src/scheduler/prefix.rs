//! Pages that sequences share: which ones a sequence begins with, when it waits for them, and when they become known.

use super::{Phase, Scheduler, Sequence};
use crate::batch::SequenceId;
use crate::prefix_cache::PageHash;

/// For how many waiting sequences a scheduler looks how much they share, oldest first. The others count in full.
const LOOKED_AT: usize = 16;

/// Counts of the prefix cache of a [`Scheduler`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Pages whose tokens are known, whether a sequence holds them or not.
    pub pages: u32,
    /// Sequences that began with known pages, since the start.
    pub hits: u64,
    /// Sequences that began without, since the start.
    pub misses: u64,
    /// Tokens of prompts that were not computed because their pages were known, since the start.
    pub tokens: u64,
    /// Pages that are stored elsewhere, see [`Scheduler::store_pages`].
    pub stored: u32,
    /// Pages that were brought back from there, since the start.
    pub restored: u64,
}

impl Scheduler {
    /// Gives prompts the known pages that come next in them. Pages that are being computed come when they are done.
    pub(super) fn share_pages(&mut self) {
        if !self.config.prefix_cache {
            return;
        }
        let page_tokens = self.config.cache.page_tokens;
        for sequence in self.running.values_mut().filter(|s| s.runs()) {
            while let Some(hash) = sequence.next_page(page_tokens)
                && let Some(page) = self.pool.share_known(&hash)
            {
                let before = sequence.cached;
                sequence.adopt(page, page_tokens);
                if sequence.started {
                    self.prefix.tokens += u64::from(sequence.cached - before);
                }
            }
        }
        self.want_stored();
    }

    /// Whether a prompt's next page is one that an older sequence is going to compute or that is being brought back, so that it
    /// should wait for that. The oldest prompt waits for no other, and nobody waits for a sequence that gets no turns.
    pub(super) fn waits_for_page(&self, sequence: &Sequence) -> bool {
        let page_tokens = self.config.cache.page_tokens;
        let Some(hash) = sequence.next_page(page_tokens).filter(|_| self.config.prefix_cache) else {
            return false;
        };
        if self.stored.will_bring(&hash) {
            return true;
        }
        let place = sequence.scheduled / page_tokens;
        let computes = |s: &Sequence| s.computed / page_tokens <= place && s.hashes.get(place) == Some(&hash);
        self.prompts_before(sequence.id).any(computes)
    }

    /// How many pages at a running sequence's beginning an older prompt is going to compute for it.
    pub(super) fn pages_to_come(&self, sequence: &Sequence) -> usize {
        if sequence.phase != Phase::Prompt || !self.config.prefix_cache {
            return 0;
        }
        let shareable = sequence.shareable(self.config.cache.page_tokens);
        let common = self.prompts_before(sequence.id).map(|s| PageHash::common(&s.hashes, shareable));
        common.max().unwrap_or(0)
    }

    /// How many pages of a waiting sequence others hold, or older ones are going to compute. `place` is its place among those
    /// that wait.
    pub(super) fn shared_pages(&self, place: usize, sequence: &Sequence) -> usize {
        if place >= LOOKED_AT || !self.config.prefix_cache {
            return 0;
        }
        let shareable = sequence.shareable(self.config.cache.page_tokens);
        let is_held = |hash: &&PageHash| self.pool.find(hash).is_some_and(|page| self.pool.holders(page) > 0);
        shareable.iter().take_while(is_held).count().max(self.pages_to_come(sequence))
    }

    /// Makes the pages known that a sequence has filled, after a batch of it came back.
    pub(super) fn note_pages(&mut self, id: SequenceId) {
        let page_tokens = self.config.cache.page_tokens;
        let Some(sequence) = self.running.get_mut(&id).filter(|_| self.config.prefix_cache) else { return };
        let full = sequence.computed / page_tokens;
        if full > sequence.noted {
            sequence.hash_pages(page_tokens);
            let pages = sequence.pages.iter().zip(&sequence.hashes).enumerate();
            for (place, (&page, &hash)) in pages.take(full).skip(sequence.noted) {
                match self.pool.note(page, hash, place) {
                    Ok(()) => self.stored.note(hash, place),
                    Err(error) => tracing::error!(%error, ?id, "a computed page was not held"),
                }
            }
            sequence.noted = full;
        }
    }

    /// Forgets the pages that a failed sequence has computed or used: what made it fail may be in them.
    pub(super) fn forget_pages(&mut self, id: SequenceId) {
        if let Some(sequence) = self.running.get(&id) {
            self.pool.forget(&sequence.hashes[..sequence.noted]);
            self.stored.forget(&sequence.hashes[..sequence.noted]);
        }
    }

    /// Counts of the moment.
    pub(super) fn prefix_stats(&self) -> PrefixStats {
        let (stored, restored) = self.stored.counts();
        PrefixStats { pages: self.pool.known(), stored, restored, ..self.prefix }
    }

    /// Counts a sequence that gets its first tokens computed.
    pub(super) fn count_prefix(&mut self, cached: u32) {
        self.prefix.hits += u64::from(cached > 0);
        self.prefix.misses += u64::from(cached == 0);
        self.prefix.tokens += u64::from(cached);
    }

    /// Older sequences whose prompts are being computed.
    fn prompts_before(&self, id: SequenceId) -> impl Iterator<Item = &Sequence> {
        let older = self.running.range(..id).map(|(_, sequence)| sequence);
        older.filter(|s| s.runs() && s.phase == Phase::Prompt)
    }
}
