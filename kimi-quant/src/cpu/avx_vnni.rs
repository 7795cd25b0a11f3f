//! AVX-VNNI: dot products of bytes on machines that may have no AVX-512, beside all that [`super::avx2`] has.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "names for instructions; the safety is that of the trait's functions"
)]

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::bytes::ByteDot;
use super::rounded::fast_kernels;

/// `vpdpbusd` of eight lanes.
struct AvxVnni;

fast_kernels!(AvxVnni, "avx2,fma,f16c,avxvnni", [2, 2, 2], B8);

impl ByteDot for AvxVnni {
    type S = Avx2;

    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: __m256i, activations: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sums, codes, activations)
    }
}
