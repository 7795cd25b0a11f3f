//! RMS norm.

use super::Tensor;
use super::matmul::for_each_row;
use crate::Norm;

/// Independent partial sums: enough for a vector register, and the same on every machine.
const LANES: usize = 16;

/// `x / sqrt(mean(x^2) + eps) * weight`, in f32; `out` is as long as `x`.
pub(crate) fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = sum_of_squares(x) / x.len().max(1) as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    for ((o, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * factor * w;
    }
}

fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

/// [`rms_norm_row`] of every token; the weight is as wide as they are.
pub(crate) fn rms_norm(x: &Tensor, norm: &Norm<Vec<f32>>) -> Tensor {
    let mut out = vec![0.0; x.data().len()];
    for_each_row(&mut out, x.cols(), x.data(), x.cols(), |out, x| {
        rms_norm_row(x, &norm.weight, norm.eps, out)
    });
    Tensor::from_parts(x.rows(), x.cols(), out)
}
