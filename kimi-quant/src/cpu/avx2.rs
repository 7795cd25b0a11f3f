//! AVX2 with FMA and F16C: eight lanes.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::x86_64::*;

use super::bytes::{ByteDot, Bytes};
use super::codec::kernels;
use super::rounded::fast_kernels;
use super::simd::{MAX_LANES, Simd};

/// Vectors of eight.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

kernels!(Avx2, "avx2,fma,f16c");
fast_kernels!(PairsOfWords, "avx2,fma,f16c", [2, 2, 2]);

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

/// `vpmaddubsw`, whose sums of two products have 16 bits: codes of up to 6 bits times 127 stay below 2^14.
struct PairsOfWords;

impl ByteDot for PairsOfWords {
    type S = Avx2;

    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: __m256i, activations: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(codes, activations);
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

impl Bytes for Avx2 {
    #[inline(always)]
    unsafe fn zeros() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn same(from: *const u32) -> __m256i {
        _mm256_set1_epi32(from.read_unaligned() as i32)
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, words: __m256i) {
        _mm256_storeu_si256(to.cast(), words)
    }
    #[inline(always)]
    unsafe fn bits(v: __m256) -> __m256i {
        _mm256_castps_si256(v)
    }
    #[inline(always)]
    unsafe fn floats(words: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(words)
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn add_words(a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn codes<const BITS: usize, const FP: bool>(words: __m256i, k: usize, step: usize) -> __m256i {
        let codes = match BITS {
            8 => words,
            2 | 4 => {
                let mask = _mm256_set1_epi8((1 << BITS) - 1);
                _mm256_and_si256(_mm256_srlv_epi32(words, _mm256_set1_epi32((BITS * k) as i32)), mask)
            }
            _ => {
                let mut codes = _mm256_setzero_si256();
                for j in 0..4 {
                    // To its byte from the bit with which it begins.
                    let (from, to) = (BITS * (k + j * step), 8 * j);
                    let moved = if from >= to {
                        _mm256_srlv_epi32(words, _mm256_set1_epi32((from - to) as i32))
                    } else {
                        _mm256_sllv_epi32(words, _mm256_set1_epi32((to - from) as i32))
                    };
                    let mask = _mm256_set1_epi32(((1 << BITS) - 1) << to);
                    codes = _mm256_or_si256(codes, _mm256_and_si256(moved, mask));
                }
                codes
            }
        };
        if FP {
            // Twice the values of e2m1 and 12.
            let table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
            return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
        }
        codes
    }
    #[inline(always)]
    unsafe fn transpose(vectors: &mut [__m256i; MAX_LANES]) {
        // Lanes of four vectors, then halves of two of those.
        let mut mixed = [_mm256_setzero_si256(); 8];
        for i in 0..2 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| vectors[4 * i + j]);
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            mixed[4 * i] = _mm256_unpacklo_epi64(ab, cd);
            mixed[4 * i + 1] = _mm256_unpackhi_epi64(ab, cd);
            let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            mixed[4 * i + 2] = _mm256_unpacklo_epi64(ab, cd);
            mixed[4 * i + 3] = _mm256_unpackhi_epi64(ab, cd);
        }
        for i in 0..4 {
            vectors[i] = _mm256_permute2x128_si256::<0x20>(mixed[i], mixed[4 + i]);
            vectors[4 + i] = _mm256_permute2x128_si256::<0x31>(mixed[i], mixed[4 + i]);
        }
    }
    #[inline(always)]
    unsafe fn fold(v: &[__m256i; MAX_LANES], n: usize) -> __m256i {
        match n {
            2 => {
                // In each half two sums of the first vector, then two of the second.
                let order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
                _mm256_permutevar8x32_epi32(pairs(v[0], v[1]), order)
            }
            4 => {
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                _mm256_permutevar8x32_epi32(fours(v[0], v[1], v[2], v[3]), order)
            }
            _ => {
                let [a, b] = [fours(v[0], v[1], v[2], v[3]), fours(v[4], v[5], v[6], v[7])];
                let (low, high) =
                    (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
                _mm256_add_epi32(low, high)
            }
        }
    }
}

/// In each half the sums of the two pairs of `a`, then of `b`.
#[inline(always)]
unsafe fn pairs(a: __m256i, b: __m256i) -> __m256i {
    _mm256_hadd_epi32(a, b)
}

/// In each half the sums of that of `a`, `b`, `c` and `d`.
#[inline(always)]
unsafe fn fours(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    pairs(pairs(a, b), pairs(c, d))
}
