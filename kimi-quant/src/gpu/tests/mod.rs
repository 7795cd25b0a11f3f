//! Tests of the kernels, and of what would run on devices that are not here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../../tests/common/mod.rs"]
mod common;
mod cooperative;
mod execute;
mod fake;
mod kernels;
mod msl;
mod plan;
mod tally;
mod translate;

use super::device::Device;
use super::pool::Buffer;
use super::shader::{Op, Spec};
use crate::BackendError;

/// A dispatch as it is recorded.
pub(super) struct Seen<'a> {
    pub(super) op: &'static Op,
    pub(super) spec: &'a Spec,
    pub(super) buffers: &'a [&'a Buffer],
    pub(super) params: &'a [u32],
    pub(super) grid: [usize; 3],
}

/// Sees what is dispatched.
pub(super) trait Observer: Send + Sync {
    /// Whether it has computed the dispatch, so that the device need not.
    fn see(&self, device: &Device, seen: &Seen<'_>) -> Result<bool, BackendError>;
}
