//! `kimi bench`.

use anyhow::Context;
use kimi_core::plan::roofline::{Kernels, Machine};
use kimi_core::plan::{AverageBits, ModelBytes};
use kimi_core::synthetic::{Synthetic, SyntheticShape};
use kimi_core::weights::Weights;
use kimi_core::{Checkpoint, DeviceKind};
use kimi_quant::{BitWidth, Chip};
use serde_json::json;

use super::Outcome;
use crate::bench::device::Measured;
use crate::bench::report::Report;
use crate::bench::{Workload, fitting_layers, measure};
use crate::cli::args::{BenchArgs, SyntheticModel};
use crate::cli::defaults::BENCH_LAYERS;
use crate::cli::ui;
use crate::placement::roofline::{KernelTable, prompt_text, step_text, token_text, trust_text};

/// Measures a model on a device.
///
/// # Errors
/// If the model does not fit the device, by how much; or if there is no model or no device.
pub fn run(args: &BenchArgs) -> anyhow::Result<Outcome> {
    if let Some(chip) = args.predict {
        return predict(args, chip);
    }
    let report = on_device(args)?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&report.to_string())?;
    }
    Ok(Outcome::Success)
}

/// Prints what a chip is predicted to take.
fn predict(args: &BenchArgs, chip: &Chip) -> anyhow::Result<Outcome> {
    let Some(synthetic) = args.synthetic else { anyhow::bail!("--predict needs --synthetic") };
    let (format, shape) = (BitWidth::try_from(args.bits).context("--bits")?, synthetic.shape());
    let layers = args.layers.unwrap_or(shape.layers());
    anyhow::ensure!(
        layers <= shape.layers(),
        "--layers {layers} was given, but the model has {}",
        shape.layers()
    );
    let config = shape.config(layers, args.experts).context("--experts")?;
    // Scales and biases of 16 bits each for 64 weights.
    let bits = format.bits() as f64 + 0.5;
    let bits = AverageBits { experts: bits, other: bits };
    let as_metal = args.device.choice().as_metal.is_some();
    let machine = Machine::of_chip(chip, as_metal);
    let kernels = Kernels::new(&config, bits, &(0..layers), args.context);
    let prompt = Kernels::new(&config, bits, &(0..layers), args.prompt / 2).prompt(&machine, args.prompt);
    let token = kernels.token(&machine, true);
    let step = kernels.step(&machine, true, args.sequences);
    if args.json {
        let (name, bytes) = (&machine.name, kernels.token_bytes());
        super::print_json(&json!({
            "chip": name, "machine": machine, "kernels": kernels.kernels, "token_bytes": bytes, "token_seconds": token,
            "sequences": args.sequences, "step_seconds": step, "prompt_tokens": args.prompt, "prompt_seconds": prompt,
        }))?;
        return Ok(Outcome::Success);
    }
    let gigabytes = machine.bytes_per_second / 1e9;
    let path = if as_metal { ", with Metal's kernels" } else { "" };
    super::print(&format!(
        "{}{path}, {layers} layers, {} bits: a token reads {:.2} GB at up to {gigabytes:.0} GB/s\n{}{}\n{}\n{}\n{}\n",
        machine.name,
        args.bits,
        kernels.token_bytes() / 1e9,
        KernelTable { kernels: &kernels, machine: &machine },
        token_text(token),
        step_text(args.sequences, step),
        prompt_text(args.prompt, prompt),
        trust_text(machine.extrapolated),
    ))?;
    Ok(Outcome::Success)
}

#[cfg(feature = "gpu")]
fn on_device(args: &BenchArgs) -> anyhow::Result<Report> {
    let choice = args.precision.on(&args.device);
    if choice.kind == DeviceKind::Cpu {
        return on(args, choice.open_cpu());
    }
    match choice.open_gpu() {
        Ok(gpu) => on(args, gpu),
        Err(reason @ kimi_quant::BackendError::NoAdapter { .. }) if choice.kind == DeviceKind::Auto => {
            tracing::info!("running on the CPU: {reason}");
            on(args, choice.open_cpu())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(feature = "gpu"))]
fn on_device(args: &BenchArgs) -> anyhow::Result<Report> {
    let choice = args.precision.on(&args.device);
    anyhow::ensure!(
        choice.kind != DeviceKind::Gpu,
        "this program was built without the feature `gpu`; use --backend cpu"
    );
    on(args, choice.open_cpu())
}

fn on<B: Measured>(args: &BenchArgs, backend: B) -> anyhow::Result<Report> {
    let workload = Workload { context: args.context, prompt: args.prompt, sequences: args.sequences };
    let Some(synthetic) = args.synthetic else {
        let (found, checkpoint) = super::open(&args.model, None)
            .context("`kimi bench` needs a model, or --synthetic kimi-k2 for one without a file")?;
        return on_checkpoint(backend, &checkpoint, found.id, workload);
    };
    let bits = BitWidth::try_from(args.bits).context("--bits")?;
    let shape = synthetic.shape();
    let layers = match args.layers {
        Some(layers) => layers,
        None => max_layers(&backend, shape, args.experts, bits, workload)?,
    };
    anyhow::ensure!(
        layers <= shape.layers(),
        "--layers {layers} was given, but the model has {}",
        shape.layers()
    );
    let config = shape.config(layers, args.experts).context("--experts")?;
    let name = match synthetic {
        SyntheticModel::KimiK2 => "kimi-k2",
        SyntheticModel::Tiny => "tiny",
    };
    let model = format!("synthetic {name}, {} experts, {} bits", config.n_routed_experts, args.bits);
    measure(backend, &Synthetic::new(config, bits), model, workload, &|line| ui::notice(line))
}

fn on_checkpoint<B: Measured>(
    backend: B,
    checkpoint: &Checkpoint,
    name: String,
    workload: Workload,
) -> anyhow::Result<Report> {
    measure(backend, &Weights::new(checkpoint), name, workload, &|line| ui::notice(line))
}

/// Layers that fit the device, at most [`BENCH_LAYERS`].
fn max_layers<B: Measured>(
    backend: &B,
    shape: SyntheticShape,
    experts: Option<usize>,
    bits: BitWidth,
    workload: Workload,
) -> anyhow::Result<usize> {
    let most = BENCH_LAYERS.min(shape.layers());
    let Some(available) = backend.memory() else { return Ok(most) };
    let whole = Synthetic::new(shape.config(most, experts).context("--experts")?, bits);
    Ok(fitting_layers(&ModelBytes::of_source(&whole)?, workload.cache(), available, most))
}
