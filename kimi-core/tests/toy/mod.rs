//! A model of a few lines in place of the real one: a token is a hash of every token before it, read back through
//! the page tables stage by stage. A wrong page, a lost token, or another history or random number changes it.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;

use bytes::Bytes;
use kimi_core::batch::{Batch, Output, PageId, Sampling, SequenceId};
use kimi_core::sampler::{Sampled, TokenCount, TokenMask};
use kimi_core::stage::{
    Compute, Finish, Hidden, PageForm, SequenceOutput, StageError, StageOutput, StageResult, StageRunner,
    StageSpan, StageThread,
};

pub(crate) const VOCAB: u32 = 97;

pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}

/// What a stage computes for one token from the cache cells of its sequence, its own the last.
fn attend(cells: impl Iterator<Item = u64>) -> u64 {
    cells.fold(1, mix)
}

fn pick(hidden: u64, uniform: f32, counts: &[TokenCount]) -> u32 {
    let counted = |h, count: &TokenCount| mix(mix(h, count.token.into()), count.in_answer.into());
    (mix(mix(hidden, uniform.to_bits().into()), counts.iter().fold(2, counted)) % u64::from(VOCAB)) as u32
}

/// The same within the mask of the choice, if it has one.
fn choose(hidden: u64, choice: &Sampling) -> u32 {
    let words = choice.allowed.as_ref().and_then(|mask| mask.words());
    constrain(pick(hidden, choice.uniform, choice.counts.as_slice()), |token| {
        words.is_none_or(|words| TokenMask(words).allows(token as usize))
    })
}

/// The first allowed token from `token` on.
pub(crate) fn constrain(token: u32, allows: impl Fn(u32) -> bool) -> u32 {
    (0..VOCAB).map(|i| (token + i) % VOCAB).find(|&token| allows(token)).unwrap()
}

/// Spans of `stages` stages of one layer each.
pub(crate) fn span(stage: usize, stages: usize) -> StageSpan {
    StageSpan { layers: stage..stage + 1, first: stage == 0, last: stage + 1 == stages }
}

pub(crate) struct ToyStage {
    span: StageSpan,
    page_tokens: usize,
    pages: usize,
    cells: Vec<u64>,
    /// The last step, and the tokens that it chose.
    chosen: (u64, BTreeMap<SequenceId, u32>),
}

impl ToyStage {
    pub(crate) fn new(stage: usize, stages: usize, pages: u32, page_tokens: usize) -> Self {
        let pages = pages as usize;
        let (cells, chosen) = (vec![0; pages * page_tokens], (u64::MAX, BTreeMap::new()));
        Self { span: span(stage, stages), page_tokens, pages, cells, chosen }
    }

    pub(crate) fn row(stages: usize, pages: u32, page_tokens: usize) -> Vec<Self> {
        (0..stages).map(|stage| Self::new(stage, stages, pages, page_tokens)).collect()
    }

    /// What is in a page. In the first stage those are its tokens.
    pub(crate) fn page(&self, page: PageId) -> &[u64] {
        &self.cells[page as usize * self.page_tokens..][..self.page_tokens]
    }

    /// Puts other cells into a page.
    pub(crate) fn set_page(&mut self, page: PageId, cells: &[u64]) {
        self.cells[page as usize * self.page_tokens..][..self.page_tokens].copy_from_slice(cells);
    }

    /// Spoils what a batch has written.
    pub(crate) fn spoil(&mut self, batch: &Batch) {
        for slice in &batch.sequences {
            for position in (slice.start as usize..).take(slice.tokens.len()) {
                let page = slice.pages[position / self.page_tokens] as usize;
                self.cells[page * self.page_tokens + position % self.page_tokens] ^= 1 << 40;
            }
        }
    }
}

/// A stage on a thread of its own.
pub(crate) fn on_thread(stage: impl Compute + 'static) -> Box<dyn StageRunner> {
    Box::new(StageThread::spawn(Box::new(stage), false).unwrap())
}

impl Compute for ToyStage {
    fn span(&self) -> StageSpan {
        self.span.clone()
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let output = self.run(batch, input);
        Ok(Box::new(move || output))
    }

    fn page_form(&self) -> Option<PageForm> {
        Some(PageForm { form: "cells".to_owned(), bytes: 8 * self.page_tokens })
    }

    fn read_page(&mut self, page: PageId) -> Result<Bytes, StageError> {
        Ok(self.page(page).iter().flat_map(|cell| cell.to_le_bytes()).collect())
    }

    fn write_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), StageError> {
        let cells = bytes.chunks_exact(8).map(|cell| u64::from_le_bytes(cell.try_into().unwrap()));
        self.set_page(page, &cells.collect::<Vec<_>>());
        Ok(())
    }

    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> StageResult {
        let layout = batch.layout(self.page_tokens)?;
        layout.check_pages(self.pages)?;
        if let Some(step) = batch.follows {
            assert!(step == self.chosen.0 && self.span.first, "it follows {step}, not {}", self.chosen.0);
            assert!(batch.sequences.iter().all(|s| s.tokens == [0]));
        }
        let inputs: Vec<u64> = match &input {
            None if batch.follows.is_some() => {
                batch.sequences.iter().map(|s| self.chosen.1[&s.id].into()).collect()
            }
            None => batch.ids().iter().map(|&id| id.into()).collect(),
            Some(hidden) => {
                hidden.data.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
            }
        };
        assert_eq!(inputs.len(), batch.tokens());
        let cell = |t, position| {
            let (page, offset) = layout.slot(t, position);
            page * self.page_tokens + offset
        };
        let mut rows = Vec::new();
        for (t, (&x, &position)) in inputs.iter().zip(layout.positions()).enumerate() {
            let position = position as usize;
            self.cells[cell(t, position)] = x;
            rows.push(attend((0..=position).map(|p| self.cells[cell(t, p)])));
        }
        if !self.span.last {
            let data = rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<_>>();
            return Ok(StageOutput::Hidden(Hidden { rows: rows.len(), cols: 2, data: Bytes::from(data) }));
        }
        let mut wanted = batch.output_rows().into_iter();
        let outputs = batch.sequences.iter().filter(|s| s.output != Output::None).map(|slice| {
            let choose = |choice: &Sampling| {
                let row = wanted.next().unwrap() as usize;
                Ok(sampled(choose(rows[row], choice)))
            };
            let sampled = slice.choices().iter().map(choose).collect();
            SequenceOutput { id: slice.id, sampled, logits: vec![] }
        });
        let outputs: Vec<_> = outputs.collect();
        let tokens = outputs.iter().map(|o| (o.id, o.sampled[0].as_ref().unwrap().token));
        self.chosen = (batch.step, tokens.collect());
        Ok(StageOutput::Sequences(outputs))
    }
}

pub(crate) fn sampled(token: u32) -> Sampled {
    Sampled { token, logprob: -1.0, top: vec![] }
}

/// The same model over one sequence alone, with no pages and no batches.
pub(crate) struct Alone {
    cells: Vec<Vec<u64>>,
    hidden: u64,
}

impl Alone {
    pub(crate) fn new(stages: usize, prompt: &[u32]) -> Self {
        let mut alone = Self { cells: vec![vec![]; stages], hidden: 0 };
        prompt.iter().for_each(|&token| alone.feed(token));
        alone
    }

    pub(crate) fn feed(&mut self, token: u32) {
        let mut x = token.into();
        for cells in &mut self.cells {
            cells.push(x);
            x = attend(cells.iter().copied());
        }
        self.hidden = x;
    }

    /// What each stage remembers of each token.
    pub(crate) fn cells(&self) -> &[Vec<u64>] {
        &self.cells
    }

    pub(crate) fn next(&self, uniform: f32, counts: &[TokenCount]) -> u32 {
        pick(self.hidden, uniform, counts)
    }
}
