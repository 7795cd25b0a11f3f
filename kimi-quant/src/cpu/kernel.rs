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

/// The largest block in bytes: f32, sixteen lanes, four steps.
const MAX_BLOCK_BYTES: usize = 256;

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
        group.is_multiple_of(self.codes)
            && (group.is_multiple_of(self.block()) || self.block().is_multiple_of(group))
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

/// The kernels of one format and instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) order: Order,
    /// `out[r * tokens + t]`, of `range.len() * tokens.len()` values.
    pub(crate) dot: unsafe fn(&Product<'_>, out: &mut [f32]),
    /// Weights of a row in the kernel's order, `[padded(cols)]`; what lies past `cols` has no meaning.
    pub(crate) decode: unsafe fn(&PackedMatrix, row: usize, out: &mut [f32]),
}

impl Kernel {
    pub(crate) const fn of<C: Codec>(
        dot: unsafe fn(&Product<'_>, &mut [f32]),
        decode: unsafe fn(&PackedMatrix, usize, &mut [f32]),
    ) -> Self {
        assert!(C::S::LANES <= MAX_LANES && C::BYTES <= MAX_BLOCK_BYTES);
        Self { order: Order::of::<C>(), dot, decode }
    }
}

/// Scales and biases of up to four rows as f32, each row followed by a vector of padding.
struct Parameters {
    scales: Vec<f32>,
    biases: Vec<f32>,
    stride: usize,
}

impl Parameters {
    #[inline(always)]
    fn new<C: Codec>(m: &PackedMatrix, rows: usize) -> Self {
        let groups = if C::SCALING == Scaling::None { 0 } else { m.cols() / m.format().group() };
        let stride = groups + MAX_LANES;
        let biases = if C::SCALING == Scaling::Affine { rows * stride } else { 0 };
        Self { scales: vec![0.0; rows * stride], biases: vec![0.0; biases], stride }
    }

    #[inline(always)]
    fn read<C: Codec>(&mut self, slot: usize, m: &PackedMatrix, row: usize) {
        let at = slot * self.stride..(slot + 1) * self.stride - MAX_LANES;
        if C::SCALING == Scaling::None {
            return;
        }
        let (bytes, scales) = (RowBytes::of(m, row), &mut self.scales[at.clone()]);
        match m.format() {
            Format::Affine { scales: t, .. } => {
                read_floats(t, bytes.scales, scales);
                read_floats(t, bytes.biases, &mut self.biases[at]);
            }
            Format::Int4 { scales: t, .. } => {
                read_floats(t, bytes.scales, scales);
                self.biases[at].iter_mut().zip(scales).for_each(|(b, s)| *b = -8.0 * *s);
            }
            Format::Nvfp4 => scales.iter_mut().zip(bytes.scales).for_each(|(s, &b)| *s = e4m3(b)),
            _ => scales.iter_mut().zip(bytes.scales).for_each(|(s, &b)| *s = e8m0(b)),
        }
        if m.global_scale() != 1.0 && C::SCALING == Scaling::Scale {
            self.scales.iter_mut().for_each(|s| *s *= m.global_scale());
        }
    }
}

#[inline(always)]
fn read_floats(t: FloatType, bytes: &[u8], out: &mut [f32]) {
    match t {
        FloatType::Bf16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_bits((u16::from_le_bytes(*b) as u32) << 16);
            }
        }
        t => out.iter_mut().enumerate().for_each(|(i, value)| *value = t.read(bytes, i)),
    }
}

/// Where a block's lanes find their scales.
struct Groups<S: Simd> {
    places: S::Places,
    group: usize,
    block: usize,
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
        // SAFETY: the caller vouches for the instruction set.
        Self { places: unsafe { S::places(&lanes) }, group, block }
    }

    /// The first group of a block.
    #[inline(always)]
    fn first(&self, block: usize) -> usize {
        block * self.block / self.group
    }
}

/// See [`Kernel::dot`].
///
/// # Safety
/// The machine has the codec's instruction set, `p.m` has the codec's format with a group that fits its order, and
/// `p.x` is in its order.
#[inline(always)]
pub(crate) unsafe fn dot<C: Codec>(p: &Product<'_>, out: &mut [f32]) {
    let mut done = 0;
    for tokens in p.tokens.chunks(8) {
        // SAFETY: passed on. Every size gives a token the same bits, so the size is a matter of speed only.
        unsafe {
            match (tokens.len(), C::S::MANY_REGISTERS) {
                (1, _) => dot_tokens::<C, 4, 1>(p, tokens, done, out),
                (2, _) => dot_tokens::<C, 4, 2>(p, tokens, done, out),
                (3 | 4, _) => dot_tokens::<C, 2, 4>(p, tokens, done, out),
                (_, true) => dot_tokens::<C, 2, 8>(p, tokens, done, out),
                (_, false) => dot_tokens::<C, 1, 8>(p, tokens, done, out),
            }
        }
        done += tokens.len();
    }
}

/// All rows, `R` at a time, for up to `T` tokens, which are columns `first..` of `out`.
#[inline(always)]
unsafe fn dot_tokens<C: Codec, const R: usize, const T: usize>(
    p: &Product<'_>,
    tokens: &[u32],
    first: usize,
    out: &mut [f32],
) {
    let mut parameters = Parameters::new::<C>(p.m, R);
    let mut x = [std::ptr::null(); T];
    for (t, x) in x.iter_mut().enumerate() {
        // A chunk that is too short repeats its last token.
        *x = p.x.row(tokens[t.min(tokens.len() - 1)]).as_ptr();
    }
    let mut start = p.range.start;
    while start < p.range.end {
        let mut rows = [0; R];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = (start + i).min(p.range.end - 1);
            parameters.read::<C>(i, p.m, *row);
        }
        // SAFETY: passed on; the operand's rows are `padded(cols)` long.
        let sums = unsafe { dot_tile::<C, R, T>(p.m, rows, &parameters, x) };
        for (row, sums) in rows.into_iter().zip(sums) {
            let at = (row - p.range.start) * p.tokens.len() + first;
            out[at..at + tokens.len()].copy_from_slice(&sums[..tokens.len()]);
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
    let (blocks, tail) = (row_bytes / C::BYTES, row_bytes % C::BYTES);
    let mut weight = [m.weight().as_ptr(); R];
    // SAFETY: the rows are rows of the matrix, so that whole blocks and the tail lie in its bytes; operands and
    // parameters are padded to whole vectors.
    unsafe {
        for (pointer, row) in weight.iter_mut().zip(rows) {
            *pointer = pointer.add(row * row_bytes);
        }
        let (codec, groups) = (C::new(), Groups::<C::S>::new::<C>(m));
        let mut acc = [[C::S::splat(0.0); T]; R];
        for block in 0..blocks {
            dot_block(codec, &groups, block, weight, parameters, x, &mut acc);
            for pointer in &mut weight {
                *pointer = pointer.add(C::BYTES);
            }
        }
        if tail > 0 {
            let mut padded = [[0u8; MAX_BLOCK_BYTES]; R];
            for (pointer, padded) in weight.iter_mut().zip(&mut padded) {
                pointer.copy_to_nonoverlapping(padded.as_mut_ptr(), tail);
                *pointer = padded.as_ptr();
            }
            dot_block(codec, &groups, blocks, weight, parameters, x, &mut acc);
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

/// One block of [`dot_tile`].
#[inline(always)]
unsafe fn dot_block<C: Codec, const R: usize, const T: usize>(
    codec: C,
    groups: &Groups<C::S>,
    block: usize,
    weight: [*const u8; R],
    parameters: &Parameters,
    x: [*const f32; T],
    acc: &mut [[<C::S as Simd>::V; T]; R],
) {
    // SAFETY: see the caller.
    unsafe {
        let mut words = [C::load(weight[0]); R];
        for (words, weight) in words.iter_mut().zip(weight).skip(1) {
            *words = C::load(weight);
        }
        let mut scale = [C::S::splat(1.0); R];
        let mut bias = [C::S::splat(0.0); R];
        if C::SCALING != Scaling::None {
            for r in 0..R {
                let at = r * parameters.stride + groups.first(block);
                scale[r] = C::S::pick(parameters.scales.as_ptr().add(at), groups.places);
                if C::SCALING == Scaling::Affine {
                    bias[r] = C::S::pick(parameters.biases.as_ptr().add(at), groups.places);
                }
            }
        }
        for k in 0..C::CODES {
            let mut values = [C::S::splat(0.0); T];
            for (value, x) in values.iter_mut().zip(x) {
                *value = C::S::load(x.add((block * C::CODES + k) * C::S::LANES));
            }
            for r in 0..R {
                let w = scaled::<C>(codec.value(words[r], k), scale[r], bias[r]);
                for t in 0..T {
                    acc[r][t] = C::S::fma(w, values[t], acc[r][t]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scaled<C: Codec>(
    value: <C::S as Simd>::V,
    scale: <C::S as Simd>::V,
    bias: <C::S as Simd>::V,
) -> <C::S as Simd>::V {
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
/// As for [`dot`]; `row` is a row of `m` and `out` is `padded(m.cols())` long.
#[inline(always)]
pub(crate) unsafe fn decode<C: Codec>(m: &PackedMatrix, row: usize, out: &mut [f32]) {
    let mut parameters = Parameters::new::<C>(m, 1);
    parameters.read::<C>(0, m, row);
    let bytes = RowBytes::of(m, row).weight;
    // SAFETY: as in `dot_tile`; each block writes its own part of `out`.
    unsafe {
        let (codec, groups) = (C::new(), Groups::<C::S>::new::<C>(m));
        for (block, out) in out.chunks_exact_mut(C::S::LANES * C::CODES).enumerate() {
            let rest = &bytes[block * C::BYTES..];
            let mut padded = [0u8; MAX_BLOCK_BYTES];
            let words = if rest.len() >= C::BYTES {
                C::load(rest.as_ptr())
            } else {
                padded[..rest.len()].copy_from_slice(rest);
                C::load(padded.as_ptr())
            };
            let (mut scale, mut bias) = (C::S::splat(1.0), C::S::splat(0.0));
            if C::SCALING != Scaling::None {
                scale = C::S::pick(parameters.scales.as_ptr().add(groups.first(block)), groups.places);
            }
            if C::SCALING == Scaling::Affine {
                bias = C::S::pick(parameters.biases.as_ptr().add(groups.first(block)), groups.places);
            }
            for k in 0..C::CODES {
                let w = scaled::<C>(codec.value(words, k), scale, bias);
                C::S::store(out.as_mut_ptr().add(k * C::S::LANES), w);
            }
        }
    }
}
