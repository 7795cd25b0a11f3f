//! Device buffers that come back.
//!
//! A buffer given back is handed out again in the order that makes the same calls get the same buffers, so that bind
//! groups can be kept. Reuse needs no waiting: work runs in the order in which it was recorded. The exception is a buffer
//! that the host writes, since such writes run before all work that is recorded and not submitted: those buffers are
//! shelved apart from the others, and rest until the work that read them is submitted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::BackendError;

/// A buffer on the device.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) id: u64,
    pub(crate) raw: wgpu::Buffer,
    class: u64,
    written_by_host: bool,
    home: Option<Arc<Pool>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let mut shelves = home.lock();
        if self.written_by_host {
            shelves.resting.push((self.class, self.id, self.raw.clone()));
        } else {
            shelves.scratch.entry(self.class).or_default().push((self.id, self.raw.clone()));
        }
    }
}

#[derive(Debug, Default)]
struct Shelves {
    /// By class; only the device writes them.
    scratch: HashMap<u64, Vec<(u64, wgpu::Buffer)>>,
    /// By class; the host writes them.
    inputs: HashMap<u64, Vec<(u64, wgpu::Buffer)>>,
    /// Inputs that recorded work may read: class, id, buffer.
    resting: Vec<(u64, u64, wgpu::Buffer)>,
}

/// All buffers for activations of one device.
#[derive(Debug)]
pub(crate) struct Pool {
    device: wgpu::Device,
    largest: u64,
    next_id: AtomicU64,
    shelves: Mutex<Shelves>,
    /// What all buffers of a twin that computes nothing are.
    stand_in: Option<wgpu::Buffer>,
}

impl Pool {
    pub(crate) fn new(device: wgpu::Device) -> Arc<Self> {
        let limits = device.limits();
        let largest = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) & !255;
        let (next_id, shelves) = (AtomicU64::new(1), Mutex::default());
        Arc::new(Self { device, largest, next_id, shelves, stand_in: None })
    }

    /// The pool of a twin that computes nothing: its buffers take no memory.
    pub(crate) fn rehearsing(&self) -> Arc<Self> {
        let stand_in = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("stand-in"),
            size: 256,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let (device, largest) = (self.device.clone(), self.largest);
        let (next_id, shelves) = (AtomicU64::new(1), Mutex::default());
        Arc::new(Self { device, largest, next_id, shelves, stand_in: Some(stand_in) })
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the largest buffer.
    pub(crate) fn largest(&self) -> u64 {
        self.largest
    }

    /// A buffer of at least `bytes` bytes with any contents.
    pub(crate) fn take(
        self: &Arc<Self>,
        bytes: u64,
        written_by_host: bool,
    ) -> Result<Arc<Buffer>, BackendError> {
        let class = size_class(bytes).min(self.largest.max(bytes));
        let found = {
            let mut shelves = self.lock();
            let shelf = if written_by_host { &mut shelves.inputs } else { &mut shelves.scratch };
            shelf.get_mut(&class).and_then(Vec::pop)
        };
        let (id, raw) = match found {
            Some(found) => found,
            None => self.create("activations", class, bytes, false)?,
        };
        Ok(Arc::new(Buffer { id, raw, class, written_by_host, home: Some(self.clone()) }))
    }

    /// A buffer that lives as long as its last holder: weights and caches. It is zeroed.
    pub(crate) fn keep(&self, what: &'static str, bytes: u64) -> Result<Arc<Buffer>, BackendError> {
        self.long_lived(what, bytes, false)
    }

    /// The same, mapped so that the host writes it in place. The device must have mappable buffers.
    pub(crate) fn keep_mapped(&self, what: &'static str, bytes: u64) -> Result<Arc<Buffer>, BackendError> {
        self.long_lived(what, bytes, true)
    }

    /// A buffer that was made elsewhere, as one that lives as long as its last holder.
    #[cfg(target_os = "macos")]
    pub(crate) fn adopt(&self, raw: wgpu::Buffer) -> Arc<Buffer> {
        let (id, class) = (self.next_id.fetch_add(1, Ordering::Relaxed), raw.size());
        Arc::new(Buffer { id, raw, class, written_by_host: false, home: None })
    }

    /// What all buffers are used for.
    pub(crate) const USAGE: wgpu::BufferUsages =
        wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

    fn long_lived(&self, what: &'static str, bytes: u64, mapped: bool) -> Result<Arc<Buffer>, BackendError> {
        let class = bytes.max(4).next_multiple_of(16);
        let (id, raw) = self.create(what, class, bytes, mapped)?;
        Ok(Arc::new(Buffer { id, raw, class, written_by_host: false, home: None }))
    }

    fn create(
        &self,
        what: &'static str,
        size: u64,
        asked: u64,
        mapped: bool,
    ) -> Result<(u64, wgpu::Buffer), BackendError> {
        let refused = |available| BackendError::OutOfMemory { what, needed: asked, available };
        if size > self.largest {
            return Err(refused(self.largest));
        }
        if let Some(stand_in) = &self.stand_in {
            return Ok((0, stand_in.clone()));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let mut usage = Self::USAGE;
        usage.set(wgpu::BufferUsages::MAP_WRITE, mapped);
        let descriptor =
            wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: mapped };
        let raw = self.device.create_buffer(&descriptor);
        if pollster::block_on(scope.pop()).is_some() {
            return Err(refused(0));
        }
        Ok((self.next_id.fetch_add(1, Ordering::Relaxed), raw))
    }

    /// Makes buffers that the host wrote free again: the work that reads them is submitted.
    pub(crate) fn submitted(&self) {
        let mut shelves = self.lock();
        for (class, id, raw) in std::mem::take(&mut shelves.resting) {
            shelves.inputs.entry(class).or_default().push((id, raw));
        }
    }
}

/// Powers of two and 1.5 times powers of two, from 256 bytes: few sizes, and at most 1.5 times as much as asked for.
fn size_class(bytes: u64) -> u64 {
    let power = bytes.max(256).next_power_of_two();
    if bytes <= power / 4 * 3 { power / 4 * 3 } else { power }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn a_class_is_large_enough_and_not_much_larger() {
        for bytes in [0, 1, 255, 256, 257, 384, 385, 1 << 20, (1 << 20) + 1, 1_600_000] {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4), "{bytes}: {class}");
            assert!(bytes < 256 || class < 2 * bytes, "{bytes}: {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
