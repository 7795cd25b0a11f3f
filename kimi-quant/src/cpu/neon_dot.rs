//! NEON with dot products of bytes, beside all that [`super::neon`] has.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::aarch64::*;

use super::bytes::{ByteDot, Bytes};
use super::neon::Neon;
use super::rounded::fast_kernels;
use super::simd::MAX_LANES;

/// `sdot` of four lanes: codes of 8 bits would be negative.
struct SignedDot;

fast_kernels!(SignedDot, "neon,dotprod", [2, 4, 6]);

impl ByteDot for SignedDot {
    type S = Neon;

    #[inline(always)]
    unsafe fn dot(sums: uint32x4_t, codes: uint32x4_t, activations: uint32x4_t) -> uint32x4_t {
        let mut sums = sums;
        // The standard library's name for the instruction is not stable.
        std::arch::asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) codes, in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags)
        );
        sums
    }
}

impl Bytes for Neon {
    #[inline(always)]
    unsafe fn zeros() -> uint32x4_t {
        vdupq_n_u32(0)
    }
    #[inline(always)]
    unsafe fn same(from: *const u32) -> uint32x4_t {
        vdupq_n_u32(from.read_unaligned())
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, words: uint32x4_t) {
        vst1q_u8(to.cast(), vreinterpretq_u8_u32(words))
    }
    #[inline(always)]
    unsafe fn bits(v: float32x4_t) -> uint32x4_t {
        vreinterpretq_u32_f32(v)
    }
    #[inline(always)]
    unsafe fn floats(words: uint32x4_t) -> float32x4_t {
        vcvtq_f32_s32(vreinterpretq_s32_u32(words))
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn add_words(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        vaddq_u32(a, b)
    }
    #[inline(always)]
    unsafe fn codes<const BITS: usize, const FP: bool>(
        words: uint32x4_t,
        k: usize,
        step: usize,
    ) -> uint32x4_t {
        let mut codes = vdupq_n_u32(0);
        for j in 0..4 {
            // To its byte from the bit with which it begins: to the left, or else to the right.
            let left = 8 * j as i32 - (BITS * (k + j * step)) as i32;
            let mask = vdupq_n_u32(((1 << BITS) - 1) << (8 * j));
            codes = vorrq_u32(codes, vandq_u32(vshlq_u32(words, vdupq_n_s32(left)), mask));
        }
        if FP {
            // Twice the values of e2m1 and 12.
            const TABLE: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
            codes = vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(TABLE.as_ptr()), vreinterpretq_u8_u32(codes)));
        }
        codes
    }
    #[inline(always)]
    unsafe fn transpose(vectors: &mut [uint32x4_t; MAX_LANES]) {
        let [a, b, c, d] = [vectors[0], vectors[1], vectors[2], vectors[3]];
        let pairs = [vtrn1q_u32(a, b), vtrn2q_u32(a, b), vtrn1q_u32(c, d), vtrn2q_u32(c, d)];
        let [ab, ab2, cd, cd2] =
            [pairs[0], pairs[1], pairs[2], pairs[3]].map(|words| vreinterpretq_u64_u32(words));
        vectors[0] = vreinterpretq_u32_u64(vtrn1q_u64(ab, cd));
        vectors[1] = vreinterpretq_u32_u64(vtrn1q_u64(ab2, cd2));
        vectors[2] = vreinterpretq_u32_u64(vtrn2q_u64(ab, cd));
        vectors[3] = vreinterpretq_u32_u64(vtrn2q_u64(ab2, cd2));
    }
    #[inline(always)]
    unsafe fn fold(v: &[uint32x4_t; MAX_LANES], n: usize) -> uint32x4_t {
        match n {
            2 => vpaddq_u32(v[0], v[1]),
            _ => vpaddq_u32(vpaddq_u32(v[0], v[1]), vpaddq_u32(v[2], v[3])),
        }
    }
}
