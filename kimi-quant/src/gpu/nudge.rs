//! A moment of work for an idle device, so that its clock stays up.
//!
//! It goes to the queue on its own. What operations have recorded and not submitted stays recorded, and the only buffer it
//! touches is its own.

use super::Gpu;
use super::alone::Alone;
use super::device::Device;
use super::shader::NUDGE;
use crate::BackendError;

/// Threads of a workgroup.
const WORKGROUP: u32 = 64;

/// How much work it is.
#[derive(Clone, Copy)]
struct Size {
    workgroups: u32,
    /// Rounds of three shifts and three exclusive ors, about 25 cycles each.
    steps: u32,
}

/// For hardware: 0.3 ms of the whole device at 1.5 GHz. Every 2 ms this brought four H200s from 345 to 1,980 MHz (190 W
/// instead of 90). A millisecond of one workgroup every 5 ms kept clocks that were up already (160 W), and did not raise
/// them; 64 us of the whole device every 5 ms, or of one workgroup every millisecond, did less.
const HARDWARE: Size = Size { workgroups: 512, steps: 16_384 };

/// For software, which has no clock of its own.
const SOFTWARE: Size = Size { workgroups: 1, steps: 256 };

/// The one dispatch, made ready.
pub(super) struct Nudge {
    workgroups: u32,
    kernel: Alone,
}

impl Nudge {
    pub(super) fn new(device: &Device) -> Self {
        let Size { workgroups, steps } = if device.about.is_hardware() { HARDWARE } else { SOFTWARE };
        let constants = vec![("WORKGROUP", WORKGROUP), ("STEPS", steps)];
        Self { workgroups, kernel: Alone::new(&device.device, &NUDGE, constants, 4 * u64::from(WORKGROUP)) }
    }

    fn submit(&self, device: &Device) {
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        self.kernel.dispatch(&mut pass, self.workgroups);
        drop(pass);
        device.queue.submit([encoder.finish()]);
    }
}

impl Gpu {
    /// Submits the moment of work. It takes none of the recorder's locks, so that it never waits for a thread that does.
    ///
    /// Inputs that the host has written are sent along. They go before all work that is recorded and not submitted, as they
    /// would without it.
    pub(super) fn submit_nudge(&self) -> Result<(), BackendError> {
        let device = &self.recorder.device;
        device.check()?;
        self.nudge.submit(device);
        Ok(())
    }
}
