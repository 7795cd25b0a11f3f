//! Sharing the device with other users of wgpu: its handles, and activations copied to and from their buffers.

use super::{Gpu, GpuTensor};
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

/// What the device was made from, and itself. Clones share it.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The adapter's instance.
    pub instance: wgpu::Instance,
    /// The device's adapter.
    pub adapter: wgpu::Adapter,
    /// The device.
    pub device: wgpu::Device,
    /// The queue that all work is submitted to.
    pub queue: wgpu::Queue,
}

impl Gpu {
    /// The device for other users of wgpu, of the version that [`wgpu`] is.
    pub fn handles(&self) -> Handles {
        let device = &self.recorder.device;
        Handles {
            instance: device.instance.clone(),
            adapter: device.adapter.clone(),
            device: device.device.clone(),
            queue: device.queue.clone(),
        }
    }

    /// Submits everything recorded so far and a copy of activations into a buffer of this device, `offset` bytes from its
    /// begin. Does not wait: what is submitted to the queue later finds them there.
    ///
    /// # Errors
    /// [`BackendError::Range`] if the buffer is too small, [`BackendError::Shape`] if its offset is not a multiple of 4,
    /// [`BackendError::Device`] if the device failed.
    pub fn copy_to(&self, tensor: &GpuTensor, buffer: &wgpu::Buffer, offset: u64) -> Result<()> {
        let bytes = check_room("copy_to", buffer, offset, tensor.rows, tensor.cols)?;
        if bytes == 0 {
            return Ok(());
        }
        self.recorder.copy((&tensor.buffer.raw, 0), (buffer, offset), bytes)
    }

    /// Activations `[rows, cols]` from a buffer of this device, as what was submitted to the queue so far leaves it. Does
    /// not wait; the buffer may be written by what is submitted later.
    ///
    /// # Errors
    /// As [`Gpu::copy_to`].
    pub fn copy_from(
        &self,
        rows: usize,
        cols: usize,
        buffer: &wgpu::Buffer,
        offset: u64,
    ) -> Result<GpuTensor> {
        let bytes = check_room("copy_from", buffer, offset, rows, cols)?;
        let tensor = self.tensor(rows, cols)?;
        if bytes > 0 {
            self.recorder.copy((buffer, offset), (&tensor.buffer.raw, 0), bytes)?;
        }
        Ok(tensor)
    }
}

/// Bytes of `[rows, cols]`, which must lie in the buffer.
fn check_room(op: &'static str, buffer: &wgpu::Buffer, offset: u64, rows: usize, cols: usize) -> Result<u64> {
    BackendError::check(op, "offset modulo 4", (offset % 4) as usize, 0)?;
    let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(4);
    let end = offset.saturating_add(bytes) as usize;
    BackendError::check_range(op, "end of the activations", end, buffer.size() as usize + 1)?;
    Ok(bytes)
}
