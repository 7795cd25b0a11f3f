//! The order of nodes in the pipeline, where some of them have their layers set by hand.

use std::ops::Range;

use super::{Node, PlanError};

/// The nodes in pipeline order, the last of `nodes` last. Workers keep their order, but those with layers set by hand come
/// where those layers are, and others fill the gaps between.
pub(super) fn ordered(nodes: &[Node], layers: usize) -> Result<Vec<&Node>, PlanError> {
    let Some((last, workers)) = nodes.split_last() else { return Err(PlanError::NoNodes) };
    if nodes.iter().all(|node| node.layers.is_none()) {
        return Ok(nodes.iter().collect());
    }
    let wrong = |reason: String| Err(PlanError::Layers(reason));
    let mut set: Vec<(&Node, Range<usize>)> =
        nodes.iter().filter_map(|node| Some((node, node.layers.clone()?))).collect();
    set.sort_by_key(|(_, range)| range.start);
    for (node, range) in &set {
        if range.is_empty() || range.end > layers {
            let (id, text) = (&node.id, text(range));
            return wrong(format!("--layers {id}={text}: the model has {layers} layers, 0-{}", layers - 1));
        }
    }
    for pair in set.windows(2) {
        let [(a, before), (b, after)] = pair else { continue };
        if after.start < before.end {
            return wrong(format!("--layers gives layer {} to {} and to {}", after.start, a.id, b.id));
        }
    }
    if let Some(own) = last.layers.as_ref().filter(|own| own.end != layers) {
        let (id, text) = (&last.id, text(own));
        return wrong(format!(
            "--layers {id}={text}: the coordinator {id} holds the last layers, up to {}. Make another machine the \
             coordinator, or set the workers' layers",
            layers - 1
        ));
    }
    let mut free: Vec<&Node> = workers.iter().filter(|node| node.layers.is_none()).collect();
    free.reverse();
    // Each gap takes a free worker; the last one is the coordinator's, if that is free.
    let mut order: Vec<&Node> = Vec::with_capacity(nodes.len());
    let mut widest: Option<(usize, usize)> = None; // layers, and where in the order a further worker goes
    let mut end = 0;
    let ends = std::iter::once((None, layers..layers));
    for (node, range) in set.into_iter().map(|(node, range)| (Some(node), range)).chain(ends) {
        let gap = end..range.start;
        let coordinators = node.is_none() && last.layers.is_none();
        if coordinators && gap.is_empty() {
            return wrong(format!(
                "--layers: nothing is left for {}, the coordinator, which holds the last layers",
                last.id
            ));
        }
        if !gap.is_empty() && !coordinators {
            let Some(filler) = free.pop() else {
                return wrong(format!("--layers leaves layers {} to no machine", text(&gap)));
            };
            order.push(filler);
        }
        if widest.is_none_or(|(most, _)| gap.len() > most) {
            widest = Some((gap.len(), order.len()));
        }
        order.extend(node.filter(|node| node.id != last.id));
        end = range.end;
    }
    if let Some(left) = free.last() {
        match widest.filter(|(gap, _)| *gap > free.len()) {
            Some((_, place)) => drop(order.splice(place..place, free.into_iter().rev())),
            None => return wrong(format!("--layers: nothing is left for {}; leave it out", left.id)),
        }
    }
    order.push(last);
    Ok(order)
}

/// `0-43`, both ends included.
fn text(layers: &Range<usize>) -> String {
    format!("{}-{}", layers.start, layers.end.saturating_sub(1))
}
