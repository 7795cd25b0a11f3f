//! Attention over the latent cache, and the projections between heads and latent.

use super::layout::DeviceLayout;
use super::product::{Heads, Mode, Product};
use super::recorder::Dispatch;
use super::shader::{ABSORB, ATTEND, ATTEND_MERGE, GRID_Y, ROTATE, STORE_LATENT, Spec};
use super::weights::GpuMatrix;
use super::{Gpu, GpuCache, GpuTensor, GpuVector};
use crate::{BackendError, HeadShape, LatentProjections, Norm, Rope, TokenLayout};

type Result<T> = std::result::Result<T, BackendError>;

/// Workgroups that are worth having before positions are no longer split.
const ENOUGH_WORKGROUPS: usize = 512;

/// Fewest positions of a segment.
const SEGMENT: usize = 64;

impl Gpu {
    pub(crate) fn store(
        &self,
        cache: &GpuCache,
        kv: &GpuTensor,
        norm: &Norm<GpuVector>,
        rope: &Rope,
        layout: &TokenLayout,
    ) -> Result<()> {
        let (turns, slots) = (self.turns(layout, rope)?, self.layout(layout)?.slots);
        let spec = Spec::new(&STORE_LATENT, vec![("WORKGROUP", 64), ("LANES", self.recorder.device.lanes)]);
        self.recorder.dispatch(Dispatch {
            op: &STORE_LATENT,
            spec,
            buffers: &[&kv.buffer, &cache.buffer, &norm.weight.buffer, &turns, &slots],
            params: &[
                cache.shape.latent as u32,
                (cache.shape.rope / 2) as u32,
                norm.eps.to_bits(),
                rope.mscale.to_bits(),
            ],
            grid: [layout.len(), 1, 1],
        })
    }

    pub(crate) fn absorb(
        &self,
        q: &GpuTensor,
        projections: &LatentProjections<GpuMatrix>,
        heads: HeadShape,
        rope: &Rope,
        layout: &TokenLayout,
    ) -> Result<GpuTensor> {
        let (from, to) = (heads.nope + heads.rope, heads.latent + heads.rope);
        let out = self.tensor(q.rows, heads.heads * to)?;
        match projections {
            LatentProjections::Joint(kv_b) => self.absorb_joint(q, kv_b, heads, &out)?,
            LatentProjections::Split { embed_q, .. } => self.product(&Product {
                mode: Mode::Heads(Heads {
                    count: heads.heads,
                    x: from,
                    rows: heads.latent,
                    out: to,
                    row_first: 0,
                }),
                packing: embed_q.packing,
                rows: heads.latent,
                x: q,
                out: &out,
                out_first: 0,
                norm: None,
                weights: embed_q.whole("absorb_query")?,
                up: None,
                add: false,
            })?,
        }
        let half = heads.rope / 2;
        let pairs = q.rows * heads.heads * half;
        let turns = self.turns(layout, rope)?;
        let numbers = [pairs, heads.heads, half, from, heads.nope, to, heads.latent];
        let mut params = numbers.map(|n| n as u32).to_vec();
        params.push(rope.mscale.to_bits());
        self.recorder.dispatch(Dispatch {
            op: &ROTATE,
            spec: Spec::new(&ROTATE, vec![("WORKGROUP", 64)]),
            buffers: &[&q.buffer, &out.buffer, &turns],
            params: &params,
            grid: lines_grid(pairs.div_ceil(64)),
        })?;
        Ok(out)
    }

    /// Through `W_UK` whose rows are the head's inputs.
    fn absorb_joint(&self, q: &GpuTensor, kv_b: &GpuMatrix, heads: HeadShape, out: &GpuTensor) -> Result<()> {
        let part = kv_b.whole("absorb_query")?;
        let tokens = if q.rows > 1 { 2 } else { 1 };
        let spec = Spec::new(&ABSORB, vec![("WORKGROUP", 64), ("TOKENS", tokens as u32), ("SHARE", 1)])
            .with_matrices(kv_b.packing, 1);
        let params = [
            q.rows,
            heads.nope,
            heads.nope + heads.value,
            heads.nope + heads.rope,
            q.cols,
            heads.latent + heads.rope,
            out.cols,
            0,
            part.scale_base as usize,
            part.bias_base as usize,
        ];
        self.recorder.dispatch(Dispatch {
            op: &ABSORB,
            spec,
            buffers: &[&q.buffer, &out.buffer, &part.codes, &part.scales],
            params: &params.map(|n| n as u32),
            grid: [kv_b.packing.units(), heads.heads, q.rows.div_ceil(tokens)],
        })
    }

    pub(crate) fn attend(
        &self,
        q: &GpuTensor,
        cache: &GpuCache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<GpuTensor> {
        const WORKGROUP: u32 = 128;
        let (at_once, positions) = self.attention_tile(heads, WORKGROUP)?;
        let DeviceLayout { tokens, tables, .. } = self.layout(layout)?;
        let longest = layout.positions().iter().max().map_or(0, |&p| p as usize + 1);
        let blocks = heads.heads.div_ceil(at_once as usize);
        let wanted = ENOUGH_WORKGROUPS.div_ceil((blocks * layout.len()).max(1));
        let segments = wanted.min(longest.div_ceil(SEGMENT)).max(1);
        let segment = longest.div_ceil(segments).next_multiple_of(positions as usize);
        let segments = longest.div_ceil(segment.max(1)).max(1);
        let out = self.tensor(q.rows, heads.heads * heads.latent)?;
        let lines = q.rows * heads.heads;
        let parts =
            if segments > 1 { Some(self.tensor(lines, segments * (heads.latent + 2))?) } else { None };
        let constants = vec![
            ("WORKGROUP", WORKGROUP),
            ("LATENT", heads.latent as u32),
            ("ROPE", heads.rope as u32),
            ("HEADS", at_once),
            ("POSITIONS", positions),
            ("PAGE", cache.shape.page_tokens as u32),
        ];
        let to = parts.as_ref().unwrap_or(&out);
        self.recorder.dispatch(Dispatch {
            op: &ATTEND,
            spec: Spec::new(&ATTEND, constants),
            buffers: &[&q.buffer, &to.buffer, &cache.buffer, &tokens, &tables],
            params: &[heads.heads as u32, segments as u32, segment as u32, scale.to_bits()],
            grid: [blocks, segments, layout.len()],
        })?;
        if let Some(parts) = &parts {
            self.recorder.dispatch(Dispatch {
                op: &ATTEND_MERGE,
                spec: Spec::new(&ATTEND_MERGE, vec![("WORKGROUP", 64), ("LATENT", heads.latent as u32)]),
                buffers: &[&parts.buffer, &out.buffer],
                params: &[lines as u32, segments as u32],
                grid: lines_grid(lines),
            })?;
        }
        Ok(out)
    }

    /// Heads of a workgroup and positions that it reads at once: the most that fit the shared memory.
    fn attention_tile(&self, heads: HeadShape, workgroup: u32) -> Result<(u32, u32)> {
        let width = heads.latent + heads.rope;
        let room = self.recorder.device.limits.max_compute_workgroup_storage_size as usize;
        let most = (heads.heads as u32).next_power_of_two();
        [(8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2), (1, 1)]
            .into_iter()
            .filter(|(h, _)| *h <= most)
            .find(|(h, p)| {
                let spread = (workgroup / (h * p)) as usize;
                let rows = (h + p) as usize * (width + spread);
                4 * (rows + workgroup as usize + (h * p + 3 * h) as usize) + 64 <= room
            })
            .ok_or(BackendError::OutOfMemory {
                what: "a cached key in the adapter's shared memory",
                needed: 8 * width as u64,
                available: room as u64,
            })
    }

    pub(crate) fn values(
        &self,
        attended: &GpuTensor,
        projections: &LatentProjections<GpuMatrix>,
        heads: HeadShape,
    ) -> Result<GpuTensor> {
        let (matrix, rows, row_first) = match projections {
            LatentProjections::Joint(kv_b) => (kv_b, heads.nope + heads.value, heads.nope),
            LatentProjections::Split { unembed_out, .. } => (unembed_out, heads.value, 0),
        };
        let out = self.tensor(attended.rows, heads.heads * heads.value)?;
        self.product(&Product {
            mode: Mode::Heads(Heads {
                count: heads.heads,
                x: heads.latent,
                rows,
                out: heads.value,
                row_first,
            }),
            packing: matrix.packing,
            rows: heads.value,
            x: attended,
            out: &out,
            out_first: 0,
            norm: None,
            weights: matrix.whole("project_values")?,
            up: None,
            add: false,
        })?;
        Ok(out)
    }
}

/// A grid of so many workgroups that are numbered `x + y * GRID_Y`.
pub(crate) fn lines_grid(lines: usize) -> [usize; 3] {
    [lines.min(GRID_Y as usize), lines.div_ceil(GRID_Y as usize), 1]
}
