//! Benches of kimi: `cargo bench -p kimi-benches --bench NAME`. Each is a program that prints a table.

pub mod bf16;

/// Context switches of all threads of this process so far, those that have ended left out; `None` where the system does not
/// tell.
pub fn context_switches() -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let of = |status: String| -> u64 {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches:"));
        lines.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok()).sum()
    };
    let counts = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    Some(counts.map(of).sum())
}

pub use kimi_quant::RandomWeights;
#[cfg(feature = "gpu")]
use kimi_quant::{BackendError, Chip, Gpu, gpu::GpuOptions};

/// How a bench opens the GPU: with the kernels and sizes of one of Apple's where its arguments have `--as-metal[=CHIP]`, and
/// as precisely as `--precision=exact|fast` says (a GPU knows no other).
///
/// # Errors
/// If there is no such chip or precision.
#[cfg(feature = "gpu")]
pub fn gpu_options() -> Result<GpuOptions, String> {
    let chip = std::env::args().find_map(|arg| {
        let rest = arg.strip_prefix("--as-metal")?;
        if rest.is_empty() {
            Some(Chip::DEFAULT_APPLE.to_owned())
        } else {
            rest.strip_prefix('=').map(str::to_owned)
        }
    });
    let as_metal = chip.map(|name| Chip::of_apple(&name)).transpose()?;
    let precision = std::env::args().find_map(|arg| arg.strip_prefix("--precision=").map(str::to_owned));
    let precision = precision.map_or(Ok(Default::default()), |word| word.parse());
    let precision = precision.map_err(|e: kimi_quant::PrecisionError| e.to_string())?;
    Ok(GpuOptions { as_metal, precision, ..GpuOptions::default() })
}

/// Bytes a second that plain reading gets at the moment: to be measured beside what it is compared with. `quick` reads little,
/// for software adapters.
///
/// # Errors
/// [`BackendError`].
#[cfg(feature = "gpu")]
pub fn read_bandwidth(gpu: &Gpu, quick: bool) -> Result<f64, BackendError> {
    gpu.read_bandwidth(if quick { 64 << 20 } else { 1 << 30 })
}
