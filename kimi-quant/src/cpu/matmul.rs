//! Products of activations with packed matrices.
//!
//! Every output is one row's dot product, computed in an order that depends on the matrix alone: a token's result is
//! the same bits alone or in a batch, and on any number of threads.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::kernel::{Kernel, PreparedRows, Product};
use super::order::Order;
use super::{Arithmetic, Tensor, dequant, team};
use crate::{FloatType, Format, PackedMatrix, Precision};

/// A cache line of values: vectors that straddle two lines take twice the time to load.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Activations in the order in which the kernels of one format read them.
pub(crate) struct Operand {
    /// Which matrices it is for.
    key: (Arithmetic, Format, usize),
    data: Vec<Line>,
    stride: usize,
}

impl Operand {
    /// Prepares `x`, rows of `m.cols()` values, for products with `m` and its like.
    pub(crate) fn new(arithmetic: Arithmetic, m: &PackedMatrix, x: &[f32]) -> Self {
        let (Kernel { order, length, prepare, rest, .. }, group) =
            (kernel_for(arithmetic, m).0, m.format().group());
        let stride = length(order, group, m.cols());
        let width = if rest.is_some() { 2 * stride } else { stride };
        let values = x.len() / m.cols() * width;
        let mut data = vec![Line([0.0; 16]); values.div_ceil(16)];
        for_each_row(&mut bytemuck::cast_slice_mut(&mut data)[..values], width, x, m.cols(), |out, x| {
            let (out, of_rest) = out.split_at_mut(stride);
            // SAFETY: the instruction set is this machine's.
            unsafe { prepare(order, group, x, out) }
            if let Some(rest) = rest {
                let mut left = vec![0.0; x.len()];
                // SAFETY: as above.
                unsafe {
                    rest(x, &mut left);
                    prepare(order, group, &left, of_rest);
                }
            }
        });
        Self { key: key(arithmetic, m), data, stride }
    }

    fn rows(&self) -> PreparedRows<'_> {
        PreparedRows { data: bytemuck::cast_slice(&self.data), stride: self.stride }
    }
}

/// What an operand depends on.
fn key(arithmetic: Arithmetic, m: &PackedMatrix) -> (Arithmetic, Format, usize) {
    (arithmetic, m.format(), m.cols())
}

/// Calls `f` with each row of `out` and of `x`.
pub(crate) fn for_each_row(
    out: &mut [f32],
    out_width: usize,
    x: &[f32],
    x_width: usize,
    f: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    let (out_width, x_width) = (out_width.max(1), x_width.max(1));
    let rows = team::part(x.len() / x_width, 4 * x_width, 1);
    team::for_each_chunk(out, rows * out_width, |i, out| {
        let x = x[i * rows * x_width..].chunks_exact(x_width);
        out.chunks_exact_mut(out_width).zip(x).for_each(|(out, x)| f(out, x));
    });
}

/// How the rows of a matrix reach a kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// As they are.
    Direct,
    /// Copied and filled up to whole blocks.
    Padded,
    /// Dequantized: their groups do not fall on the kernel's lanes (as groups of 8 at 2 bits).
    Plain,
}

/// Columns from which on products are faster with activations that are rounded twice than exactly (docs/performance.md
/// has what was measured about it).
const CLOSE_COLS: usize = 1024;

/// The kernel for `m`.
fn kernel_for(arithmetic: Arithmetic, m: &PackedMatrix) -> (Kernel, Reading) {
    const F32: Format = Format::Float(FloatType::F32);
    let arithmetic = match arithmetic.precision {
        Precision::Close if m.cols() < CLOSE_COLS => Arithmetic { precision: Precision::Exact, ..arithmetic },
        _ => arithmetic,
    };
    let kernel = arithmetic.kernel(m.format());
    let scaled = matches!(m.format(), Format::Float(_)) && m.global_scale() != 1.0;
    if scaled || !kernel.order.fits_group(m.format().group()) {
        (arithmetic.kernel(F32), Reading::Plain)
    } else if kernel.order.padded(m.cols()) == m.cols() {
        (kernel, Reading::Direct)
    } else {
        (kernel, Reading::Padded)
    }
}

/// A matrix as a kernel can read it, and where rows `range` of `m` are in it.
fn readable(
    m: &PackedMatrix,
    range: Range<usize>,
    order: Order,
    reading: Reading,
) -> Option<(Cow<'_, PackedMatrix>, Range<usize>)> {
    let (cols, count) = (order.padded(m.cols()), range.len());
    let copy = match reading {
        Reading::Direct => return Some((Cow::Borrowed(m), range)),
        Reading::Padded => match m.filled(cols) {
            Some(filled) => return Some((Cow::Borrowed(filled), range)),
            None => m.slice_rows(range).widened(cols).ok()?,
        },
        Reading::Plain => {
            let mut values = vec![0.0; count * cols];
            for (r, out) in range.zip(values.chunks_exact_mut(cols)) {
                dequant::row_exact(m, r, &mut out[..m.cols()]);
            }
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let format = Format::Float(FloatType::F32);
            PackedMatrix::new(count, cols, format, bytes, Bytes::new(), Bytes::new()).ok()?
        }
    };
    Some((Cow::Owned(copy), 0..count))
}

/// `m` as it is kept: rows that are not whole blocks are filled up once, not whenever they are read.
pub(crate) fn loaded(arithmetic: Arithmetic, m: PackedMatrix) -> PackedMatrix {
    match kernel_for(arithmetic, &m) {
        (kernel, Reading::Padded) => {
            let cols = kernel.order.padded(m.cols());
            m.with_filled(cols)
        }
        _ => m,
    }
}

/// Rows that kernels for many tokens take at once, and a multiple of what others take.
pub(crate) const TILE_ROWS: usize = 32;

/// Rows of `m` that one task takes for some tokens.
pub(crate) fn rows_per_task(m: &PackedMatrix, tokens: usize) -> usize {
    let row = (m.bytes() as usize / m.rows().max(1)).max(1);
    team::part(m.rows(), row, if tokens > 2 { TILE_ROWS } else { 8 })
}

/// `out[(r - range.start) * tokens.len() + t] = m[r] . x[tokens[t]]` for the rows of `range`, which are rows of `m`.
pub(crate) fn rows(
    arithmetic: Arithmetic,
    m: &PackedMatrix,
    range: Range<usize>,
    x: &Operand,
    tokens: &[u32],
    out: &mut [f32],
) {
    rows_asking(arithmetic, m, range, None, x, tokens, out);
}

/// [`rows`], which asks the memory for rows so many ahead of each, where it is not for those that come next.
pub(crate) fn rows_asking(
    arithmetic: Arithmetic,
    m: &PackedMatrix,
    range: Range<usize>,
    ahead: Option<usize>,
    x: &Operand,
    tokens: &[u32],
    out: &mut [f32],
) {
    let (kernel, reading) = kernel_for(arithmetic, m);
    let count = range.len() * tokens.len();
    let fits = range.end <= m.rows() && x.key == key(arithmetic, m);
    debug_assert!(fits && out.len() == count);
    if range.is_empty() || tokens.is_empty() || out.len() != count || !fits {
        return;
    }
    let Some((m, range)) = readable(m, range, kernel.order, reading) else { return };
    let pairs = kernel.rest.is_some();
    let activations: Cow<'_, [u32]> = match pairs {
        true => tokens.iter().flat_map(|token| [2 * token, 2 * token + 1]).collect(),
        false => Cow::Borrowed(tokens),
    };
    let chunk = if kernel.any_number { activations.len() } else { 8 };
    for (i, some) in activations.chunks(chunk).enumerate() {
        let dot = kernel.dot[(some.len().next_power_of_two().ilog2() as usize).min(3)];
        let product = Product { m: &m, range: range.clone(), x: x.rows(), tokens: some, ahead, pairs };
        // SAFETY: the instruction set is this machine's; the kernel is that of the matrix's format, whose groups fit,
        // whose rows are whole blocks, and takes so many tokens, or any number if they are pairs; the range lies in the
        // matrix and the operand is in the kernel's order.
        unsafe { dot(&product, &mut out[chunk * i..], tokens.len()) }
    }
}

/// The order of [`Operand`]s made for `m`.
pub(crate) fn order(arithmetic: Arithmetic, m: &PackedMatrix) -> Order {
    kernel_for(arithmetic, m).0.order
}

/// Weights of rows `range` in the order of [`Operand`]s made for `m`; `out` has as many rows of their length.
pub(crate) fn decode_rows(arithmetic: Arithmetic, m: &PackedMatrix, range: Range<usize>, out: &mut [f32]) {
    let (kernel, reading) = kernel_for(arithmetic, m);
    let fits = range.end <= m.rows() && out.len() == range.len() * kernel.order.padded(m.cols());
    debug_assert!(fits);
    if !fits {
        return;
    }
    if let Some((m, range)) = readable(m, range, kernel.order, reading) {
        // SAFETY: as in `rows`.
        unsafe { (kernel.decode)(&m, range, out) }
    }
}

/// Adds `sum_i weights[i] * m[range.start + i]` to `sums`, in the order of [`Operand`]s made for `m`; the same bits as
/// [`decode_rows`] and a weighted sum of its rows, read and multiplied in one go. Rows so many ahead are asked for, as in
/// [`rows_asking`]. False if `m` has to be copied for that.
pub(crate) fn mix_rows(
    arithmetic: Arithmetic,
    m: &PackedMatrix,
    range: Range<usize>,
    ahead: Option<usize>,
    weights: &[f32],
    sums: &mut [f32],
) -> bool {
    let (kernel, reading) = kernel_for(arithmetic, m);
    let cols = kernel.order.padded(m.cols());
    let m = if reading == Reading::Direct { Some(m) } else { m.filled(cols) };
    match m {
        Some(m) if range.end <= m.rows() && weights.len() == range.len() && sums.len() == cols => {
            // SAFETY: as in `rows`; the lengths were just checked.
            unsafe { (kernel.mix_rows)(m, range, ahead, weights, sums) }
            true
        }
        _ => false,
    }
}

/// `x @ m^T`, transposed: `[m.rows, T]`.
fn product_transposed(arithmetic: Arithmetic, m: &PackedMatrix, x: &Operand, tokens: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0; m.rows() * tokens.len()];
    let task = rows_per_task(m, tokens.len());
    team::for_each_chunk(&mut out, task * tokens.len(), |i, out| {
        let start = i * task;
        rows(arithmetic, m, start..(start + task).min(m.rows()), x, tokens, out);
    });
    out
}

/// `x @ m^T`: `[T, m.rows]`. The caller has checked the widths.
pub(crate) fn product(arithmetic: Arithmetic, m: &PackedMatrix, x: &Tensor) -> Tensor {
    let operand = Operand::new(arithmetic, m, x.data());
    let tokens: Vec<u32> = (0..x.rows() as u32).collect();
    let transposed = product_transposed(arithmetic, m, &operand, &tokens);
    Tensor::from_parts(x.rows(), m.rows(), transpose(transposed, m.rows(), x.rows()))
}

/// `residual += x @ m^T`.
pub(crate) fn product_add(arithmetic: Arithmetic, m: &PackedMatrix, x: &Tensor, residual: &mut Tensor) {
    let y = product(arithmetic, m, x);
    add(residual.data_mut(), y.data());
}

/// `a += b`.
pub(crate) fn add(a: &mut [f32], b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
}

/// `[rows, cols]` to `[cols, rows]`.
pub(crate) fn transpose(x: Vec<f32>, rows: usize, cols: usize) -> Vec<f32> {
    if rows <= 1 || cols <= 1 {
        return x;
    }
    let mut out = vec![0.0; x.len()];
    // Eight output rows at a time, so that a cache line of the input is used whole.
    let part = team::part(cols, 4 * rows, 8);
    team::for_each_chunk(&mut out, part * rows, |i, out| {
        for (block, out) in out.chunks_mut(8 * rows).enumerate() {
            for r in 0..rows {
                for (j, out) in out.chunks_exact_mut(rows).enumerate() {
                    out[r] = x[r * cols + i * part + block * 8 + j];
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::{BitWidth, Precision};

    #[test]
    fn loaded_rows_are_read_as_they_are_whatever_their_length() {
        let format = Format::Affine { bits: BitWidth::B4, group: 64, scales: FloatType::Bf16 };
        for isa in Isa::available() {
            let arithmetic = Arithmetic { isa, precision: Precision::Exact };
            for cols in [64, 192, 1024] {
                let bytes = format.bytes(9, cols).map(|bytes| bytes.map(|n| Bytes::from(vec![7; n])));
                let [weight, scales, biases] = bytes.unwrap();
                let m = PackedMatrix::new(9, cols, format, weight, scales, biases).unwrap();
                let m = loaded(arithmetic, m);
                let (kernel, reading) = kernel_for(arithmetic, &m);
                let (read, range) = readable(&m, 3..7, kernel.order, reading).unwrap();
                assert!(matches!(read, Cow::Borrowed(_)), "{} {cols}", isa.name());
                assert_eq!((range, read.cols()), (3..7, kernel.order.padded(cols)));
            }
        }
    }
}
