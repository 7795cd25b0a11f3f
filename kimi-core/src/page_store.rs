//! Cache pages on a disk, so that they outlive the process.
//!
//! Each page is a file, named by what it holds ([`PageHash`]) in a folder named by what computed it: checkpoint, layers,
//! form of the cache and release of kimi. A file is believed only if its length, its names and its checksum are right; any
//! other is deleted with a line in the log. It appears whole, by a rename. Once a folder's pages take more bytes than they
//! may, those go first that were unused for longest, and of pages that were used together the last in the text.
//!
//! What people wrote can be told from the pages, so only their owner may read them, as any file of this folder.

mod index;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::prefix_cache::PageHash;
use index::{Entry, Index, Name};

/// Where pages are kept, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageStoreConfig {
    /// The folder; made if it is not there. One process uses it at a time.
    pub folder: PathBuf,
    /// Most bytes of all files in it.
    pub max_bytes: u64,
    /// What the pages depend on, besides the stages: the checkpoint's
    /// [fingerprint](crate::fingerprint::Description::fingerprint).
    pub model: [u8; 32],
}

impl PageStoreConfig {
    /// Default of [`Self::max_bytes`].
    pub const MAX_BYTES: u64 = 32_000_000_000;
}

/// Why pages can't be kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PageStoreError {
    /// The folder can't be used.
    #[error("the prefix cache on disk, {}: {reason}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process uses it.
    #[error(
        "the prefix cache on disk, {}: another kimi uses it; stop that one or name another folder",
        folder.display()
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// Not even one page fits.
    #[error(
        "the prefix cache on disk may take {max_bytes} bytes, but a page of {tokens} tokens takes {page_bytes}; give it more"
    )]
    TooSmall {
        /// [`PageStoreConfig::max_bytes`].
        max_bytes: u64,
        /// Tokens of a page.
        tokens: usize,
        /// Bytes of its file.
        page_bytes: u64,
    },
    /// A stage is elsewhere.
    #[error(
        "the prefix cache on disk needs all layers in this process, but layers {first}-{last} are on another machine: \
         use one machine, or none"
    )]
    Elsewhere {
        /// First layer of the stage.
        first: usize,
        /// Its last.
        last: usize,
    },
}

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"kimipage";
/// Bytes before the page: [`MAGIC`], what computed it, what it holds, and its length.
const HEADER: usize = 8 + 32 + 32 + 8;
/// Bytes after it: BLAKE3 of all before.
const CHECKSUM: usize = 32;

/// The pages of one model in a folder.
#[derive(Debug)]
pub struct PageStore {
    root: PathBuf,
    /// Its own pages'.
    folder: PathBuf,
    identity: [u8; 32],
    page_bytes: usize,
    max_bytes: u64,
    index: Mutex<Index>,
    /// Holds the lock of the folder.
    _lock: File,
}

impl PageStore {
    /// Opens a folder. `identity` names what computes the pages, of so many bytes each.
    ///
    /// # Errors
    /// [`PageStoreError`] if the folder can't be made, or another process uses it.
    pub fn open(
        root: &Path,
        identity: [u8; 32],
        page_bytes: usize,
        page_tokens: usize,
        max_bytes: u64,
    ) -> Result<Self, PageStoreError> {
        let failed = |e: io::Error| PageStoreError::Folder { folder: root.to_owned(), reason: e.to_string() };
        let file_bytes = (page_bytes + HEADER + CHECKSUM) as u64;
        if file_bytes > max_bytes {
            return Err(PageStoreError::TooSmall { max_bytes, tokens: page_tokens, page_bytes: file_bytes });
        }
        private_folder(root).map_err(failed)?;
        let lock = private_file(&root.join("lock"), false).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(PageStoreError::InUse { folder: root.to_owned() });
            }
            Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        let folder = root.join(folder_name(&identity));
        private_folder(&folder).map_err(failed)?;
        let index = Mutex::new(Index::scan(root, &folder, file_bytes).map_err(failed)?);
        let store =
            Self { root: root.to_owned(), folder, identity, page_bytes, max_bytes, index, _lock: lock };
        store.make_room(0);
        Ok(store)
    }

    /// What can be loaded.
    pub fn hashes(&self) -> Vec<PageHash> {
        self.index().hashes().collect()
    }

    /// Bytes of all files, those of other models included.
    pub fn bytes(&self) -> u64 {
        self.index().bytes()
    }

    /// The page of a hash. A file that is not what it should be is deleted.
    pub fn load(&self, hash: &PageHash) -> Option<Bytes> {
        let place = self.index().place(hash)?;
        let path = self.path(hash, place);
        match self.read(&path, hash) {
            Ok(page) => {
                self.touch_page(hash);
                Some(page)
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a cache page on disk is not used and deleted");
                self.remove(&[*hash]);
                None
            }
        }
    }

    fn read(&self, path: &Path, hash: &PageHash) -> io::Result<Bytes> {
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let size = self.page_bytes + HEADER + CHECKSUM;
        let mut file = File::open(path)?;
        if file.metadata()?.len() != size as u64 {
            return wrong("it has another length");
        }
        let mut bytes = vec![0; size];
        file.read_exact(&mut bytes)?;
        let (begin, checksum) = bytes.split_at(size - CHECKSUM);
        if begin[..HEADER] != self.header(hash) {
            return wrong("it is of another page or model");
        }
        if *blake3::hash(begin).as_bytes() != *checksum {
            return wrong("its checksum is wrong");
        }
        Ok(Bytes::from(bytes).slice(HEADER..size - CHECKSUM))
    }

    /// Makes room for one page more; says which pages went for it.
    pub fn make_room_for_page(&self) -> Vec<PageHash> {
        self.make_room((self.page_bytes + HEADER + CHECKSUM) as u64)
    }

    /// Keeps a page, the `place`-th of its text from 0, that is given in parts. There must be room for it.
    ///
    /// # Errors
    /// The system's; the page is not kept then.
    pub fn save(&self, hash: PageHash, place: usize, parts: &[Bytes]) -> io::Result<()> {
        let found: usize = parts.iter().map(Bytes::len).sum();
        if found != self.page_bytes {
            let what = format!("a page has {found} bytes, expected {}", self.page_bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let path = self.path(&hash, place);
        let unfinished = path.with_extension(index::UNFINISHED);
        let used = self.index().clock();
        let written =
            self.write(&unfinished, &hash, parts, used).and_then(|()| fs::rename(&unfinished, &path));
        written.inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
        let bytes = (self.page_bytes + HEADER + CHECKSUM) as u64;
        self.index().add(Name::Page(hash), Entry { bytes, used, place });
        Ok(())
    }

    fn write(&self, path: &Path, hash: &PageHash, parts: &[Bytes], used: u64) -> io::Result<()> {
        let mut file = private_file(path, true)?;
        let mut checksum = blake3::Hasher::new();
        let header = self.header(hash);
        for part in std::iter::once(header.as_slice()).chain(parts.iter().map(|part| &**part)) {
            checksum.update(part);
            file.write_all(part)?;
        }
        file.write_all(checksum.finalize().as_bytes())?;
        file.set_modified(time(used))
    }

    /// Says that pages of a text were used just now.
    pub fn touch(&self, hashes: &[PageHash]) {
        self.index().tick();
        hashes.iter().for_each(|hash| self.touch_page(hash));
    }

    fn touch_page(&self, hash: &PageHash) {
        let mut index = self.index();
        let (place, clock) = (index.touch(hash), index.clock());
        drop(index);
        if let Some(place) = place {
            let file = File::options().append(true).open(self.path(hash, place));
            // Where it fails the page is older than it should be after the next start.
            let _ = file.and_then(|file| file.set_modified(time(clock)));
        }
    }

    /// Deletes pages.
    pub fn remove(&self, hashes: &[PageHash]) {
        for hash in hashes {
            let removed = self.index().remove(&Name::Page(*hash));
            if let Some(entry) = removed {
                delete(&self.path(hash, entry.place));
            }
        }
    }

    /// Deletes what was unused for longest until so many bytes more may be there; says which of its own pages went.
    fn make_room(&self, bytes: u64) -> Vec<PageHash> {
        let mut gone = Vec::new();
        loop {
            let mut index = self.index();
            if index.bytes().saturating_add(bytes) <= self.max_bytes {
                return gone;
            }
            let Some((name, entry)) = index.pop_oldest() else { return gone };
            drop(index);
            match name {
                Name::Page(hash) => {
                    delete(&self.path(&hash, entry.place));
                    gone.push(hash);
                }
                Name::Other(path) => delete(&self.root.join(path)),
            }
        }
    }

    fn path(&self, hash: &PageHash, place: usize) -> PathBuf {
        self.folder.join(index::file_name(hash, place))
    }

    fn header(&self, hash: &PageHash) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..40].copy_from_slice(&self.identity);
        header[40..72].copy_from_slice(hash.as_bytes());
        header[72..].copy_from_slice(&(self.page_bytes as u64).to_le_bytes());
        header
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name of the folder of what has this identity.
fn folder_name(identity: &[u8; 32]) -> String {
    identity.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time of the index's clock.
fn time(clock: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(clock)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn delete(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "can't delete a cache page");
        }
        _ => {}
    }
}

/// Makes a folder that only its owner can look into, if it is not there.
fn private_folder(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Opens a file for writing that only its owner can read.
fn private_file(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(truncate);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
