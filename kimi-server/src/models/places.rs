//! Where people keep checkpoints.

use std::env;
use std::path::{Path, PathBuf};

use kimi_core::checkpoint::{FolderState, folder_state};

/// Folders of a home that hold models, one folder each or one below their organisation's: the user's, and LM Studio's.
const HOME_FOLDERS: [&str; 3] = ["models", ".lmstudio/models", ".cache/lm-studio/models"];

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
    /// `~/models`, LM Studio's folders, and Hugging Face's caches: those that `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` and
    /// `HF_HOME` name beside the usual one.
    pub fn of_this_machine() -> Self {
        let home = env::var_os("HOME").or_else(|| env::var_os("USERPROFILE")).map(PathBuf::from);
        let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut places = Self { home, folders: Vec::new(), caches: Vec::new() };
        let named = [
            variable("HF_HUB_CACHE"),
            variable("HUGGINGFACE_HUB_CACHE"),
            variable("HF_HOME").map(|h| h.join("hub")),
            variable("XDG_CACHE_HOME").map(|c| c.join("huggingface/hub")),
            Some(PathBuf::from("~/.cache/huggingface/hub")),
        ];
        for cache in named.into_iter().flatten() {
            let cache = places.expand(cache);
            if cache.is_absolute() && !places.caches.contains(&cache) {
                places.caches.push(cache);
            }
        }
        let folders: Vec<_> =
            places.home.iter().flat_map(|h| HOME_FOLDERS.iter().map(|f| h.join(f))).collect();
        places.folders = folders;
        places
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

    /// The folder of a hub id or of a bare name: the first that is whole, else the first with a part of a model, which will
    /// say what is missing when it is opened. Notes in `looked` every other folder and what was there.
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
        let mut partial = None;
        for folder in self.folders.iter().flat_map(|f| spellings.iter().map(move |s| f.join(s))) {
            match folder_state(&folder) {
                FolderState::Whole => return Some(folder),
                state => {
                    looked.push(describe(&folder, &state));
                    if matches!(state, FolderState::Partial { .. }) {
                        partial.get_or_insert(folder);
                    }
                }
            }
        }
        let entry = format!("models--{}", name.replace('/', "--"));
        let mut caches = self.caches.iter().filter(|_| name.contains('/'));
        caches.find_map(|cache| snapshot(&cache.join(&entry), looked)).or(partial)
    }
}

/// Whether it can be a hub id or a folder's name: one or two parts of letters, digits, `.`, `_`, `-`.
pub(super) fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let part = |p: &str| !p.is_empty() && !p.starts_with('.') && p.chars().all(good);
    name.len() <= 256 && name.split('/').count() <= 2 && name.split('/').all(part)
}

/// Whether a checkpoint, or a part of one, is in the folder.
pub(super) fn checkpoint(folder: &Path, looked: &mut Vec<String>) -> bool {
    let state = folder_state(folder);
    if state == FolderState::NoConfig {
        looked.push(describe(folder, &state));
    }
    state != FolderState::NoConfig
}

fn describe(folder: &Path, state: &FolderState) -> String {
    let what = match state {
        FolderState::NoConfig if folder.is_dir() => {
            " (there, but without config.json: not a whole download?)"
        }
        FolderState::Partial { missing } => &format!(" (there, but not whole: {missing})"),
        FolderState::NoConfig | FolderState::Whole => "",
    };
    format!("{}{what}", folder.display())
}

/// The revision to use of an entry of Hugging Face's cache: the one that a reference names, `main` before others, else the
/// only one. If that one is not whole but another is, none: the user must choose.
pub(super) fn snapshot(entry: &Path, looked: &mut Vec<String>) -> Option<PathBuf> {
    let folder = entry.join("snapshots");
    let mut snapshots = subfolders(&folder);
    snapshots.sort_unstable();
    let whole: Vec<&PathBuf> = snapshots.iter().filter(|s| folder_state(s) == FolderState::Whole).collect();
    if let Some(named) = referenced(entry) {
        let state = folder_state(&named);
        return match (&state, whole.as_slice()) {
            (FolderState::Whole, _) | (FolderState::Partial { .. }, []) => Some(named),
            (_, []) => {
                looked.push(describe(&named, &state));
                None
            }
            (_, others) => {
                looked.push(format!("{}, the newest revision; {}", describe(&named, &state), choose(others)));
                None
            }
        };
    }
    match (whole.as_slice(), snapshots.as_slice()) {
        ([one], _) => Some((*one).clone()),
        ([], [one]) => checkpoint(one, looked).then(|| one.clone()),
        ([], []) => {
            looked.push(entry.display().to_string());
            None
        }
        (whole, all) => {
            let choice: Vec<&PathBuf> = if whole.is_empty() { all.iter().collect() } else { whole.to_vec() };
            looked.push(format!(
                "{} ({} snapshots are there and no refs/main says which is meant; {})",
                folder.display(),
                all.len(),
                choose(&choice)
            ));
            None
        }
    }
}

/// Which folders would do, for the user to give as a path.
fn choose(folders: &[&PathBuf]) -> String {
    let list: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
    match list.as_slice() {
        [one] => format!("{one} is whole: give its path, or download the rest of the newest"),
        list => format!("give the path of one: {}", list.join(", ")),
    }
}

/// The snapshot that `refs/main` names, else the one that the only other reference names; `None` if it is not there.
fn referenced(entry: &Path) -> Option<PathBuf> {
    let refs = entry.join("refs");
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let revision = read(refs.join("main")).or_else(|| {
        let mut others = std::fs::read_dir(&refs).ok()?.filter_map(|e| Some(e.ok()?.path()));
        let only = others.next().filter(|p| p.is_file())?;
        if others.next().is_none() { read(only) } else { None }
    })?;
    let folder = Some(revision.trim()).filter(|r| is_name(r)).map(|r| entry.join("snapshots").join(r))?;
    folder.is_dir().then_some(folder)
}

pub(super) fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect()
}
