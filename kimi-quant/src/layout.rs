//! Where the tokens of one batch live in the latent cache.

use crate::BackendError;

/// For each token of a batch its position, its sequence, and through the sequence's page table its cache slot.
///
/// Tokens of a sequence stand next to each other in ascending position; token `t` attends to the positions
/// `0..=positions[t]` of its own sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLayout {
    positions: Vec<u32>,
    sequences: Vec<u32>,
    tables: Vec<Vec<u32>>,
    page_tokens: usize,
}

impl TokenLayout {
    /// An empty layout over pages of `page_tokens` tokens (at least 1).
    pub fn new(page_tokens: usize) -> Self {
        Self {
            positions: Vec::new(),
            sequences: Vec::new(),
            tables: Vec::new(),
            page_tokens: page_tokens.max(1),
        }
    }

    /// Adds a sequence's `count` new tokens at positions `start..start + count`; `pages` is its whole page table.
    ///
    /// # Errors
    /// [`BackendError::Range`] if the table has too few pages for the last position.
    pub fn push(&mut self, start: u32, count: usize, pages: &[u32]) -> Result<(), BackendError> {
        let end = (start as usize).saturating_add(count);
        // Positions are u32.
        let room = pages.len().saturating_mul(self.page_tokens).min(u32::MAX as usize);
        BackendError::check_range("token layout", "position", end, room + 1)?;
        let sequence = self.tables.len() as u32;
        self.positions.extend((0..count as u32).map(|i| start + i));
        self.sequences.extend(std::iter::repeat_n(sequence, count));
        self.tables.push(pages.to_vec());
        Ok(())
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Position of each token, `[T]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Index into [`Self::tables`] of each token, `[T]`.
    pub fn sequences(&self) -> &[u32] {
        &self.sequences
    }

    /// Page table of each sequence.
    pub fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Page and offset in it of `position` of token `t`'s sequence.
    pub fn slot(&self, t: usize, position: usize) -> (usize, usize) {
        let table = &self.tables[self.sequences[t] as usize];
        (table[position / self.page_tokens] as usize, position % self.page_tokens)
    }

    /// Checks every page id against the number of pages of a cache.
    ///
    /// # Errors
    /// [`BackendError::Range`] naming the first page that does not exist.
    pub fn check_pages(&self, pages: usize) -> Result<(), BackendError> {
        let all = self.tables.iter().flatten();
        all.copied().try_for_each(|p| BackendError::check_range("token layout", "page", p as usize, pages))
    }
}
