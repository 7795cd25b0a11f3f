//! Which machine holds which layers: the nodes of a cluster or of this machine, in pipeline order.

mod advice;
#[cfg(feature = "cli")]
mod flags;
mod prediction;
pub mod roofline;

use std::fmt;
use std::ops::Range;

use kimi_core::plan::{HumanBytes, ModelBytes, Node, Plan, PlanError, USABLE_MEMORY};

use crate::discovery::{Discovery, DiscoveryError};
use crate::table::Table;

pub use advice::advice;
#[cfg(feature = "cli")]
pub use flags::{plan_to_carry_out, set_by_hand};
pub use prediction::PredictionText;

/// The machines in pipeline order: workers as they stand in the file, then the coordinator, so that logits stay on it.
///
/// # Errors
/// If the coordinator is not in the file.
pub fn cluster_nodes(
    discovery: &Discovery,
    coordinator: Option<&str>,
    usable: Option<f64>,
) -> Result<Vec<Node>, DiscoveryError> {
    let last = discovery.coordinator(coordinator)?;
    let workers = discovery.peers.iter().filter(|p| p.id != last.id);
    let usable = usable.unwrap_or(USABLE_MEMORY);
    let node = |p: &crate::discovery::Peer| Node {
        rate: p.rate.clone(),
        ..Node::new(p.id.as_str(), p.memory_bytes(), usable)
    };
    Ok(workers.chain([last]).map(node).collect())
}

/// Splits the layers by bytes over processes of this machine, whose memory they share.
///
/// # Errors
/// [`PlanError::TooManyNodes`].
pub fn local_plan(bytes: &ModelBytes, names: &[String], context: usize) -> Result<Plan, PlanError> {
    let memory = u64::MAX >> 8; // no limit: the system pages, it is one machine
    let nodes: Vec<_> = names.iter().map(|id| Node::new(id.as_str(), memory, 1.0)).collect();
    let mut plan = Plan::new(bytes, &nodes, context)?;
    plan.reason = match names.len() {
        1 => "one process holds everything".to_owned(),
        n => format!("{n} processes of this machine, split so that the largest share of bytes is smallest"),
    };
    Ok(plan)
}

/// A plan for people.
#[derive(Debug, Clone, Copy)]
pub struct PlanTable<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Whether the nodes are machines with limits of their own.
    pub limits: bool,
}

impl fmt::Display for PlanTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, limits } = self;
        let context = format!("cache for {} tokens", plan.context);
        let mut headings = vec!["node", "layers", "weights", context.as_str()];
        if *limits {
            headings.extend(["scratch", "usable", "headroom"]);
        }
        let mut table = Table::new(&headings, &[1, 2, 3, 4, 5, 6]);
        for (i, s) in plan.stages.iter().enumerate() {
            let role = match (i, i + 1 == plan.stages.len()) {
                (0, true) => "",
                (_, true) => " (coordinator, head)",
                (0, false) => " (embedding)",
                _ => "",
            };
            let bytes = |n| HumanBytes(n).to_string();
            let name = format!("{}{role}", s.node);
            let layers = layer_text(&s.layers());
            match limits {
                true => table.row([
                    name,
                    layers,
                    bytes(s.weight_bytes),
                    bytes(s.cache_bytes),
                    bytes(s.scratch_bytes),
                    bytes(s.usable_bytes),
                    match s.missing_bytes {
                        0 => bytes(s.headroom_bytes),
                        missing => format!("{} too little", bytes(missing)),
                    },
                ]),
                false => table.row([name, layers, bytes(s.weight_bytes), bytes(s.cache_bytes)]),
            }
        }
        writeln!(f, "{table}{}", wrapped(&plan.reason, 80))
    }
}

/// Text in lines of at most `width` characters, broken at spaces.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                *line += &format!(" {word}")
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// `0-43`, both ends included.
pub fn layer_text(layers: &Range<usize>) -> String {
    format!("{}-{}", layers.start, layers.end.saturating_sub(1))
}
