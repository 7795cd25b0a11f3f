//! Short names of models: those that kimi knows, and the user's.
//!
//! The user's file is TOML:
//!
//! ```toml
//! [models.my-k2]                       # the name
//! hub = "org/name"                     # a hub id, looked for in ~/models and in Hugging Face's cache; or
//! # path = "/Volumes/fast/Kimi-K2"     # a folder
//! layers = 61                          # optional: checked when the model is opened
//! temperature = 0.8                    # optional: of requests that do not say; else as the model's card recommends
//! top_p = 0.9                          # optional: likewise
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kimi_core::chat_model::ModelDefaults;
use serde::Deserialize;

use super::builds::{BUILDS, Build, LAYERS};

/// Models by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    models: BTreeMap<String, Entry>,
}

/// What a name stands for: a hub id or a path.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
    /// `temperature` of requests that have none, 0 to 2.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// `top_p` of requests that have none, 0 to 1.
    #[serde(default)]
    pub top_p: Option<f32>,
}

impl Entry {
    /// How tokens are chosen where a request does not say, as far as the user says it.
    pub fn sampling(&self) -> OwnSampling {
        OwnSampling { temperature: self.temperature, top_p: self.top_p }
    }

    /// The first of the two that is out of its range.
    fn out_of_range(&self) -> Option<String> {
        let fields = [("temperature", self.temperature, 2.0), ("top_p", self.top_p, 1.0)];
        fields.into_iter().find_map(|(name, value, max)| {
            let found = value.filter(|value| !(0.0..=max).contains(value))?;
            Some(format!("{name} = {found}, expected a number from 0 to {max}"))
        })
    }
}

/// What a user's file says of how tokens are chosen where a request does not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OwnSampling {
    /// The temperature.
    pub temperature: Option<f32>,
    /// The share of the probability that candidates hold.
    pub top_p: Option<f32>,
}

impl OwnSampling {
    /// A model's defaults with what the user says.
    pub fn apply(self, defaults: ModelDefaults) -> ModelDefaults {
        defaults.with(self.temperature, self.top_p)
    }
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
    /// A value out of its range.
    #[error("{path}: models.{name}: {reason}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
}

impl Registry {
    /// The names that kimi knows by itself.
    pub fn builtin() -> Self {
        let entry =
            |b: &Build| Entry { hub: Some(b.hub.to_owned()), layers: Some(LAYERS), ..Entry::default() };
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
            if let Some(reason) = entry.out_of_range() {
                return Err(RegistryError::Value { path: owned(), name, reason });
            }
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
