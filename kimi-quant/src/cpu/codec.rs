//! From packed bytes to vectors of weights.

use std::marker::PhantomData;

use super::simd::Simd;

/// How a code becomes a weight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// The value is the weight.
    None,
    /// `scale * value`.
    Scale,
    /// `scale * value + bias`, rounded once.
    Affine,
}

/// A block of a row, `LANES * CODES` weights, in vectors.
///
/// # Safety
/// As for [`Simd`]. [`Codec::load`] and [`Codec::value`] together read exactly [`Codec::BYTES`] bytes.
pub(crate) trait Codec: Copy {
    type S: Simd;
    /// Codes a lane takes from a block: lane `i` has the codes `i * CODES ..`.
    const CODES: usize;
    /// Bytes of a block.
    const BYTES: usize;
    const SCALING: Scaling;
    /// Whether instead the `k`-th vector has the block's codes `k * LANES ..`.
    const NATURAL: bool;
    /// A block in registers.
    type Words: Copy;

    /// The codec with its tables in registers.
    unsafe fn new() -> Self;
    unsafe fn load(from: *const u8) -> Self::Words;
    /// The `k`-th codes of the lanes.
    unsafe fn value(self, words: Self::Words, k: usize) -> <Self::S as Simd>::V;
}

/// Codes of 2, 3, 4, 5, 6 or 8 bits: unsigned and affine, or `FP` (e2m1, e4m3) and scaled.
#[derive(Clone, Copy)]
pub(crate) struct Packed<S: Simd, const BITS: usize, const FP: bool>(S::Table);

impl<S: Simd, const BITS: usize, const FP: bool> Codec for Packed<S, BITS, FP> {
    type S = S;
    // Of a whole word, of three bytes, of twenty bits.
    const CODES: usize = match BITS {
        2 | 4 | 8 => 32 / BITS,
        3 | 6 => 24 / BITS,
        _ => 4,
    };
    const BYTES: usize = S::LANES * Self::CODES * BITS / 8;
    const SCALING: Scaling = if FP { Scaling::Scale } else { Scaling::Affine };
    const NATURAL: bool = false;
    type Words = S::Words;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: passed on, here and below.
        Self(unsafe { S::table::<BITS, FP>() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> S::Words {
        // SAFETY: each reads `BYTES` bytes.
        unsafe {
            match BITS {
                2 | 4 | 8 => S::words(from),
                3 | 6 => S::three_bytes(from),
                _ => S::twenty_bits(from),
            }
        }
    }

    #[inline(always)]
    unsafe fn value(self, words: S::Words, k: usize) -> S::V {
        // SAFETY: passed on.
        unsafe { S::code::<BITS, FP>(self.0, words, k) }
    }
}

/// [`Floats`] of bfloat16.
pub(crate) const BF16: u8 = 0;
/// [`Floats`] of IEEE half.
pub(crate) const F16: u8 = 1;
/// [`Floats`] of IEEE single.
pub(crate) const F32: u8 = 2;

/// Four vectors of floats.
#[derive(Clone, Copy)]
pub(crate) struct Floats<S: Simd, const KIND: u8>(PhantomData<S>);

impl<S: Simd, const KIND: u8> Floats<S, KIND> {
    const SIZE: usize = if KIND == F32 { 4 } else { 2 };
}

impl<S: Simd, const KIND: u8> Codec for Floats<S, KIND> {
    type S = S;
    const CODES: usize = 4;
    const BYTES: usize = S::LANES * Self::CODES * Self::SIZE;
    const SCALING: Scaling = Scaling::None;
    const NATURAL: bool = true;
    type Words = *const u8;

    #[inline(always)]
    unsafe fn new() -> Self {
        Self(PhantomData)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> *const u8 {
        from
    }

    #[inline(always)]
    unsafe fn value(self, words: *const u8, k: usize) -> S::V {
        // SAFETY: vector `k` of the four that the block has.
        unsafe {
            let from = words.add(S::LANES * Self::SIZE * k);
            match KIND {
                BF16 => S::load_bf16(from),
                F16 => S::load_f16(from),
                _ => S::load(from.cast()),
            }
        }
    }
}

/// Defines `kernel(format)` and `DENSE`, the kernels of an instruction set; its features are named, its baseline has none.
macro_rules! kernels {
    ($simd:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn dot<M: $crate::cpu::kernel::Multiply, const R: usize, const T: usize>(
            p: &$crate::cpu::kernel::Product<'_>,
            out: &mut [f32],
            stride: usize,
        ) {
            $crate::cpu::kernel::dot::<M, R, T>(p, out, stride)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn decode<C: $crate::cpu::codec::Codec>(
            m: &$crate::PackedMatrix,
            rows: std::ops::Range<usize>,
            out: &mut [f32],
        ) {
            $crate::cpu::kernel::decode::<C>(m, rows, out)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn mix_rows<C: $crate::cpu::codec::Codec>(
            m: &$crate::PackedMatrix,
            rows: std::ops::Range<usize>,
            ahead: Option<usize>,
            weights: &[f32],
            sums: &mut [f32],
        ) {
            $crate::cpu::kernel::mix_rows::<C>(m, rows, ahead, weights, sums)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn scores(queries: &[&[f32]], keys: &[&[f32]], width: usize, out: &mut [f32]) {
            $crate::cpu::dense::scores_kernel::<$simd>(queries, keys, width, out)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn mix(sums: &mut [f32], width: usize, weights: &[f32], rows: &[&[f32]]) {
            $crate::cpu::dense::mix_kernel::<$simd>(sums, width, weights, rows)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn exponentials(scores: &mut [f32], scale: f32) -> (f32, f32) {
            $crate::cpu::exp::exponentials(scores, scale)
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
            $crate::cpu::exp::swiglu(gate, up)
        }

        /// The kernels over f32 rows. They run only where the machine has the instruction set.
        pub(crate) const DENSE: $crate::cpu::dense::Dense = $crate::cpu::dense::Dense::new(scores, mix, exponentials, swiglu);

        const fn kernel_of<C: $crate::cpu::codec::Codec>() -> $crate::cpu::kernel::Kernel {
            use $crate::cpu::simd::Simd;
            let eight = if <$simd>::MANY_REGISTERS { dot::<C, 2, 8> } else { dot::<C, 1, 8> };
            let dots = [dot::<C, 4, 1>, dot::<C, 4, 2>, dot::<C, 2, 4>, eight];
            $crate::cpu::kernel::Kernel::of::<C>(dots, decode::<C>, mix_rows::<C>)
        }

        /// The kernels for a format. They run only where the machine has the instruction set.
        pub(crate) const fn kernel(format: $crate::Format) -> $crate::cpu::kernel::Kernel {
            use $crate::cpu::codec::{BF16, F16, F32, Floats, Packed};
            use $crate::{BitWidth, FloatType, Format};
            match format {
                Format::Affine { bits: BitWidth::B2, .. } => kernel_of::<Packed<$simd, 2, false>>(),
                Format::Affine { bits: BitWidth::B3, .. } => kernel_of::<Packed<$simd, 3, false>>(),
                Format::Affine { bits: BitWidth::B4, .. } | Format::Int4 { .. } => {
                    kernel_of::<Packed<$simd, 4, false>>()
                }
                Format::Affine { bits: BitWidth::B5, .. } => kernel_of::<Packed<$simd, 5, false>>(),
                Format::Affine { bits: BitWidth::B6, .. } => kernel_of::<Packed<$simd, 6, false>>(),
                Format::Affine { bits: BitWidth::B8, .. } => kernel_of::<Packed<$simd, 8, false>>(),
                Format::Mxfp4 | Format::Nvfp4 => kernel_of::<Packed<$simd, 4, true>>(),
                Format::Mxfp8 | Format::Fp8 { .. } => kernel_of::<Packed<$simd, 8, true>>(),
                Format::Float(FloatType::Bf16) => kernel_of::<Floats<$simd, BF16>>(),
                Format::Float(FloatType::F16) => kernel_of::<Floats<$simd, F16>>(),
                Format::Float(FloatType::F32) => kernel_of::<Floats<$simd, F32>>(),
            }
        }
    };
}
pub(crate) use kernels;
