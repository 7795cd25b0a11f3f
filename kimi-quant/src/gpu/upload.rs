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
    buffer: Arc<Buffer>,
    /// The buffer's memory, where the host can write it.
    view: Option<wgpu::BufferViewMut>,
    offset: usize,
    pending: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// A buffer of at least `bytes` bytes to be filled.
    pub(super) fn new(recorder: &'a Recorder, what: &'static str, bytes: u64) -> Result<Self> {
        let buffer = match recorder.device.writes_in_place() {
            true => recorder.pool.keep_mapped(what, bytes)?,
            false => recorder.pool.keep(what, bytes)?,
        };
        let view = match recorder.device.writes_in_place() {
            true => {
                let view = buffer.raw.get_mapped_range_mut(..);
                Some(view.map_err(|e| BackendError::Device(format!("can't write weights: {e}")))?)
            }
            false => None,
        };
        Ok(Self { recorder, buffer, view, offset: 0, pending: Vec::new() })
    }

    /// Appends bytes. The caller keeps to the size that it asked for.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if let Some(view) = &mut self.view {
            view.slice(self.offset..self.offset + bytes.len()).copy_from_slice(bytes);
            self.offset += bytes.len();
            return Ok(());
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
        self.recorder.upload(&self.buffer, self.offset as u64, bytes)?;
        self.offset += bytes.len();
        Ok(())
    }

    /// The buffer, with all that was written.
    pub(super) fn finish(mut self) -> Result<Arc<Buffer>> {
        if self.view.take().is_some() {
            self.buffer.raw.unmap();
        } else {
            self.pending.resize(self.pending.len().next_multiple_of(4), 0);
            self.send_pending()?;
        }
        Ok(self.buffer)
    }
}
