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

/// Queries for which a task of many reads a key.
const QUERIES: usize = 16;

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

/// Some heads of neighbouring tokens of a sequence over a part of its positions: a segment, or less where there is only one.
struct Task {
    tokens: Range<usize>,
    heads: Range<usize>,
    positions: Range<usize>,
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
    /// Positions that a token sees.
    fn seen(&self, token: usize) -> usize {
        self.layout.positions()[token] as usize + 1
    }

    /// The tokens from `first` on, as many as `out` has rows.
    fn tokens(&self, first: usize, out: &mut [f32]) {
        let HeadShape { heads, latent, .. } = self.heads;
        let tasks = self.tasks(first..first + out.len() / (heads * latent));
        let partials: Vec<Vec<Option<Partial>>> = team::map(tasks.len(), |i| self.part(&tasks[i]));
        // Those of a token and head come in the order of their positions.
        let mut wholes: Vec<Option<Partial>> = vec![None; out.len() / latent];
        for (task, partials) in tasks.iter().zip(partials) {
            let places = task
                .tokens
                .clone()
                .flat_map(|token| task.heads.clone().map(move |head| (token - first) * heads + head));
            for (place, partial) in places.zip(partials) {
                match (&mut wholes[place], partial) {
                    (Some(whole), Some(partial)) => whole.merge(&partial),
                    (whole @ None, partial) => *whole = partial,
                    (Some(_), None) => {}
                }
            }
        }
        for (whole, out) in wholes.iter().zip(out.chunks_exact_mut(latent)) {
            let Some(whole) = whole else { continue };
            out.iter_mut().zip(&whole.mix).for_each(|(o, c)| *o = c / whole.sum);
        }
    }

    /// What there is to do for some tokens.
    fn tasks(&self, tokens: Range<usize>) -> Vec<Task> {
        let (heads, threads) = (self.heads.heads, Team::current().threads());
        // Few tokens: few heads a task, for more tasks. Many: more queries, so that a cached key is read less often.
        let step = if tokens.len() >= 4 * threads { QUERIES } else { QUERIES / 4 }.min(heads);
        let together = if tokens.len() >= 4 * threads { QUERIES / step } else { 1 };
        let longest = tokens.clone().map(|token| self.seen(token)).max().unwrap_or(0);
        // The only segment's chunks are merged in the same order wherever that is done.
        let few = longest <= SEGMENT && tokens.len() * heads.div_ceil(step) < 2 * threads;
        let part = if few { CHUNK } else { SEGMENT };
        let mut tasks = Vec::new();
        for some in self.neighbours(tokens, together) {
            let longest = self.seen(some.end - 1);
            for start in (0..heads).step_by(step) {
                let heads = start..(start + step).min(heads);
                tasks.extend((0..longest).step_by(part).map(|start| Task {
                    tokens: some.clone(),
                    heads: heads.clone(),
                    positions: start..(start + part).min(longest),
                }));
            }
        }
        tasks
    }

    /// Cuts tokens into runs of at most `count` of one sequence, whose positions ascend.
    fn neighbours(&self, tokens: Range<usize>, count: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for token in tokens {
            let sequences = self.layout.sequences();
            match runs.last_mut() {
                Some(run) if run.len() < count && sequences[run.start] == sequences[token] => {
                    run.end = token + 1;
                }
                _ => runs.push(token..token + 1),
            }
        }
        runs
    }

    /// For each token and head of a task its unnormalised softmax over the positions, of which it may see none.
    fn part(&self, task: &Task) -> Vec<Option<Partial>> {
        let heads = task.heads.len();
        let mut wholes: Vec<Option<Partial>> = vec![None; task.tokens.len() * heads];
        let mut slots = Vec::with_capacity(CHUNK);
        for start in task.positions.clone().step_by(CHUNK) {
            let end = (start + CHUNK).min(task.positions.end);
            self.slots(task.tokens.start, start..end, &mut slots);
            let mut token = task.tokens.start;
            while token < task.tokens.end {
                // Those that see the whole chunk are computed together: later ones see as much as earlier ones.
                let seen = self.seen(token).min(end);
                let until = if seen == end { task.tokens.end } else { token + 1 };
                if seen > start {
                    let parts = self.chunk(token..until, &task.heads, &slots[..seen - start]);
                    let places = &mut wholes[(token - task.tokens.start) * heads..];
                    for (whole, part) in places.iter_mut().zip(parts) {
                        match whole {
                            Some(whole) => whole.merge(&part),
                            None => *whole = Some(part),
                        }
                    }
                }
                token = until;
            }
        }
        wholes
    }

    /// The cached keys of some positions of a token's sequence.
    fn slots<'a>(&'a self, token: usize, positions: Range<usize>, out: &mut Vec<&'a [f32]>) {
        out.clear();
        let mut position = positions.start;
        while position < positions.end {
            let (page, offset) = self.layout.slot(token, position);
            let count = (self.layout.page_tokens() - offset).min(positions.end - position);
            let width = self.cache.width();
            out.extend(self.cache.page(page)[offset * width..][..count * width].chunks_exact(width.max(1)));
            position += count;
        }
    }

    fn chunk(&self, tokens: Range<usize>, heads: &Range<usize>, slots: &[&[f32]]) -> Vec<Partial> {
        let HeadShape { latent, rope, .. } = self.heads;
        let width = latent + rope;
        let of_token = |token| {
            let row = self.q.row(token);
            heads.clone().map(move |head| &row[head * width..(head + 1) * width])
        };
        let queries: Vec<&[f32]> = tokens.flat_map(of_token).collect();
        let mut scores = vec![0.0; queries.len() * slots.len()];
        dense::scores(self.isa, &queries, slots, width, &mut scores);
        let totals: Vec<(f32, f32)> = scores
            .chunks_exact_mut(slots.len())
            .map(|scores| dense::exponentials(self.isa, scores, self.scale))
            .collect();
        let mut mixes = vec![0.0; queries.len() * latent];
        dense::mix(self.isa, &mut mixes, latent, &scores, slots);
        let mixes = mixes.chunks_exact(latent);
        totals
            .into_iter()
            .zip(mixes)
            .map(|((max, sum), mix)| Partial { max, sum, mix: mix.to_vec() })
            .collect()
    }
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
