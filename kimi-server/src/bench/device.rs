//! What is measured of a device: its clock, its memory, its read bandwidth.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kimi_quant::{Backend, BackendError, Cpu};

type Result<T> = std::result::Result<T, BackendError>;

/// A part of a step, as the device saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// The shader's name.
    pub name: &'static str,
    /// Packed matrices that it reads.
    pub matrices: u32,
    /// Its time.
    pub nanoseconds: f64,
}

/// A backend that can be measured.
pub trait Measured: Backend {
    /// `cpu` or `gpu`.
    const KIND: &'static str;

    /// Whether work is only recorded, and [`Self::mark`] counts dispatches; else marks are nanoseconds.
    const RECORDS: bool;

    /// What plain reading is measured with.
    type Meter;

    /// Prepares to measure plain reading.
    fn meter(&self) -> Self::Meter;

    /// Bytes a second that plain reading gets at the moment: on a machine that others use too it changes by the second.
    ///
    /// # Errors
    /// If the device has no room for the data, or failed.
    fn read_bandwidth(&self, meter: &mut Self::Meter) -> Result<f64>;

    /// A number that grows with the work done.
    fn mark(&self) -> u64;

    /// Starts on what is recorded.
    fn start(&self);

    /// Waits until all work is done.
    ///
    /// # Errors
    /// If the device failed.
    fn wait(&self) -> Result<()>;

    /// Nanoseconds that the device spends on what `work` records; `None` where there is no such clock.
    ///
    /// # Errors
    /// Those of `work`, and if the device failed.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>>;

    /// The time of everything that `work` records; `None` where there is no such clock.
    ///
    /// # Errors
    /// Those of `work`, and if the device failed.
    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<Kernel>>>;

    /// Bytes of device memory that are allocated, where that is known.
    fn allocated_bytes(&self) -> Option<u64>;
}

impl Measured for Cpu {
    const KIND: &'static str = "cpu";
    const RECORDS: bool = false;

    /// Data.
    type Meter = Vec<u64>;

    fn meter(&self) -> Vec<u64> {
        read_data()
    }

    fn read_bandwidth(&self, data: &mut Vec<u64>) -> Result<f64> {
        Ok(kimi_quant::cpu::read_bandwidth(data, Duration::from_millis(100)))
    }

    fn mark(&self) -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }

    fn start(&self) {}

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn time(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        Ok(None)
    }

    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<Kernel>>> {
        work().map(|()| None)
    }

    fn allocated_bytes(&self) -> Option<u64> {
        None
    }
}

/// Bytes a second that all cores read together.
pub fn cpu_read_bandwidth() -> f64 {
    kimi_quant::cpu::read_bandwidth(&read_data(), Duration::from_secs(1))
}

/// 512 MB.
fn read_data() -> Vec<u64> {
    (0..64 << 20).collect()
}

#[cfg(feature = "gpu")]
impl Measured for kimi_quant::Gpu {
    const KIND: &'static str = "gpu";
    const RECORDS: bool = true;

    /// What was measured last.
    type Meter = Option<f64>;

    fn meter(&self) -> Option<f64> {
        None
    }

    fn read_bandwidth(&self, last: &mut Option<f64>) -> Result<f64> {
        // More than the caches of a large GPU; little where the CPU plays one.
        let bytes = if self.adapter().is_hardware() { 1 << 30 } else { 16 << 20 };
        match (kimi_quant::Gpu::read_bandwidth(self, bytes), *last) {
            // The model has left no room for the data.
            (Err(BackendError::OutOfMemory { .. }), Some(before)) => Ok(before),
            (measured, _) => Ok(*last.insert(measured?)),
        }
    }

    fn mark(&self) -> u64 {
        self.dispatches()
    }

    fn start(&self) {
        kimi_quant::Gpu::start(self);
    }

    fn wait(&self) -> Result<()> {
        kimi_quant::Gpu::wait(self)
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        self.timed(work)
    }

    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<Kernel>>> {
        let times = self.profiled(work)?;
        Ok(times.map(|all| {
            let kernel = |t: kimi_quant::gpu::DispatchTime| Kernel {
                name: t.shader,
                matrices: t.matrices,
                nanoseconds: t.nanoseconds,
            };
            all.into_iter().map(kernel).collect()
        }))
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.allocated()
    }
}
