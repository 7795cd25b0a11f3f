//! NEON (aarch64): four lanes.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::aarch64::*;

use super::codec::kernels;
use super::simd::{MAX_LANES, Simd};

/// Vectors of four.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

kernels!(Neon, "neon");

/// No byte: a table look-up gives zero for it.
const NONE: u8 = 0xff;

impl Simd for Neon {
    const LANES: usize = 4;
    const MANY_REGISTERS: bool = true;
    type V = float32x4_t;
    type Words = uint32x4_t;
    type Table = uint8x16_t;
    type Places = uint8x16_t;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        vdupq_n_f32(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // A load of bytes asks for no alignment.
        vreinterpretq_f32_u8(vld1q_u8(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(from))))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> float32x4_t {
        // Exponent and mantissa moved into place, 112 too small; the multiplication makes that up, for subnormals too.
        let halves = vmovl_u16(vreinterpret_u16_u8(vld1_u8(from)));
        let sign = vshlq_n_u32::<16>(vandq_u32(halves, vdupq_n_u32(0x8000)));
        let magnitude = vandq_u32(halves, vdupq_n_u32(0x7fff));
        let small = vreinterpretq_f32_u32(vshlq_n_u32::<13>(magnitude));
        let value = vreinterpretq_u32_f32(vmulq_n_f32(small, f32::from_bits((127 + 112) << 23)));
        // Infinities and NaNs keep their exponent of ones.
        let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00));
        let value = vorrq_u32(value, vandq_u32(special, vdupq_n_u32(0x7f80_0000)));
        vreinterpretq_f32_u32(vorrq_u32(value, sign))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: float32x4_t) {
        vst1q_u8(to.cast(), vreinterpretq_u8_f32(v))
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        vaddvq_f32(v)
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags))
    }
    #[inline(always)]
    unsafe fn places(lanes: &[i32; MAX_LANES]) -> uint8x16_t {
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (4 * lanes[i / 4]) as u8 + (i % 4) as u8;
        }
        vld1q_u8(bytes.as_ptr())
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, places: uint8x16_t) -> float32x4_t {
        vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(from.cast()), places))
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> uint32x4_t {
        vreinterpretq_u32_u8(vld1q_u8(from))
    }
    #[inline(always)]
    unsafe fn three_bytes(from: *const u8) -> uint32x4_t {
        const PLACES: [u8; 16] = [0, 1, 2, NONE, 3, 4, 5, NONE, 6, 7, 8, NONE, 9, 10, 11, NONE];
        let tail = from.add(8).cast::<u32>().read_unaligned();
        let bytes = vcombine_u8(vld1_u8(from), vreinterpret_u8_u32(vdup_n_u32(tail)));
        vreinterpretq_u32_u8(vqtbl1q_u8(bytes, vld1q_u8(PLACES.as_ptr())))
    }
    #[inline(always)]
    unsafe fn twenty_bits(from: *const u8) -> uint32x4_t {
        const PLACES: [u8; 16] = [0, 1, 2, NONE, 2, 3, 4, NONE, 5, 6, 7, NONE, 7, 8, 9, NONE];
        const SHIFTS: [i32; 4] = [0, -4, 0, -4];
        let tail = from.add(8).cast::<u16>().read_unaligned();
        let bytes = vcombine_u8(vld1_u8(from), vreinterpret_u8_u16(vdup_n_u16(tail)));
        let words = vreinterpretq_u32_u8(vqtbl1q_u8(bytes, vld1q_u8(PLACES.as_ptr())));
        vshlq_u32(words, vld1q_s32(SHIFTS.as_ptr()))
    }

    #[inline(always)]
    unsafe fn table<const BITS: usize, const FP: bool>() -> uint8x16_t {
        // Twice the magnitudes of e2m1; whoever has no e2m1 ignores it.
        const DOUBLED: [u8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0];
        vld1q_u8(DOUBLED.as_ptr())
    }
    #[inline(always)]
    unsafe fn code<const BITS: usize, const FP: bool>(
        table: uint8x16_t,
        words: uint32x4_t,
        k: usize,
    ) -> float32x4_t {
        if FP && BITS == 8 {
            return e4m3(words, k);
        }
        let shifted = vshlq_u32(words, vdupq_n_s32(-((BITS * k) as i32)));
        if !FP {
            return vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32((1 << BITS) - 1)));
        }
        // The upper bytes of a lane look up place 0, which holds zero.
        let place = vreinterpretq_u8_u32(vandq_u32(shifted, vdupq_n_u32(7)));
        let doubled = vreinterpretq_u32_u8(vqtbl1q_u8(table, place));
        let magnitude = vcvtq_n_f32_u32::<1>(doubled);
        let sign = vandq_u32(vshlq_n_u32::<28>(shifted), vdupq_n_u32(1 << 31));
        vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(magnitude), sign))
    }
}

/// Byte `k` of every lane: its exponent and mantissa become those of an f32 whose exponent is 120 too small.
#[inline(always)]
unsafe fn e4m3(words: uint32x4_t, k: usize) -> float32x4_t {
    let top = vshlq_u32(words, vdupq_n_s32(24 - 8 * k as i32));
    let sign = vandq_u32(top, vdupq_n_u32(1 << 31));
    let rest = vshrq_n_u32::<4>(vandq_u32(top, vdupq_n_u32(0x7f00_0000)));
    let small = vreinterpretq_f32_u32(vorrq_u32(sign, rest));
    vmulq_n_f32(small, f32::from_bits((127 + 120) << 23))
}
