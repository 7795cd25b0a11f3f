//! Products of activations with packed matrices.
//!
//! Every output is one row's dot product, computed in an order that depends on the matrix alone: a token's result is
//! the same bits alone or in a batch, and on any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::{Isa, Tensor};
use crate::PackedMatrix;

/// Packed bytes that one task reads: enough to hide the task's cost, small enough for a core's second-level cache.
const TASK_BYTES: usize = 128 << 10;

/// Activations as the kernels read them, for the matrices of one format.
pub(crate) struct Operand {
    pub(crate) data: Vec<f32>,
    pub(crate) width: usize,
}

impl Operand {
    /// Prepares `x`, rows of `m.cols()` values, for products with `m`.
    pub(crate) fn new(_isa: Isa, m: &PackedMatrix, x: &[f32]) -> Self {
        Self { data: x.to_vec(), width: m.cols() }
    }

    pub(crate) fn row(&self, token: u32) -> &[f32] {
        &self.data[token as usize * self.width..][..self.width]
    }
}

/// Rows of `m` that one task takes.
pub(crate) fn rows_per_task(m: &PackedMatrix) -> usize {
    let row = (m.bytes() as usize / m.rows().max(1)).max(1);
    (TASK_BYTES / row).clamp(8, 512) & !7
}

/// `out[(r - range.start) * tokens.len() + t] = m[r] . x[tokens[t]]` for the rows of `range`.
pub(crate) fn rows(
    _isa: Isa,
    m: &PackedMatrix,
    range: Range<usize>,
    x: &Operand,
    tokens: &[u32],
    out: &mut [f32],
) {
    let mut row = vec![0.0; m.cols()];
    for (r, out) in range.zip(out.chunks_exact_mut(tokens.len().max(1))) {
        super::dequant::row_exact(m, r, &mut row);
        for (out, &token) in out.iter_mut().zip(tokens) {
            *out = row.iter().zip(x.row(token)).map(|(w, x)| w * x).sum();
        }
    }
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
