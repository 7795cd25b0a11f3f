//! Pages that are kept elsewhere too, on a disk: which are to be copied there, and which to be brought back.
//!
//! Nothing is copied here. The scheduler says what is to be done ([`Scheduler::next_save`], [`Scheduler::take_restores`]) and
//! hears what became of it. A page that is being brought back is held by nobody else, and those who begin with it wait for it
//! as they wait for one that is being computed. Each copy has a ticket, so that one which was begun before a failure or the
//! loss of a stage changes nothing afterwards.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{Scheduler, Sequence};
use crate::batch::{PageId, SequenceId};
use crate::prefix_cache::PageHash;

/// Most pages that are brought back at the same time.
const MAX_RESTORES: usize = 16;

/// A page that is to be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restore {
    /// Names this copy.
    pub ticket: u64,
    /// What the page holds.
    pub hash: PageHash,
    /// Where it is to be put.
    pub page: PageId,
    /// Its place in its text, from 0.
    pub place: usize,
}

/// A page that is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Save {
    /// Names this copy.
    pub ticket: u64,
    /// What the page holds.
    pub hash: PageHash,
    /// Where it is. It is not written while batches that are handed out later have not reached a stage.
    pub page: PageId,
    /// Its place in its text, from 0.
    pub place: usize,
}

/// What is known of stored pages.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Whether pages are stored at all.
    on: bool,
    /// What can be brought back.
    pages: HashSet<PageHash>,
    /// Known pages to be stored, oldest first. Some may not be known any more.
    unsaved: VecDeque<(PageHash, usize)>,
    saving: HashMap<u64, PageHash>,
    restoring: HashMap<u64, Restoring>,
    /// Those of them that nobody has been told of.
    wanted: Vec<Restore>,
    used: Vec<PageHash>,
    forgotten: Vec<PageHash>,
    next_ticket: u64,
    restored: u64,
}

#[derive(Debug, Clone, Copy)]
struct Restoring {
    restore: Restore,
    /// Whether what is stored may have become wrong meanwhile.
    is_void: bool,
}

impl Stored {
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn is_restoring(&self, hash: &PageHash) -> bool {
        self.restoring.values().any(|copy| copy.restore.hash == *hash && !copy.is_void)
    }

    /// Pages that can be brought back, and how many were.
    pub(super) fn counts(&self) -> (u32, u64) {
        (self.pages.len() as u32, self.restored)
    }

    /// Whether a prompt's next page is on its way.
    pub(super) fn will_bring(&self, hash: &PageHash) -> bool {
        self.on && self.is_restoring(hash)
    }

    /// A page has become known.
    pub(super) fn note(&mut self, hash: PageHash, place: usize) {
        if self.on && !self.pages.contains(&hash) {
            self.unsaved.push_back((hash, place));
        }
    }

    /// Pages were used just now.
    pub(super) fn touch(&mut self, hashes: &[PageHash]) {
        if self.on {
            self.used.extend(hashes.iter().filter(|hash| self.pages.contains(hash)));
        }
    }

    /// What these hold may be wrong.
    pub(super) fn forget(&mut self, hashes: &[PageHash]) {
        if self.on {
            for hash in hashes {
                self.pages.remove(hash);
                self.saving.retain(|_, saving| saving != hash);
                let copies = self.restoring.values_mut().filter(|copy| copy.restore.hash == *hash);
                copies.for_each(|copy| copy.is_void = true);
            }
            self.forgotten.extend(hashes);
        }
    }

    /// The pool is empty: copies that are on the way are worth nothing.
    pub(super) fn forget_copies(&mut self) {
        self.unsaved.clear();
        self.saving.clear();
        self.restoring.clear();
        self.wanted.clear();
    }
}

impl Scheduler {
    /// Has pages stored from now on. These are already.
    pub fn store_pages(&mut self, stored: impl IntoIterator<Item = PageHash>) {
        self.stored.on = self.config.prefix_cache;
        self.stored.pages.extend(stored);
    }

    /// Has no more pages stored or brought back.
    pub fn stop_storing(&mut self) {
        let copies = std::mem::take(&mut self.stored.restoring);
        for copy in copies.into_values() {
            if let Err(error) = self.pool.release(copy.restore.page) {
                tracing::error!(%error, "a page that was brought back was released twice");
            }
        }
        let Stored { next_ticket, restored, .. } = self.stored;
        self.stored = Stored { next_ticket, restored, ..Stored::default() };
    }

    /// The pages to be brought back since the last call. Each is reported with [`Self::restored`].
    pub fn take_restores(&mut self) -> Vec<Restore> {
        std::mem::take(&mut self.stored.wanted)
    }

    /// A page was brought back to all stages, or can't be.
    pub fn restored(&mut self, ticket: u64, is_there: bool) {
        let Some(Restoring { restore, is_void }) = self.stored.restoring.remove(&ticket) else { return };
        let Restore { hash, page, place, .. } = restore;
        if is_there && !is_void {
            self.stored.restored += 1;
            if let Err(error) = self.pool.note(page, hash, place) {
                tracing::error!(%error, "a page that was brought back was not held");
            }
        } else if !is_void {
            self.stored.pages.remove(&hash);
        }
        if let Err(error) = self.pool.release(page) {
            tracing::error!(%error, "a page that was brought back was released twice");
        }
    }

    /// A page to be stored, if there is one. It is to be copied before batches that are handed out later can write to it,
    /// and reported with [`Self::saved`].
    pub fn next_save(&mut self) -> Option<Save> {
        while let Some((hash, place)) = self.stored.unsaved.pop_front() {
            let is_new =
                !self.stored.pages.contains(&hash) && !self.stored.saving.values().any(|h| *h == hash);
            if let Some(page) = self.pool.find(&hash).filter(|_| is_new) {
                let ticket = self.stored.ticket();
                self.stored.saving.insert(ticket, hash);
                return Some(Save { ticket, hash, page, place });
            }
        }
        None
    }

    /// Whether a page that was copied is still to be stored: not if what it holds may be wrong.
    pub fn is_saving(&self, ticket: u64) -> bool {
        self.stored.saving.contains_key(&ticket)
    }

    /// A page is stored, or can't be.
    pub fn saved(&mut self, ticket: u64, is_stored: bool) {
        if let Some(hash) = self.stored.saving.remove(&ticket).filter(|_| is_stored) {
            self.stored.pages.insert(hash);
        }
    }

    /// These are not stored any more.
    pub fn unstored(&mut self, hashes: &[PageHash]) {
        self.stored.pages.retain(|page| !hashes.contains(page));
    }

    /// Stored pages that were used since the last call, in the order of use.
    pub fn take_used(&mut self) -> Vec<PageHash> {
        std::mem::take(&mut self.stored.used)
    }

    /// Pages that must not be stored any more, since the last call: what they hold may be wrong.
    pub fn take_forgotten(&mut self) -> Vec<PageHash> {
        std::mem::take(&mut self.stored.forgotten)
    }

    /// Has the stored pages brought back that come next in prompts. Those that are known already come before those behind
    /// them, and are not given up for them.
    pub(super) fn want_stored(&mut self) {
        if !self.stored.on || self.stored.pages.is_empty() {
            return;
        }
        let begins = |s: &&Sequence| s.runs() && s.next_page(self.config.cache.page_tokens).is_some();
        let ids: Vec<SequenceId> = self.running.values().filter(begins).map(|s| s.id).collect();
        for id in ids {
            self.want_stored_for(id);
        }
    }

    fn want_stored_for(&mut self, id: SequenceId) {
        let Some(sequence) = self.running.get(&id) else { return };
        let first = sequence.pages.len();
        let next = sequence.shareable(self.config.cache.page_tokens).get(first..).unwrap_or_default();
        let known = |hash: &PageHash| self.pool.find(hash).is_some() || self.stored.is_restoring(hash);
        let comes = |hash: &&PageHash| known(hash) || self.stored.pages.contains(hash);
        let run: Vec<_> = next.iter().take_while(comes).copied().collect();
        let missing = run.iter().enumerate().filter(|(_, hash)| !known(hash));
        let room = MAX_RESTORES.saturating_sub(self.stored.restoring.len());
        let missing: Vec<_> = missing.map(|(i, hash)| (first + i, *hash)).take(room).collect();
        if missing.is_empty() {
            return;
        }
        self.pool.touch(&run);
        for (place, hash) in missing {
            // If none is free it is computed, for which others may have to go.
            let Some(page) = self.pool.allocate() else { return };
            let restore = Restore { ticket: self.stored.ticket(), hash, page, place };
            self.stored.restoring.insert(restore.ticket, Restoring { restore, is_void: false });
            self.stored.wanted.push(restore);
        }
    }
}
