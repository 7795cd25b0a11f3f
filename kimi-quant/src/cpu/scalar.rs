//! Plain code in the shape of eight lanes: for machines with no other kernels, and for tests.
#![allow(unsafe_op_in_unsafe_fn, reason = "the safety is that of the trait's functions")]

use super::codec::kernels;
use super::dequant::{self, E2M1};
use super::simd::{MAX_LANES, Simd};

/// Arrays of eight.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

kernels!(Scalar);

impl Simd for Scalar {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;
    type V = [f32; 8];
    type Words = [u32; 8];
    type Table = ();
    type Places = [i32; MAX_LANES];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 8] {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 8] {
        from.cast::<[f32; 8]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> [f32; 8] {
        let halves = from.cast::<[[u8; 2]; 8]>().read_unaligned();
        halves.map(|b| half::bf16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> [f32; 8] {
        let halves = from.cast::<[[u8; 2]; 8]>().read_unaligned();
        halves.map(|b| half::f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: [f32; 8]) {
        to.cast::<[f32; 8]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    // Two roundings: without the instruction a fused one is a slow call.
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 8]) -> f32 {
        ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn places(lanes: &[i32; MAX_LANES]) -> [i32; MAX_LANES] {
        *lanes
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, places: [i32; MAX_LANES]) -> [f32; 8] {
        std::array::from_fn(|i| from.add(places[i] as usize).read())
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> [u32; 8] {
        from.cast::<[[u8; 4]; 8]>().read_unaligned().map(u32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn three_bytes(from: *const u8) -> [u32; 8] {
        from.cast::<[[u8; 3]; 8]>().read_unaligned().map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }
    #[inline(always)]
    unsafe fn twenty_bits(from: *const u8) -> [u32; 8] {
        let bytes = from.cast::<[u8; 20]>().read_unaligned();
        std::array::from_fn(|i| {
            let at = i * 20 / 8;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0]) >> (4 * (i % 2))
        })
    }

    #[inline(always)]
    unsafe fn table<const BITS: usize, const FP: bool>() {}
    #[inline(always)]
    unsafe fn code<const BITS: usize, const FP: bool>((): (), words: [u32; 8], k: usize) -> [f32; 8] {
        words.map(|word| {
            let code = word >> (BITS * k) & ((1 << BITS) - 1);
            match (BITS, FP) {
                (4, true) => E2M1[code as usize],
                (8, true) => dequant::e4m3(code as u8),
                _ => code as f32,
            }
        })
    }
}
