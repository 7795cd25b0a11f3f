//! `kimi verify`.

use anyhow::Context;
use kimi_core::chat_model::PAGE_TOKENS;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::ModelBytes;
use kimi_core::stage::CacheConfig;
use kimi_core::{DeviceChoice, DeviceKind};

use super::Outcome;
use crate::cli::args::{VerifyArgs, VerifyBackend};
use crate::cli::ui::{self, Table};
use crate::golden::{self, Case};
use crate::local::{LocalCluster, silent};
use crate::models::FoundModel;
use crate::verify::{CaseReport, Engine, PipelineEngine, Report, run_case};

/// Compares a model with recorded results.
///
/// # Errors
/// If the model or the file can't be used, or a case can't be run. Differences are a failure with the numbers.
pub fn run(args: &VerifyArgs) -> anyhow::Result<Outcome> {
    let (found, checkpoint) = super::open(&args.model, args.config.as_deref())?;
    let cases = golden::read(&args.golden, checkpoint.config().vocab_size)?;
    let report = match args.backend {
        VerifyBackend::Auto => on_stages(args, &found, &checkpoint, &cases, DeviceKind::Auto)?,
        VerifyBackend::Cpu => on_stages(args, &found, &checkpoint, &cases, DeviceKind::Cpu)?,
        VerifyBackend::Gpu => on_stages(args, &found, &checkpoint, &cases, DeviceKind::Gpu)?,
        VerifyBackend::Reference => on_reference(args, &found, &checkpoint, &cases)?,
    };
    if args.json {
        super::print_json(&report)?
    } else {
        super::print(&text(&report))?
    }
    Ok(if report.pass { Outcome::Success } else { Outcome::Failure })
}

fn on_stages(
    args: &VerifyArgs,
    found: &FoundModel,
    checkpoint: &Checkpoint,
    cases: &[Case],
    kind: DeviceKind,
) -> anyhow::Result<Report> {
    let tokens = cases.iter().map(|c| c.ids.len() + c.greedy.len()).max().unwrap_or(1);
    let cache = CacheConfig { pages: tokens.div_ceil(PAGE_TOKENS), page_tokens: PAGE_TOKENS };
    let bytes = ModelBytes::of(checkpoint)?;
    let stages = usize::from(args.stages);
    let precision = args.precision.choice();
    let device = DeviceChoice { threads: args.cpu.threads, precision, ..args.gpu.choice(kind) };
    let config = args.config.as_deref();
    let cluster = LocalCluster::start(found, checkpoint, &bytes, stages, tokens, config, &device)?;
    let runtime = super::runtime()?;
    let built = cluster.build(checkpoint, cache, &silent(), runtime.handle())?;
    let mut backends = built.devices.clone();
    backends.dedup();
    let backend = backends.join(", ");
    let mut engine = PipelineEngine::new(built.stages, cache)?;
    compare(args, found, &mut engine, cases, backend, stages)
}

#[cfg(not(feature = "reference"))]
fn on_reference(_: &VerifyArgs, _: &FoundModel, _: &Checkpoint, _: &[Case]) -> anyhow::Result<Report> {
    anyhow::bail!(
        "this build has no reference backend: it takes long to compile. Build one with \
         `cargo build --release -p kimi-server --features reference`"
    )
}

#[cfg(feature = "reference")]
fn on_reference(
    args: &VerifyArgs,
    found: &FoundModel,
    checkpoint: &Checkpoint,
    cases: &[Case],
) -> anyhow::Result<Report> {
    use crate::verify::ReferenceEngine;
    use kimi_core::PrecisionChoice;
    let precision = args.precision.choice();
    anyhow::ensure!(
        matches!(precision, PrecisionChoice::Exact | PrecisionChoice::Auto),
        "--precision {precision} was given, but the reference computes as f32; leave it out"
    );
    anyhow::ensure!(
        args.stages == 1,
        "--stages {} was given, but the reference runs as one; leave it out",
        args.stages
    );
    let model = kimi_core::reference::Model::load(checkpoint)?;
    compare(args, found, &mut ReferenceEngine::new(model), cases, "reference (burn, f32)".to_owned(), 1)
}

fn compare(
    args: &VerifyArgs,
    found: &FoundModel,
    engine: &mut dyn Engine,
    cases: &[Case],
    backend: String,
    stages: usize,
) -> anyhow::Result<Report> {
    let run =
        |case: &Case| run_case(engine, case, args.tolerance).with_context(|| format!("case {}", case.name));
    let cases = cases.iter().map(run).collect::<anyhow::Result<Vec<CaseReport>>>()?;
    let pass = cases.iter().all(|c| c.pass);
    Ok(Report { model: found.id.clone(), backend, stages, tolerance: args.tolerance, cases, pass })
}

fn text(report: &Report) -> String {
    let style = ui::stdout_style();
    let number = |x: Option<f64>| x.map_or_else(|| "not a number".to_owned(), |x| format!("{x:.2e}"));
    let verdict = |pass| if pass { style.good("pass") } else { style.error("FAIL") };
    let mut table = Table::new(
        &["case", "tokens", "max_abs_err", "mean KL", "same token", "greedy", ""],
        &[1, 2, 3, 4, 5],
    );
    for c in &report.cases {
        let greedy = format!("{}/{}", c.greedy_match, c.greedy_total);
        table.row([
            c.case.clone(),
            c.prompt_tokens.to_string(),
            number(c.max_abs_err),
            number(c.distance.map(|d| d.mean_kl)),
            c.distance.map_or_else(String::new, |d| format!("{}/{}", d.same_token, d.positions)),
            greedy,
            verdict(c.pass),
        ]);
    }
    let Report { model, backend, stages, tolerance, .. } = report;
    format!(
        "{model} on {backend}, {stages} {}, tolerance {tolerance:e}\n{table}{}\n",
        if *stages == 1 { "stage" } else { "stages" },
        verdict(report.pass)
    )
}
