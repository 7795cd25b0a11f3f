//! Products of activations with packed matrices.
//!
//! Every output is one row's dot product, computed in an order that depends on the matrix alone: a token's result is
//! the same bits alone or in a batch, and on any number of threads.

use std::ops::Range;

use bytes::Bytes;
use rayon::prelude::*;

use super::kernel::{Kernel, Order, Product};
use super::{Isa, Tensor, dequant};
use crate::{FloatType, Format, PackedMatrix};

/// Packed bytes that one task reads: enough to hide the task's cost, small enough for a core's second-level cache.
const TASK_BYTES: usize = 128 << 10;

/// Activations in the order in which the kernels of one format read them.
pub(crate) struct Operand {
    order: Order,
    data: Vec<f32>,
    stride: usize,
}

impl Operand {
    /// Prepares `x`, rows of `m.cols()` values, for products with `m` and its like.
    pub(crate) fn new(isa: Isa, m: &PackedMatrix, x: &[f32]) -> Self {
        let order = order(isa, m);
        let stride = order.padded(m.cols());
        let mut data = vec![0.0; x.len() / m.cols() * stride];
        let rows = data.par_chunks_exact_mut(stride).with_min_len(4).zip(x.par_chunks_exact(m.cols()));
        rows.for_each(|(out, x)| order.permute(x, out));
        Self { order, data, stride }
    }

    /// One token's activations, filled up with zeros to whole blocks.
    pub(crate) fn row(&self, token: u32) -> &[f32] {
        &self.data[token as usize * self.stride..][..self.stride]
    }
}

/// The kernel for `m`, and whether `m` is read as it is. It is not where its groups do not fall on the kernel's lanes
/// (groups of 8 at 2 bits): then its rows are dequantized first and the kernel is that of f32.
fn kernel_for(isa: Isa, m: &PackedMatrix) -> (Kernel, bool) {
    let kernel = isa.kernel(m.format());
    match m.format() {
        Format::Float(_) => (kernel, m.global_scale() == 1.0),
        format if kernel.order.fits_group(format.group()) => (kernel, true),
        _ => (isa.kernel(Format::Float(FloatType::F32)), false),
    }
}

/// Rows of `m` that one task takes.
pub(crate) fn rows_per_task(m: &PackedMatrix) -> usize {
    let row = (m.bytes() as usize / m.rows().max(1)).max(1);
    (TASK_BYTES / row).clamp(8, 512) & !7
}

/// `out[(r - range.start) * tokens.len() + t] = m[r] . x[tokens[t]]` for the rows of `range`, which are rows of `m`.
pub(crate) fn rows(
    isa: Isa,
    m: &PackedMatrix,
    range: Range<usize>,
    x: &Operand,
    tokens: &[u32],
    out: &mut [f32],
) {
    let (kernel, direct) = kernel_for(isa, m);
    debug_assert_eq!(kernel.order, x.order);
    let count = range.len() * tokens.len();
    let fits = range.end <= m.rows() && x.order == kernel.order && x.stride == x.order.padded(m.cols());
    if range.is_empty() || tokens.is_empty() || out.len() != count || !fits {
        return;
    }
    let plain = if direct { None } else { plain_rows(m, range.clone()) };
    let product = match &plain {
        None if direct => Product { m, range, x, tokens },
        None => return,
        Some(plain) => Product { m: plain, range: 0..plain.rows(), x, tokens },
    };
    // SAFETY: the instruction set is this machine's; the kernel is that of the matrix's format, whose groups fit; the
    // range lies in the matrix and the operand is in the kernel's order (checked above).
    unsafe { (kernel.dot)(&product, out) }
}

/// The order of [`Operand`]s made for `m`.
pub(crate) fn order(isa: Isa, m: &PackedMatrix) -> Order {
    kernel_for(isa, m).0.order
}

/// Weights of row `r` in the order of [`Operand`]s made for `m`; `out` is as long as their rows.
pub(crate) fn decode_row(isa: Isa, m: &PackedMatrix, r: usize, out: &mut [f32]) {
    let (kernel, direct) = kernel_for(isa, m);
    if !direct {
        dequant::row_exact(m, r, &mut out[..m.cols()]);
    } else if r < m.rows() && out.len() == kernel.order.padded(m.cols()) {
        // SAFETY: as in `rows`.
        unsafe { (kernel.decode)(m, r, out) }
    }
}

/// Rows as f32, for formats that no kernel reads directly.
fn plain_rows(m: &PackedMatrix, range: Range<usize>) -> Option<PackedMatrix> {
    let mut values = vec![0.0; range.len() * m.cols()];
    for (r, out) in range.clone().zip(values.chunks_exact_mut(m.cols())) {
        dequant::row_exact(m, r, out);
    }
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let format = Format::Float(FloatType::F32);
    PackedMatrix::new(range.len(), m.cols(), format, bytes, Bytes::new(), Bytes::new()).ok()
}

/// `x @ m^T`, transposed: `[m.rows, T]`.
fn product_transposed(isa: Isa, m: &PackedMatrix, x: &Operand, tokens: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0; m.rows() * tokens.len()];
    let task = rows_per_task(m);
    out.par_chunks_mut((task * tokens.len()).max(1)).enumerate().for_each(|(i, out)| {
        let start = i * task;
        rows(isa, m, start..(start + task).min(m.rows()), x, tokens, out);
    });
    out
}

/// `x @ m^T`: `[T, m.rows]`. The caller has checked the widths.
pub(crate) fn product(isa: Isa, m: &PackedMatrix, x: &Tensor) -> Tensor {
    let operand = Operand::new(isa, m, x.data());
    let tokens: Vec<u32> = (0..x.rows() as u32).collect();
    let transposed = product_transposed(isa, m, &operand, &tokens);
    Tensor::from_parts(x.rows(), m.rows(), transpose(transposed, m.rows(), x.rows()))
}

/// `residual += x @ m^T`.
pub(crate) fn product_add(isa: Isa, m: &PackedMatrix, x: &Tensor, residual: &mut Tensor) {
    let y = product(isa, m, x);
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
    out.par_chunks_mut(8 * rows).enumerate().for_each(|(block, out)| {
        for r in 0..rows {
            for (i, out) in out.chunks_exact_mut(rows).enumerate() {
                out[r] = x[r * cols + block * 8 + i];
            }
        }
    });
    out
}
