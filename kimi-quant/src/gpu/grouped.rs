//! (token, choice) pairs sorted by expert, so that a batch reads each chosen expert's weights once.

use std::sync::{Arc, PoisonError};

use super::pool::Buffer;
use super::recorder::Dispatch;
use super::shader::{COMBINE, GRID_Y, GROUP, Spec};
use super::{Gpu, GpuRouting, GpuTensor};
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

/// A routing's pairs, sorted by expert and cut into tiles.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// Pairs `token * k + choice`, sorted by expert, `[T * k]`.
    pub(crate) pairs: Arc<Buffer>,
    /// How many tiles there are; then each tile's expert, first pair and count.
    pub(crate) tiles: Arc<Buffer>,
    /// Pairs that a tile has at most.
    pub(crate) lines: usize,
    /// Tiles that there are at most: how many there are is known on the device only.
    pub(crate) max_tiles: usize,
    /// Experts of the layer.
    pub(crate) experts: usize,
}

impl Gpu {
    /// The routing's pairs in tiles of at most `lines`, made on the device at the first call.
    pub(crate) fn groups(&self, routing: &GpuRouting, experts: usize, lines: usize) -> Result<Groups> {
        let mut kept = routing.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.as_ref().filter(|g| g.experts == experts && g.lines == lines) {
            return Ok(found.clone());
        }
        let pairs = routing.tokens * routing.chosen;
        let limits = &self.recorder.device.limits;
        let workgroup = limits.max_compute_invocations_per_workgroup.min(512);
        let room = limits.max_compute_workgroup_storage_size as usize;
        let needed = 4 * experts + 8 * workgroup as usize;
        BackendError::check_range("experts", "experts (for the shared memory)", needed, room + 1)?;
        // Every expert has at most one tile that is not full.
        let max_tiles = pairs.min(pairs / lines + experts);
        let groups = Groups {
            pairs: self.recorder.pool.take(4 * pairs as u64, false)?,
            tiles: self.recorder.pool.take(16 * (max_tiles as u64 + 1), false)?,
            lines,
            max_tiles,
            experts,
        };
        self.recorder.dispatch(Dispatch {
            op: &GROUP,
            spec: Spec::new(&GROUP, vec![("WORKGROUP", workgroup), ("EXPERTS", experts as u32)]),
            buffers: &[&routing.ids, &groups.pairs, &groups.tiles],
            params: &[pairs as u32, lines as u32],
            grid: [1, 1, 1],
        })?;
        Ok(kept.insert(groups).clone())
    }

    /// `residual[t, first ..] += sum_j parts[t * chosen + j]`.
    pub(crate) fn combine(
        &self,
        parts: &GpuTensor,
        chosen: usize,
        residual: &GpuTensor,
        first: usize,
    ) -> Result<()> {
        const WORKGROUP: usize = 128;
        let tokens = residual.rows;
        let numbers = [tokens, parts.cols, first, residual.cols];
        self.recorder.dispatch(Dispatch {
            op: &COMBINE,
            spec: Spec::new(&COMBINE, vec![("WORKGROUP", WORKGROUP as u32), ("CHOSEN", chosen as u32)]),
            buffers: &[&parts.buffer, &residual.buffer],
            params: &numbers.map(|n| n as u32),
            grid: [
                parts.cols.div_ceil(WORKGROUP),
                tokens.min(GRID_Y as usize),
                tokens.div_ceil(GRID_Y as usize),
            ],
        })
    }
}
