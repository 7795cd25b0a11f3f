//! A count of finished submissions that the device keeps, so that no result is believed whose work was not done.
//!
//! wgpu's Metal backend takes a command buffer that ended in an error for one that is done
//! (<https://github.com/gfx-rs/wgpu/issues/9545>): what is brought out then is what the memory had before. So the last kernel
//! of every submission adds one to a number, which comes back with the results. Where it is not the number of submissions,
//! the device is lost.

use super::alone::Alone;
use super::device::Device;
use super::shader::TALLY;

/// Bytes of the count.
pub(super) const TALLY_BYTES: u64 = 4;

/// The kernel that counts.
pub(super) struct Tally(Alone);

impl Tally {
    pub(super) fn new(device: &Device) -> Self {
        Self(Alone::new(&device.device, &TALLY, Vec::new(), TALLY_BYTES))
    }

    /// Counts one more.
    pub(super) fn count(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.0.dispatch(pass, 1);
    }

    /// Where the device has the count.
    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.buffer
    }
}

/// What it means that the device has counted another number of submissions than there were.
pub(super) fn unfinished(found: u32, expected: u32) -> String {
    format!(
        "it has finished {found} of {expected} submissions, and the results of the others are lost. Either one took so long \
         that the system ended it (a Mac does that while it has a display to draw: let the display sleep, or send shorter \
         prompts), or there was too little memory (put fewer layers on this machine, lower --gpu-memory, or close other \
         programs). Start kimi again"
    )
}
