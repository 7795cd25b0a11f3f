//! Which files there are, and which of them goes first.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::prefix_cache::PageHash;

/// Ends the name of a page's file.
const PAGE: &str = "page";
/// Ends the name of one that is being written.
pub(super) const UNFINISHED: &str = "unfinished";

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Name {
    /// Of the model that runs.
    Page(PageHash),
    /// Of another one, by its path in the root folder: it only takes room.
    Other(PathBuf),
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) bytes: u64,
    /// When it was used last, by [`Index::clock`].
    pub(super) used: u64,
    /// Its place in its text: of files used together the last goes first, which is of no use without those before it.
    pub(super) place: usize,
}

/// All files.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Name, Entry>,
    /// First the one to go first.
    order: BTreeSet<(u64, Reverse<usize>, Name)>,
    bytes: u64,
    /// Seconds since 1970, or more: it rises with each text that is used, so that the order of texts is known however fast
    /// they follow each other. Files have it as the time of their last change.
    clock: u64,
}

/// Name of a page's file.
pub(super) fn file_name(hash: &PageHash, place: usize) -> String {
    format!("{hash}.{place}.{PAGE}")
}

/// A page by the name of its file.
fn parse(name: &str) -> Option<(PageHash, usize)> {
    let (hash, rest) = name.strip_suffix(PAGE)?.strip_suffix('.')?.split_once('.')?;
    Some((PageHash::from_hex(hash)?, rest.parse().ok()?))
}

impl Index {
    /// Looks at the files in `root`; those in `own` are the running model's, each of `file_bytes`.
    pub(super) fn scan(root: &Path, own: &Path, file_bytes: u64) -> io::Result<Self> {
        let mut index = Self::default();
        let mut strange = 0_usize;
        for folder in fs::read_dir(root)?.flatten() {
            let is_ours = folder.file_name().to_str().is_some_and(is_folder_name);
            // This does not follow links.
            if !folder.metadata().is_ok_and(|data| data.is_dir()) || !is_ours {
                strange += usize::from(folder.file_name() != "lock");
                continue;
            }
            for file in fs::read_dir(folder.path())?.flatten() {
                let (name, Ok(data)) = (file.file_name(), file.metadata()) else { continue };
                let name = name.to_str().unwrap_or_default();
                if name.ends_with(UNFINISHED) {
                    super::delete(&file.path()); // a process that wrote it has ended
                    continue;
                }
                let Some((hash, place)) = parse(name).filter(|_| data.is_file()) else {
                    strange += 1;
                    continue;
                };
                let entry = Entry { bytes: data.len(), used: modified(&data), place };
                if folder.path() != own {
                    index.add(Name::Other(Path::new(&folder.file_name()).join(name)), entry);
                } else if entry.bytes == file_bytes {
                    index.add(Name::Page(hash), entry);
                } else {
                    let (found, file) = (entry.bytes, file.path());
                    tracing::warn!(file = %file.display(), found, expected = file_bytes, "a cache page on disk is cut off: deleted");
                    super::delete(&file);
                }
            }
        }
        let youngest = index.order.last().map_or(0, |(used, ..)| *used);
        index.clock = super::now().max(youngest.saturating_add(1));
        if strange > 0 {
            tracing::warn!(folder = %root.display(), strange, "files that are no cache pages are left alone");
        }
        let others = index.entries.keys().filter(|name| matches!(name, Name::Other(_))).count();
        if others > 0 {
            tracing::info!(
                others,
                "cache pages of other models or releases are not used; they go first when room is needed"
            );
        }
        Ok(index)
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = PageHash> {
        self.entries.keys().filter_map(|name| match name {
            Name::Page(hash) => Some(*hash),
            Name::Other(_) => None,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn place(&self, hash: &PageHash) -> Option<usize> {
        self.entries.get(&Name::Page(*hash)).map(|entry| entry.place)
    }

    pub(super) fn add(&mut self, name: Name, entry: Entry) {
        self.remove(&name);
        self.bytes += entry.bytes;
        self.order.insert((entry.used, Reverse(entry.place), name.clone()));
        self.entries.insert(name, entry);
    }

    pub(super) fn remove(&mut self, name: &Name) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        self.order.remove(&(entry.used, Reverse(entry.place), name.clone()));
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Begins with another text; says the time.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The time.
    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Notes that a page was used now; says its place.
    pub(super) fn touch(&mut self, hash: &PageHash) -> Option<usize> {
        let name = Name::Page(*hash);
        let entry = *self.entries.get(&name)?;
        self.add(name, Entry { used: self.clock, ..entry });
        Some(entry.place)
    }

    /// Takes out the file that was unused for longest.
    pub(super) fn pop_oldest(&mut self) -> Option<(Name, Entry)> {
        let name = self.order.first().map(|(_, _, name)| name.clone())?;
        self.remove(&name).map(|entry| (name, entry))
    }
}

fn is_folder_name(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn modified(data: &Metadata) -> u64 {
    let time = data.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    time.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let hash = PageHash::default().followed_by(&[1, 2]);
        assert_eq!(parse(&file_name(&hash, 17)), Some((hash, 17)));
        for wrong in
            ["", "page", "00.1.page", "x.1.page", &format!("{hash}.page"), &format!("{hash}.-1.page")]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_unused_for_longest_goes_first_and_of_a_text_its_last_page() {
        let hashes = PageHash::of_pages(&[1, 2, 3, 4, 5], 1);
        let mut index = Index::default();
        for (place, hash) in hashes.iter().enumerate() {
            index.add(Name::Page(*hash), Entry { bytes: 10, used: 5, place });
        }
        index.add(Name::Other("a".into()), Entry { bytes: 1, used: 4, place: 0 });
        index.clock = 5;
        assert_eq!((index.tick(), index.touch(&hashes[4])), (6, Some(4)));
        let order: Vec<_> = std::iter::from_fn(|| index.pop_oldest()).map(|(name, _)| name).collect();
        let pages = [3, 2, 1, 0, 4].map(|i| Name::Page(hashes[i]));
        assert_eq!(order, [&[Name::Other("a".into())], pages.as_slice()].concat());
        assert_eq!(index.bytes(), 0);
    }
}
