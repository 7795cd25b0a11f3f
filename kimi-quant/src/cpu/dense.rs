//! Kernels over plain f32 rows: scores of queries against keys, and weighted sums of rows. Both serve attention; the
//! second also carries queries into the latent.
//!
//! Each output is summed in an order that depends on the widths alone, not on how many others are computed with it.

use super::Isa;
#[cfg(doc)]
use super::exp;
use super::simd::Simd;

/// [`scores_kernel`] of an instruction set.
type Scores = unsafe fn(queries: &[&[f32]], keys: &[&[f32]], width: usize, out: &mut [f32]);

/// [`mix_kernel`] of an instruction set.
type Mix = unsafe fn(sums: &mut [f32], width: usize, weights: &[f32], rows: &[&[f32]]);

/// [`exp::exponentials`] of an instruction set.
type Exponentials = unsafe fn(scores: &mut [f32], scale: f32) -> (f32, f32);

/// [`exp::swiglu`] of an instruction set.
type Swiglu = unsafe fn(gate: &mut [f32], up: &[f32]);

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Dense {
    scores: Scores,
    mix: Mix,
    exponentials: Exponentials,
    swiglu: Swiglu,
}

impl Dense {
    /// `S`'s kernels, compiled with its features.
    pub(crate) const fn new(scores: Scores, mix: Mix, exponentials: Exponentials, swiglu: Swiglu) -> Self {
        Self { scores, mix, exponentials, swiglu }
    }
}

/// `out[q * keys.len() + p] = queries[q] . keys[p]`, over the first `width` values of each.
pub(crate) fn scores(isa: Isa, queries: &[&[f32]], keys: &[&[f32]], width: usize, out: &mut [f32]) {
    let wide = queries.iter().chain(keys).all(|x| x.len() >= width);
    debug_assert!(wide && out.len() == queries.len() * keys.len());
    if wide && out.len() == queries.len() * keys.len() && !out.is_empty() {
        // SAFETY: an `Isa` is one of this machine; the lengths were just checked.
        unsafe { (isa.dense().scores)(queries, keys, width, out) }
    }
}

/// `sums[q * width ..][..width] += sum_p weights[q * rows.len() + p] * rows[p][..width]`.
pub(crate) fn mix(isa: Isa, sums: &mut [f32], width: usize, weights: &[f32], rows: &[&[f32]]) {
    let wide = rows.iter().all(|row| row.len() >= width);
    let even = sums.len() * rows.len() == weights.len() * width;
    debug_assert!(wide && even);
    if wide && even && width > 0 && !rows.is_empty() {
        // SAFETY: an `Isa` is one of this machine; the lengths were just checked.
        unsafe { (isa.dense().mix)(sums, width, weights, rows) }
    }
}

/// See [`exp::exponentials`].
pub(crate) fn exponentials(isa: Isa, scores: &mut [f32], scale: f32) -> (f32, f32) {
    // SAFETY: an `Isa` is one of this machine.
    unsafe { (isa.dense().exponentials)(scores, scale) }
}

/// See [`exp::swiglu`].
pub(crate) fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    // SAFETY: an `Isa` is one of this machine.
    unsafe { (isa.dense().swiglu)(gate, up) }
}

/// See [`scores`].
///
/// # Safety
/// The machine has the instruction set; queries, keys and `out` have the lengths of [`scores`], none is empty.
#[inline(always)]
pub(crate) unsafe fn scores_kernel<S: Simd>(
    queries: &[&[f32]],
    keys: &[&[f32]],
    width: usize,
    out: &mut [f32],
) {
    // A few keys stay in the first-level cache for all queries.
    for (j, some) in keys.chunks(4).enumerate() {
        for (i, queries) in queries.chunks(4).enumerate() {
            let at = 4 * i * keys.len() + 4 * j;
            // SAFETY: passed on.
            unsafe {
                if S::MANY_REGISTERS {
                    scores_tile::<S, 4>(queries, some, width, &mut out[at..], keys.len());
                } else {
                    for (k, pair) in some.chunks(2).enumerate() {
                        scores_tile::<S, 2>(queries, pair, width, &mut out[at + 2 * k..], keys.len());
                    }
                }
            }
        }
    }
}

/// Up to four queries times up to `P` keys; missing ones repeat the last.
#[inline(always)]
unsafe fn scores_tile<S: Simd, const P: usize>(
    queries: &[&[f32]],
    keys: &[&[f32]],
    width: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (mut q, mut c) = ([queries[0]; 4], [keys[0]; P]);
    for (i, q) in q.iter_mut().enumerate() {
        *q = queries[i.min(queries.len() - 1)];
    }
    for (i, c) in c.iter_mut().enumerate() {
        *c = keys[i.min(keys.len() - 1)];
    }
    let vectors = width / S::LANES;
    // SAFETY: whole vectors of the first `width` values.
    unsafe {
        let mut acc = [[S::splat(0.0); P]; 4];
        for v in 0..vectors {
            let mut key = [S::splat(0.0); P];
            for (key, c) in key.iter_mut().zip(c) {
                *key = S::load(c.as_ptr().add(v * S::LANES));
            }
            for i in 0..4 {
                let query = S::load(q[i].as_ptr().add(v * S::LANES));
                for j in 0..P {
                    acc[i][j] = S::fma(query, key[j], acc[i][j]);
                }
            }
        }
        let mut sums = [[0.0; P]; 4];
        for (sums, acc) in sums.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().zip(fours(&acc)) {
            *sums = S::four_sums(acc);
        }
        for i in 0..queries.len() {
            for j in 0..keys.len() {
                let rest = vectors * S::LANES..width;
                let tail: f32 = q[i][rest.clone()].iter().zip(&c[j][rest]).map(|(a, b)| a * b).sum();
                out[i * stride + j] = sums[i][j] + tail;
            }
        }
    }
}

/// See [`mix`].
///
/// # Safety
/// The machine has the instruction set; all lengths are those of [`mix`], none is empty.
#[inline(always)]
pub(crate) unsafe fn mix_kernel<S: Simd>(sums: &mut [f32], width: usize, weights: &[f32], rows: &[&[f32]]) {
    let vectors = width / S::LANES;
    let mut v = 0;
    // Some columns of all rows stay in the first-level cache for all sums.
    while v < vectors {
        let count = if S::MANY_REGISTERS { 4 } else { 2 };
        for (sums, weights) in sums.chunks_mut(4 * width).zip(weights.chunks(4 * rows.len())) {
            // SAFETY: passed on; the columns end at the last whole vector.
            unsafe {
                match (sums.len() / width, vectors - v >= count) {
                    (4, true) if S::MANY_REGISTERS => {
                        mix_tile::<S, 4, 4>(sums, width, weights, rows, v * S::LANES)
                    }
                    (4, true) => mix_tile::<S, 4, 2>(sums, width, weights, rows, v * S::LANES),
                    (queries, true) => {
                        for q in 0..queries {
                            let (sums, weights) =
                                (&mut sums[q * width..], &weights[q * rows.len()..][..rows.len()]);
                            if S::MANY_REGISTERS {
                                mix_tile::<S, 1, 4>(sums, width, weights, rows, v * S::LANES);
                            } else {
                                mix_tile::<S, 1, 2>(sums, width, weights, rows, v * S::LANES);
                            }
                        }
                    }
                    (queries, false) => {
                        for q in 0..queries {
                            let (sums, weights) =
                                (&mut sums[q * width..], &weights[q * rows.len()..][..rows.len()]);
                            mix_tile::<S, 1, 1>(sums, width, weights, rows, v * S::LANES);
                        }
                    }
                }
            }
        }
        v += if vectors - v >= count { count } else { 1 };
    }
    for (sums, weights) in sums.chunks_exact_mut(width).zip(weights.chunks_exact(rows.len())) {
        for (row, weight) in rows.iter().zip(weights) {
            for at in vectors * S::LANES..width {
                sums[at] += weight * row[at];
            }
        }
    }
}

/// The vectors of a tile in fours; there are no others.
#[inline(always)]
fn fours<V: Copy, const P: usize>(tile: &[[V; P]; 4]) -> impl Iterator<Item = [V; 4]> {
    tile.as_flattened().as_chunks::<4>().0.iter().copied()
}

/// `Q` sums of `V` vectors from column `at` on, held in registers over all rows.
#[inline(always)]
unsafe fn mix_tile<S: Simd, const Q: usize, const V: usize>(
    sums: &mut [f32],
    width: usize,
    weights: &[f32],
    rows: &[&[f32]],
    at: usize,
) {
    // SAFETY: `V` vectors from `at` on lie in every row and sum.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; Q];
        for (q, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.as_ptr().add(q * width + at + v * S::LANES));
            }
        }
        for (p, row) in rows.iter().enumerate() {
            let mut values = [S::splat(0.0); V];
            for (v, value) in values.iter_mut().enumerate() {
                *value = S::load(row.as_ptr().add(at + v * S::LANES));
            }
            for (q, acc) in acc.iter_mut().enumerate() {
                let weight = S::splat(*weights.get_unchecked(q * rows.len() + p));
                for (acc, value) in acc.iter_mut().zip(values) {
                    *acc = S::fma(weight, value, *acc);
                }
            }
        }
        for (q, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(sums.as_mut_ptr().add(q * width + at + v * S::LANES), acc);
            }
        }
    }
}
