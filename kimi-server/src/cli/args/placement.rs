//! Arguments of commands that split a model over machines.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use kimi_core::plan::predict::Link;

use super::{CacheArgs, ModelArgs, share};

/// Which machine holds which layers.
#[derive(Debug, Clone, Default, Args)]
pub struct PlacementArgs {
    /// Share of each machine's memory that a stage may take [default: 0.75]. What is not free on a machine that was asked is
    /// not used either.
    #[arg(long, value_name = "0..1", value_parser = share)]
    pub usable_memory: Option<f64>,
    /// The layers of a machine, both ends included, where the plan should not choose them. Repeat it for others; who is not
    /// named gets of the rest. The coordinator holds the last ones.
    #[arg(long, value_name = "NODE=A-B", value_parser = node_layers)]
    pub layers: Vec<NodeLayers>,
    /// How fast a machine reads its memory, in GB/s, as `kimi devices --measure` there says; repeat it for others [default:
    /// memory_bandwidth in the discovery file, else what is published of its chip]. If it is known of all, layers go where
    /// they are predicted to be computed soonest.
    #[arg(long, value_name = "NODE=GB/S", value_parser = node_bandwidth)]
    pub bandwidth: Vec<NodeBandwidth>,
    /// Go on where a machine's share does not fit: it may swap, or be refused there.
    #[arg(long)]
    pub force: bool,
}

/// Layers for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLayers {
    /// Its name.
    pub node: String,
    /// Its layers.
    pub layers: Range<usize>,
}

/// What a machine reads.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeBandwidth {
    /// Its name.
    pub node: String,
    /// Bytes a second.
    pub bytes_per_second: f64,
}

/// Layers as `3-7`, both ends included, or `3`.
pub(super) fn layer_range(text: &str) -> Option<Range<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let end = last.checked_add(1)?;
    (first < end).then_some(first..end)
}

fn node_layers(text: &str) -> Result<NodeLayers, String> {
    let parsed = || {
        let (node, range) = text.rsplit_once('=')?;
        let layers = layer_range(range)?;
        (!node.is_empty()).then(|| NodeLayers { node: node.to_owned(), layers })
    };
    parsed().ok_or_else(|| "expected NODE=A-B with the first and the last layer, such as m3=0-43".to_owned())
}

fn node_bandwidth(text: &str) -> Result<NodeBandwidth, String> {
    let parsed = || {
        let (node, rate) = text.rsplit_once('=')?;
        let gigabytes: f64 = rate.trim().parse().ok()?;
        let node = Some(node.to_owned()).filter(|node| !node.is_empty())?;
        (gigabytes > 0.0 && gigabytes < 1e6)
            .then_some(NodeBandwidth { node, bytes_per_second: gigabytes * 1e9 })
    };
    parsed().ok_or_else(|| "expected NODE=GB/S with a number above 0, such as m3=819".to_owned())
}

/// Arguments of `kimi plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Speeds are estimated, by a formula and figures of other machines: bytes that a token reads, over 57 % of the memory's
bandwidth (what one H100 reached), and 0.4 ms for each link beside its own delay. `kimi nodes` measures links.
Exit code 1 if a machine's share does not fit it, unless --force is given.

Examples:
  kimi plan kimi-k2-4bit --discovery-config-path discovery.json --context 32768
  kimi plan kimi-k2-4bit --discovery-config-path discovery.json --layers m3=0-40")]
pub struct PlanArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// discovery.json with all machines and their memory.
    #[arg(long, value_name = "FILE")]
    pub discovery_config_path: PathBuf,
    /// The coordinator, which holds the last layers [default: the machine with the least memory].
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub placement: PlacementArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub link: LinkArgs,
    /// Show what each kernel is predicted to take on each machine whose chip is known, and how uncertain that is.
    #[arg(long)]
    pub predict: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The link between the machines, for predictions.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct LinkArgs {
    /// Round trip of the link, as `kimi nodes` measures it.
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = milliseconds)]
    pub round_trip: f64,
    /// Rate of the link, as `kimi nodes` measures it [default: so high that it costs nothing].
    #[arg(long, value_name = "MB/S", value_parser = megabytes)]
    pub link_rate: Option<f64>,
}

impl LinkArgs {
    /// The same for kimi-core.
    pub fn link(self) -> Link {
        Link { round_trip: self.round_trip / 1e3, bytes_per_second: self.link_rate.map(|rate| rate * 1e6) }
    }
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let found = text.parse::<f64>().ok().filter(|ms| (0.0..=60_000.0).contains(ms));
    found.ok_or_else(|| "expected a number of milliseconds of at least 0".to_owned())
}

fn megabytes(text: &str) -> Result<f64, String> {
    let found = text.parse::<f64>().ok().filter(|rate| *rate > 0.0 && *rate < 1e9);
    found.ok_or_else(|| "expected a number of megabytes a second above 0".to_owned())
}
