//! The routed experts and the shared expert.
//!
//! Tokens are grouped by expert, so that each chosen expert's weights are read once a batch. Tasks are (expert, block
//! of rows), so that one token's experts keep all cores busy.

use std::ops::Range;

use super::matmul::{Operand, TILE_ROWS, add, rows, rows_per_task, transpose};
use super::router::{ExpertLoad, loads};
use super::team::{self, Team};
use super::tensor::Routing;
use super::{Arithmetic, Tensor, dense};
use crate::{ExpertHidden, PackedMatrix};

/// Gate and up of one expert with the tokens that go through it.
struct GatedLoad<'a> {
    gate: &'a PackedMatrix,
    up: &'a PackedMatrix,
    gate_x: &'a Operand,
    up_x: &'a Operand,
    /// Rows of the operands.
    tokens: Vec<u32>,
}

/// A block of rows of one expert and where its results go, `[rows, tokens]`.
struct Task<'a> {
    load: &'a GatedLoad<'a>,
    range: Range<usize>,
    out: &'a mut [f32],
}

/// `silu(x @ gate^T) * (x @ up^T)` for every (token, chosen expert) pair and for the shared expert.
///
/// Operands are checked; an id is below the number of experts.
pub(crate) fn experts_swiglu(
    arithmetic: Arithmetic,
    x: &Tensor,
    routing: &Routing,
    gate: &[PackedMatrix],
    up: &[PackedMatrix],
    shared: Option<(&PackedMatrix, &PackedMatrix)>,
) -> ExpertHidden<Tensor> {
    let loads = loads(routing);
    let width = gate.first().map_or(0, PackedMatrix::rows);
    let operand = |m: Option<&PackedMatrix>| m.map(|m| Operand::new(arithmetic, m, x.data()));
    let gate_x = operand(gate.first());
    let up_x = operand(up.first());
    let (shared_gate_x, shared_up_x) = (operand(shared.map(|s| s.0)), operand(shared.map(|s| s.1)));
    let mut gated = Vec::with_capacity(loads.len() + 1);
    if let (Some(gate_x), Some(up_x)) = (&gate_x, &up_x) {
        gated.extend(loads.iter().map(|load| GatedLoad {
            gate: &gate[load.expert],
            up: &up[load.expert],
            gate_x,
            up_x,
            tokens: load.pairs.iter().map(|pair| pair / routing.chosen as u32).collect(),
        }));
    }
    if let (Some((gate, up)), Some(gate_x), Some(up_x)) = (shared, &shared_gate_x, &shared_up_x) {
        gated.push(GatedLoad { gate, up, gate_x, up_x, tokens: (0..x.rows() as u32).collect() });
    }
    let mut blocks = run_loads(arithmetic, &gated);
    let shared = shared.map(|(gate, _)| {
        let block = blocks.pop().unwrap_or_default();
        Tensor::from_parts(x.rows(), gate.rows(), transpose(block, gate.rows(), x.rows()))
    });
    let routed = scatter_pairs(&loads, &blocks, routing.ids.len(), width);
    ExpertHidden { routed, shared }
}

/// `silu(x @ gate^T) * (x @ up^T)`: `[T, gate.rows]`, of a dense layer.
pub(crate) fn swiglu_dense(
    arithmetic: Arithmetic,
    x: &Tensor,
    gate: &PackedMatrix,
    up: &PackedMatrix,
) -> Tensor {
    let gate_x = Operand::new(arithmetic, gate, x.data());
    let up_x = Operand::new(arithmetic, up, x.data());
    let tokens = (0..x.rows() as u32).collect();
    let block = run_loads(arithmetic, &[GatedLoad { gate, up, gate_x: &gate_x, up_x: &up_x, tokens }]).pop();
    Tensor::from_parts(x.rows(), gate.rows(), transpose(block.unwrap_or_default(), gate.rows(), x.rows()))
}

/// For each expert `[gate.rows, its tokens]`.
fn run_loads(arithmetic: Arithmetic, gated: &[GatedLoad<'_>]) -> Vec<Vec<f32>> {
    let mut blocks: Vec<Vec<f32>> =
        gated.iter().map(|load| vec![0.0; load.gate.rows() * load.tokens.len()]).collect();
    let mut tasks = Vec::new();
    for (load, block) in gated.iter().zip(&mut blocks) {
        let step = rows_per_task(load.gate, load.tokens.len());
        let outs = block.chunks_mut((step * load.tokens.len()).max(1));
        tasks.extend(outs.enumerate().map(|(i, out)| {
            let range = i * step..((i + 1) * step).min(load.gate.rows());
            Task { load, range, out }
        }));
    }
    team::for_each_chunk(&mut tasks, 1, |_, tasks| {
        for Task { load, range, out } in tasks {
            let mut up = vec![0.0; out.len()];
            rows(arithmetic, load.gate, range.clone(), load.gate_x, &load.tokens, out);
            rows(arithmetic, load.up, range.clone(), load.up_x, &load.tokens, &mut up);
            dense::swiglu(arithmetic.isa, out, &up);
        }
    });
    blocks
}

/// Each expert's `[F, its pairs]` to `[T * k, F]`.
fn scatter_pairs(loads: &[ExpertLoad], blocks: &[Vec<f32>], pairs: usize, width: usize) -> Tensor {
    let mut source = vec![(0, 0); pairs];
    for (e, load) in loads.iter().enumerate() {
        for (i, &pair) in load.pairs.iter().enumerate() {
            source[pair as usize] = (e, i);
        }
    }
    let mut out = vec![0.0; pairs * width];
    let part = team::part(pairs, 4 * width, 1);
    team::for_each_chunk(&mut out, part * width, |first, out| {
        for (out, &(e, i)) in out.chunks_exact_mut(width.max(1)).zip(&source[first * part..]) {
            let count = loads[e].pairs.len();
            out.iter_mut().zip(blocks[e].iter().skip(i).step_by(count)).for_each(|(o, v)| *o = *v);
        }
    });
    Tensor::from_parts(pairs, width, out)
}

/// `residual += sum_j weight_j * down_j(h_j) + shared_down(h_shared)`.
///
/// The experts of a token are added in the order of their ids, then the shared expert. Operands are checked.
pub(crate) fn experts_down_add(
    arithmetic: Arithmetic,
    hidden: &ExpertHidden<Tensor>,
    routing: &Routing,
    down: &[PackedMatrix],
    shared: Option<&PackedMatrix>,
    residual: &mut Tensor,
) {
    let (Some(first), tokens) = (down.first(), residual.rows()) else { return };
    let loads = loads(routing);
    // The token of each pair and its weight.
    let terms: Vec<Vec<(usize, f32)>> = loads
        .iter()
        .map(|load| {
            let term = |&pair: &u32| (pair as usize / routing.chosen, routing.weights[pair as usize]);
            load.pairs.iter().map(term).collect()
        })
        .collect();
    let routed_x = Operand::new(arithmetic, first, hidden.routed.data());
    let shared_x =
        shared.zip(hidden.shared.as_ref()).map(|(m, h)| (m, Operand::new(arithmetic, m, h.data())));
    let all: Vec<u32> = (0..tokens as u32).collect();
    // Large blocks, because each starts at a cold place of every expert; small enough to keep all cores busy.
    let step = (first.rows() / (4 * Team::current().threads())).clamp(8, 128);
    let step = if step < TILE_ROWS { step & !7 } else { step & !(TILE_ROWS - 1) };
    let mut sums = vec![0.0; first.rows() * tokens];
    team::for_each_chunk(&mut sums, step * tokens, |i, sums| {
        let range = i * step..((i + 1) * step).min(first.rows());
        let mut part = vec![0.0; sums.len()];
        for (load, terms) in loads.iter().zip(&terms) {
            let part = &mut part[..range.len() * load.pairs.len()];
            rows(arithmetic, &down[load.expert], range.clone(), &routed_x, &load.pairs, part);
            for (sums, part) in sums.chunks_exact_mut(tokens).zip(part.chunks_exact(load.pairs.len())) {
                for (&(token, weight), value) in terms.iter().zip(part) {
                    sums[token] += weight * value;
                }
            }
        }
        if let Some((m, x)) = &shared_x {
            rows(arithmetic, m, range, x, &all, &mut part);
            add(sums, &part);
        }
    });
    add(residual.data_mut(), &transpose(sums, first.rows(), tokens));
}
