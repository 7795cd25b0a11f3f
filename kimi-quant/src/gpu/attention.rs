//! Attention over the latent cache, and the projections between heads and latent.

use super::layout::MAX_SEGMENTS;
use super::recorder::Dispatch;
use super::shader::{
    ATTEND, ATTEND_COOPERATIVE, GRID_Y, LATENT_QUERY_BY_INPUTS, LATENT_QUERY_BY_OUTPUTS, LATENT_QUERY_TILED,
    Op, Spec, UNIT, VALUES, VALUES_TILED,
};
use super::weights::{GpuMatrix, Part};
use super::{Gpu, GpuAttended, GpuCache, GpuTensor};
use crate::{
    AttentionInputs, BackendError, CacheShape, HeadShape, LatentProjections, Precision, TokenLayout,
};

type Result<T> = std::result::Result<T, BackendError>;
type Constants = Vec<(&'static str, u32)>;

/// Workgroups a core from which on heads share a cached key among 32 rather than 16, and the same with cooperative matrices.
const ENOUGH_WORKGROUPS: f64 = 1.94;
const COOPERATIVE_WORKGROUPS: f64 = 0.727;

/// Multiply-adds of a dispatch of attention. What has more is split into several, so that a submission can end between
/// them.
const DISPATCH_PRODUCTS: f64 = 5e11;

/// Tokens from which on a per-head product takes tiles of them.
const MANY_TOKENS: usize = 5;

/// Heads of a tile where there is much to do.
const MANY_COLUMNS: usize = 32;

/// Latent columns that `attend_cooperative.wgsl` has room for, and its positions at a time.
const COOPERATIVE_LATENT: usize = 512;
const COOPERATIVE_POSITIONS: usize = 64;

/// Bytes of shared memory that two teams of `attend_cooperative.wgsl` need.
const TWO_TEAMS: u32 = 48 << 10;

/// Latents are multiplied by this power of two where a cache has 16-bit floats, so that lower ones keep their bits. A latent
/// may be up to 65,504 divided by it.
const LATENT_POWER: u32 = 64;

/// Units of columns of a workgroup of `input_rows.wgsl`.
const BLOCK_UNITS: usize = 4;

/// A tile's sizes (shaders/tile.wgsl): threads, rows, columns, cells of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    workgroup: usize,
    rows: usize,
    columns: usize,
    slab: usize,
}

impl Tile {
    const fn new(workgroup: usize, rows: usize, columns: usize, slab: usize) -> Self {
        Self { workgroup, rows, columns, slab }
    }

    /// Bytes of shared memory: a slab of both operands, or the teams' sums.
    fn bytes(self) -> usize {
        let teams = self.workgroup / (self.rows / 4 * (self.columns / 4));
        let slab = self.slab * (self.rows + 1 + self.columns + 4);
        16 * slab.max(teams * self.rows * self.columns / 4)
    }

    fn constants(self) -> Constants {
        vec![
            ("WORKGROUP", self.workgroup as u32),
            ("TILE_ROWS", self.rows as u32),
            ("TILE_COLUMNS", self.columns as u32),
            ("SLAB", self.slab as u32),
        ]
    }
}

/// A projection of every head: rows of a packed matrix that are its inputs or its outputs.
struct HeadProduct<'a> {
    name: &'static str,
    few: &'static Op,
    tiled: &'static Op,
    matrix: &'a GpuMatrix,
    heads: HeadShape,
    tokens: usize,
    /// Columns of the result, a head.
    outputs: usize,
    by_inputs: bool,
}

impl Gpu {
    /// Stores the keys and absorbs the queries. The caller has checked the shapes.
    pub(crate) fn latent(
        &self,
        inputs: AttentionInputs<'_, Self>,
        cache: &GpuCache,
        projections: &LatentProjections<GpuMatrix>,
        heads: HeadShape,
        layout: &TokenLayout,
    ) -> Result<GpuTensor> {
        let AttentionInputs { q, kv, norm, rope } = inputs;
        let device_layout = self.layout(layout, Some(rope))?;
        let (matrix, row_head, few, by_inputs) = match projections {
            LatentProjections::Joint(kv_b) => (kv_b, heads.nope + heads.value, &LATENT_QUERY_BY_INPUTS, true),
            LatentProjections::Split { embed_q, .. } => {
                (embed_q, heads.latent, &LATENT_QUERY_BY_OUTPUTS, false)
            }
        };
        let out = self.tensor(q.rows, heads.heads * (heads.latent + heads.rope))?;
        let product = HeadProduct {
            name: "latent_query",
            few,
            tiled: &LATENT_QUERY_TILED,
            matrix,
            heads,
            tokens: q.rows,
            outputs: heads.latent,
            by_inputs,
        };
        let more = [device_layout.slots as u32, norm.eps.to_bits(), rope.mscale.to_bits(), 1];
        self.head_product(
            &product,
            &[("LATENT_POWER", if cache.split { LATENT_POWER } else { 0 })],
            &[&q.buffer, &out.buffer, &kv.buffer, &cache.buffer, &norm.weight.buffer, &device_layout.words],
            [row_head, 0],
            &more,
            1,
        )?;
        Ok(out)
    }

    /// The attention itself, in segments. The caller has checked the shapes.
    pub(crate) fn attend(
        &self,
        q: &GpuTensor,
        cache: &GpuCache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<GpuAttended> {
        let layout = self.layout(layout, None)?;
        let segments = layout.segment_count;
        let cells = heads.latent.div_ceil(4);
        let parts = self.tensor(segments, heads.heads * 4 * cells)?.buffer;
        let stats = self.tensor(segments, heads.heads * 2)?.buffer;
        let mut constants = vec![
            ("LATENT", heads.latent as u32),
            ("ROPE", heads.rope as u32),
            ("PAGE", cache.shape.page_tokens as u32),
        ];
        let (op, columns) = if cache.split {
            let columns = attention_heads(heads, segments, self.workgroups(COOPERATIVE_WORKGROUPS)).max(16);
            let whole = heads.heads.is_multiple_of(columns);
            let single = layout.segment_length <= COOPERATIVE_POSITIONS;
            let room = self.recorder.device.limits.max_compute_workgroup_storage_size;
            let even = columns == 16 && heads.latent.is_multiple_of(128);
            let two_teams = whole && single && even && room >= TWO_TEAMS;
            constants.extend([
                ("LATENT_POWER", LATENT_POWER),
                ("HEADS", columns as u32),
                ("WHOLE", whole.into()),
                ("SINGLE", single.into()),
                ("TEAMS", 1 + u32::from(two_teams)),
                ("EXACT", (self.precision() == Precision::Exact).into()),
            ]);
            (&ATTEND_COOPERATIVE, columns)
        } else {
            let tile = self.attention_tile(heads, segments)?;
            // At least four heads a thread: their weights are read together.
            let span = cells.next_power_of_two().max(4 * tile.workgroup / tile.columns).min(tile.workgroup);
            let rolled = u32::from(tile.columns < MANY_COLUMNS);
            constants.extend(tile.constants());
            constants.extend([("BY_COLUMNS", 0), ("SPAN", span as u32), ("ROLLED", rolled)]);
            (&ATTEND, tile.columns)
        };
        let blocks = heads.heads.div_ceil(columns);
        let products = layout.positions as f64 * (heads.heads * (2 * heads.latent + heads.rope)) as f64;
        let some = (DISPATCH_PRODUCTS / products * segments as f64) as usize;
        let some = some.clamp(self.workgroups(ENOUGH_WORKGROUPS).div_ceil(blocks.max(1)), GRID_Y as usize);
        for first in (0..segments).step_by(some) {
            let count = some.min(segments - first);
            self.recorder.count(products * count as f64 / segments as f64);
            self.recorder.dispatch(Dispatch {
                op,
                spec: Spec::new(op, constants.clone()),
                buffers: &[&q.buffer, &parts, &stats, &cache.buffer, &layout.words],
                params: &[
                    heads.heads as u32,
                    layout.segments as u32,
                    first as u32,
                    count as u32,
                    scale.to_bits(),
                    1,
                ],
                grid: [count, blocks, 1],
            })?;
        }
        Ok(GpuAttended { tokens: q.rows, heads: heads.heads, latent: heads.latent, parts, stats, layout })
    }

    /// As many workgroups as are `per_core` for every core of the device.
    fn workgroups(&self, per_core: f64) -> usize {
        self.recorder.device.hardware.workgroups(per_core)
    }

    /// Whether attention over such a cache goes through cooperative matrices.
    pub(super) fn attends_cooperatively(&self, shape: CacheShape) -> bool {
        let CacheShape { latent, rope, .. } = shape;
        self.recorder.device.hardware.cooperative
            && latent.is_multiple_of(64)
            && (64..=COOPERATIVE_LATENT).contains(&latent)
            && rope.is_multiple_of(16)
    }

    /// Positions by heads: the largest tile that fits the shared memory.
    fn attention_tile(&self, heads: HeadShape, segments: usize) -> Result<Tile> {
        const TILES: [Tile; 9] = [
            Tile::new(256, 64, 32, 16),
            Tile::new(256, 32, 32, 16),
            Tile::new(256, 64, 16, 16),
            Tile::new(256, 32, 16, 16),
            Tile::new(256, 64, 8, 16),
            Tile::new(256, 32, 8, 16),
            Tile::new(128, 32, 16, 8),
            Tile::new(128, 32, 8, 8),
            Tile::new(64, 32, 8, 8),
        ];
        let wanted = attention_heads(heads, segments, self.workgroups(ENOUGH_WORKGROUPS));
        self.fitting(TILES.into_iter().filter(|tile| tile.columns <= wanted), |tile| {
            4 * tile.rows + 16 * (16 * tile.columns / 4 + tile.columns / 4)
        })
    }

    /// The first of some tiles that the adapter has the shared memory and the threads for.
    fn fitting(&self, mut tiles: impl Iterator<Item = Tile>, more: impl Fn(Tile) -> usize) -> Result<Tile> {
        let limits = &self.recorder.device.limits;
        let room = limits.max_compute_workgroup_storage_size as usize;
        let threads = limits.max_compute_invocations_per_workgroup as usize;
        tiles.find(|tile| tile.workgroup <= threads && tile.bytes() + more(*tile) + 64 <= room).ok_or(
            BackendError::OutOfMemory {
                what: "a tile of attention in the adapter's shared memory",
                needed: 16 << 10,
                available: room as u64,
            },
        )
    }

    /// Segments put together, and through `W_UV`. The caller has checked the shapes.
    pub(crate) fn values(
        &self,
        attended: &GpuAttended,
        projections: &LatentProjections<GpuMatrix>,
        heads: HeadShape,
    ) -> Result<GpuTensor> {
        let (matrix, rows) = match projections {
            LatentProjections::Joint(kv_b) => (kv_b, [heads.nope + heads.value, heads.nope]),
            LatentProjections::Split { unembed_out, .. } => (unembed_out, [heads.value, 0]),
        };
        let out = self.tensor(attended.tokens, heads.heads * heads.value)?;
        let product = HeadProduct {
            name: "project_values",
            few: &VALUES,
            tiled: &VALUES_TILED,
            matrix,
            heads,
            tokens: attended.tokens,
            outputs: heads.value,
            by_inputs: false,
        };
        let layout = &attended.layout;
        self.head_product(
            &product,
            &[],
            &[&attended.parts, &out.buffer, &attended.stats, &layout.words],
            rows,
            &[layout.segments as u32, layout.firsts as u32, 1],
            0,
        )?;
        Ok(out)
    }

    /// Records a per-head product. `constants` are those of the operation alone; `rows` are those from head to head and the
    /// first of a head; `more` are the parameters after the matrix's; `extra` are workgroups past the last head.
    fn head_product(
        &self,
        product: &HeadProduct<'_>,
        constants: &[(&'static str, u32)],
        buffers: &[&super::pool::Buffer],
        rows: [usize; 2],
        more: &[u32],
        extra: usize,
    ) -> Result<()> {
        let Part { codes, scales, scale_base, .. } = product.matrix.whole(product.name)?;
        let (op, mut sizes, columns, tokens) = self.head_product_sizes(product)?;
        sizes.extend_from_slice(constants);
        let inner = if product.by_inputs { product.heads.nope } else { product.matrix.cols() };
        let products = product.tokens * product.heads.heads * inner * product.outputs;
        self.recorder.count(products as f64);
        let numbers = [product.tokens, product.heads.heads, rows[0], rows[1]].map(|n| n as u32);
        self.recorder.dispatch(Dispatch {
            op,
            spec: Spec::new(op, sizes).with_matrices(product.matrix.packing, 1),
            buffers: &[buffers, &[&**codes, &**scales]].concat(),
            params: &[&numbers[..], &[*scale_base], more].concat(),
            grid: [
                product.outputs.div_ceil(columns),
                product.heads.heads + extra,
                product.tokens.div_ceil(tokens),
            ],
        })
    }

    /// Kernel and constants of a per-head product; outputs and tokens of a workgroup.
    fn head_product_sizes(
        &self,
        product: &HeadProduct<'_>,
    ) -> Result<(&'static Op, Constants, usize, usize)> {
        let (device, packing) = (&self.recorder.device, product.matrix.packing);
        let HeadShape { nope, rope, value, latent, .. } = product.heads;
        let sizes = [("NOPE", nope), ("ROPE", rope), ("VALUE", value), ("LATENT", latent)];
        let mut constants: Constants = sizes.map(|(name, n)| (name, n as u32)).to_vec();
        constants.extend([
            ("LANES", device.hardware.lanes),
            ("MAX_SEGMENTS", MAX_SEGMENTS as u32),
            // Each code more that shares a word costs as many bits of precision as a code has.
            ("SHARE", if packing.bits() <= 4 { 2 } else { 1 }),
        ]);
        if product.tokens >= MANY_TOKENS {
            let tile = self.product_tile(product.tokens)?;
            let by_columns = u32::from(product.by_inputs);
            let tokens = tile.rows as u32;
            // Few tokens may have many segments each.
            let depth = if product.tokens <= 32 { 4 } else { 1 };
            constants.extend(tile.constants());
            constants.extend([
                ("TOKENS", tokens),
                ("BY_COLUMNS", by_columns),
                ("SLICES", 1),
                ("DEPTH", depth),
            ]);
            return Ok((product.tiled, constants, tile.columns, tile.rows));
        }
        let little = (device.limits.max_compute_workgroup_storage_size as usize) < 24 << 10;
        let tokens = if little { 1 } else { product.tokens.next_power_of_two().max(1) };
        constants.push(("TOKENS", tokens as u32));
        if product.by_inputs {
            constants
                .extend([("WORKGROUP", if little { 64 } else { 128 }), ("BLOCK_UNITS", BLOCK_UNITS as u32)]);
            return Ok((product.few, constants, UNIT * BLOCK_UNITS, tokens));
        }
        const BLOCK_ROWS: usize = 64;
        let max_threads = device.limits.max_compute_invocations_per_workgroup as usize;
        let workgroup = device.hardware.head_threads.min(max_threads);
        let span = packing.cols.div_ceil(4).next_power_of_two().min(workgroup);
        constants.extend([
            ("WORKGROUP", workgroup as u32),
            ("BLOCK_ROWS", BLOCK_ROWS as u32),
            ("SLICES", (workgroup / span) as u32),
            ("DEPTH", 8),
        ]);
        Ok((product.few, constants, BLOCK_ROWS, tokens))
    }

    /// Tokens by outputs: no more tokens than there are, if a smaller tile has them all.
    fn product_tile(&self, tokens: usize) -> Result<Tile> {
        const TILES: [Tile; 6] = [
            Tile::new(256, 64, 64, 16),
            Tile::new(256, 32, 64, 16),
            Tile::new(256, 8, 64, 32),
            Tile::new(256, 8, 32, 32),
            Tile::new(256, 8, 64, 16),
            Tile::new(128, 8, 64, 8),
        ];
        let wanted = match tokens {
            0..=8 => 8,
            9..=32 => 32,
            _ => 64,
        };
        self.fitting(TILES.into_iter().filter(|tile| tile.rows <= wanted), |tile| {
            12 * (MAX_SEGMENTS + tile.rows) + 4 * tile.workgroup
        })
    }
}

/// Heads of a workgroup: fewer where there would be fewer than `enough` workgroups.
fn attention_heads(heads: HeadShape, segments: usize, enough: usize) -> usize {
    match heads.heads {
        0..=8 => 8,
        n if n > 16 && n.div_ceil(MANY_COLUMNS) * segments >= enough => MANY_COLUMNS,
        _ => 16,
    }
}

/// Keys as latent_query.wgsl stores them for cooperative matrices, a row each, as floats.
pub(super) fn from_split(keys: &[f32], shape: CacheShape) -> Vec<f32> {
    let width = shape.latent + shape.rope;
    let value = |row: &[f32], column: usize| {
        let float = |at: usize| {
            let word = row[at / 2].to_bits() >> (16 * (at % 2));
            half::f16::from_bits(word as u16).to_f32()
        };
        let sum = float(column) + float(width + column);
        if column < shape.latent { sum / LATENT_POWER as f32 } else { sum }
    };
    keys.chunks_exact(width).flat_map(|row| (0..width).map(move |column| value(row, column))).collect()
}

/// A grid of so many workgroups that are numbered `x + y * GRID_Y`.
pub(crate) fn lines_grid(lines: usize) -> [usize; 3] {
    [lines.min(GRID_Y as usize), lines.div_ceil(GRID_Y as usize), 1]
}

#[cfg(test)]
mod tests {
    use super::from_split;
    use crate::CacheShape;

    #[test]
    fn upper_and_lower_floats_are_put_together() {
        let shape = CacheShape { pages: 1, page_tokens: 2, latent: 2, rope: 2 };
        let word = |pair: [f32; 2]| {
            let [low, high] = pair.map(|x| u32::from(half::f16::from_f32(x).to_bits()));
            f32::from_bits(high << 16 | low)
        };
        let first = [[64.0, -128.0], [3.0, 0.5], [0.015625, 0.0], [0.0, 2f32.powi(-11)]].map(word);
        let keys = [first, [[0.0; 2]; 4].map(word)].concat();
        let expected = [1.0 + 2f32.powi(-12), -2.0, 3.0, 0.5 + 2f32.powi(-11), 0.0, 0.0, 0.0, 0.0];
        assert_eq!(from_split(&keys, shape), expected);
    }
}
