//! Where a machine keeps its cluster's key.

use std::io::Write;
use std::path::{Path, PathBuf};

use kimi_net::{ClusterKey, KeyError};

use crate::system;

/// The environment's variable for a key, as text.
pub const VARIABLE: &str = "KIMI_CLUSTER_KEY";
/// Name of the file in the config folder.
const FILE_NAME: &str = "cluster.key";
/// Most bytes of a key file; a key has 84.
const MAX_BYTES: u64 = 4096;

/// A key and where it was found.
#[derive(Debug)]
pub struct FoundKey {
    /// The key.
    pub key: ClusterKey,
    /// Its file, or the variable's name.
    pub place: String,
}

/// A key that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system's word.
    #[error("can't {action} the cluster's key {path}: {cause}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Something else than a key.
    #[error("{place} is no cluster key: {cause}")]
    Form {
        /// The file or variable.
        place: String,
        /// What was found.
        cause: KeyError,
    },
    /// Not even text.
    #[error("{path} is no cluster key: {found}; `kimi key new` makes one", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Others on this machine can read it.
    #[error(
        "other users of this machine can read the cluster's key {path} (mode {mode:04o}, expected 0600). Run\n  \
         chmod 600 {path}\nIf others may have read it, make a new key with `kimi key new --force`", path = path.display()
    )]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A key is there already.
    #[error(
        "{path} is there already. `kimi key show` says how to bring it to another machine; --force replaces it, and every \
         machine of the cluster then needs the new one", path = path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no place for it.
    #[error("neither XDG_CONFIG_HOME nor HOME is set: give --cluster-key-file")]
    NoFolder,
}

/// The file in the config folder: `$XDG_CONFIG_HOME/kimi/cluster.key`, else `~/.config/kimi/cluster.key`.
///
/// # Errors
/// If neither variable is set.
pub fn default_path() -> Result<PathBuf, KeyFileError> {
    Ok(system::config_folder().ok_or(KeyFileError::NoFolder)?.join(FILE_NAME))
}

/// This machine's key: that of `file` if one is given, else the environment's, else that of the config folder; `None` if
/// there is none.
///
/// # Errors
/// A key that is there and can't be used.
pub fn find(file: Option<&Path>) -> Result<Option<FoundKey>, KeyFileError> {
    if let Some(path) = file {
        return read(path).map(Some);
    }
    if let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) {
        let key = text.to_string_lossy().parse();
        let place = VARIABLE.to_owned();
        let key = key.map_err(|cause| KeyFileError::Form { place: place.clone(), cause })?;
        return Ok(Some(FoundKey { key, place }));
    }
    match default_path() {
        Ok(path) if path.exists() => read(&path).map(Some),
        _ => Ok(None),
    }
}

fn read(path: &Path) -> Result<FoundKey, KeyFileError> {
    let io = |cause| KeyFileError::Io { action: "read", path: path.to_owned(), cause };
    let content = |found| KeyFileError::Content { path: path.to_owned(), found };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if metadata.is_dir() {
        return Err(content("it is a folder".to_owned()));
    }
    check_mode(path, &metadata)?;
    if metadata.len() > MAX_BYTES {
        return Err(content(format!("it has {} bytes, a key has 84", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let text = str::from_utf8(&bytes).map_err(|_| content("it is not text in UTF-8".to_owned()))?;
    let place = path.display().to_string();
    match text.trim_start_matches('\u{feff}').parse() {
        Ok(key) => Ok(FoundKey { key, place }),
        Err(cause) => Err(KeyFileError::Form { place, cause }),
    }
}

#[cfg(unix)]
fn check_mode(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o7777;
    // A pipe, as of a shell's <(..), has no mode of its own.
    match metadata.is_file() && mode & 0o077 != 0 {
        true => Err(KeyFileError::Readable { path: path.to_owned(), mode }),
        false => Ok(()),
    }
}

#[cfg(not(unix))]
fn check_mode(_path: &Path, _metadata: &std::fs::Metadata) -> Result<(), KeyFileError> {
    Ok(())
}

/// Writes a key that only this user can read. With `replace`, in place of one that is there.
///
/// # Errors
/// [`KeyFileError::Exists`], or the system's.
pub fn write(path: &Path, key: &ClusterKey, replace: bool) -> Result<(), KeyFileError> {
    let io = |cause| KeyFileError::Io { action: "write", path: path.to_owned(), cause };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    // Replaced at once: whoever reads it meanwhile finds the old key or the new one.
    let target = if replace { path.with_added_extension("new") } else { path.to_owned() };
    if replace {
        match std::fs::remove_file(&target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&target).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => io(error),
    })?;
    let text = key.to_text();
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(io)?;
    file.sync_all().map_err(io)?;
    if replace { std::fs::rename(&target, path).map_err(io) } else { Ok(()) }
}
