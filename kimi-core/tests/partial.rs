//! A checkpoint of which only some layers are here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(feature = "tiny")]

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kimi_core::Checkpoint;
use kimi_core::checkpoint::{CheckpointError, MANIFEST, Manifest};
use kimi_core::fingerprint::Group;
use kimi_core::plan::ModelBytes;
use kimi_core::stage::{CacheConfig, LoadError, Stage};
use kimi_core::weights::WeightError;
use kimi_quant::cpu::Cpu;
use safetensors::tensor::{TensorView, serialize};

const CACHE: CacheConfig = CacheConfig { pages: 1, page_tokens: 16 };

/// The files of kimi-tiny with the tensors of these layers only.
fn part(whole: &Checkpoint, layers: &Range<usize>) -> Vec<(String, Bytes)> {
    let manifest = whole.manifest().unwrap();
    let mut files: Vec<_> =
        manifest.files.iter().map(|name| (name.clone(), whole.file(name).unwrap().unwrap())).collect();
    files.push((MANIFEST.to_owned(), manifest.to_json().unwrap().into()));
    let groups = whole.group_tensors();
    for group in whole.groups_of(layers) {
        let tensors = groups[&group].iter().map(|name| {
            let tensor = whole.tensor(name).unwrap();
            (*name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
        });
        let shard = serialize(tensors, None).unwrap();
        files.push((format!("model-{}.safetensors", files.len()), shard.into()));
    }
    files
}

fn load(checkpoint: &Checkpoint, layers: Range<usize>) -> Result<(), LoadError> {
    Stage::load(checkpoint, Arc::new(Cpu::new()), layers, CACHE, &mut |_| {}).map(drop)
}

#[test]
fn a_part_describes_the_whole_model_and_loads_its_own_layers() {
    let whole = Checkpoint::kimi_tiny().unwrap();
    let count = whole.config().num_hidden_layers;
    for layers in [0..0, 0..2, 1..3, 2..count] {
        let part = Checkpoint::from_memory("part", part(&whole, &layers)).unwrap();
        assert_eq!(part.description(), whole.description(), "{layers:?}");
        assert_eq!(ModelBytes::of(&part).unwrap(), ModelBytes::of(&whole).unwrap());
        // A part can be the source of what it has.
        assert_eq!(part.manifest().unwrap(), whole.manifest().unwrap());
        assert!(part.bytes() < whole.bytes());
        if !layers.is_empty() {
            load(&part, layers.clone()).unwrap();
        }
        assert!(!part.missing_groups().contains(&Group::Layer(layers.start)) || layers.is_empty());
    }
    let all = Checkpoint::from_memory("part", part(&whole, &(0..count))).unwrap();
    assert!(all.missing_groups().is_empty() && all.bytes() == whole.bytes());
}

#[test]
fn a_stage_whose_layers_are_elsewhere_names_the_command() {
    let whole = Checkpoint::kimi_tiny().unwrap();
    let part = Checkpoint::from_memory("part", part(&whole, &(0..2))).unwrap();
    let error = load(&part, 1..4).unwrap_err();
    assert!(matches!(error, LoadError::Weights(WeightError::NotHere { others: 1, .. })), "{error}");
    let text = error.to_string();
    assert!(text.contains("model.layers.2 and 1 more parts of layers 1-3 are not in part"), "{text}");
    assert!(text.contains("kimi pull-layers MODEL --from NODE --layers 1-3"), "{text}");
    // The same layers without the head.
    let last = whole.config().num_hidden_layers;
    let text = load(&part, last - 1..last).unwrap_err().to_string();
    assert!(text.contains("pull-layers"), "{text}");
}

#[test]
fn values_that_are_here_decide_the_fingerprint() {
    let whole = Checkpoint::kimi_tiny().unwrap();
    let mut files = part(&whole, &(0..1));
    let shard = files.iter_mut().find(|(name, _)| name == "model-7.safetensors").expect("a shard");
    let mut bytes = shard.1.to_vec();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].iter_mut().for_each(|b| *b ^= 1);
    shard.1 = bytes.into();
    let part = Checkpoint::from_memory("part", files).unwrap();
    assert_ne!(part.fingerprint(), whole.fingerprint());
}

#[test]
fn manifests_that_promise_what_cannot_be_are_refused() {
    let whole = Checkpoint::kimi_tiny().unwrap();
    let manifest = || whole.manifest().unwrap();
    type Change = fn(&mut Manifest);
    let cases: [(Change, &str); 6] = [
        (|m| m.files.push("../../.ssh/authorized_keys".into()), "which is none that kimi reads"),
        (|m| m.files.clear(), "does not name config.json"),
        (|m| m.files.push("config.json".into()), "twice"),
        (|m| m.tensors.swap(0, 1), "do not rise"),
        (|m| m.tensors[0].shape = vec![usize::MAX, 2], "too large"),
        (|m| m.tensors[0].name = "\x1b[2J".into(), "has a tensor of the name \"\\u{1b}[2J\""),
    ];
    for (change, part) in cases {
        let mut bad = manifest();
        change(&mut bad);
        let error = Manifest::parse(&bad.to_json().unwrap()).unwrap_err();
        assert!(matches!(error, CheckpointError::Manifest(_)), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(Manifest::parse(b"{}").is_err() && Manifest::parse(b"").is_err());
    // A tensor that is here with another shape.
    let mut files = part(&whole, &(0..1));
    let mut bad = manifest();
    let name = whole.group_tensors()[&Group::Layer(0)].first().unwrap().to_string();
    bad.tensors.iter_mut().find(|t| t.name == name).unwrap().shape.push(1);
    files.iter_mut().find(|(name, _)| name == MANIFEST).unwrap().1 = bad.to_json().unwrap().into();
    let error = Checkpoint::from_memory("part", files).unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains(MANIFEST), "{error}");
}
