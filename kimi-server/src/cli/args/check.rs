//! Arguments of the commands that look at models and devices, and measure them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kimi_core::synthetic::SyntheticShape;
use kimi_quant::Chip;

use super::{CpuArgs, DeviceArgs, GpuArgs, ModelArgs, PrecisionArgs, PrecisionName, at_least_one, tolerance};
use crate::cli::defaults;

/// Arguments of `kimi inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// A config.json in place of the checkpoint's.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, with every layer.
    #[arg(long)]
    pub json: bool,
}

/// What computes in `kimi verify`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum VerifyBackend {
    /// A GPU if there is one that the layers fit (software such as lavapipe does not count), else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error that says what is missing.
    Gpu,
    /// The model as plain burn modules, slow and readable; needs a build with --features reference.
    Reference,
}

/// Arguments of `kimi verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
FILE is safetensors with, for each case: CASE.ids I32[T], the prompt; CASE.logits F32[T, V], or F32[1, V] for the last
position only; CASE.greedy I32[G], the tokens that greedy decoding continues with. No tokenizer is needed.

Each prompt is run at once and token by token, and decoded greedily from the cache. A case passes if no logit differs by
more than the tolerance and all greedy tokens are equal.

Example:
  kimi verify ~/models/my-k2 --golden golden.safetensors --stages 2 --json")]
pub struct VerifyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// The recorded logits and tokens.
    #[arg(long, value_name = "FILE")]
    pub golden: PathBuf,
    /// A config.json in place of the checkpoint's.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What computes.
    #[arg(long, value_enum, env = "KIMI_BACKEND", default_value_t)]
    pub backend: VerifyBackend,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cpu: CpuArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub gpu: GpuArgs,
    /// How precisely products are computed. What is not exact passes with a --tolerance to match.
    #[arg(long, value_enum, default_value_t = PrecisionName::Exact)]
    pub precision: PrecisionName,
    /// Split the layers over this many processes on this machine, connected by TCP.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub stages: u16,
    /// Largest difference of logits that passes.
    #[arg(long, value_name = "X", default_value_t = defaults::TOLERANCE, value_parser = tolerance)]
    pub tolerance: f64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kimi devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Measure how fast each device reads its memory (a few seconds and up to 1 GB each).
    #[arg(long)]
    pub measure: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A model of random weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyntheticModel {
    /// The shapes of Kimi-K2.
    KimiK2,
    /// A test shape: the same architecture in a megabyte.
    Tiny,
}

impl SyntheticModel {
    /// The same for kimi-core.
    pub fn shape(self) -> SyntheticShape {
        match self {
            Self::KimiK2 => SyntheticShape::KimiK2,
            Self::Tiny => SyntheticShape::Tiny,
        }
    }
}

/// Arguments of `kimi bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
With --backend auto a GPU is taken if there is one that is not software; a model that does not fit it is an error. Weights
are counted as stored, each once a step; shares are of the read bandwidth, measured in turn with the steps.

Examples:
  kimi bench --synthetic kimi-k2                         as many layers as fit, at most 6
  kimi bench --synthetic kimi-k2 --layers 2 --bits 3 --json
  kimi bench kimi-tiny --backend cpu")]
pub struct BenchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Random weights in place of a model: no file is needed.
    #[arg(long, value_enum, value_name = "SHAPE", conflicts_with = "model")]
    pub synthetic: Option<SyntheticModel>,
    /// Layers, with the embedding and the head [default: what fits the device, at most 6].
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "model", value_parser = at_least_one)]
    pub layers: Option<usize>,
    /// Bits of the weights: 2, 3, 4, 5, 6 or 8.
    #[arg(long, value_name = "B", requires = "synthetic", conflicts_with = "model", default_value_t = defaults::BENCH_BITS)]
    pub bits: u32,
    /// Experts of a layer [default: the model's].
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "model", value_parser = at_least_one)]
    pub experts: Option<usize>,
    /// Tokens in the cache when a token is decoded.
    #[arg(long, value_name = "TOKENS", default_value_t = defaults::BENCH_CONTEXT, value_parser = at_least_one)]
    pub context: usize,
    /// Tokens of the prefill.
    #[arg(long, value_name = "TOKENS", default_value_t = defaults::BENCH_PROMPT, value_parser = at_least_one)]
    pub prompt: usize,
    /// Sequences that are decoded at once.
    #[arg(long, value_name = "N", default_value_t = defaults::BENCH_SEQUENCES, value_parser = at_least_one)]
    pub sequences: usize,
    /// Measure nothing: predict it of a chip, kernel by kernel, such as "M3 Ultra" or "H100 80GB HBM3". With --as-metal, as the
    /// chip would be with Metal's kernels.
    #[arg(long, value_name = "CHIP", value_parser = chip, requires = "synthetic")]
    pub predict: Option<&'static Chip>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub precision: PrecisionArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A chip by its name, with or without its maker's.
fn chip(text: &str) -> Result<&'static Chip, String> {
    let found = Chip::of_device(text).map_or_else(|| Chip::of_apple(text), Ok);
    found.map_err(|error| format!("{error}; or one such as H100 80GB HBM3"))
}
