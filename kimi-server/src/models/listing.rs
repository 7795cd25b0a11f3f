//! The models that are on this machine.

use std::path::{Path, PathBuf};

use kimi_core::checkpoint::{FolderState, MANIFEST, folder_state};

use super::places::{Places, is_name, snapshot, subfolders};

/// A folder with a model, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// A name by which the lookup finds it.
    pub name: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// What is missing, if anything is.
    pub missing: Option<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether kimi fetched it, from another machine.
    pub pulled: bool,
}

impl Listed {
    /// What is in a folder; `None` if no model is.
    fn new(name: String, folder: PathBuf) -> Option<Self> {
        let missing = match folder_state(&folder) {
            FolderState::NoConfig => return None,
            FolderState::Partial { missing } => Some(missing),
            FolderState::Whole => None,
        };
        let (bytes, pulled) = (file_bytes(&folder), is_pulled(&folder));
        Some(Self { name, folder, missing, bytes, pulled })
    }
}

/// Whether the folder is one that kimi has made.
pub(super) fn is_pulled(folder: &Path) -> bool {
    folder.join(MANIFEST).is_file()
}

fn file_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // Through links: Hugging Face's cache keeps its files elsewhere.
    entries
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

impl Places {
    /// All models in the folders and caches, by name.
    pub(super) fn all(&self) -> Vec<Listed> {
        let name_of =
            |path: &Path| path.file_name().and_then(|n| n.to_str()).filter(|n| is_name(n)).map(str::to_owned);
        let mut found = Vec::new();
        for folder in self.folders.iter().flat_map(|f| subfolders(f)) {
            let Some(name) = name_of(&folder) else { continue };
            if let Some(model) = Listed::new(name.clone(), folder.clone()) {
                found.push(model);
                continue;
            }
            let models = subfolders(&folder).into_iter();
            let named = models.filter_map(|model| Some((format!("{name}/{}", name_of(&model)?), model)));
            found.extend(named.filter_map(|(name, model)| Listed::new(name, model)));
        }
        for entry in self.caches.iter().flat_map(|cache| subfolders(cache)) {
            let name = name_of(&entry).and_then(|n| Some(n.strip_prefix("models--")?.replacen("--", "/", 1)));
            let Some((name, folder)) = name.and_then(|name| Some((name, snapshot(&entry, &mut Vec::new())?)))
            else {
                continue;
            };
            found.extend(Listed::new(name, folder));
        }
        found.sort_by(|a, b| (&a.name, &a.folder).cmp(&(&b.name, &b.folder)));
        found
    }
}
