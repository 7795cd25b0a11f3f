//! `kimi plan`.

use kimi_core::plan::{ModelBytes, Plan, PlanError};
use kimi_core::{ChatFiles, Checkpoint, ModelOptions};
use serde_json::json;

use super::Outcome;
use crate::cli::args::PlanArgs;
use crate::discovery::Discovery;
use crate::placement::{self, PlanTable};

/// Prints which machine would hold which layers.
///
/// # Errors
/// If the model or the discovery file can't be used. A model that does not fit is a failure with the numbers.
pub fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let discovery = Discovery::read(&args.discovery_config_path)?;
    let nodes = placement::cluster_nodes(&discovery, args.node_id.as_deref(), args.usable_memory)?;
    let (found, checkpoint) = super::open(&args.model, None)?;
    let context =
        ModelOptions { context_tokens: args.context, ..ModelOptions::default() }.context(&checkpoint);
    let bytes = ModelBytes::of(&checkpoint)?;
    let warnings = warnings(&checkpoint);
    match Plan::new(&bytes, &nodes, context) {
        Ok(plan) if args.json => {
            let mut value = serde_json::to_value(&plan)?;
            value["model"] = json!(found.id);
            value["fits"] = json!(true);
            value["warnings"] = json!(warnings);
            super::print_json(&value)?;
            Ok(Outcome::Success)
        }
        Ok(plan) => {
            super::print(&format!("{}\n{}", found.id, PlanTable { plan: &plan, limits: true }))?;
            Ok(Outcome::Success)
        }
        Err(error @ PlanError::DoesNotFit { .. }) if args.json => {
            let PlanError::DoesNotFit { node, needed, usable, total_needed, total_usable, .. } = &error
            else {
                return Err(error.into());
            };
            super::print_json(&json!({
                "model": found.id, "fits": false, "context": context, "node": node, "needed_bytes": needed,
                "usable_bytes": usable, "total_needed_bytes": total_needed, "total_usable_bytes": total_usable,
                "reason": error.to_string(), "warnings": warnings,
            }))?;
            Ok(Outcome::Failure)
        }
        Err(error) => Err(error.into()),
    }
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
