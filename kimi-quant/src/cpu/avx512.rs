//! AVX-512 (F and BW): sixteen lanes.
//!
//! `vpermps` looks at the low four bits of an index only, and `vpermt2ps` at the low five: a table that repeats with
//! the code's width turns shifted words into floats with no mask and no conversion.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::x86_64::*;

use super::codec::kernels;
use super::dequant::E2M1;
use super::simd::{MAX_LANES, Simd};

/// Vectors of sixteen.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

kernels!(Avx512, "avx512f,avx512bw");

impl Simd for Avx512 {
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;
    type V = __m512;
    type Words = __m512i;
    type Table = [__m512; 2];
    type Places = __m512i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        _mm512_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        _mm512_maskz_loadu_ps((1 << count) - 1, from)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        _mm512_storeu_ps(to, v)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        _mm512_reduce_add_ps(v)
    }
    #[inline(always)]
    unsafe fn four_sums([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // Halves, quarters, then within quarters, as `_mm512_reduce_add_ps` adds them; one instruction for several.
        let halves =
            |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let (ab, cd) = (halves(a, b), halves(c, d));
        let quarters =
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
        let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0b01_00_11_10>(quarters));
        let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
        let places = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(places, sums)));
        out
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast())
    }
    #[inline(always)]
    unsafe fn places(lanes: &[i32; MAX_LANES]) -> __m512i {
        _mm512_loadu_si512(lanes.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, places: __m512i) -> __m512 {
        _mm512_permutexvar_ps(places, _mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }
    #[inline(always)]
    unsafe fn three_bytes(from: *const u8) -> __m512i {
        // A masked load would be slower.
        let bytes = _mm512_castsi256_si512(_mm256_loadu_si256(from.cast()));
        let bytes = _mm512_inserti32x4::<2>(bytes, _mm_loadu_si128(from.add(32).cast()));
        // Twelve bytes to each quarter, then three to each lane.
        let quarters = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
        let lanes = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
        _mm512_shuffle_epi8(_mm512_permutexvar_epi32(quarters, bytes), _mm512_broadcast_i32x4(lanes))
    }
    #[inline(always)]
    unsafe fn twenty_bits(from: *const u8) -> __m512i {
        const QUARTERS: [u16; 32] = [
            0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 9, 9, 9, 9, 10, 11, 12, 13, 14, 14, 14, 14, 15, 16, 17, 18,
            19, 19, 19, 19,
        ];
        let bytes = _mm512_castsi256_si512(_mm256_loadu_si256(from.cast()));
        let bytes = _mm512_inserti32x4::<2>(bytes, _mm_loadl_epi64(from.add(32).cast()));
        // Ten bytes to each quarter, then to each lane the three that hold its bits.
        let quarters = _mm512_loadu_si512(QUARTERS.as_ptr().cast());
        let lanes = _mm_setr_epi8(0, 1, 2, -1, 2, 3, 4, -1, 5, 6, 7, -1, 7, 8, 9, -1);
        let words =
            _mm512_shuffle_epi8(_mm512_permutexvar_epi16(quarters, bytes), _mm512_broadcast_i32x4(lanes));
        _mm512_srlv_epi32(words, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 0, 4)))
    }

    #[inline(always)]
    unsafe fn table<const BITS: usize, const FP: bool>() -> [__m512; 2] {
        let mut table = [E2M1, E2M1];
        if !FP {
            for (i, value) in table.as_flattened_mut().iter_mut().enumerate() {
                *value = (i % (1 << BITS)) as f32;
            }
        }
        table.map(|half| _mm512_loadu_ps(half.as_ptr()))
    }
    #[inline(always)]
    unsafe fn code<const BITS: usize, const FP: bool>(
        table: [__m512; 2],
        words: __m512i,
        k: usize,
    ) -> __m512 {
        if FP && BITS == 8 {
            return e4m3(words, k);
        }
        let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32((BITS * k) as i32));
        match BITS {
            2..=4 => _mm512_permutexvar_ps(shifted, table[0]),
            5 => _mm512_permutex2var_ps(table[0], shifted, table[1]),
            _ => _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32((1 << BITS) - 1))),
        }
    }
}

/// Byte `k` of every lane: its exponent and mantissa become those of an f32 whose exponent is 120 too small.
#[inline(always)]
unsafe fn e4m3(words: __m512i, k: usize) -> __m512 {
    let top = _mm512_sllv_epi32(words, _mm512_set1_epi32(24 - 8 * k as i32));
    let sign = _mm512_and_si512(top, _mm512_set1_epi32(i32::MIN));
    let rest = _mm512_srli_epi32::<4>(_mm512_and_si512(top, _mm512_set1_epi32(0x7f00_0000)));
    let small = _mm512_castsi512_ps(_mm512_or_si512(sign, rest));
    _mm512_mul_ps(small, _mm512_set1_ps(f32::from_bits((127 + 120) << 23)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_sums_are_the_bits_of_one_each() {
        if !is_x86_feature_detected!("avx512f") {
            println!("skipped: this machine has no AVX-512");
            return;
        }
        let values: Vec<f32> = (0..64).map(|i| 1.0 / (1.0 + ((i * 37) % 64) as f32) - 0.1).collect();
        // SAFETY: the machine has the instruction set; four vectors of values.
        unsafe {
            let v = [0, 16, 32, 48].map(|at| Avx512::load(values[at..].as_ptr()));
            assert_eq!(Avx512::four_sums(v).map(f32::to_bits), v.map(|v| Avx512::sum(v).to_bits()));
        }
    }
}
