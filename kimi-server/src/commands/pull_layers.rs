//! `kimi pull-layers`.

use std::net::SocketAddr;

use anyhow::Context;
use kimi_core::plan::HumanBytes;
use kimi_net::Trust;
use serde_json::json;
use tokio::runtime::Handle;

use super::{Outcome, nodes};
use crate::cli::args::PullLayersArgs;
use crate::cli::ui;
use crate::cluster::look::{Question, Seen};
use crate::cluster::routes::{GRACE, look_at, resolve};
use crate::cluster::{NodeLoad, Wanted};
use crate::models::Lookup;
use crate::placement::layer_text;
use crate::pull::{Report, Route, pull};

/// Gets layers from another machine.
///
/// # Errors
/// If the source is not found or does not have them, or they can't be written.
pub fn run(args: &PullLayersArgs) -> anyhow::Result<Outcome> {
    let lookup = Lookup::of_this_machine(args.models.as_deref())?;
    let folder = args.to.clone().or_else(|| lookup.new_folder(&args.model));
    let folder = folder.context("where shall the layers go? Give --to FOLDER")?;
    let runtime = super::runtime()?;
    let (seen, trust, node_id) = source(args, runtime.handle())?;
    let route = Route { address: seen.address, trust, node_id, model: args.model.clone() };
    ui::notice(format_args!("pulling from {} at {} into {}", seen.node_id, seen.address, folder.display()));
    let bars = ui::load_bars(&[seen.node_id]);
    let progress = |done, total| bars(0, NodeLoad::of(done, total));
    let report = pull(&route, args.layers.clone(), &folder, runtime.handle(), &progress)?;
    let Report { layers, pulled_bytes, kept_bytes } = report;
    if args.json {
        let (first, last) = (layers.start, layers.end.saturating_sub(1));
        super::print_json(&json!({
            "folder": folder, "first_layer": first, "last_layer": last, "pulled_bytes": pulled_bytes,
            "kept_bytes": kept_bytes,
        }))?;
    } else {
        let kept = match kept_bytes {
            0 => String::new(),
            bytes => format!("; {} were there", HumanBytes(bytes)),
        };
        let (layers, folder) = (layer_text(&layers), folder.display());
        super::print(&format!("layers {layers} are in {folder}: {} came{kept}\n", HumanBytes(pulled_bytes)))?;
    }
    Ok(Outcome::Success)
}

/// The best way to the source, how it is protected, and this machine's name.
fn source(args: &PullLayersArgs, runtime: &Handle) -> anyhow::Result<(Seen, Trust, String)> {
    let from = args.from.as_str();
    if from.contains(':') {
        let me = args.node.node_id.clone().unwrap_or_else(crate::system::host_name);
        let trust = super::trust(&args.trust)?;
        let seen = best(&Wanted::at(from, from), &trust, &me, runtime)?;
        return Ok((seen, trust, me));
    }
    let nodes::Listed { wanted, me, trust, .. } = nodes::listed(&args.node, args.wait, &args.trust)?;
    let Some(node) = wanted.iter().find(|node| node.id == from) else {
        let known: Vec<_> = wanted.iter().map(|node| node.id.as_str()).collect();
        let known = if known.is_empty() { "nobody".to_owned() } else { known.join(", ") };
        anyhow::bail!(
            "--from {from}: found {known}. Start `kimi worker` there, with this cluster's key, or give its HOST:PORT"
        )
    };
    let seen = best(node, &trust, &me, runtime)?;
    anyhow::ensure!(seen.node_id == from, "{} is at {}, expected {from}", seen.node_id, seen.address);
    Ok((seen, trust, me))
}

/// The quickest of a node's addresses.
fn best(node: &Wanted, trust: &Trust, me: &str, runtime: &Handle) -> anyhow::Result<Seen> {
    let addresses: Vec<SocketAddr> = runtime.block_on(resolve(node))?;
    let looked = runtime.block_on(look_at(&addresses, &Question::default(), GRACE, trust, me));
    let (mut found, mut failed) = (Vec::new(), None);
    for (address, result) in looked {
        match result {
            Ok(seen) => found.push(seen),
            Err(error) => failed = Some((address, error)),
        }
    }
    match (found.into_iter().min_by(|a, b| a.cost().total_cmp(&b.cost())), failed) {
        (Some(seen), _) => Ok(seen),
        (None, Some((address, error))) => Err(error).with_context(|| format!("{} at {address}", node.id)),
        (None, None) => anyhow::bail!("{} does not answer", node.id),
    }
}
