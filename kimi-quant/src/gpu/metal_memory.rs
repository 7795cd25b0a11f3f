//! Weights on a Mac: in buffers that kimi makes itself and imports into wgpu, kept resident while they are used.
//!
//! wgpu fills a buffer with zeros before the host writes it, and macOS has filled new pages with zeros already: weights would
//! be written three times. And macOS takes back what a GPU has not used for a second, which then costs the next step some
//! hundred milliseconds; weights in a residency set stay, as long as their residency is asked for again and again.
//!
//! Nothing of this has run on a Mac. It is type-checked in CI.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use objc2::rc::Retained;
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2::sel;
use objc2_metal::{
    MTLBuffer, MTLCommandQueue, MTLDevice, MTLResidencySet, MTLResidencySetDescriptor, MTLResourceOptions,
};
use wgpu::hal::api::Metal;

use super::device::Device;

/// How often residency is asked for while weights are used. Others found 500 ms to be enough.
const BEAT: Duration = Duration::from_millis(500);
/// How long after the last step weights stay resident if nothing else is said.
const KEEP: Duration = Duration::from_secs(180);

/// Memory for weights that nobody reads yet.
pub(super) struct Unfilled {
    raw: Retained<ProtocolObject<dyn MTLBuffer>>,
    bytes: usize,
}

// SAFETY: a Metal buffer may be used from any thread (wgpu-hal's own wrapper says the same), and nobody else has this one.
unsafe impl Send for Unfilled {}

impl Unfilled {
    /// At least `bytes` bytes, all zero; `None` where Metal has no room or this is not Metal.
    pub(super) fn new(device: &wgpu::Device, bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes.max(16).next_multiple_of(16)).ok()?;
        // SAFETY: the handle is only asked for a buffer, while `device` holds it.
        let hal = unsafe { device.as_hal::<Metal>() }?;
        let raw =
            hal.raw_device().newBufferWithLength_options(bytes, MTLResourceOptions::StorageModeShared)?;
        Some(Self { raw, bytes })
    }

    /// The memory, to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.raw.contents().as_ptr().cast::<u8>();
        // SAFETY: a buffer of shared storage has its contents in the host's memory, as many bytes as were asked for, zeroed,
        // for as long as it lives. No GPU has seen it, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(start, self.bytes) }
    }

    /// The filled buffer as one of wgpu's; it goes into the set, if there is one.
    pub(super) fn import(
        self,
        what: &'static str,
        device: &wgpu::Device,
        usage: wgpu::BufferUsages,
        residency: Option<&Residency>,
    ) -> wgpu::Buffer {
        if let Some(residency) = residency {
            residency.add(&self.raw);
        }
        let size = self.bytes as u64;
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        // SAFETY: the buffer is of this device, has `size` bytes (not zero), all of them initialised, and is not mapped
        // through wgpu: nobody writes through `contents` from here on, since `self` is gone.
        unsafe {
            let hal = wgpu::hal::metal::Device::buffer_from_raw(self.raw, size);
            device.create_buffer_from_hal::<Metal>(hal, &descriptor)
        }
    }
}

/// What a thread must not use at the same time as another.
struct Set {
    raw: Retained<ProtocolObject<dyn MTLResidencySet>>,
    /// Something was added that is not committed.
    changed: bool,
    resident: bool,
    /// When work was last given to the GPU.
    used: Instant,
    /// For how long from then on it stays resident.
    keep: Duration,
}

// SAFETY: a residency set belongs to no thread. It must not be used by two at once, which the mutex around it sees to.
unsafe impl Send for Set {}

impl Set {
    fn keep(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.raw.commit();
        }
        let kept = self.used.elapsed() < self.keep;
        match kept {
            true => self.raw.requestResidency(), // asked for again and again: that is the heartbeat
            false if self.resident => self.raw.endResidency(),
            false => {}
        }
        self.resident = kept;
    }
}

/// The weights of a device, which stay resident while they are used.
pub(super) struct Residency {
    set: Arc<Mutex<Set>>,
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// Dropped first: that ends the heartbeat.
    beat: Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>,
}

fn lock(set: &Mutex<Set>) -> MutexGuard<'_, Set> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Residency {
    /// `None` before macOS 15, which has no such sets.
    pub(super) fn new(device: &Device) -> Option<Self> {
        let keep = device.keep_alive.unwrap_or(KEEP);
        let Device { device, queue, .. } = device;
        // SAFETY: the handles are asked for a set and told of it, while `device` and `queue` hold them.
        let (hal, hal_queue) = unsafe { (device.as_hal::<Metal>()?, queue.as_hal::<Metal>()?) };
        let raw_device = hal.raw_device();
        if !raw_device.respondsToSelector(sel!(newResidencySetWithDescriptor:error:)) {
            return None;
        }
        let raw = raw_device.newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new()).ok()?;
        hal_queue.as_raw().addResidencySet(&raw);
        let set =
            Arc::new(Mutex::new(Set { raw, changed: false, resident: false, used: Instant::now(), keep }));
        let (stop, stopped) = mpsc::channel();
        let theirs = set.clone();
        let beat = move || {
            while stopped.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                lock(&theirs).keep();
            }
        };
        let thread = thread::Builder::new().name("kimi-resident".into()).spawn(beat).ok()?;
        Some(Self { set, device: device.clone(), queue: queue.clone(), beat: Some((stop, thread)) })
    }

    fn add(&self, buffer: &ProtocolObject<dyn MTLBuffer>) {
        let mut set = lock(&self.set);
        set.raw.addAllocation(ProtocolObject::from_ref(buffer));
        set.changed = true;
    }

    /// Work goes to the GPU: weights that were let go are brought back now.
    pub(super) fn used(&self) {
        let mut set = lock(&self.set);
        set.used = Instant::now();
        if set.changed || !set.resident {
            set.keep();
        }
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.beat.take() {
            drop(stop);
            let _ = thread.join(); // it has no result
        }
        let mut set = lock(&self.set);
        set.raw.endResidency();
        set.raw.removeAllAllocations();
        set.raw.commit();
        set.changed = false;
        // SAFETY: the queue is told that the set is gone, while `queue` holds it.
        if let Some(hal) = unsafe { self.queue.as_hal::<Metal>() } {
            hal.as_raw().removeResidencySet(&set.raw);
        }
        // The memory comes back with the next work of the queue, not before.
        let size = 4;
        let usage = wgpu::BufferUsages::COPY_DST;
        let some = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("after the weights"),
            size,
            usage,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&some, 0, &[0; 4]);
        self.queue.submit([]);
    }
}
