//! Products of one or two tokens with rounded activations, as [`super::rounded`] lays them out: rows are taken as they lie.

use super::bytes::{ByteDot, Bytes};
use super::codec::Codec;
use super::kernel::{Product, each_step};
use super::rounded::{HEAD, Units, Vectors, chunk_words, place};
use super::scales::Parameters;
use super::simd::{AHEAD, LINE, MAX_LANES, Simd};

/// Rows times up to `T` rows of activations: one or two. See [`super::kernel::Dot`].
///
/// # Safety
/// As for [`super::kernel::dot`].
#[inline(always)]
pub(crate) unsafe fn few<U: Units, const T: usize>(p: &Product<'_>, out: &mut [f32], stride: usize) {
    let lanes = Vectors::<U>::LANES;
    let mut x = [std::ptr::null(); T];
    for (t, x) in x.iter_mut().enumerate() {
        *x = p.x.row(p.tokens[t.min(p.tokens.len() - 1)]).as_ptr();
    }
    let blocks = p.m.cols() / (lanes * U::C::CODES);
    // SAFETY: a row's blocks lie in the matrix, its chunks in the operand's rows; the row's parameters are read.
    unsafe {
        if p.m.cols().div_ceil(U::UNIT) <= lanes / 2 {
            return short::<U, T>(p, x, out, stride);
        }
        let ahead = bytes_ahead::<U>(p);
        // Those of four rows ahead are asked for.
        let mut parameters = Parameters::of_lanes::<U::C>(p.m, 4, p.ahead, U::UNIT);
        for row in p.range.clone() {
            let weight = p.m.weight()[row * blocks * U::C::BYTES..].as_ptr();
            parameters.read_row::<U::C>(0, p.m, row);
            let mut acc = [Vectors::<U>::splat(0.0); T];
            for chunk in 0..blocks.div_ceil(U::LANES_OF_UNIT) {
                let mut here = x;
                for x in &mut here {
                    *x = x.add(chunk * chunk_words(lanes, U::UNIT));
                }
                let first = chunk * U::LANES_OF_UNIT;
                let at = weight.add(first * U::C::BYTES);
                let sums = if first + U::LANES_OF_UNIT <= blocks {
                    chunk_sums::<U, T, true>(at, U::LANES_OF_UNIT, ahead, here)
                } else {
                    chunk_sums::<U, T, false>(at, blocks - first, ahead, here)
                };
                let [scale, bias] = U::affine(&parameters, 0, chunk);
                for t in 0..T {
                    let scaled = Vectors::<U>::mul(scale, Vectors::<U>::load(here[t]));
                    acc[t] = Vectors::<U>::fma(sums[t], scaled, acc[t]);
                    acc[t] = Vectors::<U>::fma(bias, Vectors::<U>::load(here[t].add(lanes)), acc[t]);
                }
            }
            let mut sums = [0.0; T];
            for (sum, acc) in sums.iter_mut().zip(acc) {
                *sum = neighbours::<Vectors<U>>(acc, lanes)[0];
            }
            put(p, sums, &mut out[(row - p.range.start) * stride..]);
        }
    }
}

/// Writes a row's results to the places of its tokens.
#[inline(always)]
fn put<const T: usize>(p: &Product<'_>, sums: [f32; T], out: &mut [f32]) {
    if p.pairs {
        out[0] = sums[0] + sums[T - 1];
    } else {
        out[..p.tokens.len()].copy_from_slice(&sums[..p.tokens.len()]);
    }
}

/// From a row's bytes to those that are asked of the memory.
#[inline(always)]
fn bytes_ahead<U: Units>(p: &Product<'_>) -> usize {
    let row_bytes = p.m.cols() / (Vectors::<U>::LANES * U::C::CODES) * U::C::BYTES;
    p.ahead.map_or(AHEAD, |rows| rows * row_bytes)
}

/// Sums of every `count` lanes: of neighbours, then of neighbouring sums.
///
/// # Safety
/// As for [`Simd`]; `count` is a power of two.
#[inline(always)]
unsafe fn neighbours<S: Simd>(v: S::V, count: usize) -> [f32; MAX_LANES] {
    let mut floats = [0.0; MAX_LANES];
    // SAFETY: passed on.
    unsafe { S::store(floats.as_mut_ptr(), v) };
    let mut width = S::LANES;
    while width > S::LANES / count {
        width /= 2;
        for i in 0..width {
            floats[i] = floats[2 * i] + floats[2 * i + 1];
        }
    }
    floats
}

/// [`few`] for rows with at most half as many units as a vector has lanes: as many at once as fill one. The bits are those that
/// each would have alone.
///
/// # Safety
/// As for [`few`]; the tokens' activations are at `x`.
#[inline(always)]
unsafe fn short<U: Units, const T: usize>(
    p: &Product<'_>,
    x: [*const f32; T],
    out: &mut [f32],
    stride: usize,
) {
    let lanes = Vectors::<U>::LANES;
    let blocks = p.m.cols() / (lanes * U::C::CODES);
    // Lanes of a row, and vectors of words that give their sums; beyond its units they are zeros.
    let units = p.m.cols().div_ceil(U::UNIT).next_power_of_two();
    let (rows, vectors) = (lanes / units, units * U::LANES_OF_UNIT / lanes);
    // SAFETY: rows' blocks lie in the matrix, their only chunk in the operand's rows; parameters of all rows are read.
    unsafe {
        // Steps and sums of the activations, for every row.
        let mut heads = [[[0.0; MAX_LANES]; HEAD]; T];
        for (heads, x) in heads.iter_mut().zip(x) {
            for (h, head) in heads.iter_mut().enumerate() {
                let here = std::slice::from_raw_parts(x.add(h * lanes), units);
                head.chunks_mut(units).for_each(|row| row.copy_from_slice(&here[..row.len()]));
            }
        }
        let mut parameters = Parameters::of_rows::<U::C>(p.m, rows, p.ahead, units, U::UNIT);
        for start in p.range.clone().step_by(rows) {
            let end = (start + rows).min(p.range.end);
            parameters.read::<U::C>(p.m, start..end);
            let weight = p.m.weight()[start * blocks * U::C::BYTES..].as_ptr();
            let sums = row_sums::<U, T>(weight, [blocks, vectors, end - start], bytes_ahead::<U>(p), x);
            let [scale, bias] = U::affine(&parameters, 0, 0);
            let mut results = [[0.0; MAX_LANES]; T];
            for (t, sums) in sums.into_iter().enumerate() {
                let [steps, of_rounded] = &heads[t];
                let scaled = Vectors::<U>::mul(scale, Vectors::<U>::load(steps.as_ptr()));
                let mut acc = Vectors::<U>::fma(sums, scaled, Vectors::<U>::splat(0.0));
                acc = Vectors::<U>::fma(bias, Vectors::<U>::load(of_rounded.as_ptr()), acc);
                results[t] = neighbours::<Vectors<U>>(acc, units);
            }
            for (i, row) in (start..end).enumerate() {
                put(p, results.map(|sums| sums[i]), &mut out[(row - p.range.start) * stride..]);
            }
        }
    }
}

/// The sums of the units of some rows at `weight` and some tokens. A row has `blocks` vectors of words, and room for
/// `vectors`, a power of two; those so many bytes ahead are asked for.
///
/// # Safety
/// As for [`chunk_sums`], for `count` rows.
#[inline(always)]
unsafe fn row_sums<U: Units, const T: usize>(
    weight: *const u8,
    [blocks, vectors, count]: [usize; 3],
    ahead: usize,
    x: [*const f32; T],
) -> [<Vectors<U> as Simd>::V; T] {
    let (sums_of_unit, together) = fold_sizes::<U>();
    let shift = vectors.trailing_zeros();
    // SAFETY: passed on.
    unsafe {
        let mut sums = [[Vectors::<U>::zeros(); MAX_LANES]; T];
        each_step!(sums_of_unit, n => {
            for h in 0..together {
                let vector = n * together + h;
                let (row, block) = (vector >> shift, vector & (vectors - 1));
                if block < blocks && row < count {
                    let from = weight.add((row * blocks + block) * U::C::BYTES);
                    for line in (0..U::C::BYTES).step_by(LINE) {
                        Vectors::<U>::prefetch(from.wrapping_add(ahead + line));
                    }
                    add_vector::<U, T>(from, block, x, n % MAX_LANES, h == 0, &mut sums);
                }
            }
        });
        folded::<U, T>(&sums, sums_of_unit)
    }
}

/// Sums of a unit that are added up at last, and vectors that add up to one of them, where a unit has more lanes than a
/// vector.
const fn fold_sizes<U: Units>() -> (usize, usize) {
    let lanes = <Vectors<U> as Simd>::LANES;
    let sums = if U::LANES_OF_UNIT < lanes { U::LANES_OF_UNIT } else { lanes };
    (sums, U::LANES_OF_UNIT / sums)
}

/// Multiplies the vector of words at `from` with vector `vector` of some tokens' activations: the sums `n`, or a part of
/// them if they are not the `first`.
///
/// # Safety
/// As for [`chunk_sums`].
#[inline(always)]
unsafe fn add_vector<U: Units, const T: usize>(
    from: *const u8,
    vector: usize,
    x: [*const f32; T],
    n: usize,
    first: bool,
    sums: &mut [[<Vectors<U> as Simd>::Words; MAX_LANES]; T],
) {
    let lanes = Vectors::<U>::LANES;
    // SAFETY: passed on.
    unsafe {
        let words = U::C::load(from);
        let mut cut = [Vectors::<U>::zeros(); 4];
        for (k, cut) in cut.iter_mut().enumerate().take(U::STEP) {
            *cut = U::codes(words, k);
        }
        for t in 0..T {
            // The first vector's words are met by the chunk's first vectors.
            let at = x[t].add(place(lanes, U::STEP, vector * lanes, 0));
            let mut sum = Vectors::<U>::zeros();
            for (k, cut) in cut.iter().enumerate().take(U::STEP) {
                let bytes = Vectors::<U>::words(at.add(k * lanes).cast());
                sum = U::D::dot(sum, *cut, bytes);
            }
            sums[t][n] = if first { sum } else { Vectors::<U>::add_words(sums[t][n], sum) };
        }
    }
}

/// The sums of units as floats, of every `n` lanes.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn folded<U: Units, const T: usize>(
    sums: &[[<Vectors<U> as Simd>::Words; MAX_LANES]; T],
    n: usize,
) -> [<Vectors<U> as Simd>::V; T] {
    // SAFETY: passed on.
    unsafe {
        let mut floats = [Vectors::<U>::splat(0.0); T];
        for t in 0..T {
            floats[t] = Vectors::<U>::floats(Vectors::<U>::fold(&sums[t], n));
        }
        floats
    }
}

/// The sums of a chunk's units for the row at `weight` and some tokens. The chunk has `count` vectors of words, all of
/// them if it is `WHOLE`; those so many bytes ahead are asked for.
///
/// # Safety
/// As for [`Simd`]; the words lie at `weight` and the activations at `x`.
#[inline(always)]
unsafe fn chunk_sums<U: Units, const T: usize, const WHOLE: bool>(
    weight: *const u8,
    count: usize,
    ahead: usize,
    x: [*const f32; T],
) -> [<Vectors<U> as Simd>::V; T] {
    let (sums_of_unit, together) = fold_sizes::<U>();
    // SAFETY: passed on.
    unsafe {
        let mut sums = [[Vectors::<U>::zeros(); MAX_LANES]; T];
        each_step!(sums_of_unit, n => {
            for h in 0..together {
                let vector = n * together + h;
                if WHOLE || vector < count {
                    let from = weight.add(vector * U::C::BYTES);
                    for line in (0..U::C::BYTES).step_by(LINE) {
                        Vectors::<U>::prefetch(from.wrapping_add(ahead + line));
                    }
                    add_vector::<U, T>(from, vector, x, n % MAX_LANES, h == 0, &mut sums);
                }
            }
        });
        folded::<U, T>(&sums, sums_of_unit)
    }
}
