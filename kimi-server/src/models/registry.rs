//! Short names of models: those that kimi knows, and the user's.
//!
//! The user's file is TOML:
//!
//! ```toml
//! [models.my-k2]                       # the name
//! hub = "org/name"                     # a hub id, looked for in ~/models and in Hugging Face's cache; or
//! # path = "/Volumes/fast/Kimi-K2"     # a folder
//! layers = 61                          # optional: checked when the model is opened
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::builds::{BUILDS, Build, LAYERS};

/// Models by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    models: BTreeMap<String, Entry>,
}

/// What a name stands for: a hub id or a path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Hub id, `org/name`.
    #[serde(default)]
    pub hub: Option<String>,
    /// Folder; `~` is the home.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Layers of the model, to be checked when it is opened.
    #[serde(default)]
    pub layers: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    models: BTreeMap<String, Entry>,
}

/// A registry file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Not readable.
    #[error("can't read the model registry {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Not TOML of the right form.
    #[error("{path}: {reason}\nExpected sections such as\n  [models.my-k2]\n  hub = \"org/name\"   # or path = \"/a/folder\"\n  layers = 61        # optional", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        reason: String,
    },
    /// Neither or both of `hub` and `path`.
    #[error("{path}: models.{name} has {found} of hub and path, expected exactly one", path = path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// `none` or `both`.
        found: &'static str,
    },
}

impl Registry {
    /// The names that kimi knows by itself.
    pub fn builtin() -> Self {
        let entry = |b: &Build| Entry { hub: Some(b.hub.to_owned()), path: None, layers: Some(LAYERS) };
        Self { models: BUILDS.iter().map(|b| (b.name.to_owned(), entry(b))).collect() }
    }

    /// The published build that a name or a hub id stands for. A user's entry of the same name hides it, unless it names the
    /// same hub id.
    pub fn build(&self, name: &str) -> Option<&'static Build> {
        let hub = match self.get(name) {
            Some(entry) => entry.hub.as_deref()?,
            None => name,
        };
        BUILDS.iter().find(|b| b.hub == hub)
    }

    /// Adds a user's file; its entries win over those of the same name.
    ///
    /// # Errors
    /// [`RegistryError`] names the file and the entry.
    pub fn with_file(mut self, path: &Path) -> Result<Self, RegistryError> {
        let owned = || path.to_owned();
        let text =
            std::fs::read_to_string(path).map_err(|cause| RegistryError::Io { path: owned(), cause })?;
        let file: File = toml::from_str(&text)
            .map_err(|e| RegistryError::Form { path: owned(), reason: e.to_string() })?;
        for (name, entry) in file.models {
            let found = match (&entry.hub, &entry.path) {
                (None, None) => "none",
                (Some(_), Some(_)) => "both",
                _ => {
                    self.models.insert(name, entry);
                    continue;
                }
            };
            return Err(RegistryError::Entry { path: owned(), name, found });
        }
        Ok(self)
    }

    /// What a name stands for.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.models.get(name)
    }

    /// All published builds that kimi knows, by model.
    pub fn builds() -> &'static [Build] {
        &BUILDS
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }
}
