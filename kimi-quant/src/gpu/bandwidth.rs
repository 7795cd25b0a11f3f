//! How fast the device reads its memory: what kernels are measured against.

use std::time::{Duration, Instant};

use super::Gpu;
use super::recorder::Dispatch;
use super::shader::{READ, Spec};
use crate::BackendError;

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
            self.recorder.write(&buffer, start as u64, &block[..block.len().min(bytes - start) & !3]);
        }
        let count = bytes / 16;
        let mut best = Duration::MAX;
        for round in 0..4 {
            self.recorder.flush()?;
            let start = Instant::now();
            for _ in 0..READS {
                self.recorder.dispatch(Dispatch {
                    op: &READ,
                    spec: Spec::new(&READ, vec![("WORKGROUP", WORKGROUP), ("CELLS", CELLS)]),
                    buffers: &[&buffer, &out.buffer],
                    params: &[count as u32],
                    grid: [count.div_ceil((WORKGROUP * CELLS) as usize), 1, 1],
                })?;
            }
            self.recorder.flush()?;
            if round > 0 {
                best = best.min(start.elapsed());
            }
        }
        Ok(READS as f64 * (16 * count) as f64 / best.as_secs_f64())
    }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}
