//! What the kernels ask of an instruction set.

/// The widest vector, and the padding of everything that is read a vector at a time.
pub(crate) const MAX_LANES: usize = 16;

/// Bytes that one prefetch brings, on most machines.
pub(crate) const LINE: usize = 64;

/// Bytes of weights that are asked for ahead where they are read one after the other.
pub(crate) const AHEAD: usize = 12 << 10;

/// Vectors of f32 and of 32-bit words, as many lanes each.
///
/// # Safety
/// Every function may be called only where the machine has the instruction set. Pointers may have any alignment; they
/// are read and written for a whole vector unless the function says otherwise.
pub(crate) trait Simd: Copy + 'static {
    /// Values in a vector, at most [`MAX_LANES`].
    const LANES: usize;
    /// Whether there are registers for sixteen accumulators and their operands.
    const MANY_REGISTERS: bool;
    /// Floats.
    type V: Copy;
    /// Packed codes, 32 bits a lane.
    type Words: Copy;
    /// What turns codes into floats.
    type Table: Copy;
    /// For each lane the place it takes a value from.
    type Places: Copy;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// Reads `2 * LANES` bytes.
    unsafe fn load_bf16(from: *const u8) -> Self::V;
    /// Reads `2 * LANES` bytes.
    unsafe fn load_f16(from: *const u8) -> Self::V;
    /// The first `count` values, fewer than `LANES`, and zeros.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V {
        let mut values = [0.0f32; MAX_LANES];
        // SAFETY: passed on.
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
            Self::load(values.as_ptr())
        }
    }
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of the lanes.
    unsafe fn sum(v: Self::V) -> f32;
    /// The sums of the lanes of four vectors, the same bits as [`Self::sum`]'s.
    #[inline(always)]
    unsafe fn four_sums(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: passed on.
        unsafe { [Self::sum(v[0]), Self::sum(v[1]), Self::sum(v[2]), Self::sum(v[3])] }
    }

    /// Asks for the cache line at `at`, which need not exist, in the second-level cache.
    unsafe fn prefetch(at: *const u8);

    unsafe fn places(lanes: &[i32; MAX_LANES]) -> Self::Places;
    /// Loads a vector and picks from it.
    unsafe fn pick(from: *const f32, places: Self::Places) -> Self::V;

    /// `LANES` words of 32 bits.
    unsafe fn words(from: *const u8) -> Self::Words;
    /// Three bytes a lane; reads `3 * LANES` bytes. The lane's top byte is zero.
    unsafe fn three_bytes(from: *const u8) -> Self::Words;
    /// Twenty bits a lane; reads `5 * LANES / 2` bytes. The lane's other bits have no meaning.
    unsafe fn twenty_bits(from: *const u8) -> Self::Words;
    /// The table for codes of `BITS` bits: unsigned numbers, or e2m1 (4 bits) and e4m3 (8 bits) if `FP`.
    unsafe fn table<const BITS: usize, const FP: bool>() -> Self::Table;
    /// The values of the `k`-th codes of the lanes.
    unsafe fn code<const BITS: usize, const FP: bool>(
        table: Self::Table,
        words: Self::Words,
        k: usize,
    ) -> Self::V;
}
