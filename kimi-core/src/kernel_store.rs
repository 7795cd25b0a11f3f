//! Machine code of kernels, kept from one run to the next: a file for each device, driver and version of kimi.
//!
//! Drivers need not check what they are given, so a file is used only if it is this user's own, nobody else can write it,
//! and it is byte for byte what was written: its hash is in it. Nothing depends on it. Without it kernels are compiled.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What a file begins with.
const MAGIC: &[u8; 16] = b"kimi kernels v1\n";
/// Bytes of machine code: an H100's for Kimi-K2 is about 10 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Files in the folder; the oldest go first.
const MAX_FILES: usize = 16;
/// How the files' names end.
const EXTENSION: &str = "kernels";

/// The file of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelStore {
    path: PathBuf,
    key: String,
}

impl KernelStore {
    /// The file in `folder` of what `key` names. Files of another version of kimi have other names.
    pub fn new(folder: &Path, key: &str) -> Self {
        let key = format!("{}\n{key}", env!("CARGO_PKG_VERSION"));
        let name = blake3::hash(key.as_bytes()).to_hex();
        Self { path: folder.join(&name.as_str()[..32]).with_extension(EXTENSION), key }
    }

    /// The machine code that was kept; `None` where there is none, or none that can be trusted.
    pub fn read(&self) -> Option<Vec<u8>> {
        let found = self.read_checked();
        if let Err(error) = &found
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), "kernels are compiled anew, kept ones are not used: {error}");
        }
        found.ok()
    }

    fn read_checked(&self) -> io::Result<Vec<u8>> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(wrong("it is no file"));
        }
        own(&metadata).map_err(wrong)?;
        let head = (MAGIC.len() + blake3::OUT_LEN) as u64;
        if !(head..=head + MAX_BYTES).contains(&metadata.len()) {
            return Err(wrong("it is shorter or longer than any that was written"));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.take(head + MAX_BYTES).read_to_end(&mut bytes)?;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len()).ok_or_else(|| wrong("it ends early"))?;
        let (hash, code) = rest.split_at_checked(blake3::OUT_LEN).ok_or_else(|| wrong("it ends early"))?;
        if magic != MAGIC || hash != self.hash(code).as_bytes() {
            return Err(wrong("it is not what was written: it is damaged"));
        }
        Ok(code.to_vec())
    }

    /// Keeps machine code instead of what there was. What keeps it from doing so is logged.
    pub fn write(&self, code: &[u8]) {
        if code.len() as u64 > MAX_BYTES {
            tracing::debug!(bytes = code.len(), "the kernels' machine code is too large to be kept");
            return;
        }
        if let Err(error) = self.write_whole(code) {
            tracing::debug!(%error, path = %self.path.display(), "the kernels' machine code is not kept");
        }
    }

    /// Whole or not at all: another process may read it now, or write it too.
    fn write_whole(&self, code: &[u8]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let new = self.path.with_extension(format!("{EXTENSION}.{}", std::process::id()));
        let _ = fs::remove_file(&new); // of an earlier process that was ended in the middle
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&new).and_then(|mut file| {
            file.write_all(MAGIC)?;
            file.write_all(self.hash(code).as_bytes())?;
            file.write_all(code)?;
            file.sync_all()
        });
        let kept = written.and_then(|()| fs::rename(&new, &self.path));
        if kept.is_err() {
            let _ = fs::remove_file(&new);
        }
        kept?;
        prune(folder)
    }

    /// Of the key too: the file of one device under the name of another's is not used.
    fn hash(&self, code: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.key.len() as u64).to_le_bytes()).update(self.key.as_bytes()).update(code);
        hasher.finalize()
    }
}

/// Whether a file is this user's, and nobody else can write it.
#[cfg(unix)]
fn own(metadata: &fs::Metadata) -> Result<(), &'static str> {
    use std::os::unix::fs::MetadataExt;
    match metadata {
        m if m.uid() != rustix::process::geteuid().as_raw() => Err("it is another user's"),
        m if m.mode() & 0o022 != 0 => Err("others than its owner can write it"),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn own(_: &fs::Metadata) -> Result<(), &'static str> {
    Ok(())
}

/// Removes the oldest files, and those that were not finished.
fn prune(folder: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let ours = entry.path().extension().is_some_and(|extension| extension == EXTENSION);
        if let Some(modified) = entry.metadata().ok().filter(|m| ours && m.is_file()).map(|m| m.modified()) {
            files.push((modified?, entry.path()));
        }
    }
    files.sort();
    let surplus = files.len().saturating_sub(MAX_FILES);
    files.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path, key: &str) -> KernelStore {
        KernelStore::new(folder, key)
    }

    #[test]
    fn what_was_written_is_read_and_only_under_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/kernels");
        let h100 = store(&folder, "H100\n570.1");
        assert_eq!(h100.read(), None);
        h100.write(b"machine code");
        assert_eq!(h100.read().as_deref(), Some(&b"machine code"[..]));
        h100.write(b"");
        assert_eq!(h100.read().as_deref(), Some(&b""[..]));
        let other = store(&folder, "H100\n570.2");
        assert_eq!(other.read(), None);
        fs::copy(&h100.path, &other.path).unwrap();
        assert_eq!(other.read(), None, "a driver must not get another's code");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&h100.path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            fs::set_permissions(&h100.path, fs::Permissions::from_mode(0o620)).unwrap();
            assert_eq!(h100.read(), None, "others could have written it");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing unfinished is left");
    }

    #[test]
    fn no_damage_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), "key");
        store.write(&[7; 100]);
        let whole = fs::read(&store.path).unwrap();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 1;
            fs::write(&store.path, &bytes).unwrap();
            assert_eq!(store.read(), None, "byte {i} was changed");
            fs::write(&store.path, &whole[..i]).unwrap();
            assert_eq!(store.read(), None, "cut at byte {i}");
        }
        fs::write(&store.path, [&whole[..], &[0]].concat()).unwrap();
        assert_eq!(store.read(), None, "a byte more");
        let large = File::options().write(true).open(&store.path).unwrap();
        large.set_len(MAX_BYTES * 2).unwrap();
        assert_eq!(store.read(), None, "too large to be read");
        store.write(&[7; 100]);
        assert!(store.read().is_some(), "a damaged file is replaced");
        fs::remove_file(&store.path).unwrap();
        fs::create_dir(&store.path).unwrap();
        assert_eq!(store.read(), None);
        store.write(b"can't be renamed onto a folder");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_folder_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..MAX_FILES + 5 {
            store(folder.path(), &format!("driver {i}")).write(b"code");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MAX_FILES);
    }
}
