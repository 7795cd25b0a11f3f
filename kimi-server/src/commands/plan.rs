//! `kimi plan`.

use anyhow::Context;
use kimi_core::plan::{HumanBytes, ModelBytes, Node, Plan, PlanError};
use kimi_core::{ChatFiles, Checkpoint, ModelOptions};
use serde_json::{Value, json};

use super::Outcome;
use crate::cli::args::{CacheArgs, PlanArgs};
use crate::cli::ui::{self, Table};
use crate::discovery::Discovery;
use crate::models::{Build, Lookup, LookupError, Registry, Size};
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
                    bytes: ModelBytes::of(&checkpoint)?,
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
                Ok(Self { name: id.clone(), id, bytes, tokens, warnings: Vec::new(), last: None, build })
            }
            None => Err(not_here.into()),
        }
    }
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
