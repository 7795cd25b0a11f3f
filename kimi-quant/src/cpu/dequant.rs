//! Exact values of stored weights, one at a time: what the vector kernels are tested against.

use crate::{BackendError, FloatType, Format, PackedMatrix};

/// The sixteen values of an e2m1 code.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The stored bytes of one row.
#[derive(Clone, Copy)]
pub(crate) struct RowBytes<'a> {
    pub(crate) weight: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
}

impl<'a> RowBytes<'a> {
    /// Row `r` of `m`; the caller keeps `r` in range.
    pub(crate) fn of(m: &'a PackedMatrix, r: usize) -> Self {
        let cut = |bytes: &'a [u8]| {
            let row = bytes.len() / m.rows();
            &bytes[r * row..(r + 1) * row]
        };
        Self { weight: cut(m.weight()), scales: &m.scales()[m.scale_range(r)], biases: cut(m.biases()) }
    }
}

/// Code `i` of a little-endian, LSB-first bit stream of `bits`-bit codes.
#[inline]
pub(crate) fn code(bytes: &[u8], bits: usize, i: usize) -> usize {
    let bit = i * bits;
    let low = bytes[bit / 8] as usize;
    let high = bytes.get(bit / 8 + 1).copied().unwrap_or(0) as usize;
    ((high << 8 | low) >> (bit % 8)) & ((1 << bits) - 1)
}

/// An e4m3 value as MLX reads it: 0x7f is 480, not a NaN. See [`PackedMatrix::first_nan_row`].
#[inline]
pub(crate) fn e4m3(byte: u8) -> f32 {
    // Exponent and mantissa moved into an f32's, 120 too small; the product makes that up, for subnormals too.
    let small = f32::from_bits(((byte & 0x80) as u32) << 24 | ((byte & 0x7f) as u32) << 20);
    small * f32::from_bits((127 + 120) << 23)
}

/// An e8m0 scale, `2^(byte - 127)`.
#[inline]
pub(crate) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        b => f32::from_bits((b as u32) << 23),
    }
}

/// Scale and bias of group `g`: a value is `scale * code + bias`.
pub(crate) fn group_parameters(format: Format, global: f32, row: RowBytes<'_>, g: usize) -> (f32, f32) {
    match format {
        Format::Affine { scales, .. } => (scales.read(row.scales, g), scales.read(row.biases, g)),
        Format::Int4 { scales, .. } => {
            let scale = scales.read(row.scales, g);
            (scale, -8.0 * scale)
        }
        Format::Mxfp4 | Format::Mxfp8 => (global * e8m0(row.scales[g]), 0.0),
        Format::Nvfp4 => (global * e4m3(row.scales[g]), 0.0),
        Format::Fp8 { scales } => (global * scales.read(row.scales, g), 0.0),
        Format::Float(_) => (global, 0.0),
    }
}

/// Writes row `r` of `m` to `out [cols]`, in f32 with the roundings of MLX's f32 `dequantize`: one after
/// `scale * code`, one after `+ bias`.
///
/// # Errors
/// [`BackendError::Range`] if there is no row `r`; [`BackendError::Shape`] if `out` is not `cols` long.
pub fn dequantize_row(m: &PackedMatrix, r: usize, out: &mut [f32]) -> Result<(), BackendError> {
    BackendError::check_range("dequantize", "row", r, m.rows())?;
    BackendError::check("dequantize", "output width", out.len(), m.cols())?;
    row_exact(m, r, out);
    Ok(())
}

/// All values of `m`, `[rows * cols]`.
pub fn dequantize(m: &PackedMatrix) -> Vec<f32> {
    let mut out = vec![0.0; m.rows() * m.cols()];
    for (r, row) in out.chunks_exact_mut(m.cols().max(1)).enumerate() {
        row_exact(m, r, row);
    }
    out
}

/// [`dequantize_row`] for operands that were checked.
pub(crate) fn row_exact(m: &PackedMatrix, r: usize, out: &mut [f32]) {
    let (format, row) = (m.format(), RowBytes::of(m, r));
    if let Format::Float(t) = format {
        return float_row(t, m.global_scale(), row.weight, out);
    }
    let (bits, group) = (format.code_bits(), format.group());
    for (g, chunk) in out.chunks_mut(group).enumerate() {
        let (scale, bias) = group_parameters(format, m.global_scale(), row, g);
        for (i, value) in chunk.iter_mut().enumerate() {
            let q = code(row.weight, bits, g * group + i);
            *value = match format {
                Format::Mxfp4 | Format::Nvfp4 => scale * E2M1[q],
                Format::Mxfp8 => scale * e4m3(q as u8),
                Format::Fp8 { .. } if q & 0x7f == 0x7f => f32::NAN,
                Format::Fp8 { .. } => scale * e4m3(q as u8),
                _ => scale * q as f32 + bias,
            };
        }
    }
}

fn float_row(t: FloatType, global: f32, bytes: &[u8], out: &mut [f32]) {
    for (i, value) in out.iter_mut().enumerate() {
        *value = global * t.read(bytes, i);
    }
}
