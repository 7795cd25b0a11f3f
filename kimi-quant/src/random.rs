//! Random weights of any size, for measurements.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::{FloatType, Format, FormatError, PackedMatrix};

/// Bytes that one seed makes.
const CHUNK: usize = 1 << 16;

/// Matrices begin at multiples of this in the block.
const ALIGNMENT: usize = 64;

/// Random weights cut from one block of random data, so that any number of matrices costs no memory and no time. The same
/// on every machine.
///
/// Values are centred at 0 and of the size that a matrix of 7168 columns needs to give back activations as large as it
/// takes. Matrices of different seeds begin at different places of the block, as far as it has room.
#[derive(Debug)]
pub struct RandomWeights {
    codes: Bytes,
    /// Floats of a format: its scales and biases, or the values of `Format::Float`.
    floats: Mutex<HashMap<Format, [Bytes; 2]>>,
}

impl RandomWeights {
    /// From `bytes` bytes of random data: a matrix's codes must fit.
    pub fn new(bytes: usize) -> Self {
        let mut codes = vec![0; bytes.next_multiple_of(8)];
        codes.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
            let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * i as u64 + 1);
            chunk.chunks_exact_mut(8).for_each(|b| b.copy_from_slice(&next(&mut state).to_le_bytes()));
            // e4m3 has no value for these.
            chunk.iter_mut().filter(|b| **b & 0x7f == 0x7f).for_each(|b| *b ^= 1);
        });
        Self { codes: codes.into(), floats: Mutex::default() }
    }

    /// Some matrix; another one for another `seed`.
    ///
    /// # Errors
    /// [`FormatError`] if the format can't hold such rows, or the block is too small.
    pub fn matrix(
        &self,
        rows: usize,
        cols: usize,
        format: Format,
        seed: usize,
    ) -> Result<PackedMatrix, FormatError> {
        let [weight, scales, biases] = format.bytes(rows, cols)?;
        let too_large = FormatError::TooLarge { rows, cols };
        if let Format::Float(_) = format {
            let [values, _] = self.floats(format, weight);
            let values = cut(&values, weight, seed).ok_or(too_large)?;
            return PackedMatrix::new(rows, cols, format, values, Bytes::new(), Bytes::new());
        }
        let codes = cut(&self.codes, weight, seed).ok_or(too_large.clone())?;
        let [all_scales, all_biases] = self.floats(format, scales);
        let scales = cut(&all_scales, scales, seed).ok_or(too_large.clone())?;
        let biases = cut(&all_biases, biases, seed).ok_or(too_large)?;
        PackedMatrix::new(rows, cols, format, codes, scales, biases)
    }

    /// `count` activations between -1 and 1.
    pub fn activations(&self, count: usize) -> Vec<f32> {
        (0..count).map(|i| f32::from(self.codes[i % self.codes.len().min(65521)]) / 128.0 - 1.0).collect()
    }

    /// `[tokens, chosen]` ids below `experts`, distinct within a token.
    pub fn choices(&self, tokens: usize, chosen: usize, experts: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(tokens * chosen);
        let mut random = self.codes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        for _ in 0..tokens {
            let first = ids.len();
            while ids.len() < first + chosen.min(experts) {
                let mut id = random.next().unwrap_or_default() % experts as u32;
                while ids[first..].contains(&id) {
                    id = (id + 1) % experts as u32;
                }
                ids.push(id);
            }
        }
        ids
    }

    /// At least `bytes` bytes of scales (or values) and, in the same places, of biases.
    fn floats(&self, format: Format, bytes: usize) -> [Bytes; 2] {
        let mut kept = self.floats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.get(&format).filter(|[scales, _]| scales.len() >= bytes) {
            return found.clone();
        }
        // As much as the largest matrix of the block has, so that all of a format are cut from one.
        let groups = self.codes.len() * 8 / (format.code_bits() * format.group()).max(1);
        let room = if let Format::Float(_) = format { 0 } else { groups * format.scale_bytes() };
        let made = floats(format, room.max(bytes + (1 << 20)).next_multiple_of(ALIGNMENT));
        kept.insert(format, made.clone());
        made
    }
}

fn floats(format: Format, bytes: usize) -> [Bytes; 2] {
    let [mut scales, mut biases] = [vec![0u8; bytes], vec![0u8; bytes * format.bias_bytes().min(1)]];
    let (scale, bias) = factors(format);
    let fill = |(i, scales): (usize, &mut [u8]), biases: &mut [u8]| {
        let mut state = 0xd1b5_4a32_d192_ed03u64.wrapping_mul(2 * i as u64 + 1);
        match format {
            // 2^-9 to 2^-6; e4m3 of both signs and about that size.
            Format::Mxfp4 | Format::Mxfp8 => {
                scales.iter_mut().for_each(|b| *b = 118 + (next(&mut state) >> 62) as u8);
            }
            Format::Nvfp4 => {
                scales.iter_mut().for_each(|b| *b = (next(&mut state) >> 32) as u8 & 0x87 | 0x08);
            }
            Format::Affine { scales: float, .. }
            | Format::Int4 { scales: float, .. }
            | Format::Fp8 { scales: float }
            | Format::Float(float) => {
                for at in (0..scales.len()).step_by(float.bytes()) {
                    let random = next(&mut state);
                    let size = 1.0 + (random >> 41) as f32 / (1u32 << 23) as f32;
                    let value = if random & 1 == 0 { scale * size } else { -scale * size };
                    let stored = write(float, value, &mut scales[at..]);
                    if let Some(to) = biases.get_mut(at..) {
                        write(float, stored * bias, to);
                    }
                }
            }
        }
    };
    if biases.is_empty() {
        scales.par_chunks_mut(CHUNK).enumerate().for_each(|part| fill(part, &mut []));
    } else {
        let parts = scales.par_chunks_mut(CHUNK).enumerate().zip(biases.par_chunks_mut(CHUNK));
        parts.for_each(|(part, biases)| fill(part, biases));
    }
    [scales.into(), biases.into()]
}

/// The smallest scale, and what a bias is times its scale: codes lie evenly around 0.
fn factors(format: Format) -> (f32, f32) {
    /// 1 / sqrt(7168), by the mean of 1 to 2.
    const VALUE: f32 = 0.0118 / 1.5;
    let codes = (1u32 << format.code_bits().min(8)) as f32;
    match format {
        Format::Float(_) => (VALUE, 0.0),
        Format::Fp8 { .. } => (VALUE / 110.0, 0.0), // the root mean square of e4m3
        // The variance of n equally likely codes is (n^2 - 1) / 12.
        _ => (VALUE * (12.0 / (codes * codes - 1.0)).sqrt(), (1.0 - codes) / 2.0),
    }
}

/// Stores a value, and returns it as it is stored.
fn write(float: FloatType, value: f32, to: &mut [u8]) -> f32 {
    let short = |[low, high]: [u8; 2]| [low, high, 0, 0];
    let (bytes, stored) = match float {
        FloatType::F32 => (value.to_le_bytes(), value),
        FloatType::Bf16 => (short(bf16::from_f32(value).to_le_bytes()), bf16::from_f32(value).to_f32()),
        FloatType::F16 => (short(f16::from_f32(value).to_le_bytes()), f16::from_f32(value).to_f32()),
    };
    to.iter_mut().zip(bytes).take(float.bytes()).for_each(|(to, byte)| *to = byte);
    stored
}

fn cut(from: &Bytes, bytes: usize, seed: usize) -> Option<Bytes> {
    if bytes == 0 {
        return Some(Bytes::new());
    }
    let places = from.len().checked_sub(bytes)? / ALIGNMENT + 1;
    // A stride without a factor in common with most numbers of places: neighbours lie far apart.
    let start = seed.wrapping_mul(2_654_435_761) % places * ALIGNMENT;
    Some(from.slice(start..start + bytes))
}

/// The next of a series of random numbers (xorshift64*); `state` is not 0.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BitWidth, cpu};

    /// Values are centred, of the size aimed at, and differ between seeds.
    #[test]
    fn values_are_of_the_size_aimed_at() {
        let random = RandomWeights::new(1 << 20);
        let affine = BitWidth::ALL.map(|bits| Format::Affine { bits, group: 64, scales: FloatType::Bf16 });
        let floats = [FloatType::Bf16, FloatType::F16, FloatType::F32].map(Format::Float);
        for format in affine.into_iter().chain(floats).chain([Format::Fp8 { scales: FloatType::F32 }]) {
            let matrix = random.matrix(64, 1024, format, 3).unwrap();
            let values: Vec<f32> = cpu::dequantize(&matrix);
            let n = values.len() as f32;
            let mean = values.iter().sum::<f32>() / n;
            let size = (values.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
            assert!(
                mean.abs() < 1e-3 && (0.009..0.015).contains(&size),
                "{format}: mean {mean}, size {size}"
            );
            let other = random.matrix(64, 1024, format, 4).unwrap();
            assert_ne!(matrix.weight(), other.weight(), "{format}");
        }
    }

    #[test]
    fn a_matrix_larger_than_the_block_is_refused() {
        let random = RandomWeights::new(1 << 10);
        let format = Format::Affine { bits: BitWidth::B4, group: 64, scales: FloatType::Bf16 };
        assert!(random.matrix(16, 128, format, 0).is_ok());
        assert!(matches!(
            random.matrix(17, 128, format, 0),
            Err(FormatError::TooLarge { rows: 17, cols: 128 })
        ));
    }
}
