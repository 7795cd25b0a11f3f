//! Products of one token's activations, or of few tokens', with packed rows: which specialisation, which bindings, which
//! grid.

use super::grouped::Groups;
use super::recorder::Dispatch;
use super::shader::{MATVEC, MATVEC_RAGGED, MATVEC_VARIED, Packing, Spec};
use super::tensor::Input;
use super::tuning::{Shape, Sizes};
use super::weights::Part;
use super::{Gpu, GpuRouting, GpuTensor};
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

/// Which rows meet which activations.
#[derive(Clone, Copy)]
pub(crate) enum Mode<'a> {
    /// The rows of a matrix, for every token; and those of a second one, with outputs of its own, that read the same
    /// activations.
    Rows { second: Option<(usize, &'a GpuTensor)> },
    /// The experts of the only source, for the (token, choice) pairs that chose them.
    Routed(Routed<'a>),
    /// Those of the chosen experts, each with its own outputs.
    Gather(Choices<'a>),
    /// The chosen experts' results added up with their weights.
    Sum(Choices<'a>),
}

/// The (token, choice) pairs of a batch, each of which meets the rows of its expert.
#[derive(Clone, Copy)]
pub(crate) struct Routed<'a> {
    pub(crate) routing: &'a GpuRouting,
    /// In tiles of one each, sorted by expert.
    pub(crate) groups: &'a Groups,
    /// Rows of an expert, and the first that is multiplied.
    pub(crate) expert_rows: usize,
    pub(crate) row_first: usize,
    /// Whether each pair has an input of its own (and not its token's), and its result is multiplied by its weight.
    pub(crate) down: bool,
}

/// The experts of a token, and which of them the sources hold.
#[derive(Clone, Copy)]
pub(crate) struct Choices<'a> {
    pub(crate) routing: &'a GpuRouting,
    /// The part of the experts that the first source is.
    pub(crate) part_first: usize,
    /// Experts of a part.
    pub(crate) part_experts: usize,
    /// Whether the last source is the shared expert, a choice of its own after the others.
    pub(crate) shared: bool,
}

impl Choices<'_> {
    fn count(&self) -> usize {
        self.routing.chosen + usize::from(self.shared)
    }
}

/// One binding's weights; those of gate together with those of up.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) weights: &'a Part,
    pub(crate) up: Option<&'a Part>,
}

/// One product.
pub(crate) struct Matvec<'a> {
    pub(crate) mode: Mode<'a>,
    pub(crate) packing: Packing,
    /// Outputs of a matrix or an expert.
    pub(crate) rows: usize,
    pub(crate) x: Input<'a>,
    pub(crate) out: &'a GpuTensor,
    /// First column of the outputs.
    pub(crate) out_first: usize,
    /// Either all have `up`, or none.
    pub(crate) sources: &'a [Source<'a>],
    /// Whether the result is added to what `out` has.
    pub(crate) add: bool,
}

/// What modes are to the shader.
const ROWS: u32 = 0;
const GATHER: u32 = 1;
const SUM: u32 = 2;
const ROUTED: u32 = 3;

/// What the mode of a shader is called.
#[cfg(test)]
pub(super) fn mode_name(mode: u32) -> &'static str {
    match mode {
        ROWS => "rows",
        GATHER => "gather",
        SUM => "sum",
        _ => "routed",
    }
}

/// Matrices that a dispatch has room for.
const MAX_MATRICES: usize = 6;
/// Sources that a dispatch has room for: places for their offsets in `Params`.
const MAX_SOURCES: usize = 4;

impl Gpu {
    /// Sources that one dispatch may have.
    pub(crate) fn max_sources(&self, gated: bool) -> usize {
        let bindings = self.recorder.device.limits.max_storage_buffers_per_shader_stage as usize;
        let matrices = (bindings.saturating_sub(6) / 2).min(MAX_MATRICES);
        (matrices / (1 + usize::from(gated))).clamp(1, MAX_SOURCES)
    }

    /// Sizes of a product; `None` if rows are too wide for this kernel.
    fn sizes(&self, product: &Matvec<'_>) -> Option<Sizes> {
        let (beside, outputs, second) = match product.mode {
            Mode::Rows { second } => (1, product.rows, second.map_or(0, |(rows, _)| rows)),
            Mode::Routed(routed) => {
                // Tiles of the experts that are in this binding, if all experts are chosen equally often.
                let here = product.sources.first().map_or(0, |source| source.weights.range.len());
                let tiles = (routed.groups.max_tiles * here).div_ceil(routed.groups.experts.max(1));
                (1, product.rows * tiles, 0)
            }
            Mode::Gather(choices) => (1, product.rows * choices.count(), 0),
            Mode::Sum(choices) => (choices.count(), product.rows, 0),
        };
        let tokens = if let Mode::Rows { .. } = product.mode { product.x.rows() } else { 1 };
        let routed = matches!(product.mode, Mode::Routed(_));
        let shape = Shape {
            packing: product.packing,
            beside: beside as u32,
            apart: if let Mode::Sum(_) = product.mode { product.packing.units() as u32 } else { 1 },
            rows: [product.rows, second],
            outputs: (outputs + second) * tokens,
            gated: product.sources.iter().any(|s| s.up.is_some()),
            sources: product.sources.len(),
            single: tokens == 1 && !routed,
            routed,
            common: matches!(product.mode, Mode::Rows { .. }) && tokens == 1,
        };
        Sizes::choose(&self.recorder.device, self.tuning(), &shape)
    }

    /// Records one product; `false` if its rows are too wide for this kernel. The caller has checked the shapes.
    pub(crate) fn matvec(&self, product: &Matvec<'_>) -> Result<bool> {
        let Some(sizes) = self.sizes(product) else { return Ok(false) };
        if product.rows == 0 || product.packing.cols == 0 {
            return Ok(false);
        }
        let routed = if let Mode::Routed(routed) = product.mode { Some(routed) } else { None };
        let gated = u32::from(product.sources.iter().any(|s| s.up.is_some()));
        let none = &*self.nothing;
        let (mode, choices) = match product.mode {
            Mode::Rows { .. } => (ROWS, None),
            Mode::Gather(choices) => (GATHER, Some(choices)),
            Mode::Sum(choices) => (SUM, Some(choices)),
            Mode::Routed(_) => (ROUTED, None),
        };
        let second = if let Mode::Rows { second } = product.mode { second } else { None };
        let several = matches!(product.mode, Mode::Rows { .. }) && product.x.rows() > 1;
        let (x, _, norm) = product.x.bindings();
        // A kernel for many products has bindings for two matrices; a single one is bound twice.
        let twice = sizes.common && gated == 0 && product.sources.len() == 1 && self.max_sources(false) > 1;
        let sources = product.sources.len() + usize::from(twice);
        let mut constants = sizes.constants(&self.recorder.device);
        constants.extend([
            ("MODE", mode),
            ("GATED", gated),
            ("CHOICES", choices.map_or(1, |c| c.count() as u32)),
            ("SHARED", u32::from(choices.is_some_and(|c| c.shared))),
            ("SOURCES", sources as u32),
            ("CHOSEN", routed.map_or(1, |p| p.routing.chosen as u32)),
            ("OWN_INPUT", u32::from(routed.is_some_and(|p| p.down))),
            ("WEIGHTED", u32::from(routed.is_some_and(|p| p.down))),
            ("SHARE", (8 / product.packing.bits().max(1) as u32).clamp(1, 4)),
        ]);
        let op = match product.packing.cols.is_multiple_of(4) {
            true if sizes.common => &MATVEC_VARIED,
            true => &MATVEC,
            false => &MATVEC_RAGGED,
        };
        if !sizes.common {
            constants.extend([
                ("NORM", u32::from(norm.is_some())),
                ("ADD", u32::from(product.add)),
                ("SEVERAL", u32::from(several)),
            ]);
        }
        let mut spec = Spec::new(op, constants).with_matrices(sizes.packing, sources as u32 * (1 + gated));
        spec.dot = Some(sizes.dot);
        let norm = norm.map_or(none, |n| &*n.weight.buffer);
        let [norm_or_tiles, ids, weights] = match (routed, choices) {
            (Some(p), _) => [&*p.groups.tiles, &*p.groups.pairs, &*p.routing.weights],
            (_, Some(c)) => [norm, &*c.routing.ids, &*c.routing.weights],
            _ => [norm, none, none],
        };
        let second_out = second.map_or(&*product.out.buffer, |(_, out)| &*out.buffer);
        let mut buffers = vec![x, &*product.out.buffer, second_out, norm_or_tiles, ids, weights];
        for source in product.sources.iter().cycle().take(sources) {
            let parts = std::iter::once(source.weights).chain(source.up);
            buffers.extend(parts.flat_map(|part| [&*part.codes, &*part.scales]));
        }
        let blocks = product.rows.div_ceil(sizes.block());
        let second_blocks = second.map_or(0, |(rows, _)| rows.div_ceil(sizes.block()));
        let grid = match product.mode {
            Mode::Rows { .. } if several => [product.x.rows(), blocks + second_blocks, 1],
            Mode::Rows { .. } => [blocks + second_blocks, 1, 1],
            Mode::Routed(routed) => [blocks, routed.groups.max_tiles, 1],
            Mode::Gather(choices) => [blocks, choices.count(), 1],
            Mode::Sum(_) => [blocks, 1, 1],
        };
        let params = product.params(&sizes, blocks, second.map_or(0, |(rows, _)| rows));
        let outputs = match product.mode {
            Mode::Rows { .. } => product.x.rows() * (product.rows + second.map_or(0, |(rows, _)| rows)),
            Mode::Routed(routed) => routed.routing.tokens * routed.routing.chosen * product.rows,
            Mode::Gather(_) | Mode::Sum(_) => 0, // one token's: never much
        };
        self.recorder.count(f64::from(1 + gated) * outputs as f64 * product.packing.cols as f64);
        self.recorder.dispatch(Dispatch { op, spec, buffers: &buffers, params: &params, grid })?;
        Ok(true)
    }
}

impl Matvec<'_> {
    fn params(&self, sizes: &Sizes, second_block: usize, second_rows: usize) -> [u32; 24] {
        let held = self.sources.first().map_or(0..0, |source| source.weights.range.clone());
        let [part_first, part_experts, row_first, expert_rows] = match self.mode {
            Mode::Rows { .. } => [0, 1, 0, 0],
            Mode::Routed(routed) => [held.start, held.len(), routed.row_first, routed.expert_rows],
            Mode::Gather(choices) | Mode::Sum(choices) => {
                [choices.part_first, choices.part_experts, 0, self.rows]
            }
        };
        let numbers = [self.rows, self.out_first, second_block, second_rows, part_first, part_experts]
            .map(|n| n as u32);
        let scale_bases: [u32; MAX_SOURCES] =
            std::array::from_fn(|i| self.sources.get(i).map_or(0, |source| source.weights.scale_base));
        let (_, x_first, norm) = self.x.bindings();
        let eps = norm.map_or(0.0, |n| n.eps).to_bits();
        let packing = sizes.packing;
        let mut params = [0; 24];
        params[..6].copy_from_slice(&numbers);
        params[6] = eps;
        params[7] = x_first as u32;
        params[8..12].copy_from_slice(&scale_bases);
        let more = [self.out.cols, row_first, expert_rows, packing.cols, packing.units(), packing.groups()];
        params[12..18].copy_from_slice(&more.map(|n| n as u32));
        params[18..21].copy_from_slice(&[sizes.span, sizes.slots, sizes.steps]);
        params[21..23].copy_from_slice(&[norm.is_some(), self.add].map(u32::from));
        params[23] = sizes.turns;
        params
    }
}
