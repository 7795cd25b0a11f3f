//! Rotary position embedding of interleaved pairs.

use crate::Rope;

/// Sine and cosine of `position * inv_freq[i]` radians for every pair, in f32 as MLX computes them.
pub(crate) fn angles(rope: &Rope, position: u32) -> Vec<(f32, f32)> {
    rope.inv_freq.iter().map(|frequency| (position as f32 * frequency).sin_cos()).collect()
}

/// Rotates `x [rope]` in place: pair `(2i, 2i + 1)` by the `i`-th of a position's [`angles`]. `x` is twice as long as they
/// are.
pub(crate) fn rotate(x: &mut [f32], rope: &Rope, angles: &[(f32, f32)]) {
    let (pairs, _) = x.as_chunks_mut::<2>();
    for (pair, (sin, cos)) in pairs.iter_mut().zip(angles) {
        let [a, b] = pair.map(|v| v * rope.mscale);
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}
