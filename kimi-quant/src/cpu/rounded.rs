//! Activations as bytes, for products of one or two tokens ([`super::few`]) and of many ([`super::tile`]).
//!
//! A unit is 64 neighbouring columns, or 32 where groups are as small: all its weights have one scale and one bias. Its
//! activations are integers of up to 127 times a step of their own. The sum of their products with the codes is
//! an exact integer; it is multiplied with the steps of both sides as a float, and the sum of the rounded activations
//! with the bias. So a result has no error but the rounding of its activations and that of some sums in f32.
//!
//! A chunk is as many units as a vector has lanes. Its row of activations has their steps, then their sums, then the
//! bytes in the order in which packed words give codes: for each vector of words the vectors that meet its codes.
//!
//! Lane `i` adds up the units `i` of all chunks; then neighbouring lanes are added, and neighbouring sums.

use std::marker::PhantomData;

use super::bytes::{ByteDot, Bytes};
use super::codec::{Codec, Packed};
use super::order::Order;
use super::scales::Parameters;
use super::simd::{MAX_LANES, Simd};

/// Vectors of a chunk before its bytes.
pub(crate) const HEAD: usize = 2;

/// How rows of codes of `BITS` bits (e2m1 if `FP`) are multiplied with activations in units of `UNIT` columns.
pub(crate) struct Rounded<D, const BITS: usize, const FP: bool, const UNIT: usize>(PhantomData<D>);

/// What the kernels of [`Rounded`] need to know of their sizes.
pub(crate) trait Units {
    type D: ByteDot;
    type C: Codec<S = Vectors<Self>, Words = <Vectors<Self> as Simd>::Words>;
    const BITS: usize;
    const UNIT: usize;
    /// Codes of a lane for each of the bytes that meet in an instruction.
    const STEP: usize = Self::C::CODES / 4;
    /// Lanes with the codes of a unit: vectors of words in a chunk.
    const LANES_OF_UNIT: usize = Self::UNIT / Self::C::CODES;

    /// Bytes of the `k`-th codes of every lane.
    unsafe fn codes(words: <Vectors<Self> as Simd>::Words, k: usize) -> <Vectors<Self> as Simd>::Words;

    /// Scales and biases of the lanes of chunk `chunk` of the row in `slot`.
    unsafe fn affine(
        parameters: &Parameters<Vectors<Self>>,
        slot: usize,
        chunk: usize,
    ) -> [<Vectors<Self> as Simd>::V; 2];
}

/// The vectors of some [`Units`].
pub(crate) type Vectors<U> = <<U as Units>::D as ByteDot>::S;

impl<D: ByteDot, const BITS: usize, const FP: bool, const UNIT: usize> Units for Rounded<D, BITS, FP, UNIT> {
    type D = D;
    type C = Packed<D::S, BITS, FP>;
    const BITS: usize = BITS;
    const UNIT: usize = UNIT;

    #[inline(always)]
    unsafe fn codes(words: <D::S as Simd>::Words, k: usize) -> <D::S as Simd>::Words {
        // SAFETY: passed on.
        unsafe { D::S::codes::<BITS, FP>(words, k, Self::STEP) }
    }

    #[inline(always)]
    unsafe fn affine(parameters: &Parameters<D::S>, slot: usize, chunk: usize) -> [<D::S as Simd>::V; 2] {
        // SAFETY: passed on.
        unsafe {
            let scales = parameters.scales(slot, chunk);
            if FP {
                // Codes are twice the values and 12 more.
                let half = D::S::mul(scales, D::S::splat(0.5));
                return [half, D::S::mul(half, D::S::splat(-12.0))];
            }
            [scales, parameters.picked_biases(slot, chunk)]
        }
    }
}

/// The largest integer of an activation.
const LARGEST: i32 = 127;

/// 32-bit words of a chunk of `lanes` units.
pub(crate) const fn chunk_words(lanes: usize, unit: usize) -> usize {
    lanes * (HEAD + unit / 4)
}

/// Where in a chunk the activations are that lane `lane` of its words meets with its `k`-th codes.
pub(crate) const fn place(lanes: usize, step: usize, lane: usize, k: usize) -> usize {
    lanes * HEAD + (lane / lanes * step + k) * lanes + lane % lanes
}

/// 32-bit words of a row. See [`super::kernel::Length`].
pub(crate) fn length<U: Units>(_order: Order, _group: usize, cols: usize) -> usize {
    let lanes = Vectors::<U>::LANES;
    // Rows begin at cache lines.
    (cols.div_ceil(lanes * U::UNIT) * chunk_words(lanes, U::UNIT)).next_multiple_of(MAX_LANES)
}

/// The integers of a unit of at most 64 activations, and their step.
#[inline(always)]
fn integers(unit: &[f32]) -> ([i32; 64], f32) {
    let size = unit.iter().fold(0, |size, x| x.abs().to_bits().max(size));
    let size = f32::from_bits(size);
    // Units of zeros, or nearly so, have zeros.
    let up = if size > f32::MIN_POSITIVE { LARGEST as f32 / size } else { 0.0 };
    let mut numbers = [0; 64];
    for (number, x) in numbers.iter_mut().zip(unit) {
        // So much more leaves no bits for a fraction.
        *number = ((x * up + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4b40_0000);
    }
    (numbers, size / LARGEST as f32)
}

/// What [`write`] takes off a row of activations.
#[inline(always)]
pub(crate) fn rest<U: Units>(x: &[f32], out: &mut [f32]) {
    for (unit, out) in x.chunks_exact(U::UNIT).zip(out.chunks_exact_mut(U::UNIT)) {
        let (numbers, step) = integers(unit);
        for ((out, x), number) in out.iter_mut().zip(unit).zip(numbers) {
            *out = x - number as f32 * step;
        }
    }
}

/// Writes a row of activations to `out`, which is zeros.
#[inline(always)]
pub(crate) fn write<U: Units>(x: &[f32], out: &mut [f32]) {
    let (lanes, codes) = (Vectors::<U>::LANES, U::C::CODES);
    const {
        // The sum of a unit fits 32 bits.
        let code = if U::BITS == 4 { 24 } else { (1 << U::BITS) - 1 };
        assert!(U::UNIT as i64 * code * (LARGEST as i64) < 1 << 31);
    }
    let words = chunk_words(lanes, U::UNIT);
    for (chunk, out) in x.chunks(lanes * U::UNIT).zip(out.chunks_exact_mut(words)) {
        let out: &mut [u32] = bytemuck::cast_slice_mut(out);
        for (u, unit) in chunk.chunks_exact(U::UNIT).enumerate() {
            let (numbers, step) = integers(unit);
            let sum: i32 = numbers.iter().sum();
            out[u] = step.to_bits();
            out[lanes + u] = (step * sum as f32).to_bits();
            for (i, numbers) in numbers[..U::UNIT].chunks_exact(codes).enumerate() {
                let lane = u * U::LANES_OF_UNIT + i;
                for k in 0..U::STEP {
                    let at = place(lanes, U::STEP, lane, k);
                    let four = [0, 1, 2, 3].map(|j| numbers[k + j * U::STEP]);
                    out[at] = u32::from_le_bytes(four.map(|n| n as u8));
                }
            }
        }
    }
}

/// Defines `fast_kernel(format, exact)`, the fast kernels of an instruction set by its [`ByteDot`], its features, how many
/// tokens at once its registers hold, and whether it takes codes of 8 bits.
macro_rules! fast_kernels {
    ($dot:ty, $features:literal, [$two:literal, $four:literal, $six:literal] $(, $eight:ident)?) => {
        #[target_feature(enable = $features)]
        unsafe fn few<U: $crate::cpu::rounded::Units, const T: usize>(
            p: &$crate::cpu::kernel::Product<'_>,
            out: &mut [f32],
            stride: usize,
        ) {
            $crate::cpu::few::few::<U, T>(p, out, stride)
        }

        #[target_feature(enable = $features)]
        unsafe fn many<U: $crate::cpu::rounded::Units>(
            p: &$crate::cpu::kernel::Product<'_>,
            out: &mut [f32],
            stride: usize,
        ) {
            use $crate::cpu::codec::Codec;
            let some = match (U::UNIT, U::C::CODES) {
                (64, 4) => sizes::<4, 64>(),
                (64, 8) => sizes::<8, 64>(),
                (64, _) => sizes::<16, 64>(),
                _ => sizes::<8, 32>(), // of 4 bits
            };
            $crate::cpu::tile::many::<U>(p, out, stride, some)
        }

        /// One for all widths of codes.
        #[target_feature(enable = $features)]
        unsafe fn some<const CODES: usize, const UNIT: usize, const T: usize>(
            tile: &$crate::cpu::tile::Tile,
            p: &$crate::cpu::kernel::Product<'_>,
            first: usize,
            out: $crate::cpu::tile::Out<'_>,
        ) -> usize {
            $crate::cpu::tile::some::<$dot, CODES, UNIT, T>(tile, p, first, out)
        }

        const fn sizes<const CODES: usize, const UNIT: usize>() -> [$crate::cpu::tile::Multiply; 3] {
            [some::<CODES, UNIT, $two>, some::<CODES, UNIT, $four>, some::<CODES, UNIT, $six>]
        }

        #[target_feature(enable = $features)]
        unsafe fn round<U: $crate::cpu::rounded::Units>(
            _order: $crate::cpu::order::Order,
            _group: usize,
            x: &[f32],
            out: &mut [f32],
        ) {
            $crate::cpu::rounded::write::<U>(x, out)
        }

        #[target_feature(enable = $features)]
        unsafe fn rest<U: $crate::cpu::rounded::Units>(x: &[f32], out: &mut [f32]) {
            $crate::cpu::rounded::rest::<U>(x, out)
        }

        const fn fast<U: $crate::cpu::rounded::Units>(
            exact: $crate::cpu::kernel::Kernel,
        ) -> $crate::cpu::kernel::Kernel {
            $crate::cpu::kernel::Kernel {
                length: $crate::cpu::rounded::length::<U>,
                prepare: round::<U>,
                rest: Some(rest::<U>),
                dot: [few::<U, 1>, few::<U, 2>, many::<U>, many::<U>],
                any_number: true,
                ..exact
            }
        }

        /// The fast kernels for a format, or its exact ones. They run only where the machine has the instruction set.
        pub(crate) const fn fast_kernel(
            format: $crate::Format,
            exact: $crate::cpu::kernel::Kernel,
        ) -> $crate::cpu::kernel::Kernel {
            use $crate::cpu::rounded::Rounded;
            use $crate::{BitWidth, Format};
            match format {
                Format::Affine { bits: BitWidth::B2, group: 64.., .. } => {
                    fast::<Rounded<$dot, 2, false, 64>>(exact)
                }
                Format::Affine { bits: BitWidth::B3, group: 64.., .. } => {
                    fast::<Rounded<$dot, 3, false, 64>>(exact)
                }
                Format::Affine { bits: BitWidth::B4, group: 64.., .. } | Format::Int4 { group: 64.., .. } => {
                    fast::<Rounded<$dot, 4, false, 64>>(exact)
                }
                Format::Affine { bits: BitWidth::B5, group: 64.., .. } => {
                    fast::<Rounded<$dot, 5, false, 64>>(exact)
                }
                Format::Affine { bits: BitWidth::B6, group: 64.., .. } => {
                    fast::<Rounded<$dot, 6, false, 64>>(exact)
                }
                $(Format::Affine { bits: BitWidth::$eight, group: 64.., .. } => {
                    fast::<Rounded<$dot, 8, false, 64>>(exact)
                })?
                // Other widths have no groups of 32 in checkpoints that anybody runs.
                Format::Affine { bits: BitWidth::B4, group: 32.., .. } | Format::Int4 { group: 32.., .. } => {
                    fast::<Rounded<$dot, 4, false, 32>>(exact)
                }
                Format::Mxfp4 => fast::<Rounded<$dot, 4, true, 32>>(exact),
                _ => exact,
            }
        }
    };
}
pub(crate) use fast_kernels;
