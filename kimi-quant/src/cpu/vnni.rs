//! AVX-512 with VNNI and VBMI: dot products of bytes, beside all that [`super::avx512`] has.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::x86_64::*;

use super::avx512::{self, Avx512};
use super::bytes::{ByteDot, Bytes};
use super::codec::{Codec, Packed};
use super::digits::{self, Digits, InIntegers};
use super::kernel::{self, Kernel, Multiply, Product};
use super::order::Order;
use super::rounded::fast_kernels;
use super::simd::MAX_LANES;
use crate::{BitWidth, Format};

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
unsafe fn dot<M: Multiply, const R: usize, const T: usize>(p: &Product<'_>, out: &mut [f32], stride: usize) {
    kernel::dot::<M, R, T>(p, out, stride)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
unsafe fn prepare<const CODES: usize>(_order: Order, group: usize, x: &[f32], out: &mut [f32]) {
    digits::write::<CODES>(group, x, out)
}

/// The exact kernels for a format. They run only where the machine has the instruction set.
pub(crate) const fn kernel(format: Format) -> Kernel {
    let floats = avx512::kernel(format);
    match format {
        Format::Affine { bits: BitWidth::B2, group: 32.., .. } => in_integers::<2, 16>(floats),
        Format::Affine { bits: BitWidth::B3, group: 32.., .. } => in_integers::<3, 8>(floats),
        Format::Affine { bits: BitWidth::B4, group: 32.., .. } | Format::Int4 { group: 32.., .. } => {
            in_integers::<4, 8>(floats)
        }
        _ => floats, // 5 and 6 bits have four codes a unit: no faster for one token, slower for many
    }
}

fast_kernels!(Vnni, "avx512f,avx512bw,avx512vbmi,avx512vnni", [2, 4, 6], B8);

/// `vpdpbusd` of sixteen lanes.
struct Vnni;

impl ByteDot for Vnni {
    type S = Avx512;

    #[inline(always)]
    unsafe fn dot(sums: __m512i, codes: __m512i, activations: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sums, codes, activations)
    }
}

impl Bytes for Avx512 {
    #[inline(always)]
    unsafe fn zeros() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn same(from: *const u32) -> __m512i {
        _mm512_set1_epi32(from.read_unaligned() as i32)
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, words: __m512i) {
        _mm512_storeu_si512(to.cast(), words)
    }
    #[inline(always)]
    unsafe fn bits(v: __m512) -> __m512i {
        _mm512_castps_si512(v)
    }
    #[inline(always)]
    unsafe fn floats(words: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(words)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn add_words(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn codes<const BITS: usize, const FP: bool>(words: __m512i, k: usize, step: usize) -> __m512i {
        let codes = if BITS == 8 { words } else { cut::<BITS>(words, k, step) };
        if FP {
            // Twice the values of e2m1 and 12.
            let table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
            return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
        }
        codes
    }
    #[inline(always)]
    unsafe fn transpose(vectors: &mut [__m512i; MAX_LANES]) {
        // Lanes of four vectors, then quarters of four of those.
        let mut mixed = [_mm512_setzero_si512(); 16];
        for i in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| vectors[4 * i + j]);
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            mixed[4 * i] = _mm512_unpacklo_epi64(ab, cd);
            mixed[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
            let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            mixed[4 * i + 2] = _mm512_unpacklo_epi64(ab, cd);
            mixed[4 * i + 3] = _mm512_unpackhi_epi64(ab, cd);
        }
        for i in 0..4 {
            // Quarter q of vector 4 * j + i has lane 4 * q + i of the vectors 4 * j to 4 * j + 3.
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| mixed[4 * j + i]);
            let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (even2, odd2) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
            vectors[i] = _mm512_shuffle_i32x4::<0x88>(even, even2);
            vectors[4 + i] = _mm512_shuffle_i32x4::<0x88>(odd, odd2);
            vectors[8 + i] = _mm512_shuffle_i32x4::<0xdd>(even, even2);
            vectors[12 + i] = _mm512_shuffle_i32x4::<0xdd>(odd, odd2);
        }
    }
    #[inline(always)]
    unsafe fn fold(v: &[__m512i; MAX_LANES], n: usize) -> __m512i {
        match n {
            2 => {
                // In each quarter two sums of the first vector, then two of the second.
                let order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
                _mm512_permutexvar_epi32(order, pairs(v[0], v[1]))
            }
            4 => {
                let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                _mm512_permutexvar_epi32(order, fours(v[0], v[1], v[2], v[3]))
            }
            8 => {
                let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
                let [a, b] = [fours(v[0], v[1], v[2], v[3]), fours(v[4], v[5], v[6], v[7])];
                _mm512_permutexvar_epi32(order, quarters(a, b))
            }
            _ => {
                let [a, b] = [fours(v[0], v[1], v[2], v[3]), fours(v[4], v[5], v[6], v[7])];
                let [c, d] = [fours(v[8], v[9], v[10], v[11]), fours(v[12], v[13], v[14], v[15])];
                quarters(quarters(a, b), quarters(c, d))
            }
        }
    }
}

/// In each quarter the sums of the two pairs of `a`, then of `b`.
#[inline(always)]
unsafe fn pairs(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
    let (even, odd) = (_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
    _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
}

/// In each quarter the sums of that of `a`, `b`, `c` and `d`.
#[inline(always)]
unsafe fn fours(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    pairs(pairs(a, b), pairs(c, d))
}

/// The sums of the two pairs of quarters of `a`, then of `b`.
#[inline(always)]
unsafe fn quarters(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b))
}

/// In every lane its codes `k`, `k + step`, `k + 2 * step` and `k + 3 * step` of `BITS` bits, a byte each.
#[inline(always)]
unsafe fn cut<const BITS: usize>(words: __m512i, k: usize, step: usize) -> __m512i {
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

const fn in_integers<const BITS: usize, const CODES: usize>(floats: Kernel) -> Kernel {
    type M<const BITS: usize> = InIntegers<Vnni, BITS>;
    assert!(CODES == Packed::<Avx512, BITS, false>::CODES);
    Kernel {
        length: digits::length::<CODES>,
        prepare: prepare::<CODES>,
        dot: [dot::<M<BITS>, 4, 1>, dot::<M<BITS>, 4, 2>, dot::<M<BITS>, 2, 4>, dot::<M<BITS>, 2, 8>],
        ..floats
    }
}

impl Digits for Avx512 {
    #[inline(always)]
    unsafe fn same_byte(byte: u8) -> __m512i {
        _mm512_set1_epi8(byte as i8)
    }
    #[inline(always)]
    unsafe fn shift(words: __m512i) -> __m512i {
        _mm512_slli_epi32::<8>(words)
    }
    #[inline(always)]
    unsafe fn less_bytes(a: __m512i, b: __m512i) -> __m512i {
        _mm512_sub_epi8(a, b)
    }
    #[inline(always)]
    unsafe fn negative(words: __m512i) -> __m512i {
        _mm512_sub_epi32(_mm512_setzero_si512(), words)
    }
}
