//! The kernels, written once over the vectors of an instruction set ([`Simd`]) and the ways to take codes out of packed
//! words ([`Codec`]).
//!
//! A row is cut into blocks of `LANES * CODES` weights. Lane `i` holds the block's codes `i * CODES ..`, and step `k`
//! takes the `k`-th code of every lane. So a code costs one shift and one look-up for a whole vector, and the lanes of
//! a vector need no more than one load of scales a block. Activations are permuted into the same order once, see
//! [`Order`].

use std::ops::Range;

use super::codec::{Codec, Scaling};
use super::dequant::RowBytes;
use super::order::Order;
use super::scales::{Parameters, rows_ahead};
use super::simd::{AHEAD, LINE, MAX_LANES, Simd};
use crate::PackedMatrix;

/// A codec's vector of floats.
type V<C> = <<C as Codec>::S as Simd>::V;

/// Does something for each of some steps, at most sixteen, with the step's number as a constant: the compiler leaves a
/// loop a loop, and then shifts by a variable.
macro_rules! each_step {
    ($steps:expr, $k:ident => $body:expr) => {
        each_step!(@ $steps, $k, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $steps:expr, $k:ident, $body:expr, $($step:literal)*) => {
        $(if $step < $steps {
            let $k = $step;
            $body
        })*
    };
}
pub(crate) use each_step;

/// Rows of a matrix times some of the tokens of an operand.
pub(crate) struct Product<'a> {
    /// A matrix of the kernel's format.
    pub(crate) m: &'a PackedMatrix,
    /// Rows of it.
    pub(crate) range: Range<usize>,
    /// Activations in the kernel's order.
    pub(crate) x: PreparedRows<'a>,
    /// Rows of the activations.
    pub(crate) tokens: &'a [u32],
    /// How many rows ahead to ask the memory for more, where it is not for the rows that come next.
    pub(crate) ahead: Option<usize>,
    /// Whether each two rows of the activations are of one token, see [`Kernel::rest`], and their products are added.
    pub(crate) pairs: bool,
}

/// Activations of some tokens as the kernel reads them: rows filled up with zeros to whole blocks.
#[derive(Clone, Copy)]
pub(crate) struct PreparedRows<'a> {
    /// Row after row.
    pub(crate) data: &'a [f32],
    /// Values of a row.
    pub(crate) stride: usize,
}

impl<'a> PreparedRows<'a> {
    /// One token's row.
    pub(crate) fn row(self, token: u32) -> &'a [f32] {
        &self.data[token as usize * self.stride..][..self.stride]
    }
}

/// [`dot`] of a codec: `out[(r - range.start) * stride + t]` for the tokens of the product.
pub(crate) type Dot = unsafe fn(&Product<'_>, out: &mut [f32], stride: usize);

/// Words of 32 bits of a row of activations as a kernel reads it, for groups of some columns.
pub(crate) type Length = fn(Order, group: usize, cols: usize) -> usize;

/// Writes a row of activations as a kernel reads them, for groups of some columns, to zeros.
pub(crate) type Prepare = unsafe fn(Order, group: usize, x: &[f32], out: &mut [f32]);

/// What is left of a row of activations when it was rounded.
pub(crate) type Rest = unsafe fn(x: &[f32], out: &mut [f32]);

/// [`decode`] of a codec.
pub(crate) type Decode = unsafe fn(&PackedMatrix, rows: Range<usize>, out: &mut [f32]);

/// [`mix_rows`] of a codec.
pub(crate) type MixRows =
    unsafe fn(&PackedMatrix, rows: Range<usize>, ahead: Option<usize>, weights: &[f32], sums: &mut [f32]);

/// The kernels of one format and instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// Of decoded weights, and of activations that are floats.
    pub(crate) order: Order,
    pub(crate) length: Length,
    pub(crate) prepare: Prepare,
    /// Where the kernel rounds activations and their rests are to be multiplied too, like another token's: a token has two
    /// rows then, see [`Product::pairs`].
    pub(crate) rest: Option<Rest>,
    /// For up to 1, 2, 4 and 8 tokens. All give a token the same bits.
    pub(crate) dot: [Dot; 4],
    /// Whether the last takes any number of tokens.
    pub(crate) any_number: bool,
    /// Weights of some rows in the kernel's order, `[rows, cols]`.
    pub(crate) decode: Decode,
    /// The weighted sum of some rows in the kernel's order, `[cols]`.
    pub(crate) mix_rows: MixRows,
}

impl Kernel {
    pub(crate) const fn of<C: Codec>(dot: [Dot; 4], decode: Decode, mix_rows: MixRows) -> Self {
        assert!(C::S::LANES <= MAX_LANES);
        let any_number = false;
        let (order, rest) = (Order::of::<C>(), None);
        Self { order, length: floats, prepare: permute, rest, dot, any_number, decode, mix_rows }
    }
}

/// [`Length`] for floats.
fn floats(order: Order, _group: usize, cols: usize) -> usize {
    order.padded(cols)
}

/// [`Prepare`] for floats.
fn permute(order: Order, _group: usize, x: &[f32], out: &mut [f32]) {
    order.permute(x, out);
}

/// How rows in a codec are multiplied with activations.
///
/// # Safety
/// As for [`Codec`].
pub(crate) trait Multiply {
    type C: Codec;

    /// Prepares the parameters of the first `rows` rows that were read.
    #[inline(always)]
    unsafe fn settle(_parameters: &mut Parameters<<Self::C as Codec>::S>, _rows: usize) {}

    /// `R` rows of the product's matrix, whose parameters were read into the slots from `slot` on, times the `T` tokens
    /// at `x`. The order of summation does not depend on `R` and `T`.
    unsafe fn tile<const R: usize, const T: usize>(
        p: &Product<'_>,
        rows: [usize; R],
        parameters: &Parameters<<Self::C as Codec>::S>,
        slot: usize,
        x: [*const f32; T],
    ) -> [[f32; T]; R];
}

/// Rows times up to `T` tokens, `R` rows at a time. See [`Dot`].
///
/// # Safety
/// The machine has the codec's instruction set, `p.m` has the codec's format with a group that fits its order and rows
/// of whole blocks, `p.x` was prepared for the kernel, and there are 1 to `T` tokens.
#[inline(always)]
pub(crate) unsafe fn dot<M: Multiply, const R: usize, const T: usize>(
    p: &Product<'_>,
    out: &mut [f32],
    stride: usize,
) {
    let mut x = [std::ptr::null(); T];
    for (t, x) in x.iter_mut().enumerate() {
        // Where there are too few tokens the last is repeated.
        *x = p.x.row(p.tokens[t.min(p.tokens.len() - 1)]).as_ptr();
    }
    // SAFETY: passed on; the operand's rows are as long as the matrix's.
    unsafe {
        // Of short rows the parameters of some more: they are written and read again at other places, which takes a while.
        let together =
            R * (FEW_GROUPS / (R * p.m.format().groups(p.m.cols())).max(1)).clamp(1, SINGLE_ROWS / R);
        let mut parameters = Parameters::new::<M::C>(p.m, together, p.ahead);
        for first in p.range.clone().step_by(together) {
            let last = (first + together).min(p.range.end);
            parameters.read::<M::C>(p.m, first..last);
            M::settle(&mut parameters, last - first);
            for start in (first..last).step_by(R) {
                let end = (start + R).min(last);
                // Where there are too few rows the last is repeated; nobody looks at what comes of that.
                let rows = std::array::from_fn(|i| (start + i).min(end - 1));
                let sums = M::tile::<R, T>(p, rows, &parameters, start - first, x);
                for (row, sums) in (start..end).zip(sums) {
                    let at = (row - p.range.start) * stride;
                    out[at..at + p.tokens.len()].copy_from_slice(&sums[..p.tokens.len()]);
                }
            }
        }
    }
}

/// Where some rows of a matrix lie, a block at a time.
pub(crate) struct Blocks<const R: usize> {
    pub(crate) weight: [*const u8; R],
    /// From a block to the one that is asked of the memory.
    ahead: usize,
}

impl<const R: usize> Blocks<R> {
    /// The first blocks of rows of the product's matrix.
    #[inline(always)]
    pub(crate) fn of<C: Codec>(p: &Product<'_>, rows: [usize; R]) -> Self {
        let row_bytes = p.m.cols() / (C::S::LANES * C::CODES) * C::BYTES;
        // Of some rows, the same place of later ones: the machine's own prefetching starts anew with every row. A single
        // row is followed by the next without a gap.
        let ahead = match p.ahead {
            Some(rows) => rows * row_bytes,
            None if R == 1 => AHEAD,
            None => rows_ahead(R, row_bytes) * row_bytes,
        };
        Self { weight: rows.map(|row| p.m.weight()[row * row_bytes..].as_ptr()), ahead }
    }

    /// Goes to the next blocks.
    #[inline(always)]
    pub(crate) unsafe fn next<C: Codec>(&mut self) {
        for pointer in &mut self.weight {
            for line in (0..C::BYTES).step_by(LINE) {
                // SAFETY: passed on.
                unsafe { C::S::prefetch(pointer.wrapping_add(self.ahead + line)) }
            }
            *pointer = pointer.wrapping_add(C::BYTES);
        }
    }
}

/// Weights as floats: every sum is taken in one vector over the blocks in ascending order, then over its lanes.
impl<C: Codec> Multiply for C {
    type C = C;

    #[inline(always)]
    unsafe fn tile<const R: usize, const T: usize>(
        p: &Product<'_>,
        rows: [usize; R],
        parameters: &Parameters<C::S>,
        slot: usize,
        x: [*const f32; T],
    ) -> [[f32; T]; R] {
        // SAFETY: the rows' blocks lie in the matrix; operands have a value for every weight; the rows' parameters were
        // read.
        unsafe {
            let mut at = Blocks::of::<C>(p, rows);
            let codec = C::new();
            let mut acc = [[C::S::splat(0.0); T]; R];
            for block in 0..p.m.cols() / (C::S::LANES * C::CODES) {
                let tile = Tile::<C, R>::load(block, at.weight, parameters, slot);
                let mut here = x;
                for x in &mut here {
                    *x = x.add(block * C::CODES * C::S::LANES);
                }
                each_step!(C::CODES, k => {
                    let w = tile.weights(codec, k);
                    for t in 0..T {
                        let value = C::S::load(here[t].add(k * C::S::LANES));
                        for r in 0..R {
                            acc[r][t] = C::S::fma(w[r], value, acc[r][t]);
                        }
                    }
                });
                at.next::<C>();
            }
            sums::<C::S, R, T>(acc)
        }
    }
}

/// The sums of the lanes.
#[inline(always)]
pub(crate) unsafe fn sums<S: Simd, const R: usize, const T: usize>(acc: [[S::V; T]; R]) -> [[f32; T]; R] {
    const { assert!((R * T).is_multiple_of(4)) };
    let mut sums = [[0.0; T]; R];
    let fours = acc.as_flattened().as_chunks::<4>().0;
    for (sums, acc) in sums.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().zip(fours) {
        // SAFETY: passed on.
        *sums = unsafe { S::four_sums(*acc) };
    }
    sums
}

/// A block of `R` rows in registers.
struct Tile<C: Codec, const R: usize> {
    words: [C::Words; R],
    scales: [V<C>; R],
    biases: [V<C>; R],
}

impl<C: Codec, const R: usize> Tile<C, R> {
    /// Loads block `block`, which each row has at its pointer; the first row's parameters are in `slot`.
    #[inline(always)]
    unsafe fn load(block: usize, weight: [*const u8; R], parameters: &Parameters<C::S>, slot: usize) -> Self {
        // SAFETY: passed on.
        unsafe {
            let mut tile = Self {
                words: [C::load(weight[0]); R],
                scales: [C::S::splat(1.0); R],
                biases: [C::S::splat(0.0); R],
            };
            for (r, from) in weight.into_iter().enumerate() {
                tile.words[r] = C::load(from);
                (tile.scales[r], tile.biases[r]) = parameters.lanes::<C>(slot + r, block);
            }
            tile
        }
    }

    /// The weights of step `k`.
    #[inline(always)]
    unsafe fn weights(&self, codec: C, k: usize) -> [V<C>; R] {
        // SAFETY: passed on.
        unsafe {
            let mut w = self.scales;
            for (r, w) in w.iter_mut().enumerate() {
                let value = codec.value(self.words[r], k);
                *w = match C::SCALING {
                    Scaling::None => value,
                    Scaling::Scale => C::S::mul(value, self.scales[r]),
                    Scaling::Affine => C::S::fma(value, self.scales[r], self.biases[r]),
                };
            }
            w
        }
    }
}

/// Rows whose parameters are read at once where rows are taken one by one. A row is short there.
const SINGLE_ROWS: usize = 16;

/// Groups of rows whose parameters are read at once where rows are taken a few at a time.
const FEW_GROUPS: usize = 128;

/// Weights of some rows in the kernel's order. See [`Kernel::decode`].
///
/// # Safety
/// As for [`dot`]; the rows are rows of `m`.
#[inline(always)]
pub(crate) unsafe fn decode<C: Codec>(m: &PackedMatrix, rows: Range<usize>, out: &mut [f32]) {
    // SAFETY: a block of bytes and a block of values each.
    unsafe {
        let mut parameters = Parameters::<C::S>::new::<C>(m, SINGLE_ROWS, None);
        let codec = C::new();
        let outs = out.chunks_mut(SINGLE_ROWS * m.cols());
        for (start, out) in rows.clone().step_by(SINGLE_ROWS).zip(outs) {
            let rows = start..(start + SINGLE_ROWS).min(rows.end);
            parameters.read::<C>(m, rows.clone());
            for (slot, (row, out)) in rows.zip(out.chunks_exact_mut(m.cols())).enumerate() {
                let bytes = RowBytes::of(m, row).weight;
                let blocks = bytes.chunks_exact(C::BYTES).zip(out.chunks_exact_mut(C::S::LANES * C::CODES));
                for (block, (bytes, out)) in blocks.enumerate() {
                    let tile = Tile::<C, 1>::load(block, [bytes.as_ptr()], &parameters, slot);
                    each_step!(C::CODES, k => {
                        let [w] = tile.weights(codec, k);
                        C::S::store(out.as_mut_ptr().add(k * C::S::LANES), w);
                    });
                }
            }
        }
    }
}

/// Adds the sum of `weights[i] * m[rows.start + i]`, in the kernel's order and rows in ascending order, to `sums`. The bits
/// are those of [`decode`] and a weighted sum of its rows, without values on their way through memory. `ahead` is
/// [`Product::ahead`].
///
/// # Safety
/// As for [`decode`]; there is a weight for every row, and `sums` has a value for every column.
#[inline(always)]
pub(crate) unsafe fn mix_rows<C: Codec>(
    m: &PackedMatrix,
    rows: Range<usize>,
    ahead: Option<usize>,
    weights: &[f32],
    sums: &mut [f32],
) {
    // SAFETY: the rows' blocks lie in the matrix, and their parameters were read; sums have a block of values for each.
    unsafe {
        let mut parameters = Parameters::<C::S>::new::<C>(m, SINGLE_ROWS, ahead);
        let codec = C::new();
        let row_bytes = m.cols() / (C::S::LANES * C::CODES) * C::BYTES;
        let ahead = ahead.unwrap_or_else(|| rows_ahead(SINGLE_ROWS, row_bytes)) * row_bytes;
        for (start, weights) in rows.step_by(SINGLE_ROWS).zip(weights.chunks(SINGLE_ROWS)) {
            parameters.read::<C>(m, start..start + weights.len());
            for (block, sums) in sums.chunks_exact_mut(C::S::LANES * C::CODES).enumerate() {
                let mut acc = [C::S::splat(0.0); 16];
                each_step!(C::CODES, k => {
                    acc[k] = C::S::load(sums.as_ptr().add(k * C::S::LANES));
                });
                let mut at = m.weight()[start * row_bytes + block * C::BYTES..].as_ptr();
                for (slot, &weight) in weights.iter().enumerate() {
                    for line in (0..C::BYTES).step_by(LINE) {
                        C::S::prefetch(at.wrapping_add(ahead + line));
                    }
                    let weight = C::S::splat(weight);
                    let tile = Tile::<C, 1>::load(block, [at], &parameters, slot);
                    each_step!(C::CODES, k => {
                        let [w] = tile.weights(codec, k);
                        acc[k] = C::S::fma(weight, w, acc[k]);
                    });
                    at = at.wrapping_add(row_bytes);
                }
                each_step!(C::CODES, k => {
                    C::S::store(sums.as_mut_ptr().add(k * C::S::LANES), acc[k]);
                });
            }
        }
    }
}
