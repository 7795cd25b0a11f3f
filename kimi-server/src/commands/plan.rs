//! `kimi plan`.

use anyhow::Context;
use kimi_core::config::ModelConfig;
use kimi_core::plan::predict::{Link, PROMPT, RateSource};
use kimi_core::plan::roofline::{Class, Kernels, Machine, Seconds, pipeline};
use kimi_core::plan::{AverageBits, HumanBytes, ModelBytes, Node, Plan, PlanError, PlannedStage};
use kimi_core::synthetic::SyntheticShape;
use kimi_core::{ChatFiles, Checkpoint, ModelOptions};
use kimi_quant::Chip;
use serde_json::{Value, json};

use super::Outcome;
use crate::cli::args::{CacheArgs, PlanArgs};
use crate::cli::defaults::BENCH_CONTEXT;
use crate::cli::ui::{self, Table};
use crate::discovery::Discovery;
use crate::models::{Build, Lookup, LookupError, Registry, Size};
use crate::placement::roofline::{KernelTable, prompt_text, token_text, trust_text};
use crate::placement::{self, PlanTable, PredictionText};
use crate::rates::{self, Split};

/// Prints which machine would hold which layers.
///
/// # Errors
/// If the model or the discovery file can't be used. A model that does not fit is a failure with the numbers.
pub fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let discovery = Discovery::read(&args.discovery_config_path)?;
    let usable = args.placement.usable_memory;
    let mut nodes = placement::cluster_nodes(&discovery, args.node_id.as_deref(), usable)?;
    placement::set_by_hand(&mut nodes, &args.placement)?;
    let subject = Subject::find(args)?;
    let last = subject.last.as_ref();
    last.iter().for_each(|last| rates::apply(last, &mut nodes));
    let plan = rates::plan(&subject.bytes, &nodes, subject.tokens, last)?;
    let planned = plan.check();
    let advice = match &planned {
        Ok(()) => Vec::new(),
        Err(_) => placement::advice(&subject.bytes, &nodes, subject.tokens),
    };
    let goes_on = planned.is_ok() || args.placement.force;
    let prediction = plan.predict(&subject.bytes, args.link.link());
    let kernels = args.predict.then(|| Predicted::new(&subject, &plan, args.link.link())).transpose()?;
    let token_bytes = subject.bytes.token_weights(&(0..subject.bytes.layers.len()));
    let fits = subject.build.map(|_| builds(&nodes, &args.cache)).transpose()?;
    if args.json {
        let mut value = serde_json::to_value(&plan)?;
        if let Err(error) = &planned {
            note_refusal(&mut value, error);
        }
        value["model"] = json!(subject.id);
        value["fits"] = json!(planned.is_ok());
        value["from"] = json!(if subject.build.is_some() { "registry" } else { "checkpoint" });
        value["token_bytes"] = json!(token_bytes);
        value["prediction"] = json!(prediction); // an estimate; null where it can't be made
        value["kernels"] = kernels.as_ref().map_or(Value::Null, |found| found.json(&plan));
        value["advice"] = json!(advice);
        value["warnings"] = json!(subject.warnings);
        if let Some(fits) = &fits {
            value["builds"] = fits.iter().map(|(build, missing)| build_json(build, *missing)).collect();
        }
        super::print_json(&value)?;
        return Ok(if goes_on { Outcome::Success } else { Outcome::Failure });
    }
    let mut text = format!("{}\n", subject.id);
    if let Some((build, size)) = subject.build {
        text += &format!(
            "from the registry: {} ({} of files) is not on this machine, and mixed bits are counted as if all layers were alike\n",
            build.hub,
            HumanBytes(size.files)
        );
    }
    text += &PlanTable { plan: &plan, limits: true }.to_string();
    text += &format!("a token reads {} of weights\n", HumanBytes(token_bytes));
    text += &PredictionText { plan: &plan, prediction: prediction.as_ref() }.to_string();
    if let Some(found) = &kernels {
        text += &found.text(&plan);
    }
    if !advice.is_empty() {
        text += "\nWhat would help:\n";
        for line in &advice {
            text += &match line.strip_prefix("--") {
                Some(flag) => format!("  {} {line}\n", command_without(args, &subject.name, flag)),
                None => format!("  {line}\n"),
            };
        }
    }
    if let Some(fits) = &fits {
        text += &build_table(fits);
    }
    super::print(&text)?;
    match planned {
        Err(error) if !args.placement.force => Err(error.into()),
        Err(error) => {
            ui::notice(format_args!("--force: {error}"));
            Ok(Outcome::Success)
        }
        Ok(()) => Ok(Outcome::Success),
    }
}

/// What the roofline model says of a plan.
struct Predicted {
    /// The kernels of each stage, and its machine; `None` where its chip is not known.
    stages: Vec<Option<(Kernels, Machine)>>,
    /// A token through all of them, if all are known.
    token: Option<Seconds>,
    /// A prompt of as many tokens as [`PROMPT`].
    prompt: Option<Seconds>,
}

impl Predicted {
    fn new(subject: &Subject, plan: &Plan, link: Link) -> anyhow::Result<Self> {
        let machine = |stage: &PlannedStage| match &stage.rate.as_ref()?.source {
            RateSource::Chip(name) => Chip::of_device(name).map(|chip| Machine::of_chip(chip, false)),
            _ => None,
        };
        let kernels = |layers: &std::ops::Range<usize>, context| {
            Kernels::new(&subject.config, subject.bits, layers, context)
        };
        let stages: Vec<_> = plan
            .stages
            .iter()
            .map(|stage| Some((kernels(&stage.layers(), BENCH_CONTEXT), machine(stage)?)))
            .collect();
        let all: Option<Vec<_>> = stages.iter().map(|stage| stage.as_ref().map(|(k, m)| (k, m))).collect();
        let token = all.map(|all| pipeline(&all, subject.bytes.hidden, link));
        let mut prompt = Some(Seconds::default());
        for (stage, found) in plan.stages.iter().zip(&stages) {
            let found =
                found.as_ref().and_then(|(_, m)| kernels(&stage.layers(), PROMPT / 2).prompt(m, PROMPT));
            prompt = prompt.zip(found).map(|(mut sum, seconds)| {
                sum += seconds;
                sum
            });
        }
        Ok(Self { stages, token, prompt })
    }

    fn text(&self, plan: &Plan) -> String {
        let mut text = String::new();
        for (stage, found) in plan.stages.iter().zip(&self.stages) {
            text += &match found {
                Some((kernels, machine)) => {
                    format!("\n{} ({})\n{}", stage.node, machine.name, KernelTable { kernels, machine })
                }
                None => format!("\n{}: no kernels are predicted, its chip is not known\n", stage.node),
            };
        }
        if let Some(token) = self.token {
            let extrapolated = self.stages.iter().flatten().any(|(_, machine)| machine.extrapolated);
            text += &format!("{}\n{}\n", token_text(token), prompt_text(PROMPT, self.prompt));
            text += &format!("{}\n", trust_text(extrapolated));
        }
        text
    }

    fn json(&self, plan: &Plan) -> Value {
        let stage = |(stage, found): (&PlannedStage, &Option<(Kernels, Machine)>)| {
            let found = found.as_ref();
            json!({ "node": stage.node, "kernels": found.map(|(k, _)| &k.kernels), "machine": found.map(|(_, m)| m) })
        };
        let stages: Vec<_> = plan.stages.iter().zip(&self.stages).map(stage).collect();
        json!({ "stages": stages, "token_seconds": self.token, "prompt_tokens": PROMPT, "prompt_seconds": self.prompt })
    }
}

/// The command as it was given, but for what `flag` says anew.
fn command_without(args: &PlanArgs, name: &str, flag: &str) -> String {
    let mut command =
        format!("kimi plan {name} --discovery-config-path {}", args.discovery_config_path.display());
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|_| !flag.starts_with(name)) {
            command += &format!(" --{name} {value}");
        }
    };
    let text = |n: Option<usize>| n.map(|n| n.to_string());
    add("node-id", args.node_id.clone());
    add("context", text(args.cache.context));
    add("cache-tokens", text(args.cache.cache_tokens));
    let conversations = args.cache.conversations.filter(|_| !flag.starts_with("cache-tokens"));
    add("conversations", text(conversations));
    add("usable-memory", args.placement.usable_memory.map(|share| share.to_string()));
    for set in &args.placement.layers {
        add("layers", Some(format!("{}={}", set.node, placement::layer_text(&set.layers))));
    }
    for set in &args.placement.bandwidth {
        add("bandwidth", Some(format!("{}={}", set.node, set.bytes_per_second / 1e9)));
    }
    command
}

fn note_refusal(value: &mut Value, error: &PlanError) {
    value["reason"] = json!(error.to_string());
    if let PlanError::DoesNotFit { node, needed, usable, total_needed, total_usable, .. } = error {
        value["node"] = json!(node);
        value["needed_bytes"] = json!(needed);
        value["usable_bytes"] = json!(usable);
        value["total_needed_bytes"] = json!(total_needed);
        value["total_usable_bytes"] = json!(total_usable);
    }
}

/// What is planned.
struct Subject {
    /// As the user calls it.
    name: String,
    id: String,
    bytes: ModelBytes,
    config: ModelConfig,
    /// How its weights are stored, on average.
    bits: AverageBits,
    /// Tokens to leave room for.
    tokens: usize,
    warnings: Vec<String>,
    /// How it was served the last time.
    last: Option<Split>,
    /// Where it is not on this machine: the build that the registry knows.
    build: Option<(&'static Build, Size)>,
}

impl Subject {
    fn find(args: &PlanArgs) -> anyhow::Result<Self> {
        let lookup = Lookup::of_this_machine(args.model.models.as_deref())?;
        let name = args.model.name()?;
        let not_here = match lookup.find(name) {
            Err(error @ LookupError::NotFound { .. }) => error,
            _ => {
                let (found, checkpoint) = super::open(&args.model, None)?;
                let context = ModelOptions { context_tokens: args.cache.context, ..ModelOptions::default() };
                let tokens = tokens(context.context(&checkpoint), &args.cache);
                return Ok(Self {
                    name: name.to_owned(),
                    id: found.id,
                    bits: average_bits(&ModelBytes::of(&checkpoint)?, checkpoint.config()),
                    bytes: ModelBytes::of(&checkpoint)?,
                    config: checkpoint.config().clone(),
                    tokens,
                    warnings: warnings(&checkpoint),
                    last: rates::recall(&checkpoint),
                    build: None,
                });
            }
        };
        let known = lookup.registry().build(name);
        match known.and_then(|build| Some((build, build.size?))) {
            Some((build, size)) => {
                let bytes = build.bytes()?.context("the build has a size")?;
                let tokens = build_tokens(build, &args.cache);
                let (build, id) = (Some((build, size)), name.to_owned());
                let config = SyntheticShape::KimiK2.config(bytes.layers.len(), None)?;
                let warnings = Vec::new();
                Ok(Self {
                    name: id.clone(),
                    id,
                    bytes,
                    config,
                    bits: size.bits,
                    tokens,
                    warnings,
                    last: None,
                    build,
                })
            }
            None => Err(not_here.into()),
        }
    }
}

/// Bits of a weight that explain a model's bytes: of the experts by what a layer stores beyond what a token reads of it.
fn average_bits(bytes: &ModelBytes, config: &ModelConfig) -> AverageBits {
    let one = AverageBits { experts: 8.0, other: 0.0 };
    let layers = 0..bytes.layers.len();
    let unread: u64 =
        bytes.layers.iter().zip(&bytes.token_layers).map(|(all, read)| all.saturating_sub(*read)).sum();
    let kernels = |bits| Kernels::new(config, bits, &layers, 0);
    let routed = kernels(one);
    let chosen = routed.kernels.iter().filter(|k| k.class == Class::Experts).map(|k| k.bytes).sum::<f64>();
    let unread_weights = routed.stored_bytes - routed.token_bytes();
    let experts = if unread_weights > 0.0 { unread as f64 * 8.0 / unread_weights } else { 4.5 };
    let others = kernels(AverageBits { experts: 0.0, other: 8.0 });
    let other_weights = others.token_bytes();
    let other_bytes = bytes.token_weights(&layers) as f64 - chosen * experts / 8.0;
    AverageBits { experts, other: (other_bytes * 8.0 / other_weights.max(1.0)).clamp(1.0, 32.0) }
}

/// Tokens to leave room for: one conversation, if nothing else is asked for.
fn tokens(context: usize, cache: &CacheArgs) -> usize {
    cache.cache_tokens.unwrap_or_else(|| context.saturating_mul(cache.conversations.unwrap_or(1)))
}

fn build_tokens(build: &Build, cache: &CacheArgs) -> usize {
    tokens(cache.context.unwrap_or(ModelOptions::CONTEXT).min(build.context), cache)
}

/// Every build whose size is known, with what is missing on these machines, if it does not fit.
fn builds(nodes: &[Node], cache: &CacheArgs) -> anyhow::Result<Vec<(&'static Build, Option<u64>)>> {
    let mut list = Vec::new();
    for build in Registry::builds() {
        let Some(bytes) = build.bytes()? else { continue };
        // Layers that were set for this model say nothing of others.
        let nodes: Vec<_> = nodes.iter().map(|node| Node { layers: None, ..node.clone() }).collect();
        match Plan::new(&bytes, &nodes, build_tokens(build, cache)) {
            Ok(_) => list.push((build, None)),
            Err(PlanError::DoesNotFit { needed, usable, .. }) => {
                list.push((build, Some(needed.saturating_sub(usable))));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(list)
}

fn build_json(build: &Build, missing: Option<u64>) -> Value {
    let files = build.size.map(|size| size.files);
    json!({ "name": build.name, "hub": build.hub, "file_bytes": files, "fits": missing.is_none(), "missing_bytes": missing })
}

fn build_table(builds: &[(&Build, Option<u64>)]) -> String {
    let mut table = Table::new(&["builds that kimi knows", "hub id", "files", "on these machines"], &[2]);
    for (build, missing) in builds {
        let files = build.size.map(|size| HumanBytes(size.files).to_string()).unwrap_or_default();
        let fits = match missing {
            None => "fits".to_owned(),
            Some(bytes) => format!("{} too little", HumanBytes(*bytes)),
        };
        table.row([build.name.to_owned(), build.hub.to_owned(), files, fits]);
    }
    format!("\n{table}\n")
}

/// What is odd about the files. Those without which nobody can chat are no reason not to plan, but `run` and `serve` refuse
/// the model for them.
fn warnings(checkpoint: &Checkpoint) -> Vec<String> {
    let mut warnings = checkpoint.warnings().to_vec();
    match ChatFiles::open(checkpoint) {
        Ok(files) => warnings.extend_from_slice(files.warnings()),
        Err(error) => {
            tracing::warn!("run and serve will refuse this model: {error}");
            warnings.push(error.to_string());
        }
    }
    warnings
}
