//! Packed weight formats and the kernels of Kimi-K2 that work on them.
//!
//! What lives here:
//!
//! * [`PackedMatrix`]: one weight matrix as a checkpoint stores it, in any [`Format`], borrowed from a memory
//!   map without a copy;
//! * [`Backend`]: the operations of the model, at the grain at which a GPU wants them fused;
//! * [`Cpu`]: the backend that runs anywhere, and the truth that any other backend is tested against;
//! * [`sample`]: from logits to a token, which is an operation too;
//! * [`RandomWeights`]: matrices of any size for measurements.
//!
//! Nothing here knows a config file, a tokenizer or a socket.
// `println!` and `eprintln!` panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![warn(missing_docs)]

// For what unit tests share with the tests in tests/.
#[cfg(all(test, feature = "gpu"))]
extern crate self as kimi_quant;

mod backend;
mod chips;
pub mod cpu;
mod error;
mod format;
#[cfg(feature = "gpu")]
pub mod gpu;
mod layout;
#[cfg(target_os = "macos")]
pub mod macos;
mod matrix;
mod precision;
mod random;
pub mod sample;

pub use backend::{
    AttentionInputs, Backend, CacheShape, ExpertHidden, HeadShape, LatentProjections, Norm, Rope, Router,
    RouterShape, Stored,
};
pub use chips::Chip;
pub use cpu::Cpu;
pub use error::{BackendError, FormatError};
pub use format::{BitWidth, FloatType, Format};
#[cfg(feature = "gpu")]
pub use gpu::Gpu;
pub use layout::TokenLayout;
pub use matrix::PackedMatrix;
pub use precision::{Precision, PrecisionError};
pub use random::RandomWeights;
pub use sample::{SampleError, SampleRequest, Sampled, TokenCount, TokenMask};
