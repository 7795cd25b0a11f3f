//! Checkpoints of which only some layers are here, and the manifest that stands for the others.
//!
//! A stage needs its own layers. But plans, checks and the fingerprint are of the whole model: they need the names, types
//! and shapes of all tensors, and a hash of each group. A [`Manifest`] holds those. In a folder with one
//! ([`MANIFEST`]), tensors that are in no shard count as missing: they have their shape and no values.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::{CONFIG, Checkpoint, CheckpointError, GENERATION_CONFIG, Tensor};
use crate::fingerprint::{Description, Group};
use crate::text_file;
use crate::weights::{WeightError, Weights};

/// Name of the manifest in a folder of a partial checkpoint.
pub const MANIFEST: &str = "kimi-layers.json";

/// Files beside the weights that kimi reads, and the only ones that a manifest may name.
pub const SMALL_FILES: [&str; 8] = [
    CONFIG,
    GENERATION_CONFIG,
    "tokenizer_config.json",
    "tokenizer.json",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "hf_quant_config.json",
];

/// What a whole checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What decides its computation.
    pub description: Description,
    /// Its files beside the weights: some of [`SMALL_FILES`].
    pub files: Vec<String>,
    /// The tensors of the model, by name in rising order.
    pub tensors: Vec<TensorHeader>,
}

/// A tensor without its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorHeader {
    /// Its name in the checkpoint.
    pub name: String,
    /// Type of an element.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
}

impl TensorHeader {
    /// Bytes of its values; `None` if no machine could address them, or they end within a byte.
    pub fn bytes(&self) -> Option<usize> {
        let elements = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let bits = elements.checked_mul(self.dtype.bitsize())?;
        let bytes = bits.is_multiple_of(8).then_some(bits / 8)?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }
}

impl Manifest {
    /// Reads a manifest, and checks that it names each file and tensor once, and only files of a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Manifest`].
    pub fn parse(json: &[u8]) -> Result<Self, CheckpointError> {
        let wrong = CheckpointError::Manifest;
        let manifest: Self = text_file::from_json(json).map_err(|e| wrong(e.to_string()))?;
        if let Some(name) = manifest.files.iter().find(|name| !SMALL_FILES.contains(&name.as_str())) {
            return Err(wrong(format!("names the file {name:?}, which is none that kimi reads")));
        }
        if !manifest.files.iter().any(|name| name == CONFIG) {
            return Err(wrong(format!("does not name {CONFIG}")));
        }
        let files: BTreeSet<_> = manifest.files.iter().collect();
        let rising = manifest.tensors.windows(2).all(|pair| pair[0].name < pair[1].name);
        if files.len() != manifest.files.len() || !rising {
            return Err(wrong("names a file twice, or its tensors' names do not rise".to_owned()));
        }
        // It may come from another machine, and names are shown.
        let odd = |t: &&TensorHeader| t.name.is_empty() || !t.name.bytes().all(|b| b.is_ascii_graphic());
        if let Some(tensor) = manifest.tensors.iter().find(odd) {
            return Err(wrong(format!("has a tensor of the name {:?}", tensor.name)));
        }
        match manifest.tensors.iter().find(|tensor| tensor.bytes().is_none()) {
            Some(TensorHeader { name, dtype, shape }) => Err(wrong(format!(
                "gives tensor {name:?} the shape {shape:?} of {dtype}, which is too large"
            ))),
            None => Ok(manifest),
        }
    }

    /// As [`Self::parse`] reads it.
    ///
    /// # Errors
    /// None that is known: it is plain text and numbers.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

impl Checkpoint {
    /// What the whole checkpoint consists of, for a machine that wants a part of it.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn manifest(&self) -> Result<Manifest, CheckpointError> {
        let mut files = Vec::new();
        for name in SMALL_FILES {
            if self.file(name)?.is_some() {
                files.push(name.to_owned());
            }
        }
        let names: BTreeSet<_> = self.group_tensors().into_values().flatten().collect();
        let header = |name: String| {
            let Tensor { dtype, shape, .. } = self.tensor(&name)?;
            Some(TensorHeader { dtype: *dtype, shape: shape.clone(), name })
        };
        let tensors = names.into_iter().map(str::to_owned).filter_map(header).collect();
        Ok(Manifest { description: self.description(), files, tensors })
    }

    /// Whether a tensor's values are here.
    pub fn is_here(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor) && !self.missing.contains(tensor)
    }

    /// The groups of tensors that a stage of these layers reads.
    pub fn groups_of(&self, layers: &Range<usize>) -> BTreeSet<Group> {
        let last = layers.end == self.config.num_hidden_layers;
        let tied = Weights::new(self).is_head_tied();
        let mut groups: BTreeSet<_> = layers.clone().map(Group::Layer).collect();
        if layers.start == 0 || (last && tied) {
            groups.insert(Group::Embedding);
        }
        if last {
            groups.insert(Group::Norm);
            groups.extend((!tied).then_some(Group::Head));
        }
        groups
    }

    /// The names of each group's tensors, sorted.
    pub fn group_tensors(&self) -> BTreeMap<Group, BTreeSet<&str>> {
        let weights = Weights::new(self);
        let mut groups: BTreeMap<Group, BTreeSet<&str>> = BTreeMap::new();
        for name in self.tensors.keys() {
            let own = weights.own_name(name);
            if let Some(group) = own.and_then(|own| Group::of(&own, self.config.num_hidden_layers)) {
                groups.entry(group).or_default().insert(name);
            }
        }
        groups
    }

    /// Groups with tensors whose values are not here; none of a whole checkpoint.
    pub fn missing_groups(&self) -> BTreeSet<Group> {
        if self.missing.is_empty() {
            return BTreeSet::new();
        }
        let groups = self.group_tensors().into_iter();
        groups.filter(|(_, names)| names.iter().any(|n| self.missing.contains(*n))).map(|(g, _)| g).collect()
    }

    /// The hash of a group by the manifest.
    pub(crate) fn recorded_hash(&self, group: &str) -> Option<[u8; 32]> {
        let recorded = &self.manifest.as_ref()?.description.tensors;
        recorded.iter().find(|(name, _)| name == group).map(|(_, hash)| *hash)
    }

    /// Makes sure that a stage of these layers has its weights here.
    pub(crate) fn check_here(&self, layers: &Range<usize>) -> Result<(), WeightError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let missing = self.missing_groups();
        let needed: Vec<_> = self.groups_of(layers).intersection(&missing).map(ToString::to_string).collect();
        match needed.first() {
            None => Ok(()),
            Some(first) => Err(WeightError::NotHere {
                checkpoint: self.name.clone(),
                first: first.clone(),
                others: needed.len() - 1,
                layers: format!("{}-{}", layers.start, layers.end.saturating_sub(1)),
            }),
        }
    }

    /// Takes in the tensors of a manifest that no shard has.
    pub(super) fn add_missing(&mut self, manifest: Manifest) -> Result<(), CheckpointError> {
        let mut missing = Vec::new();
        for header in &manifest.tensors {
            match self.tensors.get(&header.name) {
                Some(found) if found.dtype == header.dtype && found.shape == header.shape => {}
                Some(Tensor { dtype, shape, .. }) => {
                    let reason = format!(
                        "is {shape:?} of {dtype}, but {MANIFEST} says {:?} of {}; pull its layer again into an empty folder",
                        header.shape, header.dtype
                    );
                    return Err(CheckpointError::Tensor { tensor: header.name.clone(), reason });
                }
                None => missing.push((header, header.bytes().unwrap_or_default())),
            }
        }
        let longest = missing.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let zeros = zeros(longest).map_err(|cause| {
            CheckpointError::Manifest(format!(
                "has a tensor of {longest} bytes, for which the system gives no room: {cause}"
            ))
        })?;
        for (TensorHeader { name, dtype, shape }, bytes) in missing {
            let data = zeros.slice(..bytes);
            self.tensors.insert(name.clone(), Tensor { dtype: *dtype, shape: shape.clone(), data });
            self.missing.insert(name.clone());
        }
        self.manifest = Some(manifest.into());
        Ok(())
    }
}

/// Zeros that take no memory, in the place of all values that are not here.
fn zeros(bytes: usize) -> std::io::Result<Bytes> {
    struct Zeros(Mmap);
    impl AsRef<[u8]> for Zeros {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    if bytes == 0 {
        return Ok(Bytes::new());
    }
    let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
    Ok(Bytes::from_owner(Zeros(map.make_read_only()?)))
}
