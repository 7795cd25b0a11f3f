//! Which node holds which layers: a split by bytes, so that nothing swaps, and by predicted time, where the nodes' rates are
//! known.

mod bytes;
mod estimate;
mod order;
pub mod predict;
pub mod roofline;
mod split;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::Serialize;

use crate::weights::WeightError;
use predict::{Link, Prediction, Rate, StageReads};

pub use bytes::{HumanBytes, ModelBytes, cache_bytes};
pub use estimate::AverageBits;

/// Share of a machine's memory that a stage may take by default; the rest is the system's. macOS lets a GPU wire about three
/// quarters.
pub const USABLE_MEMORY: f64 = 0.75;
/// Share of a machine's memory that stays free of what is free now, so that nothing swaps.
const RESERVE: f64 = 1.0 / 32.0;
/// Scratch of a stage, in thousandths of its weights and cache: what an H100 took above them (docs/performance.md).
const SCRATCH_PER_MILLE: u64 = 13;
/// A split may be slower than the fastest one by this factor, if that leaves more memory free.
const SLACK: f64 = 1.02;

/// A machine that can hold layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Share of the memory that a stage may take.
    pub usable: f64,
    /// Bytes of its memory that are free, if that is known: more would swap.
    pub free: Option<u64>,
    /// The layers that it must hold, if somebody says so.
    pub layers: Option<Range<usize>>,
    /// How fast it is, if that is known.
    pub rate: Option<Rate>,
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
    /// Bytes for what a step computes with.
    pub scratch_bytes: u64,
    /// Bytes that it may use.
    pub usable_bytes: u64,
    /// What stays free of those.
    pub headroom_bytes: u64,
    /// What is missing; 0 where it fits.
    pub missing_bytes: u64,
    /// Bytes of weights and cache that a token of a short conversation reads.
    pub token_bytes: u64,
    /// How fast its node is, if that is known.
    pub rate: Option<Rate>,
}

impl PlannedStage {
    /// Its layers.
    pub fn layers(&self) -> Range<usize> {
        self.first_layer..self.last_layer + 1
    }

    fn needed(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes).saturating_add(self.scratch_bytes)
    }

    fn fill(&self) -> f64 {
        self.needed() as f64 / self.usable_bytes.max(1) as f64
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
    /// Layers that were given by hand and are no split.
    #[error("{0}")]
    Layers(String),
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

impl Node {
    /// A machine of which no more is known.
    pub fn new(id: impl Into<String>, memory: u64, usable: f64) -> Self {
        Self { id: id.into(), memory, usable, free: None, layers: None, rate: None }
    }

    /// Bytes that a stage may take: a share of the memory, and no more than is free but for a reserve.
    pub fn usable_bytes(&self) -> u64 {
        let share = |part: f64| (self.memory as f64 * part.clamp(0.0, 1.0)) as u64;
        let free = self.free.map_or(u64::MAX, |free| free.saturating_sub(share(RESERVE)));
        share(self.usable).min(free)
    }
}

impl Plan {
    /// Splits the layers over `nodes`, of which the last is the coordinator, so that they fit.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`] says by how much.
    pub fn new(bytes: &ModelBytes, nodes: &[Node], context: usize) -> Result<Self, PlanError> {
        let plan = Self::regardless(bytes, nodes, context)?;
        plan.check()?;
        Ok(plan)
    }

    /// The same, whether it fits or not.
    ///
    /// Workers keep their order, but for what [`Node::layers`] asks. Where all rates are known, it takes of the splits into
    /// consecutive ranges that fit the one that is predicted to be fastest, or one that is little slower and leaves more memory
    /// free; else the one whose fullest node is least full.
    ///
    /// # Errors
    /// If there can be no split at all.
    pub fn regardless(bytes: &ModelBytes, nodes: &[Node], context: usize) -> Result<Self, PlanError> {
        let count = bytes.layers.len();
        match nodes.len() {
            0 => return Err(PlanError::NoNodes),
            n if n > count => return Err(PlanError::TooManyNodes { nodes: n, layers: count }),
            _ => {}
        }
        let nodes = order::ordered(nodes, count)?;
        let sums = Sums::new(bytes, context);
        // How full a node is whose layers are set does not count: nothing is to be chosen there.
        let fill = |n: usize, layers: &Range<usize>| match &nodes[n].layers {
            None => sums.needed(layers) as f64 / nodes[n].usable_bytes().max(1) as f64,
            Some(own) if own == layers => 0.0,
            Some(_) => f64::INFINITY,
        };
        let least_full = split::split(nodes.len(), count, &fill, f64::max).ok_or_else(|| {
            PlanError::Layers("the layers that were set by hand leave none for some machine".to_owned())
        })?;
        let rates: Option<Vec<_>> = nodes.iter().map(|node| node.rate.as_ref()).collect();
        let by_time = rates.filter(|_| nodes.len() > 1).and_then(|rates| {
            let time = |n: usize, layers: &Range<usize>| predict::read_seconds(sums.token(layers), rates[n]);
            split::fast(nodes.len(), count, &fill, &time, SLACK)
        });
        let is_fast = by_time.is_some();
        let ranges = by_time.unwrap_or(least_full);
        let stages = nodes.iter().zip(&ranges).map(|(node, layers)| planned(bytes, &sums, node, layers));
        let mut plan = Self { stages: stages.collect(), context, reason: String::new() };
        plan.reason = plan.why(is_fast, nodes.iter().any(|node| node.layers.is_some()));
        Ok(plan)
    }

    fn why(&self, is_fast: bool, by_hand: bool) -> String {
        let Some(fullest) = self.fullest() else { return String::new() };
        let share = 100.0 * fullest.fill();
        match self.stages.len() {
            1 => format!("one node holds everything; {share:.0} % of what it may use"),
            _ if by_hand => {
                format!("split as set by hand; {} is at {share:.0} % of what it may use", fullest.node)
            }
            _ if is_fast => format!(
                "split by predicted time: no split that fits is over 2 % faster, and of those that are as fast this leaves \
                 most memory free; {} is at {share:.0} % of what it may use",
                fullest.node
            ),
            _ => format!(
                "split by bytes so that the fullest node is least full: {} is at {share:.0} % of what it may use; \
                 moving a layer either way makes some node fuller",
                fullest.node
            ),
        }
    }

    fn fullest(&self) -> Option<&PlannedStage> {
        self.stages.iter().max_by(|a, b| a.fill().total_cmp(&b.fill()))
    }

    /// Whether each node holds its share.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`] with the fullest node.
    pub fn check(&self) -> Result<(), PlanError> {
        let stage = self.fullest().ok_or(PlanError::NoNodes)?;
        if stage.missing_bytes == 0 {
            return Ok(());
        }
        let total = |of: fn(&PlannedStage) -> u64| self.stages.iter().map(of).fold(0, u64::saturating_add);
        Err(PlanError::DoesNotFit {
            node: stage.node.clone(),
            first: stage.first_layer,
            last: stage.last_layer,
            needed: stage.needed(),
            usable: stage.usable_bytes,
            total_usable: total(|stage| stage.usable_bytes),
            total_needed: total(PlannedStage::needed),
        })
    }

    /// How fast it would be, if the rates of all nodes are known.
    pub fn predict(&self, bytes: &ModelBytes, link: Link) -> Option<Prediction> {
        let stages: Option<Vec<_>> = self
            .stages
            .iter()
            .map(|stage| {
                let PlannedStage { token_bytes, weight_bytes, rate, .. } = stage;
                Some(StageReads {
                    token_bytes: *token_bytes,
                    weight_bytes: *weight_bytes,
                    rate: rate.as_ref()?,
                })
            })
            .collect();
        Some(Prediction::new(&stages?, bytes.hidden, link))
    }
}

/// Sums over the first layers, so that a range costs two look-ups.
struct Sums {
    context: usize,
    needed: Vec<u64>,
    token: Vec<u64>,
}

impl Sums {
    fn new(bytes: &ModelBytes, context: usize) -> Self {
        let (mut needed, mut token) = (vec![0u64], vec![0u64]);
        for layer in 0..bytes.layers.len() {
            let one = layer..layer + 1;
            let whole = bytes.weights(&one).saturating_add(bytes.cache(&one, context));
            let read = bytes.token_weights(&one) + bytes.cache(&one, context.min(predict::PROMPT));
            needed.push(needed[layer].saturating_add(whole));
            token.push(token[layer].saturating_add(read));
        }
        Self { context, needed, token }
    }

    /// Weights, cache and scratch.
    fn needed(&self, layers: &Range<usize>) -> u64 {
        let bytes = self.needed[layers.end] - self.needed[layers.start];
        bytes.saturating_add(scratch(bytes))
    }

    /// What a token of a short conversation reads.
    fn token(&self, layers: &Range<usize>) -> u64 {
        self.token[layers.end] - self.token[layers.start]
    }
}

fn scratch(bytes: u64) -> u64 {
    bytes.saturating_mul(SCRATCH_PER_MILLE) / 1000
}

fn planned(bytes: &ModelBytes, sums: &Sums, node: &Node, layers: &Range<usize>) -> PlannedStage {
    let (weight_bytes, cache_bytes) = (bytes.weights(layers), bytes.cache(layers, sums.context));
    let mut stage = PlannedStage {
        node: node.id.clone(),
        first_layer: layers.start,
        last_layer: layers.end.saturating_sub(1),
        weight_bytes,
        cache_bytes,
        scratch_bytes: scratch(weight_bytes.saturating_add(cache_bytes)),
        usable_bytes: node.usable_bytes(),
        headroom_bytes: 0,
        missing_bytes: 0,
        token_bytes: sums.token(layers),
        rate: node.rate.clone(),
    };
    stage.headroom_bytes = stage.usable_bytes.saturating_sub(stage.needed());
    stage.missing_bytes = stage.needed().saturating_sub(stage.usable_bytes);
    stage
}
