//! What would make a model fit that does not.

use kimi_core::plan::{HumanBytes, ModelBytes, Node, Plan};

/// Largest share of a machine's memory that is advised.
const MAX_SHARE: f64 = 0.95;
/// Steps between a share and the next.
const SHARE_STEP: f64 = 0.01;

/// Flags that would make a plan fit, each by itself, and what else would help: a line each.
pub fn advice(bytes: &ModelBytes, nodes: &[Node], tokens: usize) -> Vec<String> {
    let fits = |nodes: &[Node], tokens: usize| Plan::new(bytes, nodes, tokens).is_ok();
    let mut lines = Vec::new();
    let unset: Vec<_> = nodes.iter().map(|node| Node { layers: None, ..node.clone() }).collect();
    if nodes.iter().any(|node| node.layers.is_some()) && fits(&unset, tokens) {
        lines.push("leave out --layers: a split that fits is found without".to_owned());
    }
    if let Some(tokens) = most_tokens(tokens, |tokens| fits(nodes, tokens)) {
        lines.push(format!("--cache-tokens {tokens}"));
    }
    let share = shares(nodes).find(|share| fits(&with_share(nodes, *share), tokens));
    if let Some(share) = share {
        lines.push(format!("--usable-memory {share:.2}"));
        let wired = with_share(nodes, share)
            .iter()
            .map(|n| format!("{} on {}", n.usable_bytes() >> 20, n.id))
            .collect::<Vec<_>>();
        lines.push(format!(
            "on a Mac that also takes: sudo sysctl iogpu.wired_limit_mb=N, with N {}",
            wired.join(", ")
        ));
    }
    for node in nodes {
        let unlimited = Node { free: None, ..node.clone() };
        if let Some(free) = node.free.filter(|_| unlimited.usable_bytes() > node.usable_bytes()) {
            lines.push(format!(
                "end other programs on {}: only {} of its memory is free (or, on a Mac, for its GPU: raise \
                 iogpu.wired_limit_mb)",
                node.id,
                HumanBytes(free)
            ));
        }
    }
    lines
}

/// Most tokens, fewer than `tokens`, with which it fits; a round number.
fn most_tokens(tokens: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    const ROUND: usize = 1024;
    let (mut enough, mut too_many) = (0, tokens.div_ceil(ROUND));
    while too_many - enough > 1 {
        let middle = enough + (too_many - enough) / 2;
        match fits(middle * ROUND) {
            true => enough = middle,
            false => too_many = middle,
        }
    }
    (enough > 0).then_some(enough * ROUND)
}

fn shares(nodes: &[Node]) -> impl Iterator<Item = f64> {
    let now = nodes.iter().map(|node| node.usable).fold(0.0, f64::max);
    (1..=100)
        .map(move |step| now + f64::from(step) * SHARE_STEP)
        .take_while(|share| *share <= MAX_SHARE + 1e-9)
}

fn with_share(nodes: &[Node], usable: f64) -> Vec<Node> {
    nodes.iter().map(|node| Node { usable, ..node.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kimi_core::plan::AverageBits;
    use kimi_core::synthetic::SyntheticShape;

    const TOKENS: usize = 8192;

    /// A model, and two machines that hold it at this share of their memory.
    fn fitting(share: f64) -> (ModelBytes, Vec<Node>) {
        let config = SyntheticShape::Tiny.config(4, None).unwrap();
        let bytes = ModelBytes::estimate(&config, AverageBits { experts: 4.5, other: 4.5 });
        let large = [Node::new("a", 1 << 40, 1.0), Node::new("b", 1 << 40, 1.0)];
        let plan = Plan::new(&bytes, &large, TOKENS).unwrap();
        let needed = plan.stages.iter().map(|s| s.usable_bytes - s.headroom_bytes).max().unwrap();
        let memory = (needed as f64 / share) as u64;
        (bytes, vec![Node::new("a", memory, 0.75), Node::new("b", memory, 0.75)])
    }

    #[test]
    fn each_advice_makes_it_fit() {
        let (bytes, nodes) = fitting(0.805);
        assert!(Plan::new(&bytes, &nodes, TOKENS).is_err());
        let lines = advice(&bytes, &nodes, TOKENS);
        let tokens = lines[0].strip_prefix("--cache-tokens ").unwrap();
        let tokens: usize = tokens.parse().unwrap();
        assert!(tokens > 0 && tokens < TOKENS, "{lines:?}");
        assert!(Plan::new(&bytes, &nodes, tokens).is_ok());
        assert!(tokens + 1024 == TOKENS || Plan::new(&bytes, &nodes, tokens + 1024).is_err());
        assert_eq!(lines[1], "--usable-memory 0.81");
        assert!(Plan::new(&bytes, &with_share(&nodes, 0.81), TOKENS).is_ok());
        assert!(Plan::new(&bytes, &with_share(&nodes, 0.80), TOKENS).is_err());
        assert!(lines[2].contains("iogpu.wired_limit_mb"), "{lines:?}");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let (bytes, mut nodes) = fitting(0.75);
        for node in &mut nodes {
            node.memory += node.memory / 50;
        }
        assert_eq!(Plan::new(&bytes, &nodes, TOKENS).map(|_| ()), Ok(()));
        nodes[0].layers = Some(0..3);
        let lines = advice(&bytes, &nodes, TOKENS).join("\n");
        assert!(lines.contains("leave out --layers"), "{lines}");
        nodes[0].layers = None;
        nodes[1].free = Some(nodes[1].memory / 10);
        let lines = advice(&bytes, &nodes, TOKENS).join("\n");
        assert!(lines.contains("end other programs on b"), "{lines}");
    }
}
