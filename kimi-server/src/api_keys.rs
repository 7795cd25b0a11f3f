//! Keys of the HTTP API: the file that holds their hashes, and making new ones.
//!
//! The file has one line a key: a name, the key's BLAKE3 hash, and limits. A key is 256 random bits, so nobody finds it by
//! trying, and a hash that is slow to compute would protect nothing more.

use std::fmt::{self, Display};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::system;

/// Name of the file in the config folder.
const FILE_NAME: &str = "api-keys";
/// What a new key begins with, so that people and scanners for secrets know what it is.
const PREFIX: &str = "sk-kimi-";
/// Most bytes of a file of keys: some ten thousand of them.
const MAX_BYTES: u64 = 2 << 20;
/// Most characters of a key's name.
const MAX_NAME: usize = 64;
/// First lines of a new file.
const HEAD: &str = "# Keys of kimi's API: NAME HASH [chats=N] [requests=N] [tokens=N]. The limits are chats at a time, requests a minute and\n\
                    # tokens a minute. `kimi api-key new NAME` adds a line; the key itself is kept nowhere.\n";

/// A key as a server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What it is called in logs.
    pub name: String,
    hash: blake3::Hash,
    /// What who has it may do.
    pub limits: Limits,
}

/// What the holder of a key may do; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Chats at a time.
    pub chats: Option<u32>,
    /// Requests a minute.
    pub requests: Option<u32>,
    /// Tokens of prompts and answers a minute.
    pub tokens: Option<u32>,
}

/// A file of keys that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// The system's word.
    #[error("can't {action} the file of API keys {path}: {cause}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A line that is none.
    #[error("{path}, line {line}: {found}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong, and what was expected.
        found: String,
    },
    /// A name that is no name, taken, or not there.
    #[error("{0}")]
    Name(String),
    /// There is no place for it.
    #[error("neither XDG_CONFIG_HOME nor HOME is set: give --api-key-file")]
    NoFolder,
}

impl ApiKey {
    /// A key whose text is known, such as that of `--api-key`.
    pub fn of_text(name: &str, text: &str, limits: Limits) -> Self {
        Self { name: name.to_owned(), hash: blake3::hash(text.as_bytes()), limits }
    }

    /// Makes a key and its text, which is shown once.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn generate(name: &str, limits: Limits) -> Result<(Self, String), getrandom::Error> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("{PREFIX}{hex}");
        Ok((Self::of_text(name, &text, limits), text))
    }

    /// Whether this is the key with a hash. Takes the same time for every hash.
    pub fn matches(&self, hash: &blake3::Hash) -> bool {
        self.hash == *hash
    }

    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (name, hash) = (words.next().unwrap_or_default(), words.next());
        let Some(hash) = hash else {
            return Err(
                "found one word, expected NAME HASH; a key itself does not belong here: `kimi api-key new NAME` writes a \
                 line, and `--api-key KEY` takes a key as it is"
                    .to_owned(),
            );
        };
        check_name(name)?;
        let hash = hash.strip_prefix("blake3:").and_then(|hex| blake3::Hash::from_hex(hex).ok());
        let hash = hash.ok_or("the second word is not blake3: with 64 hexadecimal digits")?;
        let mut limits = Limits::default();
        for word in words {
            limits.set(word)?;
        }
        Ok(Self { name: name.to_owned(), hash, limits })
    }
}

/// The key's line in a file.
impl Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blake3:{}{}", self.name, self.hash.to_hex(), self.limits)
    }
}

impl Limits {
    fn set(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let place = match name {
            "chats" => &mut self.chats,
            "requests" => &mut self.requests,
            "tokens" => &mut self.tokens,
            _ => return Err(format!("found {word:?}, expected chats=N, requests=N or tokens=N")),
        };
        let number = value.parse().ok().filter(|number| *number > 0);
        *place = Some(number.ok_or_else(|| format!("{name} is {value:?}, expected a number above 0"))?);
        Ok(())
    }
}

/// As in a file, each after a space.
impl Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("chats", self.chats), ("requests", self.requests), ("tokens", self.tokens)];
        all.iter()
            .filter_map(|(name, limit)| Some((name, (*limit)?)))
            .try_for_each(|(name, limit)| write!(f, " {name}={limit}"))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    match !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(good) {
        true => Ok(()),
        false => Err(format!(
            "the name is {name:?}, expected 1 to {MAX_NAME} of the characters a-z, A-Z, 0-9, -, _, . and @"
        )),
    }
}

/// The file in the config folder: `$XDG_CONFIG_HOME/kimi/api-keys`, else `~/.config/kimi/api-keys`.
///
/// # Errors
/// If neither variable is set.
pub fn default_path() -> Result<PathBuf, ApiKeyError> {
    Ok(system::config_folder().ok_or(ApiKeyError::NoFolder)?.join(FILE_NAME))
}

/// The keys of a file.
///
/// # Errors
/// The system's, or a line that is no key.
pub fn read(path: &Path) -> Result<Vec<ApiKey>, ApiKeyError> {
    let lines = read_lines(path)?;
    let keys = lines.iter().enumerate().filter_map(|(i, line)| Some((i, key_of(line)?)));
    let mut all: Vec<ApiKey> = Vec::new();
    for (i, key) in keys {
        let error = |found| ApiKeyError::Line { path: path.to_owned(), line: i + 1, found };
        let key = key.map_err(error)?;
        if all.iter().any(|known| known.name == key.name) {
            return Err(error(format!("the name {} is taken by a line above", key.name)));
        }
        all.push(key);
    }
    Ok(all)
}

/// Adds a key to a file, which is made if it is not there.
///
/// # Errors
/// If the name is taken or is none, or the file can't be read or written.
pub fn add(path: &Path, key: &ApiKey) -> Result<(), ApiKeyError> {
    check_name(&key.name).map_err(ApiKeyError::Name)?;
    let mut lines = match path.exists() {
        true => read_lines(path)?,
        false => HEAD.lines().map(str::to_owned).collect(),
    };
    if path.exists() && read(path)?.iter().any(|known| known.name == key.name) {
        let place = path.display();
        return Err(ApiKeyError::Name(format!(
            "{place} has a key named {} already; take another name, or end that one first: kimi api-key revoke {0}",
            key.name
        )));
    }
    lines.push(key.to_string());
    write(path, &lines)
}

/// Takes a key out of a file.
///
/// # Errors
/// If there is none of this name, or the file can't be read or written.
pub fn revoke(path: &Path, name: &str) -> Result<(), ApiKeyError> {
    let keys = read(path)?;
    if !keys.iter().any(|key| key.name == name) {
        let names: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
        let known = if names.is_empty() { "it has none".to_owned() } else { names.join(", ") };
        return Err(ApiKeyError::Name(format!("{} has no key named {name:?}: {known}", path.display())));
    }
    let mut lines = read_lines(path)?;
    lines.retain(|line| !matches!(key_of(line), Some(Ok(key)) if key.name == name));
    write(path, &lines)
}

/// The key of a line; `None` for a comment and an empty line.
fn key_of(line: &str) -> Option<Result<ApiKey, String>> {
    let line = line.trim();
    (!line.is_empty() && !line.starts_with('#')).then(|| ApiKey::parse(line))
}

fn read_lines(path: &Path) -> Result<Vec<String>, ApiKeyError> {
    let io = |cause| ApiKeyError::Io { action: "read", path: path.to_owned(), cause };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if metadata.len() > MAX_BYTES {
        let cause = format!("it has {} bytes, at most {MAX_BYTES} are read", metadata.len());
        return Err(io(std::io::Error::other(cause)));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    Ok(text.trim_start_matches('\u{feff}').lines().map(str::to_owned).collect())
}

/// Replaces the file at once: a server that reads it meanwhile finds the old one or the new one.
fn write(path: &Path, lines: &[String]) -> Result<(), ApiKeyError> {
    let io = |cause| ApiKeyError::Io { action: "write", path: path.to_owned(), cause };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let new = path.with_added_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new).map_err(io)?;
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    std::fs::rename(&new, path).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_added_found_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kimi").join("keys");
        let limits = Limits { chats: Some(2), requests: None, tokens: Some(9000) };
        let (laptop, text) = ApiKey::generate("laptop", limits).unwrap();
        let (phone, other) = ApiKey::generate("phone", Limits::default()).unwrap();
        assert_ne!(text, other);
        assert_eq!(text.len(), "sk-kimi-".len() + 64);
        add(&path, &laptop).unwrap();
        add(&path, &phone).unwrap();
        assert_eq!(read(&path).unwrap(), [laptop.clone(), phone.clone()]);
        let content = std::fs::read_to_string(&path).unwrap();
        assert!(!content.contains(&text) && content.contains("chats=2 tokens=9000"), "{content}");
        assert!(laptop.matches(&blake3::hash(text.as_bytes())));
        assert!(!laptop.matches(&blake3::hash(other.as_bytes())));
        assert!(add(&path, &laptop).unwrap_err().to_string().contains("already"));
        revoke(&path, "laptop").unwrap();
        assert_eq!(read(&path).unwrap(), [phone]);
        let error = revoke(&path, "laptop").unwrap_err().to_string();
        assert!(error.contains("phone"), "{error}");
        // Comments stay.
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("# Keys"));
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_can_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        add(&path, &ApiKey::of_text("a", "b", Limits::default())).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn lines_that_are_no_keys_are_refused_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let hash = blake3::hash(b"x").to_hex();
        let bad = [
            ("sk-secret".to_owned(), "--api-key KEY"),
            ("a deadbeef".to_owned(), "hexadecimal"),
            (format!("a blake3:{hash} chat=1"), "chats=N"),
            (format!("a blake3:{hash} chats=0"), "above 0"),
            (format!("a/b blake3:{hash}"), "the name"),
            (format!("a blake3:{hash}\na blake3:{hash}"), "taken"),
        ];
        for (line, expected) in bad {
            std::fs::write(&path, format!("# comment\n\n{line}\n")).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("line "), "{line}: {error}");
        }
    }
}
