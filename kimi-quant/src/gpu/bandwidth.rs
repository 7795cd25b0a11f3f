//! How fast the device reads its memory: what kernels are measured against.

use std::time::{Duration, Instant};

use super::pool::Buffer;
use super::recorder::Dispatch;
use super::shader::{READ, Spec};
use super::{Gpu, GpuTensor};
use crate::BackendError;
use crate::random::next;

/// Loads of a thread.
const CELLS: u32 = 8;

impl Gpu {
    /// Bytes a second, the best of a few rounds over `bytes` bytes of random data (more than the caches hold).
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] if there is no room for the data.
    pub fn read_bandwidth(&self, bytes: usize) -> Result<f64, BackendError> {
        const WORKGROUP: u32 = 256;
        const READS: u32 = 8;
        let largest = self.recorder.device.limits.max_compute_workgroups_per_dimension as usize;
        let bytes =
            bytes.min(self.recorder.pool.largest() as usize).min(largest * 16 * (WORKGROUP * CELLS) as usize);
        let buffer = self.recorder.pool.keep("data to read", bytes as u64)?;
        let out = self.tensor(1, WORKGROUP as usize)?;
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let words: Vec<u64> = (0..1 << 20).map(|_| next(&mut state)).collect();
        let block: &[u8] = bytemuck::cast_slice(&words);
        for start in (0..bytes).step_by(block.len()) {
            self.recorder.upload(&buffer, start as u64, &block[..block.len().min(bytes - start) & !3])?;
        }
        let count = bytes / 16;
        let mut best = Duration::MAX;
        self.keep_busy()?;
        for round in 0..4 {
            self.recorder.flush()?;
            let start = Instant::now();
            for _ in 0..READS {
                self.read_all(&buffer, count, &out)?;
            }
            self.recorder.flush()?;
            if round > 0 {
                best = best.min(start.elapsed());
            }
        }
        self.recorder.forget(buffer.id); // its memory goes with the last bind group
        Ok(READS as f64 * (16 * count) as f64 / best.as_secs_f64())
    }
}

/// Bytes that keep the device busy, and how often they are read.
const BUSY_BYTES: usize = 64 << 20;
const BUSY_READS: usize = 2000;

impl Gpu {
    /// Starts a twentieth of a second or more of reading and does not wait for it: an idle device slows its clocks down, and work
    /// that follows would be measured on a slow one.
    pub(crate) fn keep_busy(&self) -> Result<(), BackendError> {
        let device = &self.recorder.device;
        if !device.about.is_hardware() {
            return Ok(());
        }
        let bytes = BUSY_BYTES.min(self.recorder.pool.largest() as usize);
        let (buffer, out) = (self.recorder.pool.take(bytes as u64, false)?, self.tensor(1, 256)?);
        (0..BUSY_READS).try_for_each(|_| self.read_all(&buffer, bytes / 16, &out))
    }

    /// Reads `count` cells of 16 bytes.
    fn read_all(&self, buffer: &Buffer, count: usize, out: &GpuTensor) -> Result<(), BackendError> {
        const WORKGROUP: u32 = 256;
        self.recorder.dispatch(Dispatch {
            op: &READ,
            spec: Spec::new(&READ, vec![("WORKGROUP", WORKGROUP), ("CELLS", CELLS)]),
            buffers: &[buffer, &out.buffer],
            params: &[count as u32],
            grid: [count.div_ceil((WORKGROUP * CELLS) as usize), 1, 1],
        })
    }
}
