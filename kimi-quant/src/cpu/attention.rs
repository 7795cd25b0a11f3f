//! The latent cache and causal attention over it.
//!
//! The positions of a sequence are cut into segments of [`SEGMENT`], and those into chunks of [`CHUNK`]. A chunk is
//! one softmax; chunks are merged in order into their segment and segments in order into the result, so that a
//! result's bits do not depend on the batch or on the number of threads, and a single token keeps all cores busy.

use std::ops::Range;

use super::team::{self, Team};
use super::{Cache, Isa, Tensor, dense, norm, rope};
use crate::{HeadShape, Norm, Rope, TokenLayout};

/// Positions whose scores are held at once.
const CHUNK: usize = 128;

/// Positions that one task reads.
const SEGMENT: usize = 8 * CHUNK;

/// Values that the unmerged segments of a batch may take (64 MiB).
const PARTIAL_VALUES: usize = 16 << 20;

/// Stores each token's normalised latent and rotated key; operands are checked.
pub(crate) fn store_latent(
    cache: &mut Cache,
    kv: &Tensor,
    norm: &Norm<Vec<f32>>,
    rope: &Rope,
    layout: &TokenLayout,
) {
    let latent = cache.shape().latent;
    for (t, &position) in layout.positions().iter().enumerate() {
        let (page, offset) = layout.slot(t, position as usize);
        let (c, k_pe) = cache.slot_mut(page, offset).split_at_mut(latent);
        norm::rms_norm_row(&kv.row(t)[..latent], &norm.weight, norm.eps, c);
        k_pe.copy_from_slice(&kv.row(t)[latent..]);
        rope::rotate(k_pe, rope, &rope::angles(rope, position));
    }
}

/// What all tasks of one attention share.
struct Attention<'a> {
    isa: Isa,
    q: &'a Tensor,
    cache: &'a Cache,
    heads: HeadShape,
    scale: f32,
    layout: &'a TokenLayout,
}

/// Some heads of one token over one segment.
struct Task {
    token: usize,
    heads: Range<usize>,
    segment: usize,
}

/// A softmax over part of the positions: `sum` is that of `exp(score - max)`, `mix` their weighted sum of latents.
#[derive(Clone)]
struct Partial {
    max: f32,
    sum: f32,
    mix: Vec<f32>,
}

/// `softmax(scale * q . [c | k_pe]) @ c` for every token and head: `[T, nh * kl]`; operands are checked.
pub(crate) fn attend(
    isa: Isa,
    q: &Tensor,
    cache: &Cache,
    heads: HeadShape,
    scale: f32,
    layout: &TokenLayout,
) -> Tensor {
    let attention = Attention { isa, q, cache, heads, scale, layout };
    let width = heads.heads * heads.latent;
    let mut out = vec![0.0; q.rows() * width];
    let longest = layout.positions().iter().max().map_or(0, |&p| p as usize + 1);
    let values = longest.div_ceil(SEGMENT) * heads.heads * (heads.latent + 2);
    let tokens = (PARTIAL_VALUES / values.max(1)).max(1);
    for (i, out) in out.chunks_mut((tokens * width).max(1)).enumerate() {
        attention.tokens(i * tokens, out);
    }
    Tensor::from_parts(q.rows(), width, out)
}

impl Attention<'_> {
    fn segments(&self, token: usize) -> usize {
        (self.layout.positions()[token] as usize + 1).div_ceil(SEGMENT)
    }

    /// The tokens from `first` on, as many as `out` has rows.
    fn tokens(&self, first: usize, out: &mut [f32]) {
        let HeadShape { heads, latent, .. } = self.heads;
        let tokens = first..first + out.len() / (heads * latent);
        // Few tokens: few heads a task, for more tasks. Many: more heads, so that a cached key is read less often.
        let step = if tokens.len() >= 4 * Team::current().threads() { 16 } else { 4 };
        let mut tasks = Vec::new();
        for token in tokens.clone() {
            for start in (0..heads).step_by(step) {
                let heads = start..(start + step).min(heads);
                let segments = 0..self.segments(token);
                tasks.extend(segments.map(|segment| Task { token, heads: heads.clone(), segment }));
            }
        }
        let partials: Vec<Vec<Partial>> = team::map(tasks.len(), |i| self.segment(&tasks[i]));
        let mut results = out.chunks_exact_mut(latent);
        let mut rest = tasks.iter().zip(partials).peekable();
        while let Some((task, mut whole)) = rest.next() {
            while let Some((_, part)) = rest.next_if(|(next, _)| next.segment > 0) {
                whole.iter_mut().zip(&part).for_each(|(whole, part)| whole.merge(part));
            }
            debug_assert_eq!(task.segment, 0);
            for (partial, out) in whole.iter().zip(&mut results) {
                out.iter_mut().zip(&partial.mix).for_each(|(o, c)| *o = c / partial.sum);
            }
        }
    }

    /// One segment: for each head of the task its unnormalised softmax.
    fn segment(&self, task: &Task) -> Vec<Partial> {
        let start = task.segment * SEGMENT;
        let end = (start + SEGMENT).min(self.layout.positions()[task.token] as usize + 1);
        let mut chunks = (start..end).step_by(CHUNK).map(|p| self.chunk(task, p..(p + CHUNK).min(end)));
        let mut whole = chunks.next().unwrap_or_default();
        for part in chunks {
            whole.iter_mut().zip(&part).for_each(|(whole, part)| whole.merge(part));
        }
        whole
    }

    fn chunk(&self, task: &Task, positions: Range<usize>) -> Vec<Partial> {
        let HeadShape { latent, rope, .. } = self.heads;
        let (width, count) = (latent + rope, positions.len());
        let row = self.q.row(task.token);
        let queries: Vec<&[f32]> = task.heads.clone().map(|h| &row[h * width..(h + 1) * width]).collect();
        let slots: Vec<&[f32]> = positions
            .map(|p| {
                let (page, offset) = self.layout.slot(task.token, p);
                self.cache.slot(page, offset)
            })
            .collect();
        let mut scores = vec![0.0; queries.len() * count];
        dense::scores(self.isa, &queries, &slots, width, &mut scores);
        let totals: Vec<(f32, f32)> =
            scores.chunks_exact_mut(count).map(|scores| exponentials(scores, self.scale)).collect();
        let mut mixes = vec![0.0; queries.len() * latent];
        dense::mix(self.isa, &mut mixes, latent, &scores, &slots);
        let mixes = mixes.chunks_exact(latent);
        totals
            .into_iter()
            .zip(mixes)
            .map(|((max, sum), mix)| Partial { max, sum, mix: mix.to_vec() })
            .collect()
    }
}

/// Replaces each score by `exp(scale * score - max)`; returns the largest scaled score and the sum.
fn exponentials(scores: &mut [f32], scale: f32) -> (f32, f32) {
    let mut max = f32::NEG_INFINITY;
    for score in scores.iter_mut() {
        *score *= scale;
        max = max.max(*score);
    }
    let mut sum = 0.0;
    for score in scores {
        *score = (*score - max).exp();
        sum += *score;
    }
    (max, sum)
}

impl Partial {
    /// Takes in the part that follows.
    fn merge(&mut self, part: &Self) {
        let max = self.max.max(part.max);
        let (ours, theirs) = ((self.max - max).exp(), (part.max - max).exp());
        self.max = max;
        self.sum = self.sum * ours + part.sum * theirs;
        for (mix, part) in self.mix.iter_mut().zip(&part.mix) {
            *mix = *mix * ours + part * theirs;
        }
    }
}
