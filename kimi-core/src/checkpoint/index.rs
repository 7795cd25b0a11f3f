//! The index of a checkpoint of several shards: which tensor is in which.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::{CheckpointError, INDEX, Tensor};
use crate::text_file;

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
pub(super) struct Index {
    weight_map: HashMap<String, String>,
}

impl Index {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        text_file::from_json(bytes).map_err(|e| CheckpointError::Index(e.to_string()))
    }

    /// The shards' file names, sorted.
    pub(super) fn shards(&self) -> Result<Vec<String>, CheckpointError> {
        let mut shards: Vec<String> = self.weight_map.values().cloned().collect();
        shards.sort_unstable();
        shards.dedup();
        if shards.is_empty() {
            return Err(CheckpointError::Index("has an empty weight_map".to_owned()));
        }
        let outside =
            |s: &&String| Path::new(s).components().count() != 1 || s.contains(['/', '\\']) || *s == "..";
        match shards.iter().find(outside) {
            Some(bad) => Err(CheckpointError::Index(format!(
                "names {bad:?}, which is not the name of a file in this folder"
            ))),
            None => Ok(shards),
        }
    }

    /// The shard that a tensor is in.
    pub(super) fn shard_of(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(String::as_str)
    }

    /// How many tensors are in these shards.
    pub(super) fn tensors_of(&self, shards: &[String]) -> usize {
        self.weight_map.values().filter(|shard| shards.contains(shard)).count()
    }

    /// Every tensor must have been found where the index says that it is.
    pub(super) fn check(&self, tensors: &HashMap<String, Tensor>) -> Result<(), CheckpointError> {
        let lost = self.weight_map.iter().filter(|(name, _)| !tensors.contains_key(*name)).min();
        lost.map_or(Ok(()), |(name, shard)| {
            let reason = format!("{INDEX} says it is in {shard}, whose header does not list it");
            Err(CheckpointError::Tensor { tensor: name.clone(), reason })
        })
    }
}
