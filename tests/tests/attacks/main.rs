//! Everything that a client, a system or a disk can do to a server, one case after another: each has the answer that is
//! due, and the server answers `/health` after it. `cargo test --test attacks -- --nocapture` prints the figures.
//!
//! What needs more than a line to be said has a test of its own in `api_limits.rs`, `api_bad_input.rs` and
//! `api_engine.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

mod disconnects;
#[cfg(target_os = "linux")]
mod files;
mod floods;
mod http;
mod lengths;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod serve;
mod table;
