//! Rows picked from tables, activations and caches.

use super::attention::lines_grid;
use super::pool::Buffer;
use super::recorder::Dispatch;
use super::shader::{EMBED, GATHER_ROWS, Spec};
use super::{Gpu, GpuMatrix, GpuTensor, upload_words};
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

impl Gpu {
    /// Rows of a table: `ids`, or with `chosen` the tokens that are there at the places `ids`.
    pub(super) fn embed_rows(
        &self,
        table: &GpuMatrix,
        ids: &[u32],
        chosen: Option<&Buffer>,
    ) -> Result<GpuTensor> {
        let out = self.tensor(ids.len(), table.cols())?;
        let ids_buffer = upload_words(self, ids)?;
        for part in &table.parts {
            let spec =
                Spec::new(&EMBED, vec![("WORKGROUP", 64), ("SHARE", 1)]).with_matrices(table.packing, 1);
            let [first, rows, all] = [part.range.start, part.range.len(), table.rows].map(|n| n as u32);
            let params = [chosen.is_some().into(), first, rows, all, part.scale_base];
            self.recorder.dispatch(Dispatch {
                op: &EMBED,
                spec,
                buffers: &[
                    &ids_buffer,
                    &out.buffer,
                    chosen.unwrap_or(&self.nothing),
                    &part.codes,
                    &part.scales,
                ],
                params: &params,
                grid: [table.packing.units().div_ceil(64), ids.len(), 1],
            })?;
        }
        Ok(out)
    }

    /// Rows `rows`, `count` of them, of lines of `width` words.
    pub(super) fn gather_rows(
        &self,
        x: &Buffer,
        width: usize,
        rows: &Buffer,
        count: usize,
    ) -> Result<GpuTensor> {
        let out = self.tensor(count, width)?;
        self.recorder.dispatch(Dispatch {
            op: &GATHER_ROWS,
            spec: Spec::new(&GATHER_ROWS, vec![("WORKGROUP", 64)]),
            buffers: &[x, &out.buffer, rows],
            params: &[width as u32, count as u32],
            grid: lines_grid(count),
        })?;
        Ok(out)
    }
}
