//! `kimi doctor`.

use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::{HumanBytes, ModelBytes, Node, Plan, USABLE_MEMORY};
use kimi_core::{DeviceChoice, ModelOptions};
use kimi_net::Fingerprint;
use serde_json::json;

use super::Outcome;
use super::nodes::{self, Listed};
use crate::capacity::Capacity;
use crate::cli::args::{DoctorArgs, ModelArgs};
use crate::cluster_key;
use crate::discovery::Discovery;
use crate::doctor::{Finding, Level, disk, links, machine};
use crate::models::{FoundModel, Source};
use crate::placement;
use crate::survey::{Surveyed, survey};

/// Looks for what keeps a model from running, and says what mends it.
///
/// # Errors
/// If nothing can be printed; what is wrong with the machines is a finding.
pub fn run(args: &DoctorArgs) -> anyhow::Result<Outcome> {
    let mut findings = machine::look();
    let model = open(args, &mut findings);
    let name = model.as_ref().map(|(found, _)| found.id.clone()).unwrap_or_default();
    let fingerprint =
        model.as_ref().map(|(_, checkpoint)| Fingerprint(checkpoint.description().fingerprint()));
    let (listed, found) = others(args, &name, &mut findings)?;
    for node in &found {
        findings.extend(links::of_node(node, fingerprint.map(|ours| (&*name, ours))));
    }
    if let Some((found_model, checkpoint)) = &model {
        findings.extend(read_rate(found_model, checkpoint));
        findings.push(fits(args, checkpoint, listed.as_ref(), &found)?);
    }
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if args.json {
        super::print_json(&json!({ "ok": worst < Level::Fail, "findings": findings }))?;
    } else {
        let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
        super::print(&lines)?;
        super::print(match worst {
            Level::Ok => "All is well.\n",
            Level::Warn => "It runs; the lines with warn could be better.\n",
            Level::Fail => "It does not run until the lines with FAIL are mended.\n",
        })?;
    }
    Ok(if worst < Level::Fail { Outcome::Success } else { Outcome::Failure })
}

/// The model, if one is asked about and can be used.
fn open(args: &DoctorArgs, findings: &mut Vec<Finding>) -> Option<(FoundModel, Checkpoint)> {
    let ModelArgs { model, default_model, .. } = &args.model;
    model.as_ref().or(default_model.as_ref())?;
    match super::open(&args.model, args.config.as_deref()) {
        Ok((found, checkpoint)) => {
            let files = format!(
                "{}: {} in {} shard{}",
                found.id,
                HumanBytes(checkpoint.bytes()),
                checkpoint.shards().len(),
                if checkpoint.shards().len() == 1 { "" } else { "s" }
            );
            findings.push(Finding::ok("model", files));
            for warning in checkpoint.warnings() {
                findings.push(Finding::warn("model", warning, "it may not be what it should be"));
            }
            if let Err(error) = kimi_core::ChatFiles::open(&checkpoint) {
                findings.push(Finding::fail(
                    "model",
                    error.to_string(),
                    "`kimi run` and `kimi serve` will refuse it",
                ));
            }
            Some((found, checkpoint))
        }
        Err(error) => {
            findings.push(
                Finding::fail("model", format!("{error:#}"), "this machine can't hold layers of it")
                    .fix("kimi inspect MODEL   (once it is there)"),
            );
            None
        }
    }
}

/// The other machines.
fn others(
    args: &DoctorArgs,
    model: &str,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<(Option<Listed>, Vec<Surveyed>)> {
    let by_file = args.node.discovery_config_path.as_deref();
    if let Some(discovery) = by_file.map(Discovery::read) {
        match discovery {
            Ok(discovery) => {
                findings
                    .push(Finding::ok("discovery", format!("{} machines are listed", discovery.peers.len())));
                let doubts = discovery.doubts().into_iter();
                findings.extend(doubts.map(|doubt| Finding::warn("discovery", doubt, "plans count on it")));
            }
            Err(error) => {
                findings.push(
                    Finding::fail("discovery", error.to_string(), "no machine can be found by this file")
                        .fix("correct the file; `kimi plan MODEL --discovery-config-path FILE` reads it too"),
                );
                return Ok((None, Vec::new()));
            }
        }
    }
    if !has_key(args, findings) {
        return Ok((None, Vec::new()));
    }
    let listed = match nodes::listed(&args.node, args.wait, &args.trust) {
        Ok(listed) => listed,
        Err(error) => {
            let means = "the other machines can't be looked for";
            findings.push(Finding::fail("nodes", format!("{error:#}"), means));
            return Ok((None, Vec::new()));
        }
    };
    if listed.wanted.is_empty() {
        let found = match by_file {
            Some(_) => "the discovery file lists no other machine",
            None => "no worker of this cluster announces itself",
        };
        let finding = Finding::warn("nodes", found, "this machine would hold the whole model");
        findings.push(finding.fix("kimi worker   (on the other machine, with the same key)"));
    }
    let found = super::runtime()?.block_on(survey(&listed.wanted, model, &listed.trust, &listed.me));
    Ok((Some(listed), found))
}

/// Whether links can be made at all.
fn has_key(args: &DoctorArgs, findings: &mut Vec<Finding>) -> bool {
    if args.trust.insecure {
        let found = "--insecure: links are neither encrypted nor authenticated";
        findings.push(
            Finding::warn("key", found, "whoever reaches them reads every prompt and answer")
                .fix("kimi key new"),
        );
        return true;
    }
    let (finding, has) = match cluster_key::find(args.trust.cluster_key_file.as_deref()) {
        Ok(Some(found)) => {
            (Finding::ok("key", format!("cluster {} ({})", found.key.id(), found.place)), true)
        }
        Err(error) => {
            (Finding::fail("key", error.to_string(), "no link can be made").fix("kimi key new"), false)
        }
        Ok(None) if args.node.discovery_config_path.is_some() => (
            Finding::fail("key", "this machine has no cluster key", "no link can be made")
                .fix("kimi key new"),
            false,
        ),
        Ok(None) => {
            let means = "this machine works alone; others are neither found nor linked with";
            (Finding::warn("key", "this machine has no cluster key", means).fix("kimi key new"), false)
        }
    };
    findings.push(finding);
    has
}

/// How fast the largest shard is read.
fn read_rate(found: &FoundModel, checkpoint: &Checkpoint) -> Option<Finding> {
    let Source::Folder(folder) = &found.source else { return None };
    let size = |shard: &&String| std::fs::metadata(folder.join(shard)).map_or(0, |metadata| metadata.len());
    let shard = checkpoint.shards().iter().max_by_key(size)?;
    Some(disk::finding(shard, disk::read_rate(&folder.join(shard)), checkpoint.bytes()))
}

/// Whether the machines that were reached hold the model.
fn fits(
    args: &DoctorArgs,
    checkpoint: &Checkpoint,
    listed: Option<&Listed>,
    found: &[Surveyed],
) -> anyhow::Result<Finding> {
    let options = ModelOptions { context_tokens: args.context, ..ModelOptions::default() };
    let bytes = ModelBytes::of(checkpoint)?;
    let usable = args.usable_memory.unwrap_or(USABLE_MEMORY);
    let nodes = match (&args.node.discovery_config_path, args.node.node_id.as_deref()) {
        (Some(path), Some(me)) if listed.is_some() => {
            let mut nodes = placement::cluster_nodes(&Discovery::read(path)?, Some(me), args.usable_memory)?;
            let reached = |id: &str| found.iter().any(|node| node.id == id && !node.routes.is_empty());
            nodes.retain(|node| node.id == me || reached(&node.id));
            nodes
        }
        _ => {
            let own = Capacity::of(&DeviceChoice::default()).memory;
            let reached = found.iter().filter_map(|node| Some((&node.id, &node.routes.first()?.seen.status)));
            let workers = reached.map(|(id, status)| (id.clone(), status.memory_bytes));
            let all = workers.chain([("this machine".to_owned(), own)]);
            all.map(|(id, memory)| Node::new(id, memory, usable)).collect()
        }
    };
    let context = options.context(checkpoint);
    Ok(match Plan::new(&bytes, &nodes, context) {
        Ok(plan) => {
            let least = plan.stages.iter().map(|stage| stage.headroom_bytes).min().unwrap_or(0);
            let (count, room) = (nodes.len(), HumanBytes(least));
            let noun = if count == 1 { "machine holds" } else { "machines hold" };
            Finding::ok(
                "fit",
                format!("{count} {noun} it with {context} tokens of context, {room} to spare at least"),
            )
        }
        // One machine reads from its disk what it can't hold.
        Err(error) if nodes.len() == 1 => Finding::warn(
            "fit",
            error.to_string(),
            "weights are read from the disk for each token: very slow",
        )
        .fix("kimi worker   (on another machine), or a smaller build: `kimi plan` lists those that fit"),
        Err(error) => Finding::fail("fit", error.to_string(), "`kimi serve` will refuse it").fix(
            "add a machine, shorten --context, or take a smaller build: `kimi plan` lists those that fit",
        ),
    })
}
