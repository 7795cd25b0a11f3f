//! Which cache pages hold which tokens, so that a sequence can begin with pages that another one has computed.
//!
//! The latents of a page depend on every token from the beginning of the sequence to the end of the page, and on nothing
//! else. So a page is known by a hash of those tokens, whoever computed it: [`PageHash`]. Only full pages are known, and a
//! full page is never written again, so a page that is shared need not be copied.
//!
//! What is known here are pages of a [`PagePool`](crate::pages::PagePool), which counts their holders. A known page that
//! nobody holds is *idle*: it stays until the pool needs a page, and those that were unused for longest go first.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::batch::PageId;

/// Names what a full page holds: the hash of the page before it and the page's own tokens, so of all tokens up to its end.
///
/// It is BLAKE3's 32 bytes, and tokens are not compared. A client chooses tokens, so a short hash would let it look for two
/// texts of the same hash and read the answer to another client's text; for this one nobody can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHash([u8; 32]);

impl PageHash {
    /// What the page after this one holds, if `tokens` fill it. The first page follows the default value.
    #[must_use]
    pub fn followed_by(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash that is shown as this text.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let hash = Self(*blake3::Hash::from_hex(text).ok()?.as_bytes());
        (hash.to_string() == text).then_some(hash)
    }

    /// The hashes of all full pages of `tokens`.
    pub fn of_pages(tokens: &[u32], page_tokens: usize) -> Vec<Self> {
        let mut hashes = Vec::new();
        Self::extend(&mut hashes, tokens, page_tokens);
        hashes
    }

    /// Adds the hashes of the full pages of `tokens` behind those that are in `hashes` already.
    pub fn extend(hashes: &mut Vec<Self>, tokens: &[u32], page_tokens: usize) {
        for page in tokens.chunks_exact(page_tokens.max(1)).skip(hashes.len()) {
            hashes.push(hashes.last().copied().unwrap_or_default().followed_by(page));
        }
    }

    /// How many pages two sequences have in common, from the first on. A hash names all that is before it, so that a few
    /// have to be looked at only.
    pub fn common(a: &[Self], b: &[Self]) -> usize {
        let (mut same, mut differ) = (0, a.len().min(b.len()));
        while same < differ {
            let middle = same + (differ - same) / 2;
            if a[middle] == b[middle] {
                same = middle + 1;
            } else {
                differ = middle;
            }
        }
        same
    }
}

impl fmt::Display for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// The known pages of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixCache {
    pages: HashMap<PageHash, PageId>,
    known: HashMap<PageId, Known>,
    /// Pages that nobody holds, first the one to go first.
    idle: BTreeSet<(LastUse, PageId)>,
    /// Counts the sequences that have left their pages.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    hash: PageHash,
    last_use: LastUse,
}

/// When a page was last used. Of pages that were used together the last in the text goes first, since it is of no use
/// without those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct LastUse {
    clock: u64,
    place: Reverse<usize>,
}

impl PrefixCache {
    /// The page that holds what `hash` names.
    pub(crate) fn find(&self, hash: &PageHash) -> Option<PageId> {
        self.pages.get(hash).copied()
    }

    /// Notes that a page which somebody holds is the `place`-th of a text, from 0. Of two pages with the same content the
    /// first stays known.
    pub(crate) fn insert(&mut self, page: PageId, hash: PageHash, place: usize) {
        if self.pages.contains_key(&hash) || self.known.contains_key(&page) {
            return;
        }
        let last_use = LastUse { clock: self.clock, place: Reverse(place) };
        self.pages.insert(hash, page);
        self.known.insert(page, Known { hash, last_use });
    }

    /// A page is not held any more; says whether it is known, so that it should be kept.
    pub(crate) fn leave(&mut self, page: PageId) -> bool {
        let Some(known) = self.known.get_mut(&page) else { return false };
        known.last_use.clock = self.clock;
        self.idle.insert((known.last_use, page));
        true
    }

    /// A page is held again.
    pub(crate) fn hold(&mut self, page: PageId) {
        if let Some(known) = self.known.get(&page) {
            self.idle.remove(&(known.last_use, page));
        }
    }

    /// These have been used just now.
    pub(crate) fn touch(&mut self, hashes: &[PageHash]) {
        self.clock += 1;
        for hash in hashes {
            let Some(page) = self.find(hash) else { continue };
            let Some(known) = self.known.get_mut(&page) else { continue };
            let was_idle = self.idle.remove(&(known.last_use, page));
            known.last_use.clock = self.clock;
            if was_idle {
                self.idle.insert((known.last_use, page));
            }
        }
    }

    /// Gives up the idle page that was unused for longest.
    pub(crate) fn give_up(&mut self) -> Option<PageId> {
        let (_, page) = self.idle.pop_first()?;
        if let Some(known) = self.known.remove(&page) {
            self.pages.remove(&known.hash);
        }
        Some(page)
    }

    /// Forgets what a page holds. It is returned if it was idle: then it is free.
    pub(crate) fn forget(&mut self, hash: &PageHash) -> Option<PageId> {
        let page = self.pages.remove(hash)?;
        let known = self.known.remove(&page)?;
        self.idle.remove(&(known.last_use, page)).then_some(page)
    }

    /// Known pages.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Known pages that nobody holds.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_names_all_tokens_before() {
        let hashes = |tokens: &[u32]| PageHash::of_pages(tokens, 2);
        let [a, b] = [hashes(&[1, 2, 3, 4, 5]), hashes(&[1, 2, 3, 4])];
        assert_eq!((a.len(), &a), (2, &b), "what fills no page has no hash");
        let other = hashes(&[7, 2, 3, 4, 1, 1]);
        assert!(a[1] != other[1] && a[0] != a[1], "the same page behind others is another");
        let mut grown = hashes(&[1, 2]);
        PageHash::extend(&mut grown, &[1, 2, 3, 4], 2);
        assert_eq!(grown, a);
    }

    #[test]
    fn common_pages_are_counted_from_the_first() {
        let long: Vec<_> = PageHash::of_pages(&(0..40).collect::<Vec<_>>(), 2);
        for same in 0..=20 {
            let tokens: Vec<u32> = (0..30).map(|i| if i < 2 * same { i } else { 99 }).collect();
            let other = PageHash::of_pages(&tokens, 2);
            assert_eq!(PageHash::common(&long, &other), (same as usize).min(15));
        }
    }
}
