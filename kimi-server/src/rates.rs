//! How fast the nodes of a cluster were with a model: measured while it was served, and the split that it was served with, for
//! the next plan of it.
//!
//! They are in `$XDG_STATE_HOME/kimi/rates.json`, else `~/.local/state/kimi/rates.json`. Nothing depends on the file: without
//! it, or where it can't be read, plans are made from published figures.

use std::io;
use std::path::{Path, PathBuf};

use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::predict::{EFFICIENCY, Link, Rate, RateSource};
use kimi_core::plan::{ModelBytes, Node, Plan, PlanError};
use serde::{Deserialize, Serialize};

/// Steps of one token from which their mean says how fast a node is.
const MIN_STEPS: u64 = 100;
/// How much faster another split has to be for layers to be moved: their weights would be loaded again.
const WORTH_MOVING: f64 = 1.1;
/// Models in the file; the one that was served the longest ago goes first.
const MAX_MODELS: usize = 32;
/// Bytes of a file that somebody else must have written.
const MAX_BYTES: u64 = 1 << 20;

/// A node's share of a model, and how fast it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRate {
    /// Its name.
    pub node: String,
    /// First layer.
    pub first_layer: usize,
    /// Last layer, included.
    pub last_layer: usize,
    /// Bytes of weights and cache that it got through in a second, for one conversation.
    pub bytes_per_second: f64,
}

/// A model's split, in pipeline order, and how fast it was.
pub type Split = Vec<NodeRate>;

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rates {
    /// By fingerprint; the one served last is the last.
    models: Vec<(String, Split)>,
}

/// What was measured of a plan's stages: for each its steps of one token, and the seconds of one. `None` while there are too
/// few, or where there is only one node.
pub fn measured(plan: &Plan, steps: &[(u64, f64)]) -> Option<Split> {
    if plan.stages.len() < 2 || plan.stages.len() != steps.len() {
        return None;
    }
    let rate = |(stage, (steps, seconds)): (&kimi_core::plan::PlannedStage, &(u64, f64))| {
        (*steps >= MIN_STEPS && *seconds > 0.0).then(|| NodeRate {
            node: stage.node.clone(),
            first_layer: stage.first_layer,
            last_layer: stage.last_layer,
            bytes_per_second: stage.token_bytes as f64 / seconds,
        })
    };
    plan.stages.iter().zip(steps).map(rate).collect()
}

/// Writes down how fast a model was. What keeps it from doing so is logged: it is only an aid.
pub fn remember(checkpoint: &Checkpoint, split: Split) {
    let Some(path) = default_path() else { return };
    if let Err(error) = write(&path, &key(checkpoint), split) {
        tracing::debug!(%error, path = %path.display(), "how fast the nodes are is not written down");
    }
}

/// How fast a model was when it was served last.
pub fn recall(checkpoint: &Checkpoint) -> Option<Split> {
    let key = key(checkpoint);
    let rates = read(&default_path()?)?;
    rates.models.into_iter().find(|(model, _)| *model == key).map(|(_, split)| split)
}

/// Notes on nodes of which nothing better is known how fast they were. What the user says comes first.
pub fn apply(split: &Split, nodes: &mut [Node]) {
    for node in nodes {
        let told = node.rate.as_ref().is_some_and(|rate| !matches!(rate.source, RateSource::Chip(_)));
        let Some(known) = split.iter().find(|known| known.node == node.id).filter(|_| !told) else {
            continue;
        };
        node.rate = Some(Rate {
            // What was measured has the losses in it that a prediction counts.
            bytes_per_second: known.bytes_per_second / EFFICIENCY,
            flops: node.rate.as_ref().and_then(|rate| rate.flops),
            source: RateSource::Measured,
        });
    }
}

/// A plan that may not fit, see [`Plan::regardless`]; the split that was served last where no other is much faster.
///
/// # Errors
/// Those of [`Plan::regardless`].
pub fn plan(
    bytes: &ModelBytes,
    nodes: &[Node],
    context: usize,
    last: Option<&Split>,
) -> Result<Plan, PlanError> {
    let best = Plan::regardless(bytes, nodes, context)?;
    let Some(last) = last.filter(|_| nodes.iter().all(|node| node.layers.is_none())) else { return Ok(best) };
    let again = |node: &Node| {
        let own = last.iter().find(|known| known.node == node.id)?;
        Some(Node { layers: Some(own.first_layer..own.last_layer + 1), ..node.clone() })
    };
    let again: Option<Vec<_>> = nodes.iter().map(again).collect();
    let Some(again) = again.filter(|again| again.len() == last.len()) else { return Ok(best) };
    let Ok(mut kept) = Plan::new(bytes, &again, context) else { return Ok(best) };
    let speed = |plan: &Plan| plan.predict(bytes, Link::default()).map(|found| found.tokens_per_second);
    let (Some(now), Some(then)) = (speed(&best), speed(&kept)) else { return Ok(best) };
    if best.check().is_ok() && now > WORTH_MOVING * then {
        return Ok(best);
    }
    kept.reason = "the split of the last time: no other is predicted to be over 10 % faster".to_owned();
    Ok(kept)
}

fn key(checkpoint: &Checkpoint) -> String {
    let fingerprint = checkpoint.description().fingerprint();
    fingerprint.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn default_path() -> Option<PathBuf> {
    Some(crate::system::state_folder()?.join("rates.json"))
}

/// The file's content; `None` where there is none, or none that can be used.
fn read(path: &Path) -> Option<Rates> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return None;
    }
    let rates: Rates = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let sound = |node: &NodeRate| {
        node.bytes_per_second.is_finite()
            && node.bytes_per_second > 0.0
            && node.first_layer <= node.last_layer
            && node.last_layer < usize::MAX
    };
    rates.models.iter().all(|(_, split)| split.iter().all(sound)).then_some(rates)
}

fn write(path: &Path, key: &str, split: Split) -> io::Result<()> {
    let mut rates = read(path).unwrap_or_default();
    rates.models.retain(|(model, _)| model != key);
    rates.models.push((key.to_owned(), split));
    let surplus = rates.models.len().saturating_sub(MAX_MODELS);
    rates.models.drain(..surplus);
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Whole or not at all: another process may read it now.
    let new = path.with_extension(format!("json.{}", std::process::id()));
    std::fs::write(&new, serde_json::to_vec_pretty(&rates)?)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, rate: Option<f64>) -> Node {
        let rate = rate.map(|bytes_per_second| Rate {
            bytes_per_second,
            flops: None,
            source: RateSource::Chip("x".into()),
        });
        Node { rate, ..Node::new(id, 1 << 40, 0.75) }
    }

    fn tiny() -> ModelBytes {
        ModelBytes::of(&Checkpoint::kimi_tiny().unwrap()).unwrap()
    }

    fn layers(plan: &Plan) -> Vec<(usize, usize)> {
        plan.stages.iter().map(|stage| (stage.first_layer, stage.last_layer)).collect()
    }

    /// What would be measured of two nodes with half the layers each, of which `a` is so many times as fast.
    fn halves(times: f64) -> Split {
        let mut nodes = [node("a", None), node("b", None)];
        nodes[0].layers = Some(0..3);
        let plan = Plan::regardless(&tiny(), &nodes, 1024).unwrap();
        let seconds = |stage: usize, rate: f64| (MIN_STEPS, plan.stages[stage].token_bytes as f64 / rate);
        measured(&plan, &[seconds(0, 1e9 * times), seconds(1, 1e9)]).unwrap()
    }

    #[test]
    fn what_was_measured_moves_layers_where_that_pays() {
        let (bytes, mut nodes) = (tiny(), [node("a", Some(1e9)), node("b", Some(9e9))]);
        apply(&halves(9.0), &mut nodes);
        assert!(nodes.iter().all(|node| node.rate.as_ref().unwrap().source == RateSource::Measured));
        let moved = plan(&bytes, &nodes, 1024, Some(&halves(9.0))).unwrap();
        assert!(layers(&moved)[0].1 > 2, "the fast node gets more: {:?}", layers(&moved));
    }

    #[test]
    fn a_split_that_is_nearly_as_good_is_kept() {
        let (bytes, mut nodes) = (tiny(), [node("a", None), node("b", None)]);
        let last = halves(1.02);
        apply(&last, &mut nodes);
        let kept = plan(&bytes, &nodes, 1024, Some(&last)).unwrap();
        assert_eq!(layers(&kept), [(0, 2), (3, 5)]);
        assert!(kept.reason.contains("last time"), "{}", kept.reason);
        // With other machines there is nothing to keep, and layers that are set by hand stand.
        let three = [nodes[0].clone(), node("c", None), nodes[1].clone()];
        assert_eq!(plan(&bytes, &three, 1024, Some(&last)).unwrap().stages.len(), 3);
        nodes[0].layers = Some(0..1);
        assert_eq!(layers(&plan(&bytes, &nodes, 1024, Some(&last)).unwrap()), [(0, 0), (1, 5)]);
    }

    #[test]
    fn what_the_user_says_comes_first() {
        let mut nodes = [node("a", Some(5e9)), node("b", None)];
        nodes[0].rate.as_mut().unwrap().source = RateSource::Flag;
        apply(&halves(2.0), &mut nodes);
        let sources: Vec<_> = nodes.iter().map(|node| node.rate.clone().unwrap().source).collect();
        assert_eq!(sources, [RateSource::Flag, RateSource::Measured]);
    }

    #[test]
    fn too_few_steps_say_nothing() {
        let plan = Plan::regardless(&tiny(), &[node("a", None), node("b", None)], 1024).unwrap();
        assert_eq!(measured(&plan, &[(MIN_STEPS, 0.1), (MIN_STEPS - 1, 0.1)]), None);
        assert!(measured(&plan, &[(MIN_STEPS, 0.1), (MIN_STEPS, 0.1)]).is_some());
    }

    #[test]
    fn the_file_is_whole_and_bounded_and_never_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kimi/rates.json");
        for model in 0..MAX_MODELS + 3 {
            write(&path, &format!("{model}"), halves(2.0)).unwrap();
        }
        let models: Vec<_> = read(&path).unwrap().models.into_iter().map(|(model, _)| model).collect();
        assert_eq!((models.len(), models[0].as_str()), (MAX_MODELS, "3"));
        for damaged in [
            "",
            "{",
            "[]",
            r#"{"models": [["a", [{"node": "n", "first_layer": 3, "last_layer": 1,
            "bytes_per_second": 1.0}]]]}"#,
            r#"{"models": [["a", [{"node": "n", "first_layer": 0, "last_layer": 1,
            "bytes_per_second": -1.0}]]]}"#,
        ] {
            std::fs::write(&path, damaged).unwrap();
            assert!(read(&path).is_none(), "{damaged}");
            write(&path, "new", halves(2.0)).unwrap();
            assert_eq!(read(&path).unwrap().models.len(), 1);
        }
    }
}
