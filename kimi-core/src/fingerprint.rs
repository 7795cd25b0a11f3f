//! What decides a checkpoint's computation, in a form that two machines can compare.
//!
//! A [`Description`] lists the config values that decide what is computed, and has one hash for each group of tensors:
//! `model.embed_tokens`, every layer, `model.norm` and `lm_head`. Its [`fingerprint`](Description::fingerprint) is 32
//! bytes; its [`difference`](Description::difference) from another description names the first thing that differs.
//!
//! Left out is what changes no result: the order of keys, keys that kimi does not read, `model_type`,
//! `max_position_embeddings`, end-of-sequence ids, quantization entries that repeat what the shapes say, the layout of
//! the shards, the prefix `language_model.`, and tensors that belong to no part of the model, such as those of a vision
//! tower or of layers from `num_hidden_layers` on.

mod difference;
mod group;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Tensor};
use crate::weights::Weights;
pub use difference::Difference;
pub use group::Group;

/// What decides a checkpoint's computation. From a peer it may hold anything: it is only compared and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// How the rest was made: [`Description::VERSION`] of the release that made it.
    pub version: u32,
    /// Keys and values of the config, in a fixed order. Values are in one canonical spelling.
    pub config: Vec<(String, String)>,
    /// Groups of tensors, such as `model.layers.3`, and their hashes, in the order of the model.
    pub tensors: Vec<(String, [u8; 32])>,
}

impl Description {
    /// Version of what is described and how it is hashed. It changes with either.
    pub const VERSION: u32 = 1;

    /// Most bytes that a description of any checkpoint takes when encoded with postcard.
    pub const MAX_BYTES: usize = 16 << 10;

    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let weights = Weights::new(checkpoint);
        let mut config = checkpoint.config().deciding_values();
        config.push(("tie_word_embeddings", weights.is_head_tied().to_string()));
        let config = config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { version: Self::VERSION, config, tensors: tensor_hashes(checkpoint, &weights) }
    }

    /// Two machines with the same fingerprint very likely hold the same checkpoint.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Canonical::new("kimi fingerprint");
        hash.number(self.version.into());
        hash.bytes(&self.config_hash());
        hash.bytes(&self.tensors_hash());
        hash.finish()
    }

    /// Hash of the config values alone.
    pub fn config_hash(&self) -> [u8; 32] {
        let mut hash = Canonical::new("kimi config");
        for (key, value) in &self.config {
            hash.bytes(key.as_bytes());
            hash.bytes(value.as_bytes());
        }
        hash.finish()
    }

    /// Hash of the tensors alone.
    pub fn tensors_hash(&self) -> [u8; 32] {
        let mut hash = Canonical::new("kimi tensors");
        for (group, tensors) in &self.tensors {
            hash.bytes(group.as_bytes());
            hash.bytes(tensors);
        }
        hash.finish()
    }

    /// What differs first between this description and another one; `None` if they are equal.
    pub fn difference(&self, theirs: &Self) -> Option<Difference> {
        if self.version != theirs.version {
            return Some(Difference::Version { ours: self.version, theirs: theirs.version });
        }
        if let Some(&(key, ours, theirs)) = differing(&self.config, &theirs.config).first() {
            let (key, ours, theirs) = (key.to_owned(), ours.cloned(), theirs.cloned());
            return Some(Difference::Config { key, ours, theirs });
        }
        let groups = differing(&self.tensors, &theirs.tensors);
        if let Some(&(group, ours, theirs)) = groups.first() {
            return Some(Difference::Tensors {
                group: group.to_owned(),
                ours: ours.is_some(),
                theirs: theirs.is_some(),
                others: groups.len() - 1,
            });
        }
        (self != theirs).then_some(Difference::Form)
    }
}

/// Keys whose values differ: ours in their order, then those that only the other side has.
fn differing<'a, V: PartialEq>(
    ours: &'a [(String, V)],
    theirs: &'a [(String, V)],
) -> Vec<(&'a str, Option<&'a V>, Option<&'a V>)> {
    let by_key = |list: &'a [(String, V)]| -> HashMap<&'a str, &'a V> {
        list.iter().map(|(key, value)| (key.as_str(), value)).collect()
    };
    let (our_values, their_values) = (by_key(ours), by_key(theirs));
    let shared_or_ours = ours.iter().map(|(key, _)| key.as_str());
    let only_theirs = theirs.iter().map(|(key, _)| key.as_str()).filter(|key| !our_values.contains_key(key));
    let pairs = shared_or_ours
        .chain(only_theirs)
        .map(|key| (key, our_values.get(key).copied(), their_values.get(key).copied()));
    pairs.filter(|(_, ours, theirs)| ours != theirs).collect()
}

/// One hash for each group of tensors. Layers beyond those of any real model share one, so that the list stays short.
fn tensor_hashes(checkpoint: &Checkpoint, weights: &Weights<'_>) -> Vec<(String, [u8; 32])> {
    /// Layers with a hash of their own.
    const OWN: usize = 256;
    let layers = checkpoint.config().num_hidden_layers;
    let mut groups: BTreeMap<Group, BTreeMap<Cow<'_, str>, &Tensor>> = BTreeMap::new();
    for (name, tensor) in checkpoint.tensors() {
        let Some(name) = weights.own_name(name) else { continue };
        if let Some(group) = Group::of(&name, layers) {
            groups.entry(group).or_default().insert(name, tensor);
        }
    }
    let samples = samples_per_group(layers);
    // Of what is not here, the manifest says it. A manifest that does not is no whole checkpoint's.
    let missing = checkpoint.missing_groups();
    let recorded = |group: &str| checkpoint.recorded_hash(group).unwrap_or_default();
    let mut hashes = Vec::new();
    let mut last = Canonical::new("kimi layers");
    let mut has_last = false;
    for (group, tensors) in groups {
        let name = group.to_string();
        let group_hash = match missing.contains(&group) {
            true => recorded(&name),
            false => group_hash(group, &tensors, weights, samples),
        };
        match group {
            Group::Layer(OWN..) => {
                last.bytes(name.as_bytes());
                last.bytes(&group_hash);
                has_last = true;
            }
            _ => hashes.push((name, group_hash)),
        }
    }
    if has_last {
        let name = format!("the layers from model.layers.{OWN} on");
        let known = !missing.iter().any(|group| matches!(group, Group::Layer(OWN..)));
        let hash = if known { last.finish() } else { recorded(&name) };
        hashes.push((name, hash));
    }
    hashes
}

/// How many tensors of a group are looked into, so that it is about 256 in the whole model: each may be a read from a
/// disk. The number follows from the config alone, so that one tensor too many in a layer changes no other layer's hash.
fn samples_per_group(layers: usize) -> usize {
    const SAMPLES: usize = 256;
    (SAMPLES / (layers + 3)).max(1)
}

/// Hash of names, types and shapes of all tensors of a group, of the first bytes of some that are spread over it, and of
/// bits and group size of its matrices.
fn group_hash(
    group: Group,
    tensors: &BTreeMap<Cow<'_, str>, &Tensor>,
    weights: &Weights<'_>,
    samples: usize,
) -> [u8; 32] {
    const SAMPLE_BYTES: usize = 256;
    let mut hash = Canonical::new("kimi tensor group");
    let every = tensors.len().div_ceil(samples).max(1);
    hash.number(tensors.len() as u64);
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        hash.bytes(name.as_bytes());
        hash.bytes(tensor.dtype.to_string().as_bytes());
        hash.number(tensor.shape.len() as u64);
        tensor.shape.iter().for_each(|&n| hash.number(n as u64));
        if i % every == 0 {
            hash.bytes(&tensor.data[..tensor.data.len().min(SAMPLE_BYTES)]);
        }
    }
    let mut formats = Canonical::new("kimi formats");
    match group.hash_formats(weights, &mut formats) {
        Ok(()) => hash.bytes(&formats.finish()),
        // Such a checkpoint does not load. What its config says of the modules still tells it from one that does.
        Err(_) => {
            for module in tensors.keys().filter_map(|name| name.strip_suffix(".scales")) {
                if let Some(entry) = weights.entry(module) {
                    hash.bytes(module.as_bytes());
                    hash.number(entry.bits.into());
                    hash.number(entry.group_size as u64);
                    hash.bytes(entry.mode.as_bytes());
                }
            }
        }
    }
    hash.finish()
}

/// Hashes values so that no two lists of values give the same bytes: a text follows its length, and every hash begins
/// with what it is of.
struct Canonical(blake3::Hasher);

impl Canonical {
    fn new(what: &str) -> Self {
        let mut hash = Self(blake3::Hasher::new());
        hash.bytes(what.as_bytes());
        hash
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Description {
        Description {
            version: Description::VERSION,
            config: vec![("hidden_size".into(), "256".into()), ("rope_theta".into(), "50000".into())],
            tensors: vec![("model.layers.2".into(), [2; 32]), ("model.layers.3".into(), [3; 32])],
        }
    }

    #[track_caller]
    fn differ(change: impl FnOnce(&mut Description)) -> String {
        let mut theirs = sample();
        change(&mut theirs);
        assert_ne!(sample().fingerprint(), theirs.fingerprint());
        sample().difference(&theirs).unwrap().between("here", "at the coordinator")
    }

    #[test]
    fn equal_descriptions_do_not_differ() {
        assert_eq!(sample().difference(&sample()), None);
        assert_eq!(sample().fingerprint(), sample().fingerprint());
    }

    #[test]
    fn the_sentence_names_key_group_and_both_values() {
        assert_eq!(
            differ(|d| d.config[1].1 = "10000".into()),
            "config.json: rope_theta is 50000 here and 10000 at the coordinator; give both machines the same files"
        );
        assert_eq!(
            differ(|d| d.tensors[1].1 = [0; 32]),
            "the tensors of model.layers.3 differ here and at the coordinator (names, types, shapes, bits or weights); \
             give both machines the same files"
        );
        let both = differ(|d| d.tensors.iter_mut().for_each(|(_, hash)| *hash = [0; 32]));
        assert!(both.contains("model.layers.2 and of 1 other group differ"), "{both}");
    }

    #[test]
    fn what_only_one_side_has_is_named() {
        let text = differ(|d| d.config.truncate(1));
        assert!(text.contains("rope_theta is 50000 here and not set at the coordinator"), "{text}");
        let text = differ(|d| d.config.push(("rope_scaling.factor".into(), "32".into())));
        assert!(text.contains("rope_scaling.factor is not set here and 32 at the coordinator"), "{text}");
        let text = differ(|d| d.tensors.truncate(1));
        assert!(text.contains("tensors of model.layers.3 here and none at the coordinator"), "{text}");
        let text = differ(|d| d.tensors.push(("lm_head".into(), [0; 32])));
        assert!(text.contains("tensors of lm_head at the coordinator and none here"), "{text}");
    }

    #[test]
    fn another_version_or_form_is_said() {
        let text = differ(|d| d.version += 1);
        assert!(text.contains("version 1 here and in version 2 at the coordinator"), "{text}");
        assert!(differ(|d| d.config.reverse()).contains("form"));
        assert!(differ(|d| d.tensors.push(d.tensors[1].clone())).contains("form"));
    }

    #[test]
    fn no_other_split_of_the_same_text_has_the_same_hash() {
        let list = |pairs: &[(&str, &str)]| Description {
            config: pairs.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
            ..sample()
        };
        assert_ne!(list(&[("ab", "c")]).config_hash(), list(&[("a", "bc")]).config_hash());
        assert_ne!(list(&[("a", "b"), ("c", "d")]).config_hash(), list(&[("a", "bcd")]).config_hash());
    }

    #[test]
    fn text_of_a_peer_is_shortened_and_escaped() {
        let text = differ(|d| d.config[1].1 = "\u{1b}[2J\r\n\u{202e}\u{0}".to_owned() + &"x".repeat(10_000));
        assert!(text.len() < 300, "{text}");
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
        let text = differ(|d| d.tensors.push(("\u{7}".repeat(1000), [0; 32])));
        assert!(text.len() < 600 && !text.contains('\u{7}'), "{text:?}");
    }
}
