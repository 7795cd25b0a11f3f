//! The kernels, written once over the vectors of an instruction set ([`Simd`]) and the ways to take codes out of packed
//! words ([`Codec`]).
//!
//! A row is cut into blocks of `LANES * CODES` weights. Lane `i` holds the block's codes `i * CODES ..`, and step `k`
//! takes the `k`-th code of every lane. So a code costs one shift and one look-up for a whole vector, and the lanes of
//! a vector need no more than one load of scales a block. Activations are permuted into the same order once, see
//! [`Order`].

use std::ops::Range;

use super::codec::{Codec, Scaling};
use super::dequant::{RowBytes, e4m3, e8m0};
use super::matmul::Operand;
use super::simd::{MAX_LANES, Simd};
use crate::{FloatType, Format, PackedMatrix};

/// A codec's vector of floats.
type V<C> = <<C as Codec>::S as Simd>::V;

/// Does something for each step of a block with the step's number as a constant: the compiler leaves a loop a loop,
/// and then shifts by a variable.
macro_rules! each_step {
    ($codec:ty, $k:ident => $body:expr) => {
        each_step!(@ $codec, $k, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $codec:ty, $k:ident, $body:expr, $($step:literal)*) => {
        $(if $step < <$codec>::CODES {
            let $k = $step;
            $body
        })*
    };
}

/// The order in which a kernel reads activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    lanes: usize,
    codes: usize,
    natural: bool,
}

impl Order {
    const fn of<C: Codec>() -> Self {
        Self { lanes: C::S::LANES, codes: C::CODES, natural: C::NATURAL }
    }

    /// Weights in a block.
    pub(crate) const fn block(self) -> usize {
        self.lanes * self.codes
    }

    /// Length of a row of `cols` values with its last block filled up.
    pub(crate) const fn padded(self, cols: usize) -> usize {
        cols.next_multiple_of(self.block())
    }

    /// Whether scales of groups of `group` fall on lanes and blocks.
    pub(crate) const fn fits_group(self, group: usize) -> bool {
        self.natural || (group.is_power_of_two() && group.is_multiple_of(self.codes))
    }

    /// Puts `x` into this order; `out` is `padded(x.len())` zeros.
    pub(crate) fn permute(self, x: &[f32], out: &mut [f32]) {
        if self.natural {
            return out[..x.len()].copy_from_slice(x);
        }
        for (block, out) in x.chunks(self.block()).zip(out.chunks_exact_mut(self.block())) {
            for (lane, codes) in block.chunks(self.codes).enumerate() {
                for (k, &value) in codes.iter().enumerate() {
                    out[k * self.lanes + lane] = value;
                }
            }
        }
    }

    /// Takes `x` out of this order.
    pub(crate) fn restore(self, x: &[f32], out: &mut [f32]) {
        if self.natural {
            return out.copy_from_slice(&x[..out.len()]);
        }
        for (out, block) in out.chunks_mut(self.block()).zip(x.chunks_exact(self.block())) {
            for (lane, codes) in out.chunks_mut(self.codes).enumerate() {
                for (k, value) in codes.iter_mut().enumerate() {
                    *value = block[k * self.lanes + lane];
                }
            }
        }
    }
}

/// Rows of a matrix times some of the tokens of an operand.
pub(crate) struct Product<'a> {
    /// A matrix of the kernel's format.
    pub(crate) m: &'a PackedMatrix,
    /// Rows of it.
    pub(crate) range: Range<usize>,
    /// Activations in the kernel's order.
    pub(crate) x: &'a Operand,
    /// Rows of the activations.
    pub(crate) tokens: &'a [u32],
}

/// [`dot`] of a codec: `out[(r - range.start) * stride + t]` for the tokens of the product.
pub(crate) type Dot = unsafe fn(&Product<'_>, out: &mut [f32], stride: usize);

/// [`decode`] of a codec.
pub(crate) type Decode = unsafe fn(&PackedMatrix, row: usize, out: &mut [f32]);

/// Bytes that one prefetch brings, on most machines.
const LINE: usize = 64;

/// The kernels of one format and instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) order: Order,
    /// For up to 1, 2, 4 and 8 tokens. All give a token the same bits.
    pub(crate) dot: [Dot; 4],
    /// Weights of a row in the kernel's order, `[cols]`.
    pub(crate) decode: Decode,
}

impl Kernel {
    pub(crate) const fn of<C: Codec>(dot: [Dot; 4], decode: Decode) -> Self {
        assert!(C::S::LANES <= MAX_LANES);
        Self { order: Order::of::<C>(), dot, decode }
    }
}

/// Scales and biases of a few rows as f32, each row followed by a vector of padding.
struct Parameters {
    scales: Vec<f32>,
    biases: Vec<f32>,
    groups: usize,
    stride: usize,
}

impl Parameters {
    #[inline(always)]
    fn new<C: Codec>(m: &PackedMatrix, rows: usize) -> Self {
        let groups = if C::SCALING == Scaling::None { 0 } else { m.cols() / m.format().group() };
        let stride = groups + MAX_LANES;
        let biases = if C::SCALING == Scaling::Affine { rows * stride } else { 0 };
        Self { scales: vec![0.0; rows * stride], biases: vec![0.0; biases], groups, stride }
    }

    /// Reads row `row` of `m` into place `slot`.
    #[inline(always)]
    fn read<C: Codec>(&mut self, slot: usize, m: &PackedMatrix, row: usize) {
        if C::SCALING == Scaling::None {
            return;
        }
        let to = slot * self.stride..slot * self.stride + self.groups;
        let scales = &mut self.scales[to.clone()];
        match m.format() {
            Format::Affine { scales: t, .. } => {
                let from = row * self.groups * t.bytes()..(row + 1) * self.groups * t.bytes();
                read_floats(t, &m.scales()[from.clone()], scales);
                read_floats(t, &m.biases()[from], &mut self.biases[to]);
            }
            Format::Int4 { scales: t, .. } => {
                let from = row * self.groups * t.bytes()..(row + 1) * self.groups * t.bytes();
                read_floats(t, &m.scales()[from], scales);
                self.biases[to].iter_mut().zip(scales).for_each(|(b, s)| *b = -8.0 * *s);
            }
            format => {
                let bytes = &m.scales()[row * self.groups..(row + 1) * self.groups];
                let pairs = scales.iter_mut().zip(bytes);
                if format == Format::Nvfp4 {
                    pairs.for_each(|(s, &b)| *s = m.global_scale() * e4m3(b));
                } else {
                    pairs.for_each(|(s, &b)| *s = m.global_scale() * e8m0(b));
                }
            }
        }
    }
}

#[inline(always)]
fn read_floats(t: FloatType, bytes: &[u8], out: &mut [f32]) {
    let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b) as u32);
    match t {
        FloatType::Bf16 => out.iter_mut().zip(halves()).for_each(|(v, h)| *v = f32::from_bits(h << 16)),
        FloatType::F16 => out.iter_mut().zip(halves()).for_each(|(v, h)| *v = f16(h)),
        FloatType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            out.iter_mut().zip(words).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
    }
}

/// The value of a half's bits, in steps that the compiler makes vectors of.
#[inline(always)]
fn f16(half: u32) -> f32 {
    let magnitude = half & 0x7fff;
    // The exponent is 112 too small; infinities and NaNs keep theirs of ones.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | (half & 0x8000) << 16)
}

/// Where a block's lanes find their scales.
#[derive(Clone, Copy)]
struct Groups<S: Simd> {
    places: S::Places,
    /// Of the blocks' number, to the left and to the right.
    shifts: [u32; 2],
}

impl<S: Simd> Groups<S> {
    #[inline(always)]
    unsafe fn new<C: Codec<S = S>>(m: &PackedMatrix) -> Self {
        let (group, block) = (m.format().group(), S::LANES * C::CODES);
        let mut lanes = [0; MAX_LANES];
        if group < block {
            for (i, place) in lanes.iter_mut().enumerate() {
                *place = (i * C::CODES / group) as i32;
            }
        }
        let shifts = [(block / group).max(1).ilog2(), (group / block).max(1).ilog2()];
        // SAFETY: the caller vouches for the instruction set.
        Self { places: unsafe { S::places(&lanes) }, shifts }
    }

    /// The first group of a block.
    #[inline(always)]
    fn first(&self, block: usize) -> usize {
        block << self.shifts[0] >> self.shifts[1]
    }
}

/// Rows times up to `T` tokens, `R` rows at a time. See [`Dot`].
///
/// # Safety
/// The machine has the codec's instruction set, `p.m` has the codec's format with a group that fits its order and rows
/// of whole blocks, `p.x` is in its order, and there are 1 to `T` tokens.
#[inline(always)]
pub(crate) unsafe fn dot<C: Codec, const R: usize, const T: usize>(
    p: &Product<'_>,
    out: &mut [f32],
    stride: usize,
) {
    let mut parameters = Parameters::new::<C>(p.m, R);
    let mut x = [std::ptr::null(); T];
    for (t, x) in x.iter_mut().enumerate() {
        // Where there are too few tokens the last is repeated.
        *x = p.x.row(p.tokens[t.min(p.tokens.len() - 1)]).as_ptr();
    }
    let mut start = p.range.start;
    while start < p.range.end {
        let mut rows = [0; R];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = (start + i).min(p.range.end - 1);
            parameters.read::<C>(i, p.m, *row);
        }
        // SAFETY: passed on; the operand's rows are as long as the matrix's.
        let sums = unsafe { dot_tile::<C, R, T>(p.m, rows, &parameters, x) };
        for (row, sums) in rows.into_iter().zip(sums) {
            let at = (row - p.range.start) * stride;
            out[at..at + p.tokens.len()].copy_from_slice(&sums[..p.tokens.len()]);
        }
        start += R;
    }
}

/// `R` rows times `T` tokens.
#[inline(always)]
unsafe fn dot_tile<C: Codec, const R: usize, const T: usize>(
    m: &PackedMatrix,
    rows: [usize; R],
    parameters: &Parameters,
    x: [*const f32; T],
) -> [[f32; T]; R] {
    let row_bytes = m.weight().len() / m.rows();
    let blocks = row_bytes / C::BYTES;
    let mut weight = [m.weight().as_ptr(); R];
    // SAFETY: the rows are rows of the matrix, so that their blocks lie in its bytes; parameters are padded to whole
    // vectors, and operands have a value for every weight.
    unsafe {
        for (pointer, row) in weight.iter_mut().zip(rows) {
            *pointer = pointer.add(row * row_bytes);
        }
        let (codec, groups) = (C::new(), Groups::<C::S>::new::<C>(m));
        let mut acc = [[C::S::splat(0.0); T]; R];
        for block in 0..blocks {
            let (words, scale, bias, x) = dot_block::<C, R, T>(groups, block, weight, parameters, x);
            each_step!(C, k => dot_step::<C, R, T>(codec, k, words, scale, bias, x, &mut acc));
            for pointer in &mut weight {
                // The same place of the next rows: the machine's own prefetching starts anew with every row.
                for line in (0..C::BYTES).step_by(LINE) {
                    C::S::prefetch(pointer.wrapping_add(R * row_bytes + line));
                }
                *pointer = pointer.add(C::BYTES);
            }
        }
        let mut sums = [[0.0; T]; R];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sum, acc) in sums.iter_mut().zip(acc) {
                *sum = C::S::sum(acc);
            }
        }
        sums
    }
}

/// What the steps of a block of [`dot_tile`] need: words, scales, biases and activations.
#[inline(always)]
unsafe fn dot_block<C: Codec, const R: usize, const T: usize>(
    groups: Groups<C::S>,
    block: usize,
    weight: [*const u8; R],
    parameters: &Parameters,
    mut x: [*const f32; T],
) -> ([C::Words; R], [V<C>; R], [V<C>; R], [*const f32; T]) {
    // SAFETY: see the caller.
    unsafe {
        for x in &mut x {
            *x = x.add(block * C::CODES * C::S::LANES);
        }
        let mut words = [C::load(weight[0]); R];
        for r in 1..R {
            words[r] = C::load(weight[r]);
        }
        let mut scale = [C::S::splat(1.0); R];
        let mut bias = [C::S::splat(0.0); R];
        for r in 0..R {
            let at = r * parameters.stride + groups.first(block);
            if C::SCALING != Scaling::None {
                scale[r] = C::S::pick(parameters.scales.as_ptr().add(at), groups.places);
            }
            if C::SCALING == Scaling::Affine {
                bias[r] = C::S::pick(parameters.biases.as_ptr().add(at), groups.places);
            }
        }
        (words, scale, bias, x)
    }
}

/// One step of a block: a vector of every row, a vector of every token.
#[inline(always)]
unsafe fn dot_step<C: Codec, const R: usize, const T: usize>(
    codec: C,
    k: usize,
    words: [C::Words; R],
    scale: [V<C>; R],
    bias: [V<C>; R],
    x: [*const f32; T],
    acc: &mut [[V<C>; T]; R],
) {
    // SAFETY: see the caller.
    unsafe {
        let mut w = [C::S::splat(0.0); R];
        for r in 0..R {
            w[r] = scaled::<C>(codec.value(words[r], k), scale[r], bias[r]);
        }
        for t in 0..T {
            let value = C::S::load(x[t].add(k * C::S::LANES));
            for r in 0..R {
                acc[r][t] = C::S::fma(w[r], value, acc[r][t]);
            }
        }
    }
}

#[inline(always)]
unsafe fn scaled<C: Codec>(value: V<C>, scale: V<C>, bias: V<C>) -> V<C> {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match C::SCALING {
            Scaling::None => value,
            Scaling::Scale => C::S::mul(value, scale),
            Scaling::Affine => C::S::fma(value, scale, bias),
        }
    }
}

/// See [`Kernel::decode`].
///
/// # Safety
/// As for [`dot`]; `row` is a row of `m`.
#[inline(always)]
pub(crate) unsafe fn decode<C: Codec>(m: &PackedMatrix, row: usize, out: &mut [f32]) {
    let mut parameters = Parameters::new::<C>(m, 1);
    parameters.read::<C>(0, m, row);
    let bytes = RowBytes::of(m, row).weight;
    let blocks = bytes.chunks_exact(C::BYTES).zip(out.chunks_exact_mut(C::S::LANES * C::CODES));
    // SAFETY: a block of bytes and a block of values each.
    unsafe {
        let (codec, groups) = (C::new(), Groups::<C::S>::new::<C>(m));
        for (block, (bytes, out)) in blocks.enumerate() {
            let words = C::load(bytes.as_ptr());
            let (mut scale, mut bias) = (C::S::splat(1.0), C::S::splat(0.0));
            if C::SCALING != Scaling::None {
                scale = C::S::pick(parameters.scales.as_ptr().add(groups.first(block)), groups.places);
            }
            if C::SCALING == Scaling::Affine {
                bias = C::S::pick(parameters.biases.as_ptr().add(groups.first(block)), groups.places);
            }
            each_step!(C, k => {
                let w = scaled::<C>(codec.value(words, k), scale, bias);
                C::S::store(out.as_mut_ptr().add(k * C::S::LANES), w);
            });
        }
    }
}
