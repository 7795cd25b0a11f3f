//! Where people keep checkpoints.

use std::env;
use std::path::{Path, PathBuf};

/// Folders that hold models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The user's home, for `~`.
    pub home: Option<PathBuf>,
    /// Folders with a model a folder, such as `~/models`.
    pub folders: Vec<PathBuf>,
    /// Hugging Face's caches (the folder named `hub`).
    pub caches: Vec<PathBuf>,
}

impl Places {
    /// `~/models`, and the caches named by `HF_HUB_CACHE` and `HF_HOME` beside the usual one.
    pub fn of_this_machine() -> Self {
        let home = env::var_os("HOME").or_else(|| env::var_os("USERPROFILE")).map(PathBuf::from);
        let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let usual = variable("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|h| h.join(".cache")));
        let mut caches: Vec<PathBuf> = variable("HF_HUB_CACHE").into_iter().collect();
        caches.extend(variable("HF_HOME").map(|h| h.join("hub")));
        caches.extend(usual.map(|c| c.join("huggingface/hub")));
        caches.dedup();
        let folders = home.iter().map(|h| h.join("models")).collect();
        Self { home, folders, caches }
    }

    /// Where the user's own registry is.
    pub fn user_registry(&self) -> Option<PathBuf> {
        self.home.as_ref().map(|h| h.join(".config/kimi/models.toml"))
    }

    /// A path with `~` replaced.
    pub fn expand(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match (&self.home, path.strip_prefix("~")) {
            (Some(home), Ok(rest)) => home.join(rest),
            _ => path.to_owned(),
        }
    }

    /// The folder of a hub id or of a bare name. Notes in `looked` every folder and what was there.
    pub(super) fn find(&self, name: &str, looked: &mut Vec<String>) -> Option<PathBuf> {
        if !is_name(name) {
            looked.push(format!(
                "nowhere: {name:?} is no path here, no hub id (org/name) and no name of a folder"
            ));
            return None;
        }
        let base = name.rsplit('/').next().unwrap_or(name);
        let mut spellings = vec![name.to_owned(), name.replace('/', "--"), base.to_owned()];
        spellings.dedup();
        let folders = self.folders.iter().flat_map(|f| spellings.iter().map(move |s| f.join(s)));
        let in_folders = folders.into_iter().find(|folder| checkpoint(folder, looked));
        in_folders.or_else(|| {
            let entry = format!("models--{}", name.replace('/', "--"));
            let mut caches = self.caches.iter().filter(|_| name.contains('/'));
            caches.find_map(|cache| snapshot(&cache.join(&entry), looked))
        })
    }
}

/// Whether it can be a hub id or a folder's name: one or two parts of letters, digits, `.`, `_`, `-`.
pub(super) fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let part = |p: &str| !p.is_empty() && !p.starts_with('.') && p.chars().all(good);
    name.len() <= 256 && name.split('/').count() <= 2 && name.split('/').all(part)
}

/// Whether a checkpoint is in the folder.
pub(super) fn checkpoint(folder: &Path, looked: &mut Vec<String>) -> bool {
    let there = folder.join("config.json").is_file();
    if !there {
        let what =
            if folder.is_dir() { " (there, but without config.json: not a whole download?)" } else { "" };
        looked.push(format!("{}{what}", folder.display()));
    }
    there
}

/// The newest revision in an entry of Hugging Face's cache: what `refs/main` names, else the only one.
fn snapshot(entry: &Path, looked: &mut Vec<String>) -> Option<PathBuf> {
    let snapshots = entry.join("snapshots");
    let revision = match std::fs::read_to_string(entry.join("refs/main")) {
        Ok(revision) if is_name(revision.trim()) => Some(snapshots.join(revision.trim())),
        _ => {
            let entries = std::fs::read_dir(&snapshots).into_iter().flatten();
            let mut folders: Vec<_> =
                entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
            if folders.len() == 1 { folders.pop() } else { None }
        }
    };
    match revision {
        Some(folder) => checkpoint(&folder, looked).then_some(folder),
        None => {
            looked.push(entry.display().to_string());
            None
        }
    }
}
