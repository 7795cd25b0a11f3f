//! AVX2 with FMA and F16C: eight lanes.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::x86_64::*;

use super::codec::kernels;
use super::simd::{MAX_LANES, Simd};

/// Vectors of eight.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

kernels!(Avx2, "avx2,fma,f16c");

impl Simd for Avx2 {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;
    type V = __m256;
    type Words = __m256i;
    type Table = __m256;
    type Places = __m256i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        _mm256_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m256 {
        let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        _mm256_storeu_ps(to, v)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast())
    }
    #[inline(always)]
    unsafe fn places(lanes: &[i32; MAX_LANES]) -> __m256i {
        _mm256_loadu_si256(lanes.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, places: __m256i) -> __m256 {
        _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), places)
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> __m256i {
        _mm256_loadu_si256(from.cast())
    }
    #[inline(always)]
    unsafe fn three_bytes(from: *const u8) -> __m256i {
        // Twelve bytes to each half; the second load ends where the 24 bytes end.
        let low = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
        let high = _mm_setr_epi8(4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1);
        let bytes = _mm256_loadu2_m128i(from.add(8).cast(), from.cast());
        _mm256_shuffle_epi8(bytes, _mm256_set_m128i(high, low))
    }
    #[inline(always)]
    unsafe fn twenty_bits(from: *const u8) -> __m256i {
        // Ten bytes to each half; the second load ends where the 20 bytes end.
        let low = _mm_setr_epi8(0, 1, 2, -1, 2, 3, 4, -1, 5, 6, 7, -1, 7, 8, 9, -1);
        let high = _mm_setr_epi8(6, 7, 8, -1, 8, 9, 10, -1, 11, 12, 13, -1, 13, 14, 15, -1);
        let bytes = _mm256_loadu2_m128i(from.add(4).cast(), from.cast());
        let words = _mm256_shuffle_epi8(bytes, _mm256_set_m128i(high, low));
        _mm256_srlv_epi32(words, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4))
    }

    #[inline(always)]
    unsafe fn table<const BITS: usize, const FP: bool>() -> __m256 {
        match (BITS, FP) {
            (2, _) => _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0),
            (4, true) => _mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
            _ => _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
        }
    }
    #[inline(always)]
    unsafe fn code<const BITS: usize, const FP: bool>(table: __m256, words: __m256i, k: usize) -> __m256 {
        if FP && BITS == 8 {
            return e4m3(words, k);
        }
        let shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32((BITS * k) as i32));
        match (BITS, FP) {
            // The permutation looks at the low three bits only.
            (2 | 3, _) => _mm256_permutevar8x32_ps(table, shifted),
            (4, true) => {
                let sign = _mm256_and_si256(_mm256_slli_epi32::<28>(shifted), _mm256_set1_epi32(i32::MIN));
                _mm256_xor_ps(_mm256_permutevar8x32_ps(table, shifted), _mm256_castsi256_ps(sign))
            }
            _ => _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32((1 << BITS) - 1))),
        }
    }
}

/// Byte `k` of every lane: its exponent and mantissa become those of an f32 whose exponent is 120 too small.
#[inline(always)]
unsafe fn e4m3(words: __m256i, k: usize) -> __m256 {
    let top = _mm256_sllv_epi32(words, _mm256_set1_epi32(24 - 8 * k as i32));
    let sign = _mm256_and_si256(top, _mm256_set1_epi32(i32::MIN));
    let rest = _mm256_srli_epi32::<4>(_mm256_and_si256(top, _mm256_set1_epi32(0x7f00_0000)));
    let small = _mm256_castsi256_ps(_mm256_or_si256(sign, rest));
    _mm256_mul_ps(small, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)))
}
