//! From a model's name to its folder.
//!
//! A name is, in this order: `kimi-tiny`, which is part of the program; a path; a name of the [`Registry`]; a hub id
//! `org/name` or bare name of a folder, looked for in `~/models`, in LM Studio's folder and in Hugging Face's cache.

mod builds;
mod listing;
mod places;
mod registry;

use std::path::{Path, PathBuf};

use kimi_core::chat_model::{ChatFiles, ModelError};
use kimi_core::checkpoint::{Checkpoint, CheckpointError};

pub use builds::{Build, Size};
pub use listing::Listed;
pub use places::Places;
pub use registry::{Entry, OwnSampling, Registry, RegistryError};

/// Name of the model that is part of the program.
pub const EMBEDDED: &str = "kimi-tiny";

/// Finds models on this machine.
#[derive(Debug, Clone)]
pub struct Lookup {
    registry: Registry,
    places: Places,
}

/// A model that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundModel {
    /// How other machines and clients of the API call it: a registry name, a hub id or a folder's name.
    pub id: String,
    /// Where it is.
    pub source: Source,
    /// How many layers the registry says it has.
    pub layers: Option<usize>,
    /// What the user's registry says of choosing tokens.
    pub sampling: OwnSampling,
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the program.
    Embedded,
    /// In a folder.
    Folder(PathBuf),
}

/// A model that can't be found or opened.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// A path with nothing there.
    #[error("there is no folder {path}; a model is a folder with config.json and model*.safetensors", path = path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// Not a path, and nowhere to be found.
    #[error("{}", not_found(name, hub.as_deref(), looked, known))]
    NotFound {
        /// The name given.
        name: String,
        /// The hub id it stands for, if it is or names one.
        hub: Option<String>,
        /// Every folder that was looked at, and what was there.
        looked: Vec<String>,
        /// Names in the registry.
        known: Vec<String>,
    },
    /// Another machine named a model by its path.
    #[error(
        "{name:?} is not the name of a model; start the worker with --default-model PATH, where PATH is the \
         checkpoint on this machine"
    )]
    NotAName {
        /// The name received.
        name: String,
    },
    /// The folder can't be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Another model than the registry says.
    #[error(
        "{id} has {found} layers, but the registry says {expected}: the folder holds another model, or the entry is wrong"
    )]
    Layers {
        /// The model.
        id: String,
        /// Layers by its config.
        found: usize,
        /// Layers by the registry.
        expected: usize,
    },
}

/// A model that kimi does not delete.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The one in the program.
    #[error("{EMBEDDED} is part of the program")]
    Embedded,
    /// It is not there.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Somebody else has put it there.
    #[error(
        "{folder} was not fetched by kimi (`kimi pull-layers`), so kimi does not delete it; delete the folder yourself, or for \
         Hugging Face's cache run `hf cache delete`",
        folder = folder.display()
    )]
    NotOurs {
        /// Where it is.
        folder: PathBuf,
    },
}

fn not_found(name: &str, hub: Option<&str>, looked: &[String], known: &[String]) -> String {
    let mut text = format!("model {name:?} is nowhere on this machine. Looked at:");
    for place in looked {
        text += &format!("\n  {place}");
    }
    match hub {
        Some(hub) => {
            let folder = hub.rsplit('/').next().unwrap_or(hub);
            text += &format!("\nDownload it with\n  hf download {hub} --local-dir ~/models/{folder}");
        }
        None => text += "\nGive a path, a hub id (org/name) or one of the names below",
    }
    text + &format!("\nNames that kimi knows: {EMBEDDED}, {}", known.join(", "))
}

impl Lookup {
    /// Looks in `places` for what `registry` or a hub id names.
    pub fn new(registry: Registry, places: Places) -> Self {
        Self { registry, places }
    }

    /// This machine's places; the registry with the user's file, `models` if given, else
    /// `~/.config/kimi/models.toml` if there is one.
    ///
    /// # Errors
    /// [`RegistryError`] if the file can't be used.
    pub fn of_this_machine(models: Option<&Path>) -> Result<Self, RegistryError> {
        let places = Places::of_this_machine();
        let registry = match (models, places.user_registry()) {
            (Some(file), _) => Registry::builtin().with_file(file)?,
            (None, Some(file)) if file.is_file() => Registry::builtin().with_file(&file)?,
            _ => Registry::builtin(),
        };
        Ok(Self::new(registry, places))
    }

    /// The names and hub ids that are known.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Where a new copy of a model goes: `~/models/NAME`, where [`Self::find`] looks first. `None` for what is no name of a
    /// model, and without a home.
    pub fn new_folder(&self, name: &str) -> Option<PathBuf> {
        let hub = self.registry.get(name).and_then(|entry| entry.hub.as_deref());
        let name = hub.unwrap_or(name);
        let known = name != EMBEDDED && places::is_name(name);
        if known { Some(self.places.folders.first()?.join(name.rsplit('/').next()?)) } else { None }
    }

    /// The models in the usual folders, by name; those elsewhere are found by their path only.
    pub fn all(&self) -> Vec<Listed> {
        self.places.all()
    }

    /// The folder of a model that may be deleted: one that kimi has fetched itself, in one of the usual folders.
    ///
    /// # Errors
    /// [`RemoveError`], with what to do.
    pub fn removable(&self, name: &str) -> Result<PathBuf, RemoveError> {
        if name == EMBEDDED {
            return Err(RemoveError::Embedded);
        }
        let Source::Folder(folder) = self.find(name)?.source else { return Err(RemoveError::Embedded) };
        let full = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        // A link might lead anywhere; what is deleted must itself be below the folder.
        let usual = self.places.folders.iter().any(|usual| {
            let (usual, folder) = (full(usual), full(&folder));
            folder != usual && folder.starts_with(usual)
        });
        let is_link = folder.is_symlink();
        match usual && !is_link && listing::is_pulled(&folder) {
            true => Ok(folder),
            false => Err(RemoveError::NotOurs { folder }),
        }
    }

    /// Finds a model by what a person typed.
    ///
    /// # Errors
    /// [`LookupError`] lists everything that was looked at and says what to do.
    pub fn find(&self, name: &str) -> Result<FoundModel, LookupError> {
        if name == EMBEDDED {
            return Ok(FoundModel::embedded());
        }
        if self.registry.get(name).is_none() {
            let path = self.places.expand(name);
            if path.is_dir() {
                return self.in_folder(name, &path);
            }
            let written_as_path = name.starts_with(['.', '/', '~', '\\']) || name.matches('/').count() > 1;
            if written_as_path || path.exists() {
                return Err(LookupError::NoFolder { path });
            }
        }
        self.find_name(name)
    }

    /// Finds a model by a name that another machine sent: a path is refused.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_remote(&self, name: &str) -> Result<FoundModel, LookupError> {
        if name == EMBEDDED {
            return self.find(name);
        }
        if self.registry.get(name).is_none() && !places::is_name(name) {
            return Err(LookupError::NotAName { name: name.to_owned() });
        }
        self.find_name(name)
    }

    /// A folder that was given as a path; an entry of Hugging Face's cache stands for its snapshot.
    fn in_folder(&self, name: &str, path: &Path) -> Result<FoundModel, LookupError> {
        if !path.join("snapshots").is_dir() {
            return Ok(in_folder(path));
        }
        let mut looked = Vec::new();
        match places::snapshot(path, &mut looked) {
            Some(snapshot) => Ok(in_folder(&snapshot)),
            None => {
                let known = self.registry.names().map(str::to_owned).collect();
                Err(LookupError::NotFound { name: name.to_owned(), hub: None, looked, known })
            }
        }
    }

    fn find_name(&self, name: &str) -> Result<FoundModel, LookupError> {
        let entry = self.registry.get(name);
        let mut looked = Vec::new();
        let wanted = match entry {
            Some(Entry { path: Some(path), .. }) => {
                let path = self.places.expand(path);
                places::checkpoint(&path, &mut looked).then_some(path)
            }
            Some(Entry { hub: Some(hub), .. }) => self.places.find(hub, &mut looked),
            _ => self.places.find(name, &mut looked),
        };
        let layers = entry.and_then(|e| e.layers);
        if let Some(folder) = wanted {
            let sampling = entry.map(Entry::sampling).unwrap_or_default();
            return Ok(FoundModel { id: name.to_owned(), source: Source::Folder(folder), layers, sampling });
        }
        let hub = match entry {
            Some(entry) => entry.hub.clone(),
            None => name.contains('/').then(|| name.to_owned()),
        };
        let known = self.registry.names().map(str::to_owned).collect();
        Err(LookupError::NotFound { name: name.to_owned(), hub, looked, known })
    }
}

/// The id of a folder that was given as a path: its last part, or the hub id if it is in Hugging Face's cache.
fn in_folder(path: &Path) -> FoundModel {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let parts: Vec<_> = full.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    let cached =
        parts.iter().rev().find_map(|part| part.strip_prefix("models--")).map(|s| s.replacen("--", "/", 1));
    let id = cached.or_else(|| parts.last().cloned()).unwrap_or_else(|| "model".to_owned());
    let sampling = OwnSampling::default();
    FoundModel { id, source: Source::Folder(path.to_owned()), layers: None, sampling }
}

impl FoundModel {
    /// The model that is part of the program.
    pub fn embedded() -> Self {
        let (id, sampling) = (EMBEDDED.to_owned(), OwnSampling::default());
        Self { id, source: Source::Embedded, layers: None, sampling }
    }

    /// The files that chats need, with the user's word on choosing tokens.
    ///
    /// # Errors
    /// Those of [`ChatFiles::open`].
    pub fn chat_files(&self, checkpoint: &Checkpoint) -> Result<ChatFiles, ModelError> {
        let files = ChatFiles::open(checkpoint)?;
        let defaults = self.sampling.apply(files.defaults());
        Ok(files.with_defaults(defaults))
    }

    /// Opens the checkpoint: reads its headers.
    ///
    /// # Errors
    /// [`LookupError::Checkpoint`] or [`LookupError::Layers`].
    pub fn open(&self) -> Result<Checkpoint, LookupError> {
        let checkpoint = match &self.source {
            Source::Embedded => Checkpoint::kimi_tiny()?,
            Source::Folder(path) => Checkpoint::open(path)?,
        };
        let found = checkpoint.config().num_hidden_layers;
        match self.layers {
            Some(expected) if expected != found => {
                Err(LookupError::Layers { id: self.id.clone(), found, expected })
            }
            _ => Ok(checkpoint),
        }
    }

    /// What to give another process of this machine, so that it opens the same files.
    pub fn local_name(&self) -> String {
        match &self.source {
            Source::Embedded => EMBEDDED.to_owned(),
            Source::Folder(path) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
            }
        }
    }
}
