//! What the user says of a placement.

use kimi_core::plan::predict::{Rate, RateSource};
use kimi_core::plan::{ModelBytes, Node, Plan};

use super::{PlanTable, advice};
use crate::cli::args::PlacementArgs;
use crate::cli::ui;
use crate::rates::{self, Split};

/// Notes on the nodes what the user says of them.
///
/// # Errors
/// If there is no such node, or two flags are about one.
pub fn set_by_hand(nodes: &mut [Node], args: &PlacementArgs) -> anyhow::Result<()> {
    for set in &args.layers {
        let node = named(nodes, "--layers", &set.node)?;
        anyhow::ensure!(
            node.layers.is_none(),
            "--layers is given twice for {}; a machine holds one range",
            set.node
        );
        node.layers = Some(set.layers.clone());
    }
    for set in &args.bandwidth {
        let node = named(nodes, "--bandwidth", &set.node)?;
        let flops = node.rate.as_ref().and_then(|rate| rate.flops);
        let source = RateSource::Flag;
        node.rate = Some(Rate { bytes_per_second: set.bytes_per_second, flops, source });
    }
    Ok(())
}

fn named<'a>(nodes: &'a mut [Node], flag: &str, id: &str) -> anyhow::Result<&'a mut Node> {
    let known = nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>().join(", ");
    let found = nodes.iter_mut().find(|node| node.id == id);
    found.ok_or_else(|| anyhow::anyhow!("{flag} {id}=..: there is no machine {id:?}; there are {known}"))
}

/// The plan to carry out: one that fits, or with `force` any. `last` is the split that the model was served with before.
///
/// # Errors
/// [`kimi_core::plan::PlanError`], with what would help.
pub fn plan_to_carry_out(
    bytes: &ModelBytes,
    nodes: &[Node],
    tokens: usize,
    force: bool,
    last: Option<&Split>,
) -> anyhow::Result<Plan> {
    let plan = rates::plan(bytes, nodes, tokens, last)?;
    match plan.check() {
        Err(error) if force => ui::notice(format_args!("--force: going on, though {error}")),
        Err(error) => {
            let advice = advice(bytes, nodes, tokens);
            let lines = advice.iter().map(|line| format!("\n  {line}")).collect::<String>();
            anyhow::bail!(
                "{error}\n{}\n  --force, to go on all the same{lines}",
                PlanTable { plan: &plan, limits: true }
            );
        }
        Ok(()) => {}
    }
    Ok(plan)
}
