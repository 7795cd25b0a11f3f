//! Which node holds which layers: a split by bytes, so that no node is fuller than it must be.

mod estimate;

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::layer_state::LayerState;
use crate::source::ModelSource;
use crate::weights::{WeightError, Weights};

pub use estimate::AverageBits;

/// Share of a machine's memory that weights and cache may take by default. macOS lets a GPU wire about three quarters.
pub const USABLE_MEMORY: f64 = 0.75;

/// Exact stored bytes of a model's parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelBytes {
    /// Embedding: in the first stage.
    pub embedding: u64,
    /// Each layer.
    pub layers: Vec<u64>,
    /// What a token reads of each layer: all but the experts that are not chosen.
    pub token_layers: Vec<u64>,
    /// Final norm and head: in the last stage.
    pub head: u64,
    /// What each layer keeps of the tokens before.
    pub states: Vec<LayerState>,
}

/// A machine that can hold layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Share of the memory that weights and cache may take.
    pub usable: f64,
}

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// In pipeline order: the first holds the embedding, the last (the coordinator) the head.
    pub stages: Vec<PlannedStage>,
    /// Tokens of context that the cache bytes are for.
    pub context: usize,
    /// Why the layers were split so.
    pub reason: String,
}

/// A node's share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedStage {
    /// The node.
    pub node: String,
    /// First layer.
    pub first_layer: usize,
    /// Last layer, included.
    pub last_layer: usize,
    /// Stored bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of its latent cache at the context length.
    pub cache_bytes: u64,
    /// Bytes that it may use.
    pub usable_bytes: u64,
    /// What stays free of those.
    pub headroom_bytes: u64,
}

impl PlannedStage {
    /// Its layers.
    pub fn layers(&self) -> Range<usize> {
        self.first_layer..self.last_layer + 1
    }
}

/// Why no plan was made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// No node at all.
    #[error("there is no node to hold the model")]
    NoNodes,
    /// More nodes than layers.
    #[error("{nodes} nodes can't share {layers} layers: each needs one at least. Leave nodes out")]
    TooManyNodes {
        /// Nodes given.
        nodes: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// It does not fit.
    #[error(
        "the model does not fit: node {node} would need {needed} for layers {first}-{last}, but may use {usable}, \
         {missing} too little. Together the nodes may use {total_usable} and {total_needed} are needed. Add a node, \
         shorten the context, or use a smaller quantization",
        needed = HumanBytes(*needed), usable = HumanBytes(*usable), missing = HumanBytes(needed.saturating_sub(*usable)),
        total_usable = HumanBytes(*total_usable), total_needed = HumanBytes(*total_needed)
    )]
    DoesNotFit {
        /// The fullest node.
        node: String,
        /// First of its layers.
        first: usize,
        /// Last of its layers.
        last: usize,
        /// Bytes it would need.
        needed: u64,
        /// Bytes it may use.
        usable: u64,
        /// Bytes all nodes may use.
        total_usable: u64,
        /// Bytes the model and its cache need.
        total_needed: u64,
    },
    /// The checkpoint's tensors do not make the model.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

/// Bytes in a form for people: decimal units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
        let bytes = self.0 as f64;
        match units.into_iter().find(|(size, _)| bytes >= *size) {
            Some((size, unit)) => write!(f, "{:.1} {unit}", bytes / size),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl ModelBytes {
    /// Reads a checkpoint's headers.
    ///
    /// # Errors
    /// [`WeightError`] if the tensors do not make the model.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, WeightError> {
        Self::of_source(&Weights::new(checkpoint))
    }

    /// The same of anything that has a model's weights.
    ///
    /// # Errors
    /// [`WeightError`] if they do not make the model.
    pub fn of_source(weights: &dyn ModelSource) -> Result<Self, WeightError> {
        let config = weights.config();
        let head = weights.head()?;
        let (mut layers, mut token_layers) = (Vec::new(), Vec::new());
        for index in 0..config.num_hidden_layers {
            let layer = weights.layer(index)?;
            layers.push(layer.bytes());
            token_layers.push(layer.token_bytes());
        }
        Ok(Self {
            embedding: weights.embedding()?.bytes(),
            layers,
            token_layers,
            head: head.lm_head.bytes() + head.norm.weight.data.len() as u64,
            states: states(config).collect(),
        })
    }

    /// Weight bytes that a token reads of a range of layers, with the head where it belongs. Of the embedding it is a row.
    pub fn token_weights(&self, layers: &Range<usize>) -> u64 {
        let head = if layers.end == self.layers.len() { self.head } else { 0 };
        self.token_layers.get(layers.clone()).map_or(0, |l| l.iter().sum::<u64>()) + head
    }

    /// Weight bytes of a range of layers, with the embedding or the head where they belong.
    pub fn weights(&self, layers: &Range<usize>) -> u64 {
        let ends = if layers.start == 0 { self.embedding } else { 0 }
            + if layers.end == self.layers.len() { self.head } else { 0 };
        self.layers.get(layers.clone()).map_or(0, |l| l.iter().sum::<u64>()) + ends
    }

    /// Cache bytes of a range of layers at a context length.
    pub fn cache(&self, layers: &Range<usize>, context: usize) -> u64 {
        let states = self.states.get(layers.clone()).unwrap_or_default();
        states.iter().fold(0, |sum, state| sum.saturating_add(state.bytes(context)))
    }
}

/// The states of all layers.
fn states(config: &ModelConfig) -> impl Iterator<Item = LayerState> {
    (0..config.num_hidden_layers).map(|layer| LayerState::of(config, layer))
}

/// Cache bytes of a whole model for so many tokens.
pub fn cache_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    states(config).fold(0, |sum, state| sum.saturating_add(state.bytes(tokens)))
}

impl Plan {
    /// Splits the layers over `nodes` in pipeline order; the last node is the coordinator.
    ///
    /// Of all splits into consecutive ranges it takes the one whose fullest node is least full, counting weights and
    /// cache against what the node may use.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`] says by how much.
    pub fn new(bytes: &ModelBytes, nodes: &[Node], context: usize) -> Result<Self, PlanError> {
        let count = bytes.layers.len();
        match nodes.len() {
            0 => return Err(PlanError::NoNodes),
            n if n > count => return Err(PlanError::TooManyNodes { nodes: n, layers: count }),
            _ => {}
        }
        let need = |layers: &Range<usize>| bytes.weights(layers) + bytes.cache(layers, context);
        let fill = |node: &Node, layers: Range<usize>| need(&layers) as f64 / usable(node).max(1) as f64;
        let ranges = split(nodes, count, fill);
        let stages: Vec<_> = nodes.iter().zip(&ranges).map(|(n, r)| planned(bytes, n, r, context)).collect();
        let fullest = (0..nodes.len()).max_by(|&a, &b| {
            fill(&nodes[a], ranges[a].clone()).total_cmp(&fill(&nodes[b], ranges[b].clone()))
        });
        let fullest = fullest.ok_or(PlanError::NoNodes)?;
        let (stage, needed) = (&stages[fullest], need(&ranges[fullest]));
        if needed > stage.usable_bytes {
            return Err(PlanError::DoesNotFit {
                node: stage.node.clone(),
                first: stage.first_layer,
                last: stage.last_layer,
                needed,
                usable: stage.usable_bytes,
                total_usable: nodes.iter().map(usable).sum(),
                total_needed: ranges.iter().map(need).sum(),
            });
        }
        let share = 100.0 * needed as f64 / stage.usable_bytes.max(1) as f64;
        let reason = match nodes.len() {
            1 => format!("one node holds everything; {share:.0} % of what it may use"),
            _ => format!(
                "split by bytes so that the fullest node is least full: {} is at {share:.0} % of what it may use; \
                 moving a layer either way makes some node fuller",
                stage.node
            ),
        };
        Ok(Self { stages, context, reason })
    }
}

fn usable(node: &Node) -> u64 {
    (node.memory as f64 * node.usable.clamp(0.0, 1.0)) as u64
}

fn planned(bytes: &ModelBytes, node: &Node, layers: &Range<usize>, context: usize) -> PlannedStage {
    let (weight_bytes, cache_bytes) = (bytes.weights(layers), bytes.cache(layers, context));
    PlannedStage {
        node: node.id.clone(),
        first_layer: layers.start,
        last_layer: layers.end.saturating_sub(1),
        weight_bytes,
        cache_bytes,
        usable_bytes: usable(node),
        headroom_bytes: usable(node).saturating_sub(weight_bytes + cache_bytes),
    }
}

/// Dynamic programme over (nodes used, layers placed): the least possible fill of the fullest node.
fn split(nodes: &[Node], count: usize, fill: impl Fn(&Node, Range<usize>) -> f64) -> Vec<Range<usize>> {
    let mut best = vec![vec![(f64::INFINITY, 0usize); count + 1]; nodes.len() + 1];
    best[0][0] = (0.0, 0);
    for (n, node) in nodes.iter().enumerate() {
        for end in n + 1..=count {
            for start in n..end {
                let before = best[n][start].0;
                if before.is_finite() {
                    let worst = before.max(fill(node, start..end));
                    if worst < best[n + 1][end].0 {
                        best[n + 1][end] = (worst, start);
                    }
                }
            }
        }
    }
    let mut ranges = Vec::with_capacity(nodes.len());
    let mut end = count;
    for n in (1..=nodes.len()).rev() {
        let start = best[n][end].1;
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(id: &str, memory: u64) -> Node {
        Node { id: id.to_owned(), memory, usable: 1.0 }
    }

    fn bytes(layers: Vec<u64>) -> ModelBytes {
        // 4 bytes a token and layer.
        let states = vec![LayerState::LatentPages { width: 1 }; layers.len()];
        ModelBytes { embedding: 5, token_layers: layers.clone(), layers, head: 7, states }
    }

    #[test]
    fn says_by_how_much_it_does_not_fit() {
        let error = Plan::new(&bytes(vec![100; 4]), &[node("a", 150), node("b", 150)], 0).unwrap_err();
        let PlanError::DoesNotFit { needed, usable, total_needed, total_usable, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*needed, *usable, *total_needed, *total_usable), (207, 150, 412, 300));
        assert!(error.to_string().contains("57 bytes too little"), "{error}");
    }

    #[test]
    fn refuses_more_nodes_than_layers() {
        let nodes = [node("a", 10), node("b", 10)];
        assert_eq!(
            Plan::new(&bytes(vec![1]), &nodes, 0),
            Err(PlanError::TooManyNodes { nodes: 2, layers: 1 })
        );
        assert_eq!(Plan::new(&bytes(vec![1]), &[], 0), Err(PlanError::NoNodes));
    }

    proptest! {
        /// Against trying every split of three nodes.
        #[test]
        fn no_split_is_better(
            layers in proptest::collection::vec(1u64..1000, 3..12),
            memory in proptest::array::uniform3(1u64..5000),
            context in 0usize..50,
        ) {
            let b = bytes(layers);
            let nodes = ["a", "b", "c"].iter().zip(memory).map(|(id, m)| node(id, m)).collect::<Vec<_>>();
            let fill = |n: &Node, r: Range<usize>| (b.weights(&r) + b.cache(&r, context)) as f64 / usable(n) as f64;
            let worst = |ranges: &[Range<usize>]| {
                nodes.iter().zip(ranges).map(|(n, r)| fill(n, r.clone())).fold(0.0, f64::max)
            };
            let count = b.layers.len();
            let found = split(&nodes, count, fill);
            prop_assert_eq!((found[0].start, found[0].end, found[1].end), (0, found[1].start, found[2].start));
            prop_assert_eq!(found[2].end, count);
            for i in 1..count - 1 {
                for j in i + 1..count {
                    prop_assert!(worst(&found) <= worst(&[0..i, i..j, j..count]));
                }
            }
        }
    }
}
