//! What the kernels on bytes ask of an instruction set.

use super::simd::{MAX_LANES, Simd};

/// Vectors of bytes, four to a lane.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Bytes: Simd {
    unsafe fn zeros() -> Self::Words;
    /// The same word in every lane.
    unsafe fn same(from: *const u32) -> Self::Words;
    unsafe fn store_words(to: *mut u32, words: Self::Words);
    /// The bits of floats.
    unsafe fn bits(v: Self::V) -> Self::Words;
    /// The lanes as signed integers.
    unsafe fn floats(words: Self::Words) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// In every lane its codes `k`, `k + step`, `k + 2 * step` and `k + 3 * step` of `BITS` bits, a byte each. `FP`
    /// codes (e2m1) become twice their value, and 12 more: 0 to 24.
    unsafe fn codes<const BITS: usize, const FP: bool>(
        words: Self::Words,
        k: usize,
        step: usize,
    ) -> Self::Words;
    /// Vector `i` becomes lane `i` of all of the first [`Simd::LANES`] vectors.
    unsafe fn transpose(vectors: &mut [Self::Words; MAX_LANES]);
    unsafe fn add_words(a: Self::Words, b: Self::Words) -> Self::Words;
    /// Sums of `n` neighbouring lanes of the first `n` vectors, in order; `n` is a power of two from 2 to the number of
    /// lanes.
    unsafe fn fold(vectors: &[Self::Words; MAX_LANES], n: usize) -> Self::Words;
}

/// The dot product of four bytes in every lane.
///
/// # Safety
/// As for [`Simd`], for the instruction set of this type.
pub(crate) trait ByteDot: 'static {
    type S: Bytes;

    /// Adds to every lane its four unsigned bytes of `codes` times the four signed ones of `activations`.
    unsafe fn dot(
        sums: <Self::S as Simd>::Words,
        codes: <Self::S as Simd>::Words,
        activations: <Self::S as Simd>::Words,
    ) -> <Self::S as Simd>::Words;
}
