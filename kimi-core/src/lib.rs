//! Kimi-K2, from a checkpoint to text.
//!
//! This crate holds everything between a folder of safetensors and a stream of words, and knows no socket, no HTTP
//! and no async runtime: embed it in any program.
#![warn(missing_docs)]

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod model;
pub mod plan;
pub mod rope;
pub mod stage;
#[cfg(feature = "tiny")]
mod tiny;
pub mod weights;
