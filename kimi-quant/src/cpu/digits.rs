//! Products in integers: activations as fixed-point numbers times codes as they are.
//!
//! The columns of a lane's codes in a block are a unit. Its activations are integers of 23 bits and a sign times a power
//! of two. From its codes each group's zero point is taken off: where weights are small and scale and bias are large,
//! scale * code and bias nearly cancel, so the rounding error of the activations would dominate. The sum of the products
//! is an exact integer; it is scaled as a whole, and the rests of the biases are multiplied with the sums of the groups'
//! activations.
//!
//! One instruction multiplies four unsigned bytes of a lane with four signed ones and adds them. The signed ones are the
//! codes without their zero points. The unsigned ones are an activation's three digits to the base 256; 128 more in the
//! highest makes it unsigned, and a sum begins with what takes that off again.
//!
//! A row of activations has for every block its units' powers of two, then the highest digits, the middle and the lowest,
//! in vectors of four bytes a lane; after the blocks the sums of its groups.

use std::marker::PhantomData;

use super::bytes::{ByteDot, Bytes};
use super::codec::{Codec, Packed};
use super::kernel::{Blocks, Multiply, Product, each_step, sums};
use super::order::Order;
use super::scales::Parameters;
use super::simd::{MAX_LANES, Simd};

/// What else the kernels here ask of an instruction set.
///
/// # Safety
/// As for [`Bytes`].
pub(crate) trait Digits: Bytes {
    unsafe fn same_byte(byte: u8) -> Self::Words;
    /// 256 times every lane.
    unsafe fn shift(words: Self::Words) -> Self::Words;
    /// `a - b` of every byte.
    unsafe fn less_bytes(a: Self::Words, b: Self::Words) -> Self::Words;
    /// `-words` of every lane.
    unsafe fn negative(words: Self::Words) -> Self::Words;
}

/// Digits of an activation.
const DIGITS: usize = 3;

/// Vectors of a block before its digits.
const HEAD: usize = 1;

/// 32-bit words of a block of `codes` codes a lane.
const fn block_words(codes: usize) -> usize {
    MAX_LANES * (HEAD + DIGITS * codes / 4)
}

/// 32-bit words of a row for blocks of `CODES` codes a lane. See [`super::kernel::Length`].
pub(crate) fn length<const CODES: usize>(order: Order, group: usize, cols: usize) -> usize {
    let cols = order.padded(cols);
    cols / (MAX_LANES * CODES) * block_words(CODES) + (cols / group).next_multiple_of(MAX_LANES)
}

/// Writes a row of activations for blocks of `CODES` codes a lane to `out`, which is zeros.
#[inline(always)]
pub(crate) fn write<const CODES: usize>(group: usize, x: &[f32], out: &mut [f32]) {
    let units = x.as_chunks::<CODES>().0;
    let (blocks, sums) = out.split_at_mut(units.len().div_ceil(MAX_LANES) * block_words(CODES));
    for (units, out) in units.chunks(MAX_LANES).zip(blocks.chunks_exact_mut(block_words(CODES))) {
        let mut values = [[0.0; MAX_LANES]; CODES];
        for (lane, unit) in units.iter().enumerate() {
            for (values, &value) in values.iter_mut().zip(unit) {
                values[lane] = value;
            }
        }
        write_block::<CODES>(&values, bytemuck::cast_slice_mut(out));
    }
    for (sum, x) in sums.iter_mut().zip(x.chunks(group)) {
        let mut parts = [0.0; MAX_LANES];
        for x in x.as_chunks::<MAX_LANES>().0 {
            parts.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        *sum = parts.iter().sum();
    }
}

/// Writes a block, `values[k]` the `k`-th activations of the lanes.
#[inline(always)]
fn write_block<const CODES: usize>(values: &[[f32; MAX_LANES]; CODES], out: &mut [[u32; MAX_LANES]]) {
    let Some(([down], planes)) = out.split_first_chunk_mut::<HEAD>() else { return };
    let mut largest = [0; MAX_LANES];
    for values in values {
        for (largest, value) in largest.iter_mut().zip(values) {
            *largest = value.abs().to_bits().max(*largest);
        }
    }
    let mut up = [0.0; MAX_LANES];
    for ((up, down), largest) in up.iter_mut().zip(down).zip(largest) {
        // What is 127/128 of a power of two or more belongs to the next: 2^23 itself has no three digits.
        let exponent = ((largest + (1 << 17)) >> 23).clamp(23, 254);
        *up = f32::from_bits((276 - exponent) << 23);
        *down = (exponent - 22) << 23;
    }
    let step = CODES / 4;
    for k in 0..step {
        let mut digits = [[0; MAX_LANES]; DIGITS];
        for j in 0..4 {
            for lane in 0..MAX_LANES {
                let number = integer(values[k + j * step][lane] * up[lane]).wrapping_add(OFFSET);
                for (i, digits) in digits.iter_mut().enumerate() {
                    digits[lane] |= (number >> (16 - 8 * i) & 0xff) << (8 * j);
                }
            }
        }
        for (i, digits) in digits.into_iter().enumerate() {
            planes[i * step + k] = digits;
        }
    }
}

/// 128 in the highest digit.
const OFFSET: u32 = 0x0080_0000;

/// The nearest integer to what is below 2^23.
#[inline(always)]
fn integer(value: f32) -> u32 {
    // 2^23 more leaves no bit for a fraction.
    let number = (value.abs() + 8_388_608.0).to_bits().wrapping_sub(0x4b00_0000);
    let sign = (value.to_bits() as i32 >> 31) as u32;
    (number ^ sign).wrapping_sub(sign)
}

/// Unsigned codes of [`Packed`], multiplied in integers with activations of some digits.
pub(crate) struct InIntegers<D, const BITS: usize>(PhantomData<D>);

impl<D: ByteDot<S: Digits>, const BITS: usize> Multiply for InIntegers<D, BITS> {
    type C = Packed<D::S, BITS, false>;

    #[inline(always)]
    unsafe fn settle(parameters: &mut Parameters<D::S>, rows: usize) {
        // SAFETY: passed on.
        unsafe { parameters.take_zeros(rows, ((1 << BITS) - 1) as f32) }
    }

    #[inline(always)]
    unsafe fn tile<const R: usize, const T: usize>(
        p: &Product<'_>,
        rows: [usize; R],
        parameters: &Parameters<D::S>,
        slot: usize,
        x: [*const f32; T],
    ) -> [[f32; T]; R] {
        let m = p.m;
        let codes = <Packed<D::S, BITS, false> as Codec>::CODES;
        const {
            assert!(D::S::LANES == MAX_LANES);
            // The sum of a unit fits 32 bits.
            assert!(<Packed<D::S, BITS, false> as Codec>::CODES * ((1 << BITS) - 1) < 256);
        }
        let step = codes / 4;
        let blocks = m.cols() / (MAX_LANES * codes);
        // SAFETY: the rows' blocks lie in the matrix, and so do the activations' in their rows; the rows' parameters
        // were read.
        unsafe {
            let mut at = Blocks::of::<Packed<D::S, BITS, false>>(p, rows);
            let mut acc = [[D::S::splat(0.0); T]; R];
            for group in (0..m.cols() / m.format().group()).step_by(MAX_LANES) {
                for t in 0..T {
                    let sum = D::S::load(x[t].add(blocks * block_words(codes) + group));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        acc[t] = D::S::fma(parameters.biases(slot + r, group), sum, acc[t]);
                    }
                }
            }
            for block in 0..blocks {
                let mut cut = [[D::S::zeros(); R]; 4];
                let mut scales = [D::S::splat(0.0); R];
                // What takes off the offset of the highest digits.
                let mut starts = [D::S::zeros(); R];
                for r in 0..R {
                    let words = <Packed<D::S, BITS, false>>::load(at.weight[r]);
                    let zeros = D::S::bits(parameters.zeros(slot + r, block));
                    let mut offset = D::S::zeros();
                    for (k, cut) in cut.iter_mut().enumerate().take(step) {
                        cut[r] = D::S::less_bytes(D::S::codes::<BITS, false>(words, k, step), zeros);
                        offset = D::dot(offset, D::S::same_byte(128), cut[r]);
                    }
                    starts[r] = D::S::negative(offset);
                    scales[r] = parameters.scales(slot + r, block);
                }
                // The remainders are for the steps from `T` on, which are not taken.
                each_step!(T, t => {
                    let here = x[t % T].add(block * block_words(codes));
                    let mut sums = starts;
                    for digit in 0..DIGITS {
                        // A sum goes on with the next digit: of several tokens there are others to add to meanwhile. One
                        // token's sums begin anew and are added up, so that few instructions wait for each other.
                        let mut high = sums;
                        for high in &mut high {
                            *high = D::S::shift(*high);
                        }
                        if digit > 0 {
                            sums = if T == 1 { [D::S::zeros(); R] } else { high };
                        }
                        for (k, cut) in cut.iter().enumerate().take(step) {
                            let digits = D::S::words(here.add(MAX_LANES * (HEAD + digit * step + k)).cast());
                            for r in 0..R {
                                sums[r] = D::dot(sums[r], digits, cut[r]);
                            }
                        }
                        if digit > 0 && T == 1 {
                            for r in 0..R {
                                sums[r] = D::S::add_words(high[r], sums[r]);
                            }
                        }
                    }
                    let down = D::S::load(here);
                    for r in 0..R {
                        let sum = D::S::floats(sums[r]);
                        acc[r][t % T] = D::S::fma(sum, D::S::mul(scales[r], down), acc[r][t % T]);
                    }
                });
                at.next::<Packed<D::S, BITS, false>>();
            }
            sums::<D::S, R, T>(acc)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the digits of a block say, in the order of the values.
    fn read<const CODES: usize>(out: &[u32]) -> Vec<f64> {
        let (step, vector) = (CODES / 4, |i: usize| &out[MAX_LANES * i..][..MAX_LANES]);
        let value = |lane: usize, code: usize| {
            let (j, k) = (code / step, code % step);
            let number = (0..DIGITS).fold(0f64, |number, digit| {
                let bytes = vector(HEAD + digit * step + k)[lane].to_le_bytes();
                256.0 * number + f64::from(bytes[j]) - if digit == 0 { 128.0 } else { 0.0 }
            });
            number * f64::from(f32::from_bits(vector(0)[lane]))
        };
        (0..MAX_LANES).flat_map(|lane| (0..CODES).map(move |code| value(lane, code))).collect()
    }

    fn check<const CODES: usize>(x: &[f32]) {
        let mut out = vec![0.0; block_words(CODES) + MAX_LANES];
        write::<CODES>(CODES * 4, x, &mut out);
        let words: &[u32] = bytemuck::cast_slice(&out);
        let found = read::<CODES>(words);
        for (x, found) in x.chunks(CODES).zip(found.chunks(CODES)) {
            let largest = x.iter().fold(0f64, |largest, x| largest.max(f64::from(x.abs())));
            for (&x, found) in x.iter().zip(found) {
                let error = (f64::from(x) - found).abs();
                assert!(error <= largest * 2f64.powi(-23) || largest < 1e-30, "{x:e}: {found:e}");
            }
        }
        let sums = x.chunks(CODES * 4).map(|x| x.iter().map(|&x| f64::from(x)).sum::<f64>());
        for (sum, found) in sums.zip(&out[block_words(CODES)..]) {
            assert!((sum - f64::from(*found)).abs() <= sum.abs() * 1e-5, "{sum} {found}");
        }
    }

    #[test]
    fn digits_have_the_values_to_23_bits_of_the_largest() {
        // Zeros, all powers of two that have a place, either sign, and mantissas about the one that needs the next power.
        let near = [0x3f7d_ffff, 0x3f7e_0000, 0x3f7f_ffff, 0x3f80_0000, 0x3f80_0001].map(f32::from_bits);
        for power in (-95..127).step_by(3) {
            let value = |i: usize| {
                let sign = if i.is_multiple_of(3) { -1.0 } else { 1.0 };
                if i < 16 { 0.0 } else { sign * near[i % 5] * 2f32.powi(power - i as i32 % 7) }
            };
            let x: Vec<f32> = (0..256).map(value).collect();
            check::<4>(&x[..64]);
            check::<8>(&x[..128]);
            check::<16>(&x);
            check::<16>(&x[..64]);
        }
    }
}
