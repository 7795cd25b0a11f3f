//! Rotary position embedding of interleaved pairs.

use crate::Rope;

/// Rotates `x [rope]` in place to `position`: pair `(2i, 2i + 1)` by `position * inv_freq[i]` radians, in f32 as
/// MLX does it. `x` is twice as long as the frequencies.
pub(crate) fn rotate(x: &mut [f32], rope: &Rope, position: u32) {
    let (pairs, _) = x.as_chunks_mut::<2>();
    for (pair, &frequency) in pairs.iter_mut().zip(&rope.inv_freq) {
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        let [a, b] = pair.map(|v| v * rope.mscale);
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}
