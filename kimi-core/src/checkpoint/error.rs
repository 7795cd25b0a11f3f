//! Why a checkpoint can't be opened.

use std::path::PathBuf;

use super::{INDEX, MANIFEST};
use crate::config::ConfigError;
use crate::text_file::NotText;

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
    #[error("{path} holds no {what}; a checkpoint is a folder with config.json and model*.safetensors{beside}", path = path.display())]
    NotACheckpoint {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is there instead, as a sentence after `; `; empty if nothing is known.
        beside: String,
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
    #[error("{INDEX} {0}")]
    Index(String),
    /// `kimi-layers.json` is not what it should be.
    #[error("{MANIFEST} {0}")]
    Manifest(String),
    /// Shards are not there.
    #[error(
        "{count} of {of} shards {are} missing: {names} ({named_by} names {them}{with}). The download is not whole{unfinished}: run it \
         again, `hf download` goes on where it stopped",
        count = missing.len(), names = shown(missing),
        are = if missing.len() == 1 { "is" } else { "are" }, them = if missing.len() == 1 { "it" } else { "them" },
        with = match tensors { 0 => String::new(), n => format!(", with {n} tensors") },
        unfinished = match unfinished { 0 => String::new(), n => format!(" ({n} unfinished files are in the folder)") }
    )]
    MissingShards {
        /// File names of the shards.
        missing: Vec<String>,
        /// How many there should be.
        of: usize,
        /// What says so.
        named_by: &'static str,
        /// How many tensors they should hold; 0 if that is not known.
        tensors: usize,
        /// Files in the folder whose names say that a download was broken off.
        unfinished: usize,
    },
    /// A shard is another kind of file.
    #[error("shard {shard} {found}")]
    NotAShard {
        /// File name of the shard.
        shard: String,
        /// What it is.
        found: NotText,
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

impl CheckpointError {
    /// Whether the index promises what the shards do not have.
    pub(super) fn is_of_index(&self) -> bool {
        matches!(self, Self::MissingShards { .. } | Self::Tensor { .. })
    }
}

/// The first few names.
fn shown(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let list = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}
