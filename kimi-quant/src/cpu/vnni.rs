//! AVX-512 with VNNI and VBMI: dot products of bytes, beside all that [`super::avx512`] has.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::x86_64::*;

use super::avx512::{self, Avx512};
use super::codec::{Codec, Packed};
use super::digits::{self, ByteDot, EXACT, FAST, InIntegers};
use super::kernel::{self, Kernel, Multiply, Product};
use super::order::Order;
use crate::{BitWidth, Format};

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
unsafe fn dot<M: Multiply, const R: usize, const T: usize>(p: &Product<'_>, out: &mut [f32], stride: usize) {
    kernel::dot::<M, R, T>(p, out, stride)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
unsafe fn prepare<const CODES: usize, const DIGITS: usize>(
    _order: Order,
    group: usize,
    x: &[f32],
    out: &mut [f32],
) {
    digits::write::<CODES, DIGITS>(group, x, out)
}

/// The exact kernels for a format. They run only where the machine has the instruction set.
pub(crate) const fn kernel(format: Format) -> Kernel {
    with_digits::<EXACT>(format)
}

/// The fast kernels for a format.
pub(crate) const fn fast_kernel(format: Format) -> Kernel {
    with_digits::<FAST>(format)
}

const fn with_digits<const DIGITS: usize>(format: Format) -> Kernel {
    let floats = avx512::kernel(format);
    match format {
        Format::Affine { bits: BitWidth::B2, group: 32.., .. } => in_integers::<2, 16, DIGITS>(floats),
        Format::Affine { bits: BitWidth::B3, group: 32.., .. } => in_integers::<3, 8, DIGITS>(floats),
        Format::Affine { bits: BitWidth::B4, group: 32.., .. } | Format::Int4 { group: 32.., .. } => {
            in_integers::<4, 8, DIGITS>(floats)
        }
        _ => floats, // 5 and 6 bits have four codes a unit: no faster for one token, slower for many
    }
}

const fn in_integers<const BITS: usize, const CODES: usize, const DIGITS: usize>(floats: Kernel) -> Kernel {
    type M<const BITS: usize, const DIGITS: usize> = InIntegers<Avx512, BITS, DIGITS>;
    assert!(CODES == Packed::<Avx512, BITS, false>::CODES);
    Kernel {
        length: digits::length::<CODES, DIGITS>,
        prepare: prepare::<CODES, DIGITS>,
        dot: [
            dot::<M<BITS, DIGITS>, 4, 1>,
            dot::<M<BITS, DIGITS>, 4, 2>,
            dot::<M<BITS, DIGITS>, 2, 4>,
            dot::<M<BITS, DIGITS>, 2, 8>,
        ],
        ..floats
    }
}

impl ByteDot for Avx512 {
    #[inline(always)]
    unsafe fn zeros() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn codes<const BITS: usize>(words: __m512i, k: usize, step: usize) -> __m512i {
        let mask = _mm512_set1_epi8((1 << BITS) - 1);
        if 8 % BITS == 0 {
            return _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_set1_epi32((BITS * k) as i32)), mask);
        }
        // For each byte the bit, of the 64 of two lanes, with which its code begins.
        let mut bits = 0;
        for i in 0..8 {
            let (lane, j) = (i / 4, i % 4);
            let bit = 32 * lane + BITS * (k + j * step);
            bits |= (bit as i64) << (8 * i);
        }
        _mm512_and_si512(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(bits), words), mask)
    }
    #[inline(always)]
    unsafe fn dot(sums: __m512i, codes: __m512i, digits: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sums, codes, digits)
    }
    #[inline(always)]
    unsafe fn shift_add(high: __m512i, low: __m512i) -> __m512i {
        _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
    }
    #[inline(always)]
    unsafe fn without(sums: __m512i, zeros: __m512, totals: __m512i) -> __m512i {
        _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_castps_si512(zeros), totals))
    }
    #[inline(always)]
    unsafe fn floats(sums: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(sums)
    }
}
