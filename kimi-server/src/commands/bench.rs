//! `kimi bench`.

use anyhow::Context;
use kimi_core::plan::ModelBytes;
use kimi_core::synthetic::{Synthetic, SyntheticShape};
use kimi_core::weights::Weights;
use kimi_core::{Checkpoint, DeviceKind};
use kimi_quant::BitWidth;

use super::Outcome;
use crate::bench::device::Measured;
use crate::bench::report::Report;
use crate::bench::{Workload, fitting_layers, measure};
use crate::cli::args::{BenchArgs, SyntheticModel};
use crate::cli::defaults::BENCH_LAYERS;
use crate::cli::ui;

/// Measures a model on a device.
///
/// # Errors
/// If the model does not fit the device, by how much; or if there is no model or no device.
pub fn run(args: &BenchArgs) -> anyhow::Result<Outcome> {
    let report = on_device(args)?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&report.to_string())?;
    }
    Ok(Outcome::Success)
}

#[cfg(feature = "gpu")]
fn on_device(args: &BenchArgs) -> anyhow::Result<Report> {
    let choice = args.device.choice();
    if choice.kind == DeviceKind::Cpu {
        return on(args, args.device.choice().open_cpu());
    }
    match choice.open_gpu() {
        Ok(gpu) => on(args, gpu),
        Err(reason @ kimi_quant::BackendError::NoAdapter { .. }) if choice.kind == DeviceKind::Auto => {
            tracing::info!("running on the CPU: {reason}");
            on(args, args.device.choice().open_cpu())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(feature = "gpu"))]
fn on_device(args: &BenchArgs) -> anyhow::Result<Report> {
    anyhow::ensure!(
        args.device.choice().kind != DeviceKind::Gpu,
        "this program was built without the feature `gpu`; use --backend cpu"
    );
    on(args, args.device.choice().open_cpu())
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
