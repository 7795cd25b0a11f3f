//! The pages of the latent cache: who holds which.

use crate::batch::PageId;
use crate::stage::CacheConfig;

/// A fixed number of cache pages, handed out and taken back by reference count.
///
/// A page is an index that is the same in every layer of every stage; the pool knows nothing of its contents.
/// Counts above one are for prefixes that several sequences share.
#[derive(Debug, Clone)]
pub struct PagePool {
    pages: u32,
    page_tokens: usize,
    /// Holders of each page that was ever handed out; grows up to `pages`.
    holders: Vec<u32>,
    /// Pages handed out before and free again.
    free: Vec<PageId>,
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
        Self { pages, page_tokens: cache.page_tokens.max(1), holders: Vec::new(), free: Vec::new() }
    }

    /// A free page, now held once; `None` if all are held.
    pub fn allocate(&mut self) -> Option<PageId> {
        if let Some(page) = self.free.pop() {
            self.holders[page as usize] = 1;
            return Some(page);
        }
        let page = PageId::try_from(self.holders.len()).ok().filter(|&page| page < self.pages)?;
        self.holders.push(1);
        Some(page)
    }

    /// Adds a holder to a held page.
    ///
    /// # Errors
    /// [`PageError`] if nobody holds it.
    pub fn share(&mut self, page: PageId) -> Result<(), PageError> {
        *self.holders_of(page)? += 1;
        Ok(())
    }

    /// Takes one holder away; says whether the page is free now.
    ///
    /// # Errors
    /// [`PageError`] if nobody holds it; the pool is unchanged.
    pub fn release(&mut self, page: PageId) -> Result<bool, PageError> {
        let holders = self.holders_of(page)?;
        *holders -= 1;
        let freed = *holders == 0;
        if freed {
            self.free.push(page);
        }
        Ok(freed)
    }

    /// How many hold `page`: 0 if it is free or does not exist.
    pub fn holders(&self, page: PageId) -> u32 {
        self.holders.get(page as usize).copied().unwrap_or(0)
    }

    /// Pages in the pool.
    pub fn total(&self) -> u32 {
        self.pages
    }

    /// Pages that somebody holds.
    pub fn used(&self) -> u32 {
        (self.holders.len() - self.free.len()) as u32
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
}
