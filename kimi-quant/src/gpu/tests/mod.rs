//! Tests of the kernels.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;
mod translate;
