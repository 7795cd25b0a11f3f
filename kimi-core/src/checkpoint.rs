//! A checkpoint: `config.json`, safetensors shards behind an index, and the tokenizer's files.
//!
//! Only headers are read when a checkpoint is opened. Tensors are reference-counted slices of memory maps, so that a
//! 504 GB checkpoint opens in milliseconds and a stage touches only the layers it holds.

mod error;
mod files;
mod index;
mod partial;
mod shard;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::config::{ConfigError, ModelConfig, token_ids};
use crate::fingerprint::Description;
use crate::plan::ModelBytes;
use crate::text_file;

pub use error::CheckpointError;
pub use files::{FolderState, folder_state};
pub use partial::{MANIFEST, Manifest, SMALL_FILES, TensorHeader};

use files::{Files, Mapped, Shard};
use index::Index;

/// The architecture.
const CONFIG: &str = "config.json";
/// When to stop.
const GENERATION_CONFIG: &str = "generation_config.json";
/// Name of the index of a checkpoint of several shards.
const INDEX: &str = "model.safetensors.index.json";
/// A checkpoint opened for reading. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    name: String,
    files: Files,
    config: ModelConfig,
    tensors: HashMap<String, Tensor>,
    shards: Vec<String>,
    maps: Vec<Mapped>,
    bytes: u64,
    warnings: Vec<String>,
    /// Tensors whose values are not here.
    missing: HashSet<String>,
    /// Of the whole checkpoint, where this is a part of one.
    manifest: Option<Arc<Manifest>>,
}

/// A tensor of a checkpoint, as stored.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Type of an element.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// The bytes, at any alignment.
    pub data: Bytes,
}

impl Checkpoint {
    /// Opens a folder: reads `config.json`, the index and every shard's header, and maps the shards.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file, what was found and what to do.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref();
        let name = folder
            .file_name()
            .map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
        Self::from_files(name, Files::Folder(folder.to_owned()))
    }

    /// A checkpoint whose files are in memory, by their names.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_memory<N: Into<String>>(
        name: impl Into<String>,
        files: impl IntoIterator<Item = (N, Bytes)>,
    ) -> Result<Self, CheckpointError> {
        let files = files.into_iter().map(|(name, data)| (name.into(), data)).collect();
        Self::from_files(name.into(), Files::Memory(Arc::new(files)))
    }

    /// The embedded checkpoint: a small Kimi-K2, for demonstration and tests.
    ///
    /// # Errors
    /// None in a sound build: its files are compiled in.
    #[cfg(feature = "tiny")]
    pub fn kimi_tiny() -> Result<Self, CheckpointError> {
        let files = crate::tiny::FILES.iter();
        Self::from_memory(crate::tiny::NAME, files.map(|(name, data)| (*name, Bytes::from_static(data))))
    }

    fn from_files(name: String, files: Files) -> Result<Self, CheckpointError> {
        let config = files.require(CONFIG)?;
        let config = ModelConfig::from_json(&config)
            .map_err(|cause| CheckpointError::Config { path: files.path(CONFIG), cause })?;
        let index = files.index()?;
        let mut checkpoint = Self {
            name,
            files,
            config,
            tensors: HashMap::new(),
            shards: Vec::new(),
            maps: Vec::new(),
            bytes: 0,
            warnings: Vec::new(),
            missing: HashSet::new(),
            manifest: None,
        };
        let manifest = checkpoint.files.manifest()?;
        match &index {
            Some(index) => checkpoint.add_indexed(index)?,
            None if manifest.is_some() && !checkpoint.files.has_shards() => {} // all of it is still to come
            None => checkpoint.add_all()?,
        }
        if let Some(manifest) = manifest {
            checkpoint.add_missing(manifest)?;
        }
        for warning in &checkpoint.warnings {
            tracing::warn!("{}: {warning}", checkpoint.name);
        }
        Ok(checkpoint)
    }

    /// The shards that the index names. Where they are not what it says, but the shards of the folder make the whole model
    /// without it, the index is of another build: conversions copy it, and mlx-lm ignores it.
    fn add_indexed(&mut self, index: &Index) -> Result<(), CheckpointError> {
        let empty = self.clone();
        let Err(error) = self.try_indexed(index) else { return Ok(()) };
        if !error.is_of_index() {
            return Err(error);
        }
        let mut all = empty;
        if all.add_all().is_err() || ModelBytes::of(&all).is_err() {
            return Err(error);
        }
        let shards = all.shards.len();
        all.warnings.push(format!(
            "{INDEX} is of another build and was not used ({error}); the {shards} model*.safetensors beside it make the whole model. \
             Delete the index, or get the right one"
        ));
        *self = all;
        Ok(())
    }

    fn try_indexed(&mut self, index: &Index) -> Result<(), CheckpointError> {
        let shards = index.shards()?;
        let missing: Vec<String> = shards.iter().filter(|s| !self.files.has(s)).cloned().collect();
        if !missing.is_empty() {
            let tensors = index.tensors_of(&missing);
            let of = shards.len();
            let unfinished = self.files.unfinished();
            return Err(CheckpointError::MissingShards { missing, of, named_by: INDEX, tensors, unfinished });
        }
        for shard in shards {
            self.add_shard(shard, Some(index))?;
        }
        index.check(&self.tensors)
    }

    /// Every `model*.safetensors`, as mlx-lm does.
    fn add_all(&mut self) -> Result<(), CheckpointError> {
        for shard in self.files.all_shards()? {
            self.add_shard(shard, None)?;
        }
        Ok(())
    }

    fn add_shard(&mut self, shard: String, index: Option<&Index>) -> Result<(), CheckpointError> {
        let (data, warning) = match self.files.map(&shard)? {
            Shard::Static(data) => (data, None),
            Shard::Mapped(map) => {
                let warning = map.warning();
                self.maps.push(map.clone());
                (Bytes::from_owner(map), warning)
            }
        };
        let tensors = shard::read(&shard, &data)?;
        self.warnings.extend(warning.map(|found| format!("shard {shard} {found}")));
        for (name, tensor) in tensors {
            let elsewhere = index.and_then(|i| i.shard_of(&name)).filter(|s| *s != shard);
            if elsewhere.is_some() {
                continue; // the index chose another copy
            }
            self.bytes += tensor.data.len() as u64;
            if self.tensors.insert(name.clone(), tensor).is_some() {
                let reason = format!(
                    "stands in two shards, the second is {shard}; if the folder holds two builds of the model, keep the files of one"
                );
                return Err(CheckpointError::Tensor { tensor: name, reason });
            }
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Name of the folder, or of the embedded checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same checkpoint under another `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn with_config_json(mut self, json: &[u8]) -> Result<Self, ConfigError> {
        self.config = ModelConfig::from_json(json)?;
        Ok(self)
    }

    /// A tensor by its full name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All tensors, in no order; with those that are not here ([`Self::is_here`]).
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// File names of the shards.
    pub fn shards(&self) -> &[String] {
        &self.shards
    }

    /// What is odd about the files, though they were opened: an index of another build, a shard that ends in zeros. Each is
    /// also logged when the checkpoint is opened.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where the shards that are files are mapped: names, and addresses in this process.
    pub fn maps(&self) -> impl Iterator<Item = (&str, std::ops::Range<usize>)> {
        self.maps.iter().map(|map| {
            let range = map.data().as_ptr_range();
            (map.name(), range.start as usize..range.end as usize)
        })
    }

    /// What happened to the first shard whose file was cut or written to since it was opened. What is computed from its
    /// tensors where they are mapped may then be wrong.
    pub fn changed_shard(&self) -> Option<String> {
        self.maps.iter().find_map(Mapped::changed)
    }

    /// Bytes of all tensors that are here.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells the system that the memory of all tensors whose names begin with `prefix` is not needed any more. They stay
    /// readable: the system brings a page in from the file again when it is touched.
    pub fn give_back(&self, prefix: &str) {
        let tensors = self.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
        for (_, tensor) in tensors.filter(|(_, tensor)| !tensor.data.is_empty()) {
            let start = tensor.data.as_ptr() as usize;
            let within = |map: &&Mapped| map.data().as_ptr_range().contains(&tensor.data.as_ptr());
            if let Some(map) = self.maps.iter().find(within).map(Mapped::data) {
                discard(map, start - map.as_ptr() as usize, tensor.data.len());
            }
        }
    }

    /// Another file of the checkpoint, such as `tiktoken.model`; `None` if it has none.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if it is there but can't be read.
    pub fn file(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        self.files.read(name)
    }

    /// End-of-sequence ids of `generation_config.json` and of `config.json`, ascending.
    ///
    /// # Errors
    /// If `generation_config.json` is not JSON or names no ids there.
    pub fn eos_ids(&self) -> Result<Vec<u32>, CheckpointError> {
        let mut ids = self.config.eos_token_id.clone();
        let named = self.generation_config()?;
        let config = |cause| CheckpointError::Config { path: self.files.path(GENERATION_CONFIG), cause };
        ids.extend(token_ids(named.get("eos_token_id")).map_err(config)?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// `temperature` and `top_p` of `generation_config.json`, where it has them.
    ///
    /// # Errors
    /// If the file is not JSON.
    pub fn sampling(&self) -> Result<[Option<f64>; 2], CheckpointError> {
        let config = self.generation_config()?;
        Ok(["temperature", "top_p"].map(|key| config.get(key).and_then(Value::as_f64)))
    }

    /// The fields of `generation_config.json`; none where there is no such file.
    fn generation_config(&self) -> Result<Map<String, Value>, CheckpointError> {
        let Some(bytes) = self.file(GENERATION_CONFIG)? else { return Ok(Map::new()) };
        let config = |cause| CheckpointError::Config { path: self.files.path(GENERATION_CONFIG), cause };
        text_file::from_json(&bytes).map_err(|e| config(ConfigError::Json(e)))
    }

    /// What decides the checkpoint's computation: config values, and a hash for each group of tensors.
    pub fn description(&self) -> Description {
        Description::of(self)
    }

    /// The fingerprint of [`Checkpoint::description`]: two machines with the same one very likely hold the same
    /// checkpoint.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.description().fingerprint()
    }
}

/// A refusal of the system costs memory, nothing else.
#[cfg(unix)]
fn discard(map: &Mmap, offset: usize, bytes: usize) {
    // SAFETY: the map is of a file and was never written, so dropped pages come back as they were.
    let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes) };
    if let Err(error) = advised {
        tracing::debug!(%error, "can't give pages back");
    }
}

#[cfg(not(unix))]
fn discard(_: &Mmap, _: usize, _: usize) {}
