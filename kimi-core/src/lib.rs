//! Kimi-K2, from a checkpoint to text.
//!
//! This crate holds everything between a folder of safetensors and a stream of words, and knows no socket, no HTTP
//! and no async runtime: embed it in any program.
//!
//! From the top down: [`ChatModel`] answers chats; [`engine`] generates many sequences at once; [`pipeline`] runs
//! batches through [`stage`]s; a stage runs the [`model`] on a [`Backend`](kimi_quant::Backend).
// `println!` and `eprintln!` panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![warn(missing_docs)]

pub mod batch;
#[cfg(feature = "burn")]
pub mod burn;
mod cancel;
pub mod chat;
pub mod chat_model;
pub mod checkpoint;
pub mod config;
pub mod constraint;
pub mod detokenizer;
pub mod device;
pub mod engine;
pub mod fingerprint;
pub mod grammar;
pub mod host_memory;
pub mod kernel_store;
mod layer_state;
pub mod lookup;
pub mod model;
pub mod page_store;
pub mod pages;
pub mod pipeline;
pub mod plan;
pub mod precision;
pub mod prefix_cache;
#[cfg(feature = "reference")]
pub mod reference;
pub mod rope;
pub mod sampler;
pub mod scheduler;
pub mod source;
pub mod stage;
pub mod synthetic;
pub mod text_file;
#[cfg(feature = "tiny")]
mod tiny;
pub mod tokenizer;
pub mod weights;

pub use cancel::CancelFlag;
pub use chat_model::{
    ChatError, ChatEvent, ChatFiles, ChatGeneration, ChatModel, ChatRequest, ModelError, ModelOptions,
};
pub use checkpoint::Checkpoint;
pub use device::{DeviceChoice, DeviceKind};
pub use layer_state::LayerState;
pub use precision::PrecisionChoice;
