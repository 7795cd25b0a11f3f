//! Bytes on their way to the device: straight into its memory where the host can write there, else in pieces through
//! a little staging memory. Either way there is never a second copy of more than a few of those pieces.

use std::sync::Arc;

use super::pool::Buffer;
use super::recorder::{Recorder, STAGED};
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

/// Shorter runs are gathered first.
const SHORT: usize = 4096;

/// Fills a new buffer with bytes of any length and alignment, one after another.
pub(super) struct Writer<'a> {
    recorder: &'a Recorder,
    memory: Memory,
    offset: usize,
    pending: Vec<u8>,
}

/// What is filled.
enum Memory {
    /// A buffer that only the device writes.
    Staged(Arc<Buffer>),
    /// A buffer whose memory the host writes, and that memory.
    Mapped(Arc<Buffer>, wgpu::BufferViewMut),
    /// Memory that is no buffer of wgpu's yet.
    #[cfg(target_os = "macos")]
    Own(&'static str, super::metal_memory::Unfilled),
}

impl<'a> Writer<'a> {
    /// A buffer of at least `bytes` bytes to be filled.
    pub(super) fn new(recorder: &'a Recorder, what: &'static str, bytes: u64) -> Result<Self> {
        let memory = Self::memory(recorder, what, bytes)?;
        Ok(Self { recorder, memory, offset: 0, pending: Vec::new() })
    }

    fn memory(recorder: &Recorder, what: &'static str, bytes: u64) -> Result<Memory> {
        if !recorder.device.writes_in_place() {
            return Ok(Memory::Staged(recorder.pool.keep(what, bytes)?));
        }
        #[cfg(target_os = "macos")]
        if let Some(memory) = super::metal_memory::Unfilled::new(&recorder.device.device, bytes) {
            return Ok(Memory::Own(what, memory));
        }
        let buffer = recorder.pool.keep_mapped(what, bytes)?;
        let view = buffer.raw.get_mapped_range_mut(..);
        let view = view.map_err(|e| BackendError::Device(format!("can't write weights: {e}")))?;
        Ok(Memory::Mapped(buffer, view))
    }

    /// Appends bytes. The caller keeps to the size that it asked for.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let range = self.offset..self.offset + bytes.len();
        match &mut self.memory {
            Memory::Staged(_) => {}
            Memory::Mapped(_, view) => {
                view.slice(range).copy_from_slice(bytes);
                self.offset += bytes.len();
                return Ok(());
            }
            #[cfg(target_os = "macos")]
            Memory::Own(_, memory) => {
                let too_long = || BackendError::Device("more weights than were announced".to_owned());
                memory.bytes_mut().get_mut(range).ok_or_else(too_long)?.copy_from_slice(bytes);
                self.offset += bytes.len();
                return Ok(());
            }
        }
        while !bytes.is_empty() {
            if self.pending.is_empty() && bytes.len() >= SHORT {
                let whole = bytes.len().min(STAGED) & !3;
                self.send(&bytes[..whole])?;
                bytes = &bytes[whole..];
            } else {
                let take = bytes.len().min(STAGED - self.pending.len());
                self.pending.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
                if self.pending.len() >= STAGED
                    || (self.pending.len().is_multiple_of(4) && bytes.len() >= SHORT)
                {
                    self.send_pending()?;
                }
            }
        }
        Ok(())
    }

    /// Appends zeros.
    pub(super) fn zeros(&mut self, count: usize) -> Result<()> {
        self.write(&[0; 256][..count.min(256)])?;
        if count > 256 { self.zeros(count - 256) } else { Ok(()) }
    }

    fn send_pending(&mut self) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        let rest = pending.split_off(pending.len() & !3);
        let sent = self.send(&pending);
        self.pending = rest;
        sent
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Memory::Staged(buffer) = &self.memory {
            self.recorder.upload(buffer, self.offset as u64, bytes)?;
        }
        self.offset += bytes.len();
        Ok(())
    }

    /// The buffer, with all that was written.
    pub(super) fn finish(mut self) -> Result<Arc<Buffer>> {
        if let Memory::Staged(_) = self.memory {
            self.pending.resize(self.pending.len().next_multiple_of(4), 0);
            self.send_pending()?;
        }
        Ok(match self.memory {
            Memory::Staged(buffer) => buffer,
            Memory::Mapped(buffer, view) => {
                drop(view);
                buffer.raw.unmap();
                buffer
            }
            #[cfg(target_os = "macos")]
            Memory::Own(what, memory) => {
                let (device, residency) = (&self.recorder.device.device, self.recorder.residency.as_ref());
                self.recorder.pool.adopt(memory.import(what, device, super::pool::Pool::USAGE, residency))
            }
        })
    }
}
