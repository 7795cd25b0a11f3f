//! The files of a checkpoint, in a folder or in the program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::Mmap;

use super::index::Index;
use super::{CONFIG, CheckpointError, INDEX, MANIFEST, Manifest};

/// Largest text file that is read whole (index, config, tokenizer).
const MAX_TEXT_BYTES: u64 = 256 << 20;
/// Files that other programs keep weights in, and what to say of them.
const OTHER_WEIGHTS: [(&str, &str); 6] = [
    (".gguf", "GGUF files, which are llama.cpp's; kimi reads safetensors"),
    (".bin", "PyTorch's .bin files; kimi reads safetensors (mlx_lm.convert writes them)"),
    (".pt", "PyTorch's .pt files; kimi reads safetensors (mlx_lm.convert writes them)"),
    (".pth", "PyTorch's .pth files; kimi reads safetensors (mlx_lm.convert writes them)"),
    (".npz", "NumPy's .npz files; kimi reads safetensors (mlx_lm.convert writes them)"),
    (
        ".safetensors",
        "safetensors whose names do not begin with `model`, as an adapter's or another program's do",
    ),
];

/// Where a checkpoint's files are.
#[derive(Debug, Clone)]
pub(super) enum Files {
    Folder(PathBuf),
    /// By their names.
    Memory(Arc<BTreeMap<String, Bytes>>),
}

/// A shard's bytes.
pub(super) enum Shard {
    Static(Bytes),
    Mapped(Mapped),
}

/// A shard in memory, with what its file was when it was opened.
#[derive(Debug, Clone)]
pub(super) struct Mapped(Arc<OpenShard>);

#[derive(Debug)]
struct OpenShard {
    name: String,
    map: Mmap,
    file: File,
    modified: Option<SystemTime>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// How much of a checkpoint is in a folder, by the names of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderState {
    /// No `config.json`.
    NoConfig,
    /// Weights are missing.
    Partial {
        /// What is missing, for people.
        missing: String,
    },
    /// Everything that a checkpoint needs is there.
    Whole,
}

/// Looks at the files of a folder without opening a shard.
pub fn folder_state(folder: &Path) -> FolderState {
    let files = Files::Folder(folder.to_owned());
    if !files.has(CONFIG) {
        return FolderState::NoConfig;
    }
    let shards = match files.index() {
        Ok(Some(index)) => index.shards(),
        Ok(None) => files.all_shards(),
        Err(error) => Err(error),
    };
    let partial = |missing: String| FolderState::Partial { missing };
    if files.has(MANIFEST) {
        return partial("some of its layers may be on other machines".to_owned());
    }
    match shards {
        Err(CheckpointError::NotACheckpoint { .. }) => partial("model*.safetensors".to_owned()),
        Err(error) => partial(error.to_string()),
        Ok(shards) => match shards.iter().filter(|s| !files.has(s)).count() {
            0 => FolderState::Whole,
            n => partial(format!("{n} of {} shards", shards.len())),
        },
    }
}

impl Mapped {
    /// The file's name.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// The file's bytes.
    pub(super) fn data(&self) -> &Mmap {
        &self.0.map
    }

    /// What makes the file look unfinished although it has its full length, as a downloader leaves it that makes room first.
    pub(super) fn warning(&self) -> Option<String> {
        const PAGE: usize = 4096;
        const LOOKED_AT: usize = 1 << 20;
        let data: &[u8] = &self.0.map;
        let zeros = data.iter().rev().take(PAGE).all(|b| *b == 0) && data.len() > PAGE;
        if zeros {
            let count = data.iter().rev().take(LOOKED_AT).take_while(|b| **b == 0).count();
            let more = if count == LOOKED_AT { " or more" } else { "" };
            return Some(format!(
                "ends in {count} zero bytes{more}: its download may have been broken off. If answers make no sense, download it again"
            ));
        }
        self.hole().map(|at| {
            format!(
                "was never written from byte {at} on for a while (its file has a hole there): its download may have been broken off. \
                 If answers make no sense, download it again"
            )
        })
    }

    /// Where the first part begins that the file system has no data for.
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn hole(&self) -> Option<u64> {
        // Another handle: the position belongs to the open file.
        let file = self.0.file.try_clone().ok()?;
        let at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).ok()?;
        (at < self.0.map.len() as u64).then_some(at)
    }

    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    fn hole(&self) -> Option<u64> {
        None
    }

    /// What was done to the file since it was opened. A file that was replaced under its name is not meant: the one that
    /// was opened stays as it was.
    pub(super) fn changed(&self) -> Option<String> {
        let OpenShard { name, map, file, modified } = &*self.0;
        let now = file.metadata().ok()?;
        if now.len() != map.len() as u64 {
            let (was, is) = (map.len(), now.len());
            return Some(format!("shard {name} had {was} bytes when it was opened and has {is} now"));
        }
        (now.modified().ok() != *modified).then(|| format!("shard {name} was written to after it was opened"))
    }
}

impl Files {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Memory(_) => PathBuf::from(name),
        }
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Memory(files) => files.contains_key(name),
        }
    }

    /// Reads a small file; `None` if there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        match self {
            Self::Memory(files) => Ok(files.get(name).cloned()),
            Self::Folder(_) => {
                let path = self.path(name);
                let io = |cause| CheckpointError::Io { path: path.clone(), cause };
                match std::fs::metadata(&path) {
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(io(e)),
                    Ok(m) if m.len() > MAX_TEXT_BYTES => Err(io(std::io::Error::other(format!(
                        "{} bytes, expected at most {MAX_TEXT_BYTES}",
                        m.len()
                    )))),
                    Ok(_) => Ok(Some(std::fs::read(&path).map_err(io)?.into())),
                }
            }
        }
    }

    pub(super) fn require(&self, name: &'static str) -> Result<Bytes, CheckpointError> {
        let missing =
            || CheckpointError::NotACheckpoint { path: self.path(""), what: name, beside: self.beside() };
        self.read(name)?.ok_or_else(missing)
    }

    pub(super) fn index(&self) -> Result<Option<Index>, CheckpointError> {
        self.read(INDEX)?.map(|bytes| Index::parse(&bytes)).transpose()
    }

    /// The whole checkpoint's contents, where this is a part of one.
    pub(super) fn manifest(&self) -> Result<Option<Manifest>, CheckpointError> {
        self.read(MANIFEST)?.map(|bytes| Manifest::parse(&bytes)).transpose()
    }

    /// Whether there is a file with weights.
    pub(super) fn has_shards(&self) -> bool {
        self.list().iter().any(|name| is_shard(name))
    }

    /// Names of all files, sorted. Those of a folder that can't be listed are none: whoever opens one gets the reason.
    fn list(&self) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Memory(files) => files.keys().cloned().collect(),
            Self::Folder(folder) => {
                let entries = std::fs::read_dir(folder).into_iter().flatten();
                entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
            }
        };
        names.sort_unstable();
        names
    }

    /// Every `model*.safetensors`, as mlx-lm reads them without an index. Names that say of how many they are must be complete.
    pub(super) fn all_shards(&self) -> Result<Vec<String>, CheckpointError> {
        let mut shards = self.list();
        shards.retain(|name| is_shard(name));
        if shards.is_empty() {
            let what = "model.safetensors.index.json and no model*.safetensors";
            return Err(CheckpointError::NotACheckpoint { path: self.path(""), what, beside: self.beside() });
        }
        let (missing, of) = missing_parts(&shards);
        if missing.is_empty() {
            return Ok(shards);
        }
        let (named_by, unfinished) = ("the others' names", self.unfinished());
        Err(CheckpointError::MissingShards { missing, of, named_by, tensors: 0, unfinished })
    }

    /// How many files a download has left unfinished, as far as their names say.
    pub(super) fn unfinished(&self) -> usize {
        let mut names = self.list();
        if let Self::Folder(folder) = self {
            // `hf download --local-dir` keeps them here.
            names.extend(Self::Folder(folder.join(".cache/huggingface/download")).list());
        }
        let endings = [".incomplete", ".part", ".aria2", ".crdownload", ".download", ".tmp"];
        names.iter().filter(|name| endings.iter().any(|end| name.ends_with(end))).count()
    }

    /// What else is in the folder, for someone who expected a checkpoint there.
    fn beside(&self) -> String {
        let names = self.list();
        let weights = OTHER_WEIGHTS.iter().find(|(ending, _)| names.iter().any(|n| n.ends_with(ending)));
        if let Some((_, what)) = weights.filter(|_| !self.has_shards()) {
            return format!(". The folder has {what}");
        }
        let Self::Folder(folder) = self else { return String::new() };
        let below = names.iter().find(|n| folder.join(n).join(CONFIG).is_file());
        match (below, names.is_empty()) {
            (Some(name), _) => format!(". One is in its subfolder {name:?}"),
            (None, true) if folder.is_dir() => ". The folder is empty".to_owned(),
            _ => String::new(),
        }
    }

    /// Maps a shard.
    pub(super) fn map(&self, shard: &str) -> Result<Shard, CheckpointError> {
        let path = self.path(shard);
        let io = |cause| CheckpointError::Io { path: path.clone(), cause };
        if let Self::Memory(files) = self {
            let data = files.get(shard).cloned().ok_or_else(|| io(ErrorKind::NotFound.into()))?;
            return Ok(Shard::Static(data));
        }
        let file = File::open(&path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Ok(Shard::Static(Bytes::new())); // an empty map is an error on some systems
        }
        // SAFETY: the map is read-only and private to this process's view. Another process that truncates the file while it
        // is mapped ends us with SIGBUS, as it would any program that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let modified = metadata.modified().ok();
        Ok(Shard::Mapped(Mapped(Arc::new(OpenShard { name: shard.to_owned(), map, file, modified }))))
    }
}

/// Whether mlx-lm takes a file of this name for a shard.
fn is_shard(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// Of names such as `model-00002-of-00004.safetensors`, those that are missing, and how many there should be.
fn missing_parts(shards: &[String]) -> (Vec<String>, usize) {
    /// Most parts that a name may promise.
    const MAX_PARTS: usize = 10_000;
    // By what stands around the number: the numbers that are there, and the width that they are written in.
    let mut sets: BTreeMap<(&str, &str), (Vec<usize>, usize)> = BTreeMap::new();
    for shard in shards {
        let Some((before, of)) = shard.strip_suffix(".safetensors").and_then(|s| s.rsplit_once("-of-"))
        else {
            continue;
        };
        let Some((stem, number)) = before.rsplit_once('-') else { continue };
        if let Ok(n) = number.parse() {
            let (numbers, width) = sets.entry((stem, of)).or_default();
            numbers.push(n);
            *width = number.len();
        }
    }
    let (mut missing, mut all) = (Vec::new(), 0);
    for ((stem, of), (numbers, width)) in sets {
        let Some(count) = of.parse().ok().filter(|n| (1..=MAX_PARTS).contains(n)) else { continue };
        all += count;
        let first = usize::from(!numbers.contains(&0));
        let lost = (first..first + count).filter(|n| !numbers.contains(n));
        missing.extend(lost.map(|n| format!("{stem}-{n:0width$}-of-{of}.safetensors")));
    }
    (missing, all)
}

#[cfg(test)]
mod tests {
    use super::missing_parts;

    fn missing(names: &[&str]) -> (Vec<String>, usize) {
        missing_parts(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_say_what_is_missing() {
        assert_eq!(missing(&["model.safetensors"]), (vec![], 0));
        assert_eq!(
            missing(&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
            (vec![], 2)
        );
        let found = missing(&["model-00001-of-000004.safetensors", "model-00003-of-000004.safetensors"]);
        assert_eq!(
            found,
            (vec!["model-00002-of-000004.safetensors".into(), "model-00004-of-000004.safetensors".into()], 4)
        );
        assert_eq!(
            missing(&["model-1-of-3.safetensors", "model-2-of-3.safetensors"]).0,
            ["model-3-of-3.safetensors"]
        );
        // Counted from 0.
        assert_eq!(
            missing(&["model-0-of-2.safetensors", "model-1-of-2.safetensors"]).0,
            Vec::<String>::new()
        );
        // What is no number, or promises too much, says nothing.
        assert_eq!(missing(&["model-a-of-b.safetensors", "model-1-of-99999999.safetensors"]), (vec![], 0));
    }
}
