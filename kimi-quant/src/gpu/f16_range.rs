//! How large weights are: what has to fit 16-bit floats for cooperative matrices.

use super::shader::Packing;
use crate::{FloatType, Format, PackedMatrix};

/// Largest 16-bit float.
const LARGEST: f32 = 65504.0;

/// No e4m3 value is larger. The largest number is 448; the bits above it, which are those of NaN, would be 480.
const E4M3: f32 = 480.0;

impl Packing {
    /// Whether a weight as a 16-bit float needs no second one for the bits that it loses.
    pub(crate) fn exact_in_f16(self) -> bool {
        matches!(self.format, Format::Float(FloatType::F16 | FloatType::Bf16))
    }

    /// What weights are multiplied by before they become 16-bit floats: the lower ones need room below.
    pub(crate) fn f16_factor(self) -> u32 {
        if self.exact_in_f16() { 1 } else { 16 }
    }
}

/// Whether all weights fit 16-bit floats, times the factor of their packing.
pub(crate) fn fits_f16(packing: Packing, matrix: &PackedMatrix) -> bool {
    // NaN does not fit.
    bound(matrix) * packing.f16_factor() as f32 <= LARGEST
}

/// No weight is larger than this.
fn bound(matrix: &PackedMatrix) -> f32 {
    let floats = |float: FloatType, bytes: &[u8]| {
        (0..bytes.len() / float.bytes()).map(|i| float.read(bytes, i).abs()).fold(0.0, larger)
    };
    let power = |bytes: &[u8]| (f32::from(bytes.iter().copied().max().unwrap_or(0)) - 127.0).exp2(); // e8m0
    let global = matrix.global_scale().abs();
    match matrix.format() {
        Format::Affine { bits, scales, .. } => {
            let codes = ((1u32 << bits.bits()) - 1) as f32;
            floats(scales, matrix.scales()) * codes + floats(scales, matrix.biases())
        }
        Format::Int4 { scales, .. } => 8.0 * floats(scales, matrix.scales()),
        Format::Mxfp4 => global * power(matrix.scales()) * 6.0,
        Format::Mxfp8 => global * power(matrix.scales()) * E4M3,
        Format::Nvfp4 => global * E4M3 * 6.0,
        Format::Fp8 { scales } => global * floats(scales, matrix.scales()) * E4M3,
        Format::Float(float) => floats(float, matrix.weight()),
    }
}

fn larger(a: f32, b: f32) -> f32 {
    if b <= a { a } else { b } // NaN stays
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::BitWidth;
    use bytes::Bytes;

    fn affine(scale: f32, bias: f32) -> PackedMatrix {
        let format = Format::Affine { bits: BitWidth::B4, group: 32, scales: FloatType::F32 };
        let float = |v: f32| Bytes::copy_from_slice(&v.to_le_bytes());
        PackedMatrix::new(1, 32, format, Bytes::from(vec![0; 16]), float(scale), float(bias)).unwrap()
    }

    #[test]
    fn weights_out_of_range_do_not_fit() {
        let fits = |scale, bias| {
            let matrix = affine(scale, bias);
            fits_f16(Packing::new(matrix.format(), 32), &matrix)
        };
        assert!(fits(0.1, -1.0));
        assert!(fits(-272.0, 14.0)); // 15 * 272 + 14 = 4094 = 65504 / 16
        assert!(!fits(-272.0, 14.1));
        assert!(!fits(1e-3, -5000.0));
        assert!(!fits(f32::NAN, 0.0));
        assert!(!fits(0.0, f32::INFINITY));
    }
}
