//! `kimi nodes`.

use std::time::Duration;

use kimi_core::plan::HumanBytes;
use kimi_net::{Status, Trust};
use serde_json::{Value, json};

use super::{Outcome, peers};
use crate::capacity::Capacity;
use crate::cli::args::{NodeArgs, NodesArgs, TrustArgs};
use crate::cli::ui::Table;
use crate::cluster::Wanted;
use crate::discovery::Discovery;
use crate::membership::{self, Wait};
use crate::network::is_own;
use crate::placement::layer_text;
use crate::survey::{Route, Surveyed, survey};
use crate::system;

/// The nodes to look at.
pub(super) struct Listed {
    /// All but this machine, where it is known which one that is.
    pub(super) wanted: Vec<Wanted>,
    /// Whether a file names them; else they have announced themselves.
    pub(super) by_file: bool,
    /// This machine's name.
    pub(super) me: String,
    pub(super) trust: Trust,
}

/// The nodes of the discovery file, or those that announce themselves.
pub(super) fn listed(node: &NodeArgs, wait: u64, trust_args: &TrustArgs) -> anyhow::Result<Listed> {
    let me = node.node_id.clone().unwrap_or_else(system::host_name);
    let trust = super::trust(trust_args)?;
    if let Some(path) = &node.discovery_config_path {
        let discovery = Discovery::read(path)?;
        if let Some(id) = &node.node_id {
            discovery.peer(id)?;
        }
        let others = discovery.peers.iter().filter(|peer| Some(&peer.id) != node.node_id.as_ref());
        let wanted = others.map(|peer| Ok(peer.wanted()?)).collect::<anyhow::Result<_>>()?;
        return Ok(Listed { wanted, by_file: true, me, trust });
    }
    let Some(cluster) = peers::cluster(trust_args)? else {
        return Ok(Listed { wanted: Vec::new(), by_file: false, me, trust });
    };
    let within = Duration::from_secs(wait);
    let members = membership::find(cluster, Wait { within, at_least: within }, |_| false)?;
    Ok(Listed { wanted: members.iter().map(peers::wanted).collect(), by_file: false, me, trust })
}

/// Shows who is in the cluster, and how each is reached.
///
/// # Errors
/// If the file, the key or multicast DNS can't be used.
pub fn run(args: &NodesArgs) -> anyhow::Result<Outcome> {
    let listed = listed(&args.node, args.wait, &args.trust)?;
    let found = super::runtime()?.block_on(survey(&listed.wanted, "", &listed.trust, &listed.me));
    let here = Capacity::of(&kimi_core::DeviceChoice::default());
    if args.json {
        let nodes: Vec<Value> = found.iter().map(node_json).collect();
        let this = json!({ "node_id": listed.me, "device": here.device, "memory_bytes": here.memory });
        super::print_json(&json!({ "this_machine": this, "nodes": nodes }))?;
    } else {
        super::print(&text(&listed, &here, &found))?;
    }
    let all = found.iter().all(|node| !node.routes.is_empty());
    Ok(if all { Outcome::Success } else { Outcome::Failure })
}

fn text(listed: &Listed, here: &Capacity, found: &[Surveyed]) -> String {
    let headings = [
        "node",
        "address",
        "interface",
        "link",
        "round trip",
        "to it",
        "from it",
        "memory",
        "device",
        "holds",
    ];
    let mut table = Table::new(&headings, &[3, 4, 5, 6, 7]);
    let mut notes = String::new();
    let memory = HumanBytes(here.memory).to_string();
    let none = String::new;
    let this = format!("{} (this machine)", listed.me);
    table.row([this, none(), none(), none(), none(), none(), none(), memory, here.device.clone(), none()]);
    for node in found {
        for (i, route) in node.routes.iter().enumerate() {
            let name = if i == 0 { node.id.clone() } else { "  or".to_owned() };
            table.row(row(name, route, i == 0));
        }
        if node.routes.is_empty() {
            let cell = || String::new();
            let target = node.addresses.first().map_or_else(String::new, ToString::to_string);
            table.row([
                node.id.clone(),
                target,
                "not reached".to_owned(),
                cell(),
                cell(),
                cell(),
                cell(),
                cell(),
                cell(),
                cell(),
            ]);
        }
        for (place, error) in &node.failed {
            notes += &format!("{} at {place}: {}\n", node.id, error.to_string().escape_debug());
        }
    }
    let mut text = format!("{table}{notes}");
    if found.is_empty() {
        text += match listed.by_file {
            true => "The discovery file has no other machine.\n",
            false => {
                "No worker of this cluster announces itself. Start `kimi worker` on the other machines, with the same key \
                      (`kimi key show`), on the same network; or name them with --discovery-config-path.\n"
            }
        };
    }
    text
}

fn row(name: String, route: &Route, first: bool) -> [String; 10] {
    let Route { seen, interface } = route;
    let rate = |bytes: f64| format!("{:.0} MB/s", bytes / 1e6);
    let status = &seen.status;
    let once = |text: String| if first { text } else { String::new() };
    [
        name,
        seen.address.to_string(),
        interface.as_ref().map_or_else(|| "unknown".to_owned(), |i| i.name.clone()),
        link(route),
        format!("{:.2} ms", seen.round_trip.as_secs_f64() * 1e3),
        seen.bandwidth.map(|b| rate(b.to)).unwrap_or_default(),
        seen.bandwidth.map(|b| rate(b.from)).unwrap_or_default(),
        once(HumanBytes(status.memory_bytes).to_string()),
        once(status.device.escape_debug().to_string()),
        once(holds(status)),
    ]
}

/// The speed that the interface names.
pub(super) fn link(route: &Route) -> String {
    if is_own(route.seen.address.ip()) {
        return "this machine".to_owned();
    }
    match &route.interface {
        Some(interface) if interface.wireless => "Wi-Fi".to_owned(),
        Some(interface) => match interface.megabits {
            Some(megabits) => format!("{} Gb/s", megabits as f64 / 1e3),
            None => "unknown".to_owned(),
        },
        None => "unknown".to_owned(),
    }
}

pub(super) fn holds(status: &Status) -> String {
    let layers = status.holding.as_ref().map(|h| {
        let layers = layer_text(&(h.first_layer as usize..h.last_layer as usize + 1));
        format!("layers {layers} ({})", HumanBytes(h.weight_bytes))
    });
    let served = match status.coordinator.as_str() {
        "" => String::new(),
        name => format!(" for {}", name.escape_debug()),
    };
    layers.unwrap_or_else(|| "nothing".to_owned()) + &served
}

fn node_json(node: &Surveyed) -> Value {
    let route = |route: &Route| {
        let Route { seen, interface } = route;
        json!({
            "address": seen.address,
            "interface": interface,
            "round_trip_micros": seen.round_trip.as_micros() as u64,
            "bytes_per_second_to": seen.bandwidth.map(|b| b.to as u64),
            "bytes_per_second_from": seen.bandwidth.map(|b| b.from as u64),
            "clock_ahead_micros": seen.clock_ahead_micros,
        })
    };
    let failed =
        |(place, error): &(String, _)| json!({ "target": place, "reason": ToString::to_string(error) });
    let best = node.routes.first().map(|route| &route.seen);
    let holding = best.and_then(|seen| seen.status.holding.as_ref()).map(|h| {
        json!({
            "fingerprint": h.fingerprint.to_string(), "first_layer": h.first_layer, "last_layer": h.last_layer,
            "weight_bytes": h.weight_bytes, "cache_bytes": h.cache_bytes,
        })
    });
    json!({
        "node_id": node.id,
        "reached": best.is_some(),
        "software": best.map(|seen| &seen.software),
        "memory_bytes": best.map(|seen| seen.status.memory_bytes),
        "available_bytes": best.map(|seen| seen.status.available_bytes),
        "device": best.map(|seen| &seen.status.device),
        "coordinator": best.map(|seen| &seen.status.coordinator).filter(|name| !name.is_empty()),
        "holding": holding,
        "routes": node.routes.iter().map(route).collect::<Vec<_>>(),
        "failed": node.failed.iter().map(failed).collect::<Vec<Value>>(),
    })
}
