//! The per-head projections between heads and the latent (`W_UK` and `W_UV` of DeepSeek-V2).

use std::borrow::Cow;
use std::ops::Range;

use super::matmul::{self, Operand};
use super::{Arithmetic, Tensor, dense, rope, team};
use crate::{HeadShape, LatentProjections, PackedMatrix, Rope, TokenLayout};

type Projections = LatentProjections<PackedMatrix>;

/// Queries `[T, nh * (nope + rope)]` to latent queries `[T, nh * (kl + rope)]`; operands are checked.
pub(crate) fn absorb_query(
    arithmetic: Arithmetic,
    q: &Tensor,
    projections: &Projections,
    heads: HeadShape,
    rope: &Rope,
    layout: &TokenLayout,
) -> Tensor {
    let angles: Vec<_> = layout.positions().iter().map(|&position| rope::angles(rope, position)).collect();
    let cost = cost_of_head(projections, heads, q.rows());
    let per_head: Vec<Vec<f32>> =
        team::map_parts(heads.heads, cost, |h| absorb_head(arithmetic, q, projections, heads, h));
    let (from, to) = (heads.nope + heads.rope, heads.latent + heads.rope);
    let mut out = vec![0.0; q.rows() * heads.heads * to];
    let token = |t: usize, out: &mut [f32]| {
        for (h, out) in out.chunks_exact_mut(to).enumerate() {
            let (latent, positional) = out.split_at_mut(heads.latent);
            latent.copy_from_slice(&per_head[h][t * heads.latent..][..heads.latent]);
            positional.copy_from_slice(&q.row(t)[h * from + heads.nope..][..heads.rope]);
            rope::rotate(positional, rope, &angles[t]);
        }
    };
    let (width, part) = (heads.heads * to, team::part(q.rows(), 8 * heads.heads * to, 1));
    team::for_each_chunk(&mut out, part * width, |i, out| {
        out.chunks_exact_mut(width.max(1)).enumerate().for_each(|(t, out)| token(i * part + t, out));
    });
    Tensor::from_parts(q.rows(), heads.heads * to, out)
}

/// One head's queries in the latent space, `[T, kl]`. The next head's weights are asked for meanwhile.
fn absorb_head(
    arithmetic: Arithmetic,
    q: &Tensor,
    projections: &Projections,
    heads: HeadShape,
    h: usize,
) -> Vec<f32> {
    let start = h * (heads.nope + heads.rope);
    let part = columns(q, start..start + heads.nope);
    match projections {
        LatentProjections::Joint(kv_b) => {
            let rows = heads.nope + heads.value;
            let range = h * rows..h * rows + heads.nope;
            weighted_rows(arithmetic, kv_b, range, rows, &part, q.rows())
        }
        LatentProjections::Split { embed_q, .. } => {
            let range = h * heads.latent..(h + 1) * heads.latent;
            project_head(arithmetic, embed_q, range, heads.latent, &part, q.rows())
        }
    }
}

/// Rows that are dequantized at once: they stay in the first-level cache while all tokens use them.
const DECODED_ROWS: usize = 16;

/// `out[t] = sum_r coefficients[t][r] * m[range.start + r]`: `[T, m.cols]`, rows in ascending order. For one token, rows so
/// many ahead are asked for.
fn weighted_rows(
    arithmetic: Arithmetic,
    m: &PackedMatrix,
    range: Range<usize>,
    ahead: usize,
    coefficients: &[f32],
    tokens: usize,
) -> Vec<f32> {
    let order = matmul::order(arithmetic, m);
    let stride = order.padded(m.cols());
    let mut sums = vec![0.0; tokens * stride];
    if tokens == 1 && matmul::mix_rows(arithmetic, m, range.clone(), Some(ahead), coefficients, &mut sums) {
        let mut out = vec![0.0; m.cols()];
        order.restore(&sums, &mut out);
        return out;
    }
    let mut decoded = vec![0.0; DECODED_ROWS * stride];
    for first in (0..range.len()).step_by(DECODED_ROWS) {
        let count = DECODED_ROWS.min(range.len() - first);
        let start = range.start + first;
        matmul::decode_rows(arithmetic, m, start..start + count, &mut decoded[..count * stride]);
        let rows: Vec<&[f32]> = decoded.chunks_exact(stride).take(count).collect();
        let weights: Vec<f32> = coefficients
            .chunks_exact(range.len())
            .flat_map(|c| c[first..first + count].iter().copied())
            .collect();
        dense::mix(arithmetic.isa, &mut sums, stride, &weights, &rows);
    }
    let mut out = vec![0.0; tokens * m.cols()];
    let rows = out.chunks_exact_mut(m.cols()).zip(sums.chunks_exact(stride));
    rows.for_each(|(out, sums)| order.restore(sums, out));
    out
}

/// Attention results `[T, nh * kl]` to values `[T, nh * vd]`; operands are checked.
pub(crate) fn project_values(
    arithmetic: Arithmetic,
    attended: &Tensor,
    projections: &Projections,
    heads: HeadShape,
) -> Tensor {
    let (m, stride, offset) = match projections {
        LatentProjections::Joint(kv_b) => (kv_b, heads.nope + heads.value, heads.nope),
        LatentProjections::Split { unembed_out, .. } => (unembed_out, heads.value, 0),
    };
    let cost = cost_of_head(projections, heads, attended.rows());
    let per_head: Vec<Vec<f32>> = team::map_parts(heads.heads, cost, |h| {
        let part = columns(attended, h * heads.latent..(h + 1) * heads.latent);
        let first = h * stride + offset;
        project_head(arithmetic, m, first..first + heads.value, stride, &part, attended.rows())
    });
    let width = heads.heads * heads.value;
    let mut out = vec![0.0; attended.rows() * width];
    for (t, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
        for (h, out) in out.chunks_exact_mut(heads.value).enumerate() {
            out.copy_from_slice(&per_head[h][t * heads.value..][..heads.value]);
        }
    }
    Tensor::from_parts(attended.rows(), width, out)
}

/// `x @ m[range]^T` for `x [T, m.cols]`: `[T, range.len()]`. Rows so many ahead are asked for.
fn project_head(
    arithmetic: Arithmetic,
    m: &PackedMatrix,
    range: Range<usize>,
    ahead: usize,
    x: &[f32],
    tokens: usize,
) -> Vec<f32> {
    let operand = Operand::new(arithmetic, m, x);
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut out = vec![0.0; range.len() * tokens];
    let outputs = range.len();
    matmul::rows_asking(arithmetic, m, range, Some(ahead), &operand, &ids, &mut out);
    matmul::transpose(out, outputs, tokens)
}

/// About the bytes that one head of a projection reads, once for every token.
fn cost_of_head(projections: &Projections, heads: HeadShape, tokens: usize) -> usize {
    let all = match projections {
        LatentProjections::Joint(kv_b) => kv_b.bytes() / 2,
        LatentProjections::Split { embed_q, unembed_out } => embed_q.bytes().max(unembed_out.bytes()),
    };
    all as usize / heads.heads.max(1) * tokens
}

/// Columns `range` of every row, `[T, range.len()]`.
fn columns(x: &Tensor, range: Range<usize>) -> Cow<'_, [f32]> {
    if x.rows() == 1 {
        return Cow::Borrowed(&x.row(0)[range]);
    }
    let mut out = Vec::with_capacity(x.rows() * range.len());
    (0..x.rows()).for_each(|t| out.extend_from_slice(&x.row(t)[range.clone()]));
    Cow::Owned(out)
}
