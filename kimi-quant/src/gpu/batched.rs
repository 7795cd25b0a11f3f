//! Products of more than one token: which kernel, which sizes, which bindings, which grid.

use std::sync::{Arc, PoisonError};

use super::attention::lines_grid;
use super::device::Device;
use super::grouped::Groups;
use super::hardware::Hardware;
use super::matvec::{Matvec, Mode, Routed, Source};
use super::pool::Buffer;
use super::recorder::Dispatch;
use super::shader::{COOPERATIVE, COOPERATIVE_8X8, Dot, FEW, Packing, SPLIT16, Spec, TILED, UNIT};
use super::tuning::{dot, integer};
use super::weights::{GpuExperts, Part};
use super::{Gpu, GpuRouting, GpuTensor};
use crate::{BackendError, Precision};

type Result<T> = std::result::Result<T, BackendError>;

/// The kernels of products of more than one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchKernel {
    /// Every token by itself (`matvec.wgsl`), weights coming from the cache for all but one.
    Matvec,
    /// Few tokens (`few.wgsl`), whose activations are in shared memory: for rows of floats, or very long ones.
    Few,
    /// Some tokens (`tiled.wgsl`), with the columns shared out to teams of threads.
    Teams,
    /// Many tokens (`tiled.wgsl`): bound by arithmetic.
    Tiled,
    /// Many tokens by cooperative matrices (`cooperative.wgsl`, `cooperative_8x8.wgsl`), where the adapter has them; else as
    /// `Tiled`.
    Cooperative,
}

/// Which rows meet which activations.
#[derive(Clone, Copy)]
pub(crate) enum Lines<'a> {
    /// Every token meets every row.
    Tokens,
    /// Each token meets the rows of its chosen experts.
    Experts {
        routing: &'a GpuRouting,
        groups: &'a Groups,
        /// Rows of an expert.
        rows: usize,
        /// Whether each (token, choice) pair has an input of its own (and not its token's), and its result is multiplied
        /// by its weight.
        down: bool,
    },
}

/// One product.
pub(crate) struct Batched<'a> {
    pub(crate) lines: Lines<'a>,
    pub(crate) kernel: BatchKernel,
    pub(crate) packing: Packing,
    /// Outputs of the dispatch (a head's, an expert's, a part's).
    pub(crate) rows: usize,
    /// First row, of the part or of each expert.
    pub(crate) row_first: usize,
    pub(crate) x: &'a GpuTensor,
    pub(crate) out: &'a GpuTensor,
    /// First column of the outputs.
    pub(crate) out_first: usize,
    pub(crate) weights: &'a Part,
    /// Up, where `weights` are those of gate.
    pub(crate) up: Option<&'a Part>,
    /// Whether the result is added to what `out` has.
    pub(crate) add: bool,
}

/// Tokens of one dispatch's workgroup in `few.wgsl`.
const FEW_LINES: usize = 8;

/// What codes are to the one-token kernel.
#[derive(Debug, Clone, Copy)]
enum Codes {
    Integers,
    /// Denormal 16-bit floats.
    Halves,
    Floats,
}

/// Tokens up to which the one-token kernel, or teams, are faster than tiles, where codes are halves.
const HALVES_TOKENS: usize = 32;

/// Tokens from which on teams of threads that share rows are faster than it: on an H100 5 of one line each, not 4.
const TEAMS_TOKENS: usize = 5;

/// Tokens from which on tiles are faster, if there are enough of them.
const MANY: usize = 64;

/// Threads of `cooperative.wgsl` and `cooperative_8x8.wgsl`, each of which has a row.
const COOPERATIVE_ROWS: u32 = 128;

/// Pairs of an expert from which on cooperative matrices are faster than a product for each, where they are multiplied once.
const FAST_PAIRS: f64 = 4.0;

/// Workgroups a core that keep a GPU busy.
const ENOUGH_WORKGROUPS: f64 = 1.515;

/// The same of eight subgroups each.
const ENOUGH_TEAMS: f64 = 0.5;

/// Sizes of `tiled.wgsl`.
#[derive(Debug, Clone, Copy)]
struct Tile {
    lines: u32,
    workgroup: u32,
    teams: u32,
    /// Rows of a workgroup; with gate and up, so many of each.
    rows: u32,
}

/// Threads of a workgroup of several teams of `tiled.wgsl`.
const TEAMS_THREADS: u32 = 256;
/// Threads of a team: those of a subgroup read the same activations at the same time.
const TEAM_THREADS: u32 = 32;

/// Lines of a workgroup of `tiled.wgsl`: the results that a thread has room for, twice.
const TILED_LINES: u32 = 16;
/// Units of activations that are in shared memory at a time.
const TILED_STAGED: u32 = 4;
/// The same for teams, times their lines: 16 KB.
const TEAMS_UNITS: u32 = 128;

/// Sizes of `cooperative.wgsl` and `cooperative_8x8.wgsl`.
#[derive(Debug, Clone, Copy)]
struct Cooperative {
    lines: u32,
    /// Subgroups of `cooperative.wgsl` that write results at a time: each takes a kilobyte of shared memory.
    writers: u32,
}

impl Cooperative {
    fn choose(device: &Device, product: &Batched<'_>) -> Self {
        let gated = product.up.is_some();
        let (tokens, rows) = (product.x.rows, product.rows);
        let blocks = rows.div_ceil(if gated { 64 } else { 128 });
        let enough = device.hardware.workgroups(ENOUGH_WORKGROUPS);
        let lines = match product.lines {
            Lines::Experts { groups, .. } => groups.lines as u32,
            Lines::Tokens => [64, 32]
                .into_iter()
                .find(|&lines| blocks * tokens.div_ceil(lines as usize) >= enough)
                .unwrap_or(16),
        };
        Self { lines, writers: if lines == 16 { 1 } else { 4 } }
    }

    fn constants(self, packing: Packing, precision: Precision) -> Vec<(&'static str, u32)> {
        let exact = precision == Precision::Exact;
        vec![
            ("WORKGROUP", COOPERATIVE_ROWS),
            ("WRITERS", self.writers),
            ("EXACT", exact.into()),
            ("SPLIT", (exact && !packing.exact_in_f16()).into()),
            ("FACTOR", packing.f16_factor()),
        ]
    }
}

impl Tile {
    /// For `lines` lines (of which there are so many tiles), with `gated` of two matrices.
    fn choose(device: &Device, lines: u32, tiles: usize, rows: usize, gated: bool) -> Self {
        let own = if gated { 1 } else { 2 };
        let enough = device.hardware.workgroups(ENOUGH_WORKGROUPS);
        let busy = |workgroup: &u32| rows.div_ceil((own * workgroup) as usize) * tiles >= enough;
        let workgroup = [128, 64].into_iter().find(busy).unwrap_or(32);
        Self { lines, workgroup, teams: 1, rows: own * workgroup }
    }

    /// The same with teams.
    fn of_teams(lines: u32, gated: bool) -> Self {
        let own = if gated { 1 } else { 2 };
        let workgroup = TEAMS_THREADS;
        Self { lines, workgroup, teams: workgroup / TEAM_THREADS, rows: own * TEAM_THREADS }
    }
}

impl BatchKernel {
    /// For `tokens` tokens and `rows` outputs in all.
    fn dense(hardware: &Hardware, tokens: usize, rows: usize, codes: Codes) -> Self {
        // With few tokens, tiles are too few to keep a GPU busy, or mostly empty. With many they do less work a token.
        let idle = rows.div_ceil(128) * tokens.div_ceil(16) < hardware.workgroups(ENOUGH_WORKGROUPS);
        match codes {
            Codes::Integers if tokens <= MANY || (idle && tokens <= 4 * MANY) => Self::Matvec,
            Codes::Halves if tokens <= HALVES_TOKENS => {
                let lines = if tokens > FEW_LINES { TILED_LINES as usize } else { FEW_LINES };
                let workgroups = rows.div_ceil(2 * TEAM_THREADS as usize) * tokens.div_ceil(lines);
                let busy = workgroups >= hardware.workgroups(ENOUGH_TEAMS);
                if busy && tokens >= TEAMS_TOKENS { Self::Teams } else { Self::Matvec }
            }
            Codes::Halves | Codes::Floats if tokens <= 2 * FEW_LINES || (idle && tokens <= MANY) => Self::Few,
            _ => Self::Tiled,
        }
    }

    /// The kernel for experts, and how many pairs a workgroup takes at most.
    fn grouped(
        given: Option<Self>,
        routing: &GpuRouting,
        experts: usize,
        codes: Codes,
        hardware: &Hardware,
    ) -> (Self, usize) {
        // Pairs of an expert on average; few experts have more than twice as many.
        let mean = (routing.tokens * routing.chosen) as f64 / experts.max(1) as f64;
        let fast = hardware.precision == Precision::Fast;
        let kernel = given.unwrap_or(match codes {
            Codes::Integers if mean < if fast { FAST_PAIRS } else { 24.0 } => Self::Matvec,
            Codes::Halves if mean < 4.0 => Self::Matvec,
            Codes::Floats if mean < 4.0 => Self::Few,
            _ => Self::Tiled,
        });
        let lines = match kernel {
            Self::Matvec => 1,
            Self::Few if mean < 0.3 => 2.min(routing.tokens),
            Self::Few if mean < 1.0 => 4.min(routing.tokens),
            Self::Few => FEW_LINES.min(routing.tokens),
            Self::Teams => FEW_LINES,
            _ if !hardware.has_matrices() => TILED_LINES as usize,
            _ if mean < if fast { 12.0 } else { 8.0 } => 16,
            _ => 32,
        };
        (kernel, lines.max(1))
    }
}

impl Gpu {
    /// The kernel for products of more than one token from now on; chosen by shape for `None`. For measurements and tests.
    pub fn set_batch_kernel(&self, kernel: Option<BatchKernel>) {
        *self.batch_kernel.lock().unwrap_or_else(PoisonError::into_inner) = kernel;
    }

    /// The kernels that this device has.
    pub fn batch_kernels(&self) -> Vec<BatchKernel> {
        let cooperative = self.recorder.device.hardware.has_matrices().then_some(BatchKernel::Cooperative);
        let kernels = [BatchKernel::Matvec, BatchKernel::Few, BatchKernel::Teams, BatchKernel::Tiled];
        kernels.into_iter().chain(cooperative).collect()
    }

    pub(super) fn batch_kernel(&self) -> Option<BatchKernel> {
        *self.batch_kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel for a product of `tokens` tokens with `rows` outputs.
    pub(crate) fn dense_kernel(&self, tokens: usize, rows: usize, packing: Packing) -> BatchKernel {
        let (hardware, codes) = (&self.recorder.device.hardware, self.codes(packing));
        self.batch_kernel().unwrap_or_else(|| match BatchKernel::dense(hardware, tokens, rows, codes) {
            // Measured to be faster, for floats too.
            BatchKernel::Few if hardware.integer_dot => BatchKernel::Matvec,
            kernel => kernel,
        })
    }

    /// How the one-token kernel multiplies codes. (A software adapter shares rows between tokens whatever it is.)
    fn codes(&self, packing: Packing) -> Codes {
        let device = &self.recorder.device;
        match dot(device, packing, integer(device, self.tuning(), packing)) {
            Dot::Integer => Codes::Integers,
            Dot::Half if !device.hardware.software => Codes::Halves,
            Dot::Half | Dot::Float => Codes::Floats,
        }
    }

    /// Cooperative matrices instead of tiles where they can be used, and the reverse where they can't. Those of 16-bit floats
    /// take weights that fit them.
    fn usable(&self, product: &Batched<'_>) -> BatchKernel {
        let fit = product.weights.fits_f16 && product.up.is_none_or(|up| up.fits_f16);
        let hardware = &self.recorder.device.hardware;
        let usable = hardware.cooperative_8x8 || (hardware.cooperative && fit);
        match product.kernel {
            BatchKernel::Cooperative if !usable => BatchKernel::Tiled,
            BatchKernel::Tiled if usable && self.batch_kernel().is_none() => BatchKernel::Cooperative,
            kernel => kernel,
        }
    }

    /// The product by `matvec.wgsl`; `false` if it is too wide.
    fn each_token(&self, product: &Batched<'_>) -> Result<bool> {
        let mode = match product.lines {
            Lines::Tokens => Mode::Rows { second: None },
            Lines::Experts { routing, groups, rows, down } => Mode::Routed(Routed {
                routing,
                groups,
                expert_rows: rows,
                row_first: product.row_first,
                down,
            }),
        };
        self.matvec(&Matvec {
            mode,
            packing: product.packing,
            rows: product.rows,
            x: product.x.into(),
            out: product.out,
            out_first: product.out_first,
            sources: &[Source { weights: product.weights, up: product.up }],
            add: product.add,
        })
    }

    /// The kernel for the experts, and the routing's pairs in tiles for it.
    pub(crate) fn grouped(
        &self,
        routing: &GpuRouting,
        experts: &GpuExperts,
    ) -> Result<(BatchKernel, Groups)> {
        let codes = self.codes(experts.packing);
        let (kernel, lines) = BatchKernel::grouped(
            self.batch_kernel(),
            routing,
            experts.count,
            codes,
            &self.recorder.device.hardware,
        );
        Ok((kernel, self.groups(routing, experts.count, lines)?))
    }

    /// Records one product. The caller has checked the shapes.
    pub(crate) fn batched(&self, product: &Batched<'_>) -> Result<()> {
        let Batched { packing, rows, x, out, weights, .. } = *product;
        let kernel = match self.usable(product) {
            BatchKernel::Matvec if self.each_token(product)? => return Ok(()),
            BatchKernel::Matvec => BatchKernel::Few, // too wide for it
            kernel => kernel,
        };
        let device = &self.recorder.device;
        let gated = u32::from(product.up.is_some());
        let tile = || {
            let (lines, tiles) = match product.lines {
                Lines::Tokens => {
                    let lines = TILED_LINES;
                    (lines, x.rows.div_ceil(lines as usize))
                }
                Lines::Experts { groups, .. } => (groups.lines as u32, groups.max_tiles),
            };
            Tile::choose(device, lines, tiles, rows, gated == 1)
        };
        let (op, mut constants, block_rows, lines) = match kernel {
            BatchKernel::Matvec | BatchKernel::Few => {
                let few = Few::choose(device, product);
                (
                    &FEW,
                    few.constants(device, packing),
                    few.workgroup / device.hardware.lanes * few.rows,
                    few.lines,
                )
            }
            BatchKernel::Tiled => (&TILED, tile().constants(), tile().rows, tile().lines),
            BatchKernel::Teams => {
                let lines = match product.lines {
                    Lines::Tokens if x.rows > FEW_LINES => TILED_LINES,
                    Lines::Tokens => FEW_LINES as u32,
                    Lines::Experts { groups, .. } => groups.lines as u32,
                };
                let tile = Tile::of_teams(lines, gated == 1);
                (&TILED, tile.constants(), tile.rows, lines)
            }
            BatchKernel::Cooperative => {
                let sizes = Cooperative::choose(device, product);
                let hardware = &device.hardware;
                let (op, constants) = if hardware.cooperative {
                    (&COOPERATIVE, sizes.constants(packing, hardware.precision))
                } else {
                    (&COOPERATIVE_8X8, vec![("WORKGROUP", COOPERATIVE_ROWS)])
                };
                (op, constants, COOPERATIVE_ROWS / (1 + gated), sizes.lines)
            }
        };
        let share = if kernel == BatchKernel::Few { share(packing) } else { 1 };
        constants.extend([
            ("LINES", lines),
            ("GATED", gated),
            ("ADD", u32::from(product.add)),
            ("SHARE", share),
        ]);
        constants.extend(product.lines.constants());
        constants.push(("COUNTED", u32::from(product.lines.are_counted() || kernel == BatchKernel::Teams)));
        let splits = kernel == BatchKernel::Cooperative && device.hardware.cooperative;
        let split = splits.then(|| self.split16(packing, x)).transpose()?;
        let none = &*self.nothing;
        let [pairs, tiles, weights_of_pairs] = match product.lines {
            Lines::Tokens => [none; 3],
            Lines::Experts { routing, groups, .. } => [&*groups.pairs, &*groups.tiles, &*routing.weights],
        };
        let inputs = split.as_ref().map_or(&*x.buffer, |s| &*s.values);
        let mut buffers = vec![inputs, &*out.buffer, pairs, tiles, weights_of_pairs];
        buffers.extend(split.as_ref().map(|s| &*s.factors));
        buffers.extend([&*weights.codes, &*weights.scales]);
        buffers.extend(product.up.iter().flat_map(|up| [&*up.codes, &*up.scales]));
        let blocks = rows.div_ceil(block_rows as usize);
        let grid = match product.lines {
            Lines::Experts { groups, .. } => [blocks, groups.max_tiles, 1],
            Lines::Tokens => {
                let tiles = x.rows.div_ceil(lines as usize);
                let few = kernel == BatchKernel::Few;
                if few { [blocks, tiles, 1] } else { [tiles, blocks, 1] }
            }
        };
        let met = match product.lines {
            Lines::Tokens => x.rows,
            Lines::Experts { routing, .. } => routing.tokens * routing.chosen,
        };
        self.recorder.count((1 + gated) as f64 * met as f64 * rows as f64 * packing.cols as f64);
        self.recorder.dispatch(Dispatch {
            op,
            spec: Spec::new(op, constants).with_matrices(packing, 1 + gated),
            buffers: &buffers,
            params: &product.params(split.as_ref().map_or(x.cols, |s| s.cells)),
            grid,
        })
    }
}

impl Lines<'_> {
    /// Whether tiles are often not full.
    fn are_counted(&self) -> bool {
        matches!(self, Lines::Experts { .. })
    }

    fn constants(&self) -> [(&'static str, u32); 4] {
        let (mode, chosen, down) = match *self {
            Lines::Tokens => (0, 1, 0),
            Lines::Experts { routing, down, .. } => (1, routing.chosen as u32, u32::from(down)),
        };
        [("MODE", mode), ("CHOSEN", chosen), ("OWN_INPUT", down), ("WEIGHTED", down)]
    }
}

impl Batched<'_> {
    fn params(&self, x_stride: usize) -> [u32; 10] {
        let expert_rows = match self.lines {
            Lines::Tokens => 0,
            Lines::Experts { rows, .. } => rows,
        };
        let numbers = [
            self.rows,
            self.x.rows,
            x_stride,
            self.out.cols,
            self.row_first,
            self.out_first,
            self.weights.range.start,
            self.weights.range.len(),
            expert_rows,
            self.weights.scale_base as usize,
        ];
        numbers.map(|n| n as u32)
    }
}

/// Activations as `cooperative.wgsl` takes them.
struct Split16 {
    values: Arc<Buffer>,
    /// What each line is to be multiplied by.
    factors: Arc<Buffer>,
    /// Cells of a line: a quad's upper floats, or its lower ones.
    cells: usize,
}

impl Gpu {
    /// `x` as 16-bit floats, upper and lower ones where products are exact, filled up to whole units of
    /// the weights.
    fn split16(&self, packing: Packing, x: &GpuTensor) -> Result<Split16> {
        let exact = usize::from(self.recorder.device.hardware.precision == Precision::Exact);
        let quads = packing.units() * UNIT / 4;
        let cells = quads * (1 + exact);
        let split = Split16 {
            values: self.recorder.pool.take(8 * (x.rows * cells) as u64, false)?,
            factors: self.recorder.pool.take(4 * x.rows as u64, false)?,
            cells,
        };
        let sizes = [
            ("WORKGROUP", self.recorder.device.workgroup_of(quads)),
            ("WIDTH", x.cols as u32),
            ("QUADS", quads as u32),
            ("EXACT", exact as u32),
        ];
        self.recorder.dispatch(Dispatch {
            op: &SPLIT16,
            spec: Spec::new(&SPLIT16, sizes.to_vec()),
            buffers: &[&x.buffer, &split.values, &split.factors],
            params: &[x.rows as u32],
            grid: lines_grid(x.rows),
        })?;
        Ok(split)
    }
}

/// Codes that are cut out of one shifted word.
fn share(packing: Packing) -> u32 {
    match packing.bits() {
        2 => 4,
        3 | 4 => 2,
        _ => 1,
    }
}

/// Sizes of `few.wgsl`.
#[derive(Debug, Clone, Copy)]
struct Few {
    workgroup: u32,
    /// Rows of a subgroup.
    rows: u32,
    lines: u32,
}

impl Few {
    fn choose(device: &Device, product: &Batched<'_>) -> Self {
        let (lines, repeats) = match product.lines {
            // As even as possible: 9 tokens are 5 and 4.
            Lines::Tokens => {
                let parts = product.x.rows.div_ceil(FEW_LINES);
                (product.x.rows.div_ceil(parts), parts)
            }
            Lines::Experts { groups, .. } => (groups.lines, groups.max_tiles),
        };
        let matrices = 1 + u32::from(product.up.is_some());
        let lines = lines as u32;
        if device.hardware.lanes < 32 {
            return Self { workgroup: 64.min(8 * device.hardware.lanes), rows: 2 / matrices, lines };
        }
        let max_rows = if product.packing.bits() >= 16 { 1 } else { 4 / matrices };
        let largest = device.limits.max_compute_invocations_per_workgroup.min(512);
        let sizes = [(largest, 4), (largest, 2), (256, 4), (256, 2), (128, 2), (128, 1)];
        let enough = device.hardware.workgroups(ENOUGH_WORKGROUPS);
        let busy = |workgroup: u32, rows: u32| {
            product.rows.div_ceil((workgroup / device.hardware.lanes * rows) as usize) * repeats >= enough
        };
        let fits = |&(workgroup, rows): &(u32, u32)| rows <= max_rows && busy(workgroup, rows);
        let (workgroup, rows) = sizes.into_iter().find(fits).unwrap_or((128, 1));
        Self { workgroup, rows, lines }
    }

    fn constants(self, device: &Device, packing: Packing) -> Vec<(&'static str, u32)> {
        let reduction = 4 * if device.hardware.subgroups {
            self.workgroup / device.hardware.lanes
        } else {
            self.workgroup
        };
        let room = device.limits.max_compute_workgroup_storage_size.min(48 << 10) - reduction;
        let max_units = room / (self.lines * (128 + 4 * packing.parts() as u32));
        // As few tiles as fit, all alike, in which every lane has a unit.
        let units = packing.units() as u32;
        let whole = if max_units < device.hardware.lanes {
            max_units.max(1)
        } else {
            max_units / device.hardware.lanes * device.hardware.lanes
        };
        let tile = units
            .div_ceil(units.div_ceil(whole))
            .next_multiple_of(device.hardware.lanes)
            .min(whole)
            .min(units);
        vec![
            ("WORKGROUP", self.workgroup),
            ("LANES", device.hardware.lanes),
            ("ROWS", self.rows),
            ("TILE", tile),
        ]
    }
}

impl Tile {
    fn constants(self) -> Vec<(&'static str, u32)> {
        let staged = if self.teams > 1 { TEAMS_UNITS / self.lines } else { TILED_STAGED };
        vec![("WORKGROUP", self.workgroup), ("STAGED", staged), ("TEAMS", self.teams)]
    }
}
