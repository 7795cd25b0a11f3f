//! A checkpoint: `config.json`, safetensors shards behind an index, and the tokenizer's files.
//!
//! Only headers are read when a checkpoint is opened. Tensors are reference-counted slices of memory maps, so that a
//! 504 GB checkpoint opens in milliseconds and a stage touches only the layers it holds.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::config::{ConfigError, ModelConfig, token_ids};
use crate::fingerprint::Description;

/// The architecture.
const CONFIG: &str = "config.json";
/// When to stop.
const GENERATION_CONFIG: &str = "generation_config.json";
/// Name of the index of a checkpoint of several shards.
const INDEX: &str = "model.safetensors.index.json";
/// Largest JSON file read whole (index, config, tokenizer settings).
const MAX_JSON_BYTES: u64 = 256 << 20;

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
}

/// A shard in memory.
#[derive(Debug, Clone)]
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
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

/// Where a checkpoint's files are.
#[derive(Debug, Clone)]
enum Files {
    Folder(PathBuf),
    #[cfg_attr(not(feature = "tiny"), expect(dead_code, reason = "made by kimi_tiny only"))]
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// A checkpoint that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("can't read {path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// There is no checkpoint here.
    #[error("{path} holds no {what}; a checkpoint is a folder with config.json and model*.safetensors")]
    NotACheckpoint {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// `config.json` or `generation_config.json` can't be used.
    #[error("{path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: ConfigError,
    },
    /// The index is not what it should be.
    #[error("{INDEX}: {0}")]
    Index(String),
    /// The index names a shard that is not there.
    #[error("shard {shard} is missing: {INDEX} says it holds {tensors} tensors. Download it again")]
    MissingShard {
        /// File name of the shard.
        shard: String,
        /// How many tensors it should hold.
        tensors: usize,
    },
    /// A shard is damaged.
    #[error("shard {shard} ({bytes} bytes) is damaged: {reason}. Download it again")]
    Shard {
        /// File name of the shard.
        shard: String,
        /// Its size.
        bytes: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the index promises is not in its shard, or is in two.
    #[error("tensor {tensor}: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
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

    /// The embedded checkpoint: a small Kimi-K2, for demonstration and tests.
    ///
    /// # Errors
    /// None in a sound build: its files are compiled in.
    #[cfg(feature = "tiny")]
    pub fn kimi_tiny() -> Result<Self, CheckpointError> {
        Self::from_files(crate::tiny::NAME.to_owned(), Files::Embedded(crate::tiny::FILES))
    }

    fn from_files(name: String, files: Files) -> Result<Self, CheckpointError> {
        let config = files.require(CONFIG)?;
        let config = ModelConfig::from_json(&config)
            .map_err(|cause| CheckpointError::Config { path: files.path(CONFIG), cause })?;
        let index = files.index()?;
        let shards = match &index {
            Some(index) => index.shards()?,
            None => files.glob_shards()?,
        };
        let mut checkpoint = Self {
            name,
            files,
            config,
            tensors: HashMap::new(),
            shards: Vec::new(),
            maps: Vec::new(),
            bytes: 0,
        };
        for shard in shards {
            checkpoint.add_shard(shard, index.as_ref())?;
        }
        if let Some(index) = &index {
            index.check(&checkpoint.tensors)?;
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, shard: String, index: Option<&Index>) -> Result<(), CheckpointError> {
        let data = match self.files.map(&shard)? {
            Some(Shard::Static(data)) => data,
            Some(Shard::Mapped(map)) => {
                self.maps.push(map.clone());
                Bytes::from_owner(map)
            }
            None => {
                let tensors = index.map_or(0, |i| i.weight_map.values().filter(|s| **s == shard).count());
                return Err(CheckpointError::MissingShard { shard, tensors });
            }
        };
        for (name, tensor) in read_shard(&shard, &data)? {
            let elsewhere = index.and_then(|i| i.weight_map.get(&name)).filter(|s| **s != shard);
            if elsewhere.is_some() {
                continue; // the index chose another copy
            }
            self.bytes += tensor.data.len() as u64;
            if self.tensors.insert(name.clone(), tensor).is_some() {
                let reason = format!("stands in two shards, the second is {shard}");
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

    /// All tensors, in no order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// File names of the shards.
    pub fn shards(&self) -> &[String] {
        &self.shards
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells the system that the memory of all tensors whose names begin with `prefix` is not needed any more. They stay
    /// readable: the system brings a page in from the file again when it is touched.
    pub fn give_back(&self, prefix: &str) {
        let tensors = self.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
        for (_, tensor) in tensors.filter(|(_, tensor)| !tensor.data.is_empty()) {
            let start = tensor.data.as_ptr() as usize;
            let within = |map: &&Mapped| map.0.as_ptr_range().contains(&tensor.data.as_ptr());
            if let Some(Mapped(map)) = self.maps.iter().find(within) {
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
        if let Some(bytes) = self.file(GENERATION_CONFIG)? {
            let config = |cause| CheckpointError::Config { path: self.files.path(GENERATION_CONFIG), cause };
            let json: Map<String, Value> =
                serde_json::from_slice(&bytes).map_err(|e| config(ConfigError::Json(e.to_string())))?;
            ids.extend(token_ids(json.get("eos_token_id")).map_err(config)?);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
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

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Embedded(_) => PathBuf::from(name),
        }
    }

    /// Reads a small file; `None` if there is none.
    fn read(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        match self {
            Self::Embedded(files) => Ok(embedded(files, name)),
            Self::Folder(_) => {
                let path = self.path(name);
                let io = |cause| CheckpointError::Io { path: path.clone(), cause };
                match std::fs::metadata(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(io(e)),
                    Ok(m) if m.len() > MAX_JSON_BYTES => Err(io(std::io::Error::other(format!(
                        "{} bytes, expected at most {MAX_JSON_BYTES}",
                        m.len()
                    )))),
                    Ok(_) => Ok(Some(std::fs::read(&path).map_err(io)?.into())),
                }
            }
        }
    }

    fn require(&self, name: &'static str) -> Result<Bytes, CheckpointError> {
        let folder = self.path("");
        self.read(name)?.ok_or(CheckpointError::NotACheckpoint { path: folder, what: name })
    }

    fn index(&self) -> Result<Option<Index>, CheckpointError> {
        let Some(bytes) = self.read(INDEX)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| CheckpointError::Index(e.to_string()))
    }

    /// Without an index: every `model*.safetensors`, as mlx-lm does.
    fn glob_shards(&self) -> Result<Vec<String>, CheckpointError> {
        let is_shard = |n: &str| n.starts_with("model") && n.ends_with(".safetensors");
        let mut shards: Vec<String> = match self {
            Self::Embedded(files) => {
                files.iter().map(|(n, _)| (*n).to_owned()).filter(|n| is_shard(n)).collect()
            }
            Self::Folder(folder) => {
                let io = |cause| CheckpointError::Io { path: folder.clone(), cause };
                let entries = std::fs::read_dir(folder).map_err(io)?;
                let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
                names.filter(|n| is_shard(n)).collect()
            }
        };
        if shards.is_empty() {
            let what = "model.safetensors.index.json and no model*.safetensors";
            return Err(CheckpointError::NotACheckpoint { path: self.path(""), what });
        }
        shards.sort_unstable();
        Ok(shards)
    }

    /// Maps a shard; `None` if it is not there.
    fn map(&self, shard: &str) -> Result<Option<Shard>, CheckpointError> {
        match self {
            Self::Embedded(files) => Ok(embedded(files, shard).map(Shard::Static)),
            Self::Folder(_) => {
                let path = self.path(shard);
                let io = |cause| CheckpointError::Io { path: path.clone(), cause };
                let file = match std::fs::File::open(&path) {
                    Ok(file) => file,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(io(e)),
                };
                if file.metadata().map_err(io)?.len() == 0 {
                    return Ok(Some(Shard::Static(Bytes::new()))); // an empty map is an error on some systems
                }
                // SAFETY: the map is read-only and private to this process's view. Another process that truncates
                // the file while it is mapped ends us with SIGBUS, as it would any program that maps its weights.
                let map = unsafe { Mmap::map(&file) }.map_err(io)?;
                Ok(Some(Shard::Mapped(Mapped(Arc::new(map)))))
            }
        }
    }
}

/// A shard's bytes.
enum Shard {
    Static(Bytes),
    Mapped(Mapped),
}

fn embedded(files: &'static [(&'static str, &'static [u8])], name: &str) -> Option<Bytes> {
    files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Bytes::from_static(bytes))
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

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Index {
    fn shards(&self) -> Result<Vec<String>, CheckpointError> {
        let mut shards: Vec<String> = self.weight_map.values().cloned().collect();
        shards.sort_unstable();
        shards.dedup();
        if shards.is_empty() {
            return Err(CheckpointError::Index("weight_map is empty".to_owned()));
        }
        let outside =
            |s: &&String| Path::new(s).components().count() != 1 || s.contains(['/', '\\']) || *s == "..";
        match shards.iter().find(outside) {
            Some(bad) => {
                Err(CheckpointError::Index(format!("{bad:?} is not the name of a file in this folder")))
            }
            None => Ok(shards),
        }
    }

    fn check(&self, tensors: &HashMap<String, Tensor>) -> Result<(), CheckpointError> {
        let lost = self.weight_map.iter().filter(|(name, _)| !tensors.contains_key(*name)).min();
        lost.map_or(Ok(()), |(name, shard)| {
            let reason = format!("{INDEX} says it is in {shard}, whose header does not list it");
            Err(CheckpointError::Tensor { tensor: name.clone(), reason })
        })
    }
}

/// The tensors of one safetensors file.
///
/// The checks are those of the safetensors crate (sizes, no holes, no overlaps, nothing after the last tensor), and
/// that no name stands twice.
fn read_shard(shard: &str, data: &Bytes) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    let damaged =
        |reason: String| CheckpointError::Shard { shard: shard.to_owned(), bytes: data.len() as u64, reason };
    let (header, metadata) =
        SafeTensors::read_metadata(data).map_err(|e| damaged(explain(data, &e.to_string())))?;
    let start = 8 + header;
    check_unique_keys(&data[8..start]).map_err(damaged)?;
    let slice = |Range { start: a, end: b }: Range<usize>| data.slice(start + a..start + b);
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let data = slice(info.data_offsets.0..info.data_offsets.1);
        (name, Tensor { dtype: info.dtype, shape: info.shape.clone(), data })
    });
    Ok(tensors.collect())
}

/// Adds to the crate's message the number that explains it.
fn explain(data: &[u8], reason: &str) -> String {
    let Some(length) = data.get(..8).and_then(|b| <[u8; 8]>::try_from(b).ok()).map(u64::from_le_bytes) else {
        return format!("{reason}: the file is shorter than the 8 bytes of its header length");
    };
    format!("{reason} (the first 8 bytes say that the header has {length} bytes)")
}

/// serde_json keeps the last of two equal keys; a header that has them is not to be trusted.
fn check_unique_keys(header: &[u8]) -> Result<(), String> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = std::collections::HashSet::new();
            while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                if let Some(twice) = seen.replace(key) {
                    return Err(serde::de::Error::custom(format!("the header lists {twice:?} twice")));
                }
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(header);
    json.deserialize_map(Keys).map_err(|e| e.to_string())
}
