//! What computes.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kimi_core::{DeviceChoice, DeviceKind, PrecisionChoice};
use kimi_quant::Chip;

use super::gigabytes;

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// A GPU if there is one that the layers fit (software such as lavapipe does not count), else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error that says what is missing.
    Gpu,
}

/// How precisely products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// As f32.
    Exact,
    /// With activations rounded to 14 bits and a sign, on a CPU whose kernels gain from it; elsewhere as f32.
    Close,
    /// With rounded activations, where the device has kernels that gain from it.
    Fast,
    /// The fastest that is at least as close to f32 as mlx-lm's bf16 is on the same kind of device (docs/precision.md).
    Auto,
}

impl PrecisionName {
    /// The same for kimi-core.
    pub fn choice(self) -> PrecisionChoice {
        match self {
            Self::Exact => PrecisionChoice::Exact,
            Self::Close => PrecisionChoice::Close,
            Self::Fast => PrecisionChoice::Fast,
            Self::Auto => PrecisionChoice::Auto,
        }
    }
}

/// How precisely is computed.
#[derive(Debug, Clone, Args)]
pub struct PrecisionArgs {
    /// How precisely products are computed, here and on every worker.
    #[arg(long, value_enum, default_value_t = PrecisionName::Auto)]
    pub precision: PrecisionName,
}

impl PrecisionArgs {
    /// A device that computes so.
    pub fn on(&self, device: &DeviceArgs) -> DeviceChoice {
        DeviceChoice { precision: self.precision.choice(), ..device.choice() }
    }
}

/// What computes.
#[derive(Debug, Clone, Default, Args)]
pub struct DeviceArgs {
    /// What computes.
    #[arg(long, value_enum, env = "KIMI_BACKEND", default_value_t)]
    pub backend: BackendChoice,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cpu: CpuArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub gpu: GpuArgs,
}

/// How much of the CPU.
#[derive(Debug, Clone, Default, Args)]
pub struct CpuArgs {
    /// Threads that compute where the CPU does. They keep a core busy while an answer is made [default: one for each of the
    /// machine's fast cores].
    #[arg(long, value_name = "N", env = "KIMI_THREADS")]
    pub threads: Option<NonZeroUsize>,
}

/// Which GPU, and how much of it.
#[derive(Debug, Clone, Default, Args)]
pub struct GpuArgs {
    /// The GPU with this number in `kimi devices`, or the first with this in its name [default: number 0].
    #[arg(long, value_name = "NUMBER|NAME", env = "KIMI_ADAPTER")]
    pub adapter: Option<String>,
    /// Use at most this much of the GPU's memory [default: all that its driver says is free].
    #[arg(long, value_name = "GB", env = "KIMI_GPU_MEMORY", value_parser = gigabytes)]
    pub gpu_memory: Option<f64>,
    /// Let the GPU's clock fall while it idles between the steps of running answers. Without it, the GPU gets a moment of
    /// work every few milliseconds meanwhile, so that one answer over several machines is not slowed by sleeping GPUs.
    #[arg(long, env = "KIMI_IDLE_CLOCKS")]
    pub idle_clocks: bool,
    /// On a Mac, how long after the last step the GPU's weights must stay in memory [default: 180]. Later macOS may take the
    /// memory for other programs, and the next request then waits until the weights are back.
    #[arg(long, value_name = "SECONDS", env = "KIMI_KEEP_ALIVE")]
    pub keep_alive: Option<u64>,
    /// Take the kernels and sizes of this chip of Apple's in place of the GPU's own: to check and to measure on any GPU what
    /// a Mac would run. With `--backend auto` it must be a GPU then, be it software.
    #[arg(
        long,
        value_name = "CHIP",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = Chip::DEFAULT_APPLE,
        env = "KIMI_AS_METAL",
        value_parser = Chip::of_apple,
    )]
    pub as_metal: Option<&'static Chip>,
}

impl DeviceArgs {
    /// The same for kimi-core.
    pub fn choice(&self) -> DeviceChoice {
        let kind = match self.backend {
            BackendChoice::Auto => DeviceKind::Auto,
            BackendChoice::Cpu => DeviceKind::Cpu,
            BackendChoice::Gpu => DeviceKind::Gpu,
        };
        DeviceChoice { threads: self.cpu.threads, ..self.gpu.choice(kind) }
    }
}

impl GpuArgs {
    /// The same for kimi-core.
    pub fn choice(&self, kind: DeviceKind) -> DeviceChoice {
        let memory = self.gpu_memory.map(|gb| (gb * 1e9) as u64);
        DeviceChoice {
            kind: if self.as_metal.is_some() && kind == DeviceKind::Auto { DeviceKind::Gpu } else { kind },
            adapter: self.adapter.clone(),
            memory,
            idle_clocks: self.idle_clocks,
            keep_alive: self.keep_alive.map(Duration::from_secs),
            as_metal: self.as_metal,
            kernels: crate::system::cache_folder().map(|folder| folder.join("kernels")),
            ..DeviceChoice::default()
        }
    }
}
