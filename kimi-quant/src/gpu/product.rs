//! Products of activations with packed rows: which specialisation, which bindings, which grid.

use std::sync::PoisonError;

use super::batched::{Batched, Lines};
use super::recorder::{Dispatch, Recorder};
use super::shader::{GRID_Y, PRODUCT, Packing, Spec};
use super::tuning::{self, Shape, Tuning};
use super::weights::Part;
use super::{Gpu, GpuRouting, GpuTensor};
use crate::{BackendError, Norm};

type Result<T> = std::result::Result<T, BackendError>;

/// Which rows meet which activations.
#[derive(Clone, Copy)]
pub(crate) enum Mode<'a> {
    /// Rows of a matrix that begin at `row_first`, for each of `count` heads.
    Heads(Heads),
    /// Those of each token's chosen experts.
    Gather(&'a GpuRouting, usize),
    /// The chosen experts' results added up with their weights.
    Sum(&'a GpuRouting, usize),
}

/// Steps from head to head, and where the first one begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    pub(crate) x: usize,
    pub(crate) rows: usize,
    pub(crate) out: usize,
    pub(crate) row_first: usize,
}

impl Heads {
    pub(crate) const ONE: Self = Self { count: 1, x: 0, rows: 0, out: 0, row_first: 0 };
}

/// One product.
pub(crate) struct Product<'a> {
    pub(crate) mode: Mode<'a>,
    pub(crate) packing: Packing,
    /// Outputs of the dispatch (a head's, an expert's, a part's).
    pub(crate) rows: usize,
    pub(crate) x: &'a GpuTensor,
    pub(crate) out: &'a GpuTensor,
    /// First column of the outputs.
    pub(crate) out_first: usize,
    pub(crate) norm: Option<&'a Norm<super::GpuVector>>,
    pub(crate) weights: &'a Part,
    /// The second matrix of a SwiGLU.
    pub(crate) up: Option<&'a Part>,
    /// Whether it is added to what is there.
    pub(crate) add: bool,
}

impl Gpu {
    /// Records one product. The caller has checked the shapes.
    pub(crate) fn product(&self, product: &Product<'_>) -> Result<()> {
        let Product { packing, rows, x, out, .. } = *product;
        let recorder: &Recorder = &self.recorder;
        let device = &recorder.device;
        let tokens = match product.mode {
            Mode::Heads(_) => x.rows,
            Mode::Gather(routing, _) | Mode::Sum(routing, _) => routing.tokens,
        };
        let (mode, at_once, lines, chosen) = match product.mode {
            Mode::Heads(heads) => (0, tuning::tokens_at_once(tokens), heads.count, 1),
            Mode::Gather(routing, _) => (1, 1, tokens * routing.chosen, routing.chosen),
            Mode::Sum(routing, _) => (2, 1, tokens, routing.chosen),
        };
        if let Mode::Heads(heads) = product.mode
            && tokens > 1
        {
            return self.batched(&Batched {
                lines: Lines::Tokens(heads),
                kernel: self.dense_kernel(x, rows, heads.count),
                packing,
                rows,
                row_first: 0,
                x,
                out,
                out_first: product.out_first,
                weights: product.weights,
                up: product.up,
                add: product.add,
            });
        }
        let shape = Shape { packing, rows: rows * lines, pair: product.up.is_some(), tokens: at_once };
        let given = *self.tuning.lock().unwrap_or_else(PoisonError::into_inner);
        let tuning = Tuning::choose(device, given, &shape);
        let spec = Spec::new(
            &PRODUCT,
            vec![
                ("MODE", mode),
                ("TOKENS", at_once),
                ("TILE", tuning::tile(device, packing, at_once, tuning.workgroup)),
                ("WORKGROUP", tuning.workgroup),
                ("LANES", device.lanes),
                ("ROWS", tuning.rows),
                ("BLOCK_ROWS", tuning.block_rows),
                ("SHARE", tuning.share),
                ("PAIR", u32::from(product.up.is_some())),
                ("NORM", u32::from(product.norm.is_some())),
                ("ADD", u32::from(product.add)),
                ("CHOSEN", chosen as u32),
            ],
        )
        .with_matrices(packing, 1 + u32::from(product.up.is_some()));
        let none = &*self.nothing;
        let (ids, weights) = match product.mode {
            Mode::Heads(_) => (none, none),
            Mode::Gather(routing, _) | Mode::Sum(routing, _) => (&*routing.ids, &*routing.weights),
        };
        let norm = product.norm.map_or(none, |n| &*n.weight.buffer);
        let first = product.weights;
        let mut buffers = vec![&*x.buffer, &*out.buffer, norm, ids, weights, &*first.codes, &*first.scales];
        buffers.extend(product.up.iter().flat_map(|up| [&*up.codes, &*up.scales]));
        let heads = if let Mode::Heads(heads) = product.mode { heads } else { Heads::ONE };
        let experts = match product.mode {
            Mode::Heads(_) => 0,
            Mode::Gather(_, rows) | Mode::Sum(_, rows) => rows,
        };
        let numbers = [
            rows,
            tokens,
            x.cols,
            out.cols,
            heads.x,
            heads.rows,
            heads.out,
            heads.row_first,
            product.out_first,
            first.range.start,
            first.range.len(),
            experts,
            first.scale_base as usize,
            first.bias_base as usize,
        ];
        let mut params: Vec<u32> = numbers.iter().map(|&n| n as u32).collect();
        params.push(product.norm.map_or(0.0, |n| n.eps).to_bits());
        let block = (tuning.workgroup / device.lanes * tuning.block_rows) as usize;
        let blocks = rows.div_ceil(block);
        let grid = match product.mode {
            Mode::Heads(heads) => [blocks, heads.count, tokens.div_ceil(at_once as usize)],
            _ => [blocks, lines.min(GRID_Y as usize), lines.div_ceil(GRID_Y as usize)],
        };
        recorder.dispatch(Dispatch { op: &PRODUCT, spec, buffers: &buffers, params: &params, grid })
    }
}
