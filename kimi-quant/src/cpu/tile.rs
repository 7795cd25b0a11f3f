//! Products of many tokens with rounded activations: rows are turned into bytes once for all tokens.
//!
//! A tile is some rows with a row in each lane, so that a sum over the columns of a unit stays in its lane, and one
//! activation meets the weights of all rows. It is computed unit by unit in the order in which [`super::few::few`]
//! adds up: all units of a lane, then the next lane's. A token has the same bits from both.

use std::cell::Cell;

use super::bytes::{ByteDot, Bytes};
use super::codec::Codec;
use super::kernel::Product;
use super::rounded::{Units, Vectors, chunk_words, place};
use super::scales::Parameters;
use super::simd::{LINE, MAX_LANES, Simd};
use crate::PackedMatrix;

/// Vectors of rows in a tile.
const ROWS: usize = 2;

/// Bytes from one row that are asked for ahead.
const AHEAD: usize = 4 * LINE;

/// A cache line of words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

thread_local! {
    /// The memory of this thread's tile, between two products.
    static MEMORY: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Rows as bytes.
pub(crate) struct Tile {
    memory: Vec<Line>,
    chunks: usize,
    /// Words of the codes: for each unit, in the order of the sums, a vector for four columns of each vector of rows.
    /// Then scales and biases in the same order.
    codes: usize,
}

impl Tile {
    /// A tile for rows of `cols` columns.
    fn new<U: Units>(cols: usize) -> Self {
        let lanes = Vectors::<U>::LANES;
        let chunks = cols.div_ceil(lanes * U::UNIT);
        let codes = lanes * chunks * (U::UNIT / 4) * ROWS * lanes;
        let words = codes + lanes * chunks * ROWS * 2 * lanes;
        let mut memory = MEMORY.take();
        memory.resize(words.div_ceil(16).max(memory.len()), Line([0; 16]));
        Self { memory, chunks, codes }
    }

    /// Fills vector `r` of rows with those of `rows`.
    ///
    /// # Safety
    /// As for [`super::kernel::dot`]; the tile is for rows as long.
    #[inline(always)]
    unsafe fn fill<U: Units>(
        &mut self,
        m: &PackedMatrix,
        rows: [usize; MAX_LANES],
        r: usize,
        parameters: &mut Parameters<Vectors<U>>,
    ) {
        let lanes = Vectors::<U>::LANES;
        let blocks = m.cols() / (lanes * U::C::CODES);
        let tile = self.memory.as_mut_ptr().cast::<u32>();
        // SAFETY: the rows' blocks lie in the matrix, a unit's vectors in the tile.
        unsafe {
            let mut weight = [std::ptr::null(); MAX_LANES];
            for (i, weight) in weight.iter_mut().enumerate().take(lanes) {
                *weight = m.weight()[rows[i] * blocks * U::C::BYTES..].as_ptr();
                parameters.read_row::<U::C>(i, m, rows[i]);
            }
            let mut vectors = [Vectors::<U>::zeros(); MAX_LANES];
            for block in 0..blocks {
                for (vector, weight) in vectors.iter_mut().zip(weight).take(lanes) {
                    let from = weight.add(block * U::C::BYTES);
                    Vectors::<U>::prefetch(from.wrapping_add(AHEAD));
                    *vector = U::C::load(from);
                }
                Vectors::<U>::transpose(&mut vectors);
                for (i, words) in vectors.into_iter().enumerate().take(lanes) {
                    let lane = block * lanes + i;
                    let first = self.unit::<U>(lane / U::LANES_OF_UNIT) * (U::UNIT / 4)
                        + lane % U::LANES_OF_UNIT * U::STEP;
                    for k in 0..U::STEP {
                        let to = tile.add(((first + k) * ROWS + r) * lanes);
                        Vectors::<U>::store_words(to, U::codes(words, k));
                    }
                }
            }
            for chunk in 0..self.chunks {
                let mut pairs = [vectors; 2];
                for i in 0..lanes {
                    let affine = U::affine(parameters, i, chunk);
                    for (vectors, values) in pairs.iter_mut().zip(affine) {
                        vectors[i] = Vectors::<U>::bits(values);
                    }
                }
                for (which, vectors) in pairs.iter_mut().enumerate() {
                    Vectors::<U>::transpose(vectors);
                    for (i, words) in vectors.iter().enumerate().take(lanes) {
                        let unit = self.unit::<U>(chunk * lanes + i);
                        let to = tile.add(self.codes + ((unit * ROWS + r) * 2 + which) * lanes);
                        Vectors::<U>::store_words(to, *words);
                    }
                }
            }
        }
    }

    /// The place of a unit of the row among the tile's.
    #[inline(always)]
    fn unit<U: Units>(&self, unit: usize) -> usize {
        let lanes = Vectors::<U>::LANES;
        unit % lanes * self.chunks + unit / lanes
    }

    /// The products with some rows of activations; those at `next` are asked for meanwhile.
    ///
    /// # Safety
    /// As for [`super::kernel::dot`]; the tile was filled.
    #[inline(always)]
    unsafe fn multiply<D: ByteDot, const CODES: usize, const UNIT: usize, const T: usize>(
        &self,
        x: [*const f32; T],
        next: [*const f32; T],
    ) -> [[<D::S as Simd>::V; T]; ROWS] {
        let (lanes, step, lanes_of_unit) = (D::S::LANES, CODES / 4, UNIT / CODES);
        let (units, bytes) = (lanes * self.chunks, 4 * self.chunks * chunk_words(lanes, UNIT));
        let mut codes = self.memory.as_ptr().cast::<u32>();
        // SAFETY: a unit's vectors lie in the tile, its activations in the operand's rows.
        unsafe {
            let mut affine = codes.add(self.codes).cast::<f32>();
            let zero = D::S::splat(0.0);
            // Sums of 1, 2, 4 and 8 lanes that wait for their neighbours.
            let mut pending = [[[zero; T]; ROWS]; 5];
            for lane in 0..lanes {
                let mut acc = [[zero; T]; ROWS];
                let first = place(lanes, step, lane * lanes_of_unit, 0);
                for chunk in 0..self.chunks {
                    let start = chunk * chunk_words(lanes, UNIT);
                    for line in (LINE * (lane * self.chunks + chunk)..bytes).step_by(LINE * units) {
                        for next in next {
                            D::S::prefetch(next.cast::<u8>().wrapping_add(line));
                        }
                    }
                    let mut sums = [[D::S::zeros(); T]; ROWS];
                    for i in 0..lanes_of_unit {
                        for k in 0..step {
                            let at = start + first + (i / lanes * step + k) * lanes + i % lanes;
                            let mut w = [D::S::zeros(); ROWS];
                            for (r, w) in w.iter_mut().enumerate() {
                                *w = D::S::words(codes.add(((i * step + k) * ROWS + r) * lanes).cast());
                            }
                            for t in 0..T {
                                let bytes = D::S::same(x[t].add(at).cast());
                                for r in 0..ROWS {
                                    sums[r][t] = D::dot(sums[r][t], w[r], bytes);
                                }
                            }
                        }
                    }
                    for r in 0..ROWS {
                        let scale = D::S::load(affine.add(2 * r * lanes));
                        let bias = D::S::load(affine.add((2 * r + 1) * lanes));
                        for t in 0..T {
                            let at = x[t].add(start + lane);
                            let scaled = D::S::mul(scale, D::S::splat(*at));
                            acc[r][t] = D::S::fma(D::S::floats(sums[r][t]), scaled, acc[r][t]);
                            acc[r][t] = D::S::fma(bias, D::S::splat(*at.add(lanes)), acc[r][t]);
                        }
                    }
                    codes = codes.add(UNIT / 4 * ROWS * lanes);
                    affine = affine.add(2 * ROWS * lanes);
                }
                let mut level = 0;
                while lane >> level & 1 == 1 {
                    for r in 0..ROWS {
                        for t in 0..T {
                            acc[r][t] = D::S::add(pending[level][r][t], acc[r][t]);
                        }
                    }
                    level += 1;
                }
                pending[level] = acc;
            }
            pending[lanes.ilog2() as usize]
        }
    }
}

/// The first rows of a tile, as many as `out` has, times up to a fixed number of the product's rows of activations from
/// `first` on: how many.
pub(crate) type Multiply = unsafe fn(&Tile, p: &Product<'_>, first: usize, out: Out<'_>) -> usize;

/// Where the results of some rows go: `values[r * stride + t]` for the tokens from the first on.
pub(crate) struct Out<'a> {
    values: &'a mut [f32],
    stride: usize,
    rows: usize,
}

/// Rows times any number of rows of activations, with `some` for up to 2, 4 and 6 of them or fewer. See
/// [`super::kernel::Dot`].
///
/// # Safety
/// As for [`super::kernel::dot`].
#[inline(always)]
pub(crate) unsafe fn many<U: Units>(p: &Product<'_>, out: &mut [f32], stride: usize, some: [Multiply; 3]) {
    let lanes = Vectors::<U>::LANES;
    let mut tile = Tile::new::<U>(p.m.cols());
    // SAFETY: passed on.
    unsafe {
        let mut parameters = Parameters::of_lanes::<U::C>(p.m, lanes, p.ahead, U::UNIT);
        for start in p.range.clone().step_by(ROWS * lanes) {
            for r in 0..ROWS {
                let mut rows = [0; MAX_LANES];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = (start + r * lanes + i).min(p.range.end - 1);
                }
                tile.fill::<U>(p.m, rows, r, &mut parameters);
            }
            let rows = (ROWS * lanes).min(p.range.end - start);
            let mut first = 0;
            while first < p.tokens.len() {
                let token = if p.pairs { first / 2 } else { first };
                let values = &mut out[(start - p.range.start) * stride + token..];
                let some = match p.tokens.len() - first {
                    1 | 2 => some[0],
                    3 | 4 => some[1],
                    _ => some[2],
                };
                first += some(&tile, p, first, Out { values, stride, rows });
            }
        }
    }
    MEMORY.set(tile.memory);
}

/// See [`Multiply`].
///
/// # Safety
/// As for [`Tile::multiply`]; there is a token.
#[inline(always)]
pub(crate) unsafe fn some<D: ByteDot, const CODES: usize, const UNIT: usize, const T: usize>(
    tile: &Tile,
    p: &Product<'_>,
    first: usize,
    out: Out<'_>,
) -> usize {
    const { assert!(T.is_multiple_of(2)) };
    let lanes = D::S::LANES;
    let row = |i: usize| p.x.row(p.tokens[i]).as_ptr();
    // Where there are too few the last is repeated.
    let x = std::array::from_fn(|t| row((first + t).min(p.tokens.len() - 1)));
    // After the last come those that the next tile begins with.
    let next = std::array::from_fn(|t| row((first + T + t) % p.tokens.len()));
    let count = T.min(p.tokens.len() - first);
    let of_token = if p.pairs { 2 } else { 1 };
    let mut values = [[0.0; MAX_LANES]; T];
    // SAFETY: passed on.
    unsafe {
        let sums = tile.multiply::<D, CODES, UNIT, T>(x, next);
        for (r, mut sums) in sums.into_iter().enumerate() {
            if p.pairs {
                for t in 0..T / 2 {
                    sums[t] = D::S::add(sums[2 * t], sums[2 * t + 1]);
                }
            }
            for (values, sums) in values.iter_mut().zip(sums) {
                D::S::store(values.as_mut_ptr(), sums);
            }
            let rows = r * lanes..out.rows.min((r + 1) * lanes);
            for (i, row) in rows.enumerate() {
                let out = &mut out.values[row * out.stride..][..count / of_token];
                out.iter_mut().zip(&values).for_each(|(out, values)| *out = values[i]);
            }
        }
    }
    count
}
