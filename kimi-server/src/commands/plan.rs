//! `kimi plan`.

use anyhow::Context;
use kimi_core::plan::{HumanBytes, ModelBytes, Node, Plan, PlanError};
use kimi_core::{ChatFiles, Checkpoint, ModelOptions};
use serde_json::{Value, json};

use super::Outcome;
use crate::cli::args::PlanArgs;
use crate::cli::ui::Table;
use crate::discovery::Discovery;
use crate::models::{Build, Lookup, LookupError, Registry, Size};
use crate::placement::{self, PlanTable};

/// Prints which machine would hold which layers.
///
/// # Errors
/// If the model or the discovery file can't be used. A model that does not fit is a failure with the numbers.
pub fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let discovery = Discovery::read(&args.discovery_config_path)?;
    let nodes = placement::cluster_nodes(&discovery, args.node_id.as_deref(), args.usable_memory)?;
    let subject = Subject::find(args)?;
    let planned = Plan::new(&subject.bytes, &nodes, subject.context);
    if let Err(error @ (PlanError::NoNodes | PlanError::TooManyNodes { .. } | PlanError::Weights(_))) =
        planned
    {
        return Err(error.into());
    }
    let token_bytes = subject.bytes.token_weights(&(0..subject.bytes.layers.len()));
    let fits = subject.build.map(|_| builds(&nodes, args.context)).transpose()?;
    if args.json {
        let mut value = match &planned {
            Ok(plan) => serde_json::to_value(plan)?,
            Err(error) => refusal_json(error, subject.context),
        };
        value["model"] = json!(subject.id);
        value["fits"] = json!(planned.is_ok());
        value["from"] = json!(if subject.build.is_some() { "registry" } else { "checkpoint" });
        value["token_bytes"] = json!(token_bytes);
        value["warnings"] = json!(subject.warnings);
        if let Some(fits) = &fits {
            value["builds"] = fits.iter().map(|(build, missing)| build_json(build, *missing)).collect();
        }
        super::print_json(&value)?;
        return Ok(if planned.is_ok() { Outcome::Success } else { Outcome::Failure });
    }
    let mut text = format!("{}\n", subject.id);
    if let Some((build, size)) = subject.build {
        text += &format!(
            "from the registry: {} ({} of files) is not on this machine, and mixed bits are counted as if all layers were alike\n",
            build.hub,
            HumanBytes(size.files)
        );
    }
    if let Ok(plan) = &planned {
        text += &PlanTable { plan, limits: true }.to_string();
        text += &format!("a token reads {} of weights\n", HumanBytes(token_bytes));
    }
    if let Some(fits) = &fits {
        text += &build_table(fits);
    }
    super::print(&text)?;
    planned?;
    Ok(Outcome::Success)
}

fn refusal_json(error: &PlanError, context: usize) -> Value {
    let mut value = json!({ "context": context, "reason": error.to_string() });
    if let PlanError::DoesNotFit { node, needed, usable, total_needed, total_usable, .. } = error {
        value["node"] = json!(node);
        value["needed_bytes"] = json!(needed);
        value["usable_bytes"] = json!(usable);
        value["total_needed_bytes"] = json!(total_needed);
        value["total_usable_bytes"] = json!(total_usable);
    }
    value
}

/// What is planned.
struct Subject {
    id: String,
    bytes: ModelBytes,
    context: usize,
    warnings: Vec<String>,
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
                let options = ModelOptions { context_tokens: args.context, ..ModelOptions::default() };
                return Ok(Self {
                    id: found.id,
                    bytes: ModelBytes::of(&checkpoint)?,
                    context: options.context(&checkpoint),
                    warnings: warnings(&checkpoint),
                    build: None,
                });
            }
        };
        let known = lookup.registry().build(name);
        match known.and_then(|build| Some((build, build.size?))) {
            Some((build, size)) => {
                let bytes = build.bytes()?.context("the build has a size")?;
                let context = context(build, args.context);
                let build = Some((build, size));
                Ok(Self { id: name.to_owned(), bytes, context, warnings: Vec::new(), build })
            }
            None => Err(not_here.into()),
        }
    }
}

/// Tokens to leave room for.
fn context(build: &Build, asked: Option<usize>) -> usize {
    asked.unwrap_or(ModelOptions::CONTEXT).min(build.context)
}

/// Every build whose size is known, with what is missing on these machines, if it does not fit.
fn builds(nodes: &[Node], asked: Option<usize>) -> anyhow::Result<Vec<(&'static Build, Option<u64>)>> {
    let mut list = Vec::new();
    for build in Registry::builds() {
        let Some(bytes) = build.bytes()? else { continue };
        match Plan::new(&bytes, nodes, context(build, asked)) {
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
