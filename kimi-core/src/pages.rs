//! The pages of the latent cache: who holds which.

use crate::batch::PageId;
use crate::prefix_cache::{PageHash, PrefixCache};
use crate::stage::CacheConfig;

/// A fixed number of cache pages, handed out and taken back by reference count.
///
/// A page is an index that is the same in every layer of every stage. Counts above one are for prefixes that several
/// sequences share. A page whose tokens were [noted](Self::note) is kept when nobody holds it any more, and may be
/// [shared](Self::share_known) again until its place is needed.
#[derive(Debug, Clone)]
pub struct PagePool {
    pages: u32,
    page_tokens: usize,
    /// Holders of each page that was ever handed out; grows up to `pages`.
    holders: Vec<u32>,
    /// Pages handed out before and free again.
    free: Vec<PageId>,
    /// Pages whose tokens are known.
    known: PrefixCache,
}

/// A page that is released or shared without being held: a mistake of the caller, never of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cache page {page} is not held by anyone ({pages} pages in the pool): it can be neither shared nor released"
)]
pub struct PageError {
    /// The page named.
    pub page: PageId,
    /// Pages in the pool.
    pub pages: u32,
}

impl PagePool {
    /// A pool of free pages of at least 1 token; at most as many as a page's number can name. Takes memory only for pages in
    /// use.
    pub fn new(cache: CacheConfig) -> Self {
        let pages = u32::try_from(cache.pages).unwrap_or(u32::MAX);
        let page_tokens = cache.page_tokens.max(1);
        Self { pages, page_tokens, holders: Vec::new(), free: Vec::new(), known: PrefixCache::default() }
    }

    /// A page that nobody holds, now held once; `None` if all are held. Pages whose tokens are known are taken last, those
    /// first that were unused for longest.
    pub fn allocate(&mut self) -> Option<PageId> {
        if let Some(page) = self.free.pop() {
            self.holders[page as usize] = 1;
            return Some(page);
        }
        if let Some(page) = PageId::try_from(self.holders.len()).ok().filter(|&page| page < self.pages) {
            self.holders.push(1);
            return Some(page);
        }
        let page = self.known.give_up()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// Notes what a held page holds, as the `place`-th page of a text, from 0. It is full and is not written again. Of two
    /// pages with the same content the first is known.
    ///
    /// # Errors
    /// [`PageError`] if nobody holds it.
    pub fn note(&mut self, page: PageId, hash: PageHash, place: usize) -> Result<(), PageError> {
        self.holders_of(page)?;
        self.known.insert(page, hash, place);
        Ok(())
    }

    /// The page that holds what `hash` names, if there is one, with one holder more.
    pub fn share_known(&mut self, hash: &PageHash) -> Option<PageId> {
        let page = self.known.find(hash)?;
        self.known.hold(page);
        *self.holders.get_mut(page as usize)? += 1;
        Some(page)
    }

    /// The page that holds what `hash` names.
    pub fn find(&self, hash: &PageHash) -> Option<PageId> {
        self.known.find(hash)
    }

    /// Says that the pages of these hashes were used just now, and together.
    pub fn touch(&mut self, hashes: &[PageHash]) {
        self.known.touch(hashes);
    }

    /// Forgets what the pages of these hashes hold: nobody will share them any more.
    pub fn forget(&mut self, hashes: &[PageHash]) {
        self.free.extend(hashes.iter().filter_map(|hash| self.known.forget(hash)));
    }

    /// Pages whose tokens are known, whether somebody holds them or not.
    pub fn known(&self) -> u32 {
        self.known.len() as u32
    }

    /// Adds a holder to a held page.
    ///
    /// # Errors
    /// [`PageError`] if nobody holds it.
    pub fn share(&mut self, page: PageId) -> Result<(), PageError> {
        *self.holders_of(page)? += 1;
        Ok(())
    }

    /// Takes one holder away; says whether nobody holds the page now.
    ///
    /// # Errors
    /// [`PageError`] if nobody holds it; the pool is unchanged.
    pub fn release(&mut self, page: PageId) -> Result<bool, PageError> {
        let holders = self.holders_of(page)?;
        *holders -= 1;
        let freed = *holders == 0;
        if freed && !self.known.leave(page) {
            self.free.push(page);
        }
        Ok(freed)
    }

    /// How many hold `page`: 0 if nobody does or it does not exist.
    pub fn holders(&self, page: PageId) -> u32 {
        self.holders.get(page as usize).copied().unwrap_or(0)
    }

    /// Pages in the pool.
    pub fn total(&self) -> u32 {
        self.pages
    }

    /// Pages that somebody holds.
    pub fn used(&self) -> u32 {
        (self.holders.len() - self.free.len() - self.known.idle()) as u32
    }

    /// Pages that nobody holds.
    pub fn available(&self) -> u32 {
        self.pages - self.used()
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pages that `tokens` tokens fill.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    fn holders_of(&mut self, page: PageId) -> Result<&mut u32, PageError> {
        let pages = self.pages;
        let holders = self.holders.get_mut(page as usize).filter(|holders| **holders > 0);
        holders.ok_or(PageError { page, pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_every_page_once() {
        let mut pool = PagePool::new(CacheConfig { pages: 3, page_tokens: 16 });
        let mut pages: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        pages.sort_unstable();
        assert_eq!(pages, [0, 1, 2]);
        assert_eq!((pool.used(), pool.available()), (3, 0));
        assert_eq!(pool.release(1), Ok(true));
        assert_eq!(pool.allocate(), Some(1));
        assert_eq!([pool.pages_for(0), pool.pages_for(16), pool.pages_for(17)], [0, 1, 2]);
    }

    #[test]
    fn a_shared_page_is_free_after_its_last_holder() {
        let mut pool = PagePool::new(CacheConfig { pages: 1, page_tokens: 16 });
        let page = pool.allocate().unwrap();
        pool.share(page).unwrap();
        assert_eq!((pool.holders(page), pool.release(page)), (2, Ok(false)));
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.release(page), Ok(true));
        assert_eq!(pool.holders(page), 0);
    }

    #[test]
    fn refuses_to_free_twice() {
        let mut pool = PagePool::new(CacheConfig { pages: 2, page_tokens: 16 });
        let page = pool.allocate().unwrap();
        pool.release(page).unwrap();
        let error = PageError { page, pages: 2 };
        assert_eq!(pool.release(page), Err(error));
        assert_eq!(pool.share(page), Err(error));
        assert_eq!(pool.release(7), Err(PageError { page: 7, pages: 2 }));
        assert_eq!(pool.used(), 0);
    }

    /// A pool with the pages of some texts, of 2 tokens each, which nobody holds any more.
    fn with_texts(pages: usize, texts: &[&[u32]]) -> PagePool {
        let mut pool = PagePool::new(CacheConfig { pages, page_tokens: 2 });
        for text in texts {
            let hashes = PageHash::of_pages(text, 2);
            let held: Vec<_> = hashes.iter().map(|_| pool.allocate().unwrap()).collect();
            held.iter().zip(&hashes).enumerate().for_each(|(i, (&page, hash))| {
                pool.note(page, *hash, i).unwrap();
            });
            pool.touch(&hashes);
            held.iter().for_each(|&page| assert!(pool.release(page).unwrap()));
        }
        pool
    }

    fn found(pool: &PagePool, text: &[u32]) -> usize {
        PageHash::of_pages(text, 2).iter().filter(|hash| pool.find(hash).is_some()).count()
    }

    #[test]
    fn known_pages_are_kept_and_the_longest_unused_go_last_page_first() {
        let (a, b) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10]);
        let mut pool = with_texts(5, &[&a, &b]);
        assert_eq!((pool.used(), pool.available(), pool.known()), (0, 5, 5));
        let first = pool.share_known(&PageHash::of_pages(&a, 2)[0]).unwrap();
        assert_eq!((pool.holders(first), pool.used()), (1, 1));
        pool.allocate().unwrap();
        assert_eq!((found(&pool, &a), found(&pool, &b)), (2, 2), "the last page of the older text");
        pool.allocate().unwrap();
        assert_eq!((found(&pool, &a), found(&pool, &b)), (1, 2), "one that is held is not taken");
        pool.allocate().unwrap();
        pool.allocate().unwrap();
        assert_eq!((found(&pool, &a), found(&pool, &b), pool.allocate()), (1, 0, None));
        pool.release(first).unwrap();
        assert_eq!(pool.allocate(), Some(first));
    }

    #[test]
    fn of_two_pages_with_the_same_content_one_is_known() {
        let mut pool = PagePool::new(CacheConfig { pages: 2, page_tokens: 2 });
        let hash = PageHash::of_pages(&[1, 2], 2)[0];
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.note(a, hash, 0).unwrap();
        pool.note(b, hash, 0).unwrap();
        assert_eq!((pool.find(&hash), pool.known()), (Some(a), 1));
        pool.release(a).unwrap();
        pool.release(b).unwrap();
        assert_eq!((pool.allocate(), pool.known()), (Some(b), 1), "the other one is free");
        assert_eq!((pool.allocate(), pool.known()), (Some(a), 0));
    }

    #[test]
    fn a_forgotten_page_is_free_once_nobody_holds_it() {
        let text = [1, 2, 3, 4];
        let hashes = PageHash::of_pages(&text, 2);
        let mut pool = with_texts(2, &[&text]);
        let held = pool.share_known(&hashes[0]).unwrap();
        pool.forget(&hashes);
        assert_eq!((pool.known(), pool.used(), pool.share_known(&hashes[0])), (0, 1, None));
        pool.release(held).unwrap();
        assert_eq!(pool.available(), 2);
        assert!(pool.allocate() != pool.allocate());
    }
}
