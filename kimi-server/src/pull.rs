//! `kimi pull-layers`: just the layers that a machine needs, from one that has them.
//!
//! The source is any worker: it answers observers whatever else it does. From it come the manifest of its checkpoint, the
//! small files, and the tensors of the layers asked for, in ranges of at most [`kimi_net::MAX_PIECE`] bytes. What is
//! written is a partial checkpoint (`kimi_core::checkpoint::Manifest`): one safetensors file a layer, so that a later pull
//! adds layers and that a layer that is whole is never fetched again. A file that is not whole goes on where it stopped.

mod part;
mod source;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kimi_core::checkpoint::{Checkpoint, CheckpointError, FolderState, MANIFEST, Manifest, folder_state};
use kimi_core::plan::{HumanBytes, ModelBytes};
use kimi_net::{Item, LinkError};
use tokio::runtime::Handle;

use part::{Layout, Part};
use source::Source;

pub use source::Route;

/// Largest manifest: the names of some million tensors.
const MAX_MANIFEST: u64 = 256 << 20;
/// Largest of the other small files.
const MAX_FILE: u64 = 64 << 20;
/// How often a link that broke is made again without a byte that came over it.
const MAX_RETRIES: usize = 5;
/// Pause before that.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why layers could not be pulled. What was written before stays, and a second pull goes on with it.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No link to the source, or it ended.
    #[error("the link to the source: {0}. What has come stays; run the command again and it goes on")]
    Link(#[from] LinkError),
    /// The source sends what can't be right.
    #[error(
        "the source is not to be trusted with {what}: {reason}. Nothing of it was kept; pull from another machine"
    )]
    Source {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Layers that the model does not have.
    #[error("--layers {first}-{last}: the model has layers 0-{}", layers.saturating_sub(1), first = found.start, last = found.end.saturating_sub(1))]
    Layers {
        /// The range asked for.
        found: Range<usize>,
        /// Layers of the model.
        layers: usize,
    },
    /// Another model is in the folder.
    #[error("{folder} holds another checkpoint than the source: {reason}. Give an empty folder with --to", folder = folder.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Too little room.
    #[error(
        "{needed} are still to be written, but {folder} has room for {free}, {missing} too little. Make room, name another \
         folder with --to, or pull fewer layers",
        needed = HumanBytes(*needed), free = HumanBytes(*free), missing = HumanBytes(needed.saturating_sub(*free)),
        folder = folder.display()
    )]
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// Bytes to write.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A file can't be read or written.
    #[error("can't use {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// What was written is not what is read.
    #[error("{path} does not keep what was written ({tensor}): is the disk full or failing? Run the command again", path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The first tensor that has changed.
        tensor: String,
    },
    /// The folder's checkpoint can't be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl PullError {
    fn file(path: &Path, cause: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), cause }
    }

    fn source(what: &str, reason: impl ToString) -> Self {
        // The reason may quote what the source sent.
        let reason = kimi_net::printable(&reason.to_string()).into_owned();
        Self::Source { what: what.to_owned(), reason }
    }

    /// Whether another link may do better.
    fn is_of_link(&self) -> bool {
        use LinkError::{HandshakeTimeout, Io, Lost, PeerLeft, Silent};
        matches!(
            self,
            Self::Link(Io { .. } | Lost { .. } | PeerLeft { .. } | Silent { .. } | HandshakeTimeout { .. })
        )
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The layers that were asked for.
    pub layers: Range<usize>,
    /// Bytes of tensors that came over the link.
    pub pulled_bytes: u64,
    /// Bytes of tensors that were there.
    pub kept_bytes: u64,
}

/// Pulls `layers` (all, if that is `None`) into a folder. `progress` is told bytes of tensors in place, and in all.
///
/// # Errors
/// [`PullError`]. Room is looked for before the first tensor is asked for.
pub fn pull(
    route: &Route,
    layers: Option<Range<usize>>,
    folder: &Path,
    runtime: &Handle,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, PullError> {
    let mut source = Source::connect(route, runtime)?;
    let json = source.whole(Item::Manifest, MANIFEST, MAX_MANIFEST)?;
    let manifest = Manifest::parse(&json).map_err(|e| PullError::source(MANIFEST, e))?;
    let mut files = Vec::with_capacity(manifest.files.len());
    for (place, name) in manifest.files.iter().enumerate() {
        files.push((name.clone(), source.whole(Item::File(place as u32), name, MAX_FILE)?));
    }
    source.close();
    let count = check(&manifest, &json, &files)?;
    let layers = layers.unwrap_or(0..count);
    if layers.is_empty() || layers.end > count {
        return Err(PullError::Layers { found: layers, layers: count });
    }
    prepare(folder, &manifest, &json, &files)?;

    let checkpoint = Checkpoint::open(folder)?;
    let missing = checkpoint.missing_groups();
    let tensors = checkpoint.group_tensors();
    let (mut layouts, mut kept) = (Vec::new(), 0);
    for group in checkpoint.groups_of(&layers) {
        let names = tensors.get(&group).into_iter().flatten().copied();
        let layout = Layout::new(folder, group, names, &manifest)?;
        match missing.contains(&group) {
            true => layouts.push(layout),
            false => kept += layout.tensor_bytes(),
        }
    }
    let total = kept + layouts.iter().map(Layout::tensor_bytes).sum::<u64>();
    check_room(folder, layouts.iter().map(Layout::missing_bytes).sum())?;
    drop(checkpoint);
    let mut pulled = 0;
    for layout in layouts {
        let mut part = Part::open(layout)?;
        kept += part.written_bytes();
        progress(kept + pulled, total);
        fill(&mut part, route, runtime, &json, &mut |bytes| {
            pulled += bytes;
            progress(kept + pulled, total);
        })?;
        part.finish()?;
    }
    progress(total, total);
    let done = Checkpoint::open(folder)?.description();
    match manifest.description.difference(&done) {
        Some(difference) => {
            Err(PullError::source("the fingerprint of its files", difference.between("there", "here")))
        }
        None => Ok(Report { layers, pulled_bytes: pulled, kept_bytes: kept }),
    }
}

/// Holds what the source says of its checkpoint against itself, before anything is written; returns the number of layers.
fn check(manifest: &Manifest, json: &[u8], files: &[(String, Vec<u8>)]) -> Result<usize, PullError> {
    let wrong = |e: &dyn ToString| PullError::source("its checkpoint", e.to_string());
    let files = files.iter().map(|(name, data)| (name.as_str(), Bytes::from(data.clone())));
    let manifest_file = (MANIFEST, Bytes::copy_from_slice(json));
    let checkpoint =
        Checkpoint::from_memory("source", files.chain([manifest_file])).map_err(|e| wrong(&e))?;
    ModelBytes::of(&checkpoint).map_err(|e| wrong(&e))?;
    match manifest.description.difference(&checkpoint.description()) {
        Some(difference) => Err(wrong(&difference.between("in its manifest", "in its files"))),
        None => Ok(checkpoint.config().num_hidden_layers),
    }
}

/// Writes the small files, if the folder is new or is of the same checkpoint.
fn prepare(
    folder: &Path,
    manifest: &Manifest,
    json: &[u8],
    files: &[(String, Vec<u8>)],
) -> Result<(), PullError> {
    let occupied = |reason: String| PullError::Occupied { folder: folder.to_owned(), reason };
    let path = folder.join(MANIFEST);
    match std::fs::read(&path) {
        Ok(before) => {
            let before = Manifest::parse(&before)?;
            if let Some(difference) = before.description.difference(&manifest.description) {
                return Err(occupied(difference.between("here", "at the source")));
            }
            if before.tensors != manifest.tensors {
                return Err(occupied("its tensors have other names, types or shapes".to_owned()));
            }
        }
        Err(_) if folder_state(folder) != FolderState::NoConfig => {
            return Err(occupied(format!("it has config.json and no {MANIFEST}")));
        }
        Err(_) => {}
    }
    std::fs::create_dir_all(folder).map_err(|e| PullError::file(folder, e))?;
    // The manifest first: whatever ends this, the folder then is one to go on with.
    write(&path, json)?;
    files.iter().try_for_each(|(name, data)| write(&folder.join(name), data))
}

/// A file that is there as a whole or not at all.
fn write(path: &Path, data: &[u8]) -> Result<(), PullError> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary).map_err(|e| PullError::file(&temporary, e))?;
    let written = file.write_all(data).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&temporary, path)).map_err(|e| PullError::file(path, e))
}

/// Fetches what a file lacks, over as many links as it takes.
fn fill(
    part: &mut Part,
    route: &Route,
    runtime: &Handle,
    json: &[u8],
    got: &mut dyn FnMut(u64),
) -> Result<(), PullError> {
    let mut retries = 0;
    loop {
        let missing = part.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let mut came = false;
        let result = Source::connect(route, runtime).and_then(|mut source| {
            if source.whole(Item::Manifest, MANIFEST, MAX_MANIFEST)? != json {
                return Err(PullError::source(MANIFEST, "it holds another checkpoint than a moment ago"));
            }
            let spans: Vec<_> = missing.iter().collect();
            source.spans(&spans, |span, bytes, hash| {
                part.write(span, bytes, hash)?;
                came = true;
                got(bytes.len() as u64);
                Ok(())
            })?;
            source.close();
            Ok(())
        });
        retries = if came { 0 } else { retries + 1 };
        match result {
            Err(error) if error.is_of_link() && retries < MAX_RETRIES => {
                tracing::warn!("{error}; going on in {} s", RETRY_PAUSE.as_secs());
                std::thread::sleep(RETRY_PAUSE);
            }
            result => result?,
        }
    }
}

fn check_room(folder: &Path, needed: u64) -> Result<(), PullError> {
    match free_bytes(folder) {
        Some(free) if free < needed => Err(PullError::NoRoom { folder: folder.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Bytes that this user may write to the folder's file system; `None` where the system does not say.
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = nix::sys::statvfs::statvfs(folder).ok()?;
        #[allow(clippy::useless_conversion, reason = "the types differ between systems")]
        u64::from(found.blocks_available()).checked_mul(u64::from(found.fragment_size()))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
