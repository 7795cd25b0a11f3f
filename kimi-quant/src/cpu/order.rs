//! The order in which a kernel reads activations.

use super::codec::Codec;
use super::simd::Simd;

/// The order in which a kernel reads activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    lanes: usize,
    codes: usize,
    natural: bool,
}

impl Order {
    pub(crate) const fn of<C: Codec>() -> Self {
        Self { lanes: C::S::LANES, codes: C::CODES, natural: C::NATURAL }
    }

    /// Weights in a block.
    pub(crate) const fn block(self) -> usize {
        self.lanes * self.codes
    }

    /// Length of a row of `cols` values with its last block filled up.
    pub(crate) const fn padded(self, cols: usize) -> usize {
        cols.next_multiple_of(self.block())
    }

    /// Whether scales of groups of `group` fall on lanes and blocks.
    pub(crate) const fn fits_group(self, group: usize) -> bool {
        self.natural || (group.is_power_of_two() && group.is_multiple_of(self.codes))
    }

    /// Puts `x` into this order; `out` is `padded(x.len())` zeros.
    pub(crate) fn permute(self, x: &[f32], out: &mut [f32]) {
        if self.natural {
            return out[..x.len()].copy_from_slice(x);
        }
        for (block, out) in x.chunks(self.block()).zip(out.chunks_exact_mut(self.block())) {
            for (lane, codes) in block.chunks(self.codes).enumerate() {
                for (k, &value) in codes.iter().enumerate() {
                    out[k * self.lanes + lane] = value;
                }
            }
        }
    }

    /// Takes `x` out of this order.
    pub(crate) fn restore(self, x: &[f32], out: &mut [f32]) {
        if self.natural {
            return out.copy_from_slice(&x[..out.len()]);
        }
        for (out, block) in out.chunks_mut(self.block()).zip(x.chunks_exact(self.block())) {
            for (lane, codes) in out.chunks_mut(self.codes).enumerate() {
                for (k, value) in codes.iter_mut().enumerate() {
                    *value = block[k * self.lanes + lane];
                }
            }
        }
    }
}
