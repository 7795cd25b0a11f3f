//! A file of a partial checkpoint while it is written: `NAME.part`, and a journal of the ranges that are in it.
//!
//! A line of the journal is a range's place in the file, its bytes and their blake3. It is written after the range, and
//! believed only if the range still has that hash: whatever ends a pull, what is in the file is used or fetched again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use kimi_core::checkpoint::{Manifest, TensorHeader};
use kimi_core::fingerprint::Group;
use kimi_net::MAX_PIECE;
use serde_json::{Map, Value, json};

use super::PullError;

/// A range of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// The tensor's name.
    pub(super) name: String,
    /// Its place in the manifest.
    pub(super) tensor: u32,
    /// Bytes of the whole tensor.
    pub(super) total: u64,
    /// First byte in the tensor.
    pub(super) offset: u64,
    pub(super) bytes: usize,
    /// First byte in the file.
    at: u64,
}

/// What a file will consist of.
pub(super) struct Layout {
    path: PathBuf,
    /// Length and header of the safetensors file.
    head: Vec<u8>,
    pub(super) spans: Vec<Span>,
    bytes: u64,
}

impl Layout {
    /// The file of a group of tensors.
    pub(super) fn new<'a>(
        folder: &Path,
        group: Group,
        names: impl Iterator<Item = &'a str>,
        manifest: &Manifest,
    ) -> Result<Self, PullError> {
        let place = |name: &str| manifest.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok();
        let mut places: Vec<_> = names.filter_map(place).collect();
        // Types of wide elements first, so that all are aligned.
        places.sort_by_key(|&place| (std::cmp::Reverse(manifest.tensors[place].dtype), place));
        let (mut header, mut spans, mut end) = (Map::new(), Vec::new(), 0u64);
        for place in places {
            let tensor = &manifest.tensors[place];
            let TensorHeader { name, dtype, shape } = tensor;
            let total = tensor.bytes().unwrap_or_default() as u64;
            let mut offset = 0;
            while offset < total {
                let bytes = (total - offset).min(MAX_PIECE as u64);
                let (name, tensor, at) = (name.clone(), place as u32, end + offset);
                spans.push(Span { name, tensor, total, offset, bytes: bytes as usize, at });
                offset += bytes;
            }
            let offsets = [end, end + total];
            header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
            end += total;
        }
        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let head = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        spans.iter_mut().for_each(|span| span.at += head.len() as u64);
        let name = group.to_string().trim_start_matches("model.").replace('.', "-");
        let path = folder.join(format!("model-{name}.safetensors"));
        Ok(Self { bytes: head.len() as u64 + end, path, head, spans })
    }

    /// Bytes of all tensors.
    pub(super) fn tensor_bytes(&self) -> u64 {
        self.bytes - self.head.len() as u64
    }

    /// Bytes that are still to be written, as far as the journal says.
    pub(super) fn missing_bytes(&self) -> u64 {
        let journal = read_journal(&self.journal_path());
        let written = self.spans.iter().filter(|s| journal.get(&s.at).is_some_and(|(n, _)| *n == s.bytes));
        self.bytes.saturating_sub(written.map(|s| s.bytes as u64).sum())
    }

    fn part_path(&self) -> PathBuf {
        self.path.with_extension("safetensors.part")
    }

    fn journal_path(&self) -> PathBuf {
        self.path.with_extension("safetensors.part.journal")
    }
}

/// A file that is being written.
pub(super) struct Part {
    layout: Layout,
    file: File,
    journal: File,
    written: HashMap<u64, [u8; 32]>,
}

impl Part {
    /// Goes on with what is there of a file.
    pub(super) fn open(layout: Layout) -> Result<Self, PullError> {
        let path = layout.part_path();
        let open = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            file.map_err(|e| PullError::file(path, e))
        };
        let mut file = open(&path)?;
        let mut head = vec![0; layout.head.len()];
        let same = file.read_exact(&mut head).is_ok() && head == layout.head;
        let recorded = if same { read_journal(&layout.journal_path()) } else { HashMap::new() };
        let mut journal = open(&layout.journal_path())?;
        let io = |e| PullError::file(&path, e);
        if !same {
            file.set_len(0).map_err(io)?;
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&layout.head)).map_err(io)?;
            journal.set_len(0).map_err(io)?;
        }
        file.set_len(layout.bytes).map_err(io)?;
        journal.seek(SeekFrom::End(0)).map_err(io)?;
        let mut written = HashMap::new();
        for span in &layout.spans {
            let Some((bytes, hash)) = recorded.get(&span.at) else { continue };
            if *bytes == span.bytes && hash_of(&mut file, span).map_err(io)? == *hash {
                written.insert(span.at, *hash);
            }
        }
        Ok(Self { layout, file, journal, written })
    }

    /// The ranges that are not in the file.
    pub(super) fn missing(&self) -> Vec<Span> {
        self.layout.spans.iter().filter(|span| !self.written.contains_key(&span.at)).cloned().collect()
    }

    /// Bytes of the ranges that are.
    pub(super) fn written_bytes(&self) -> u64 {
        let written = self.layout.spans.iter().filter(|span| self.written.contains_key(&span.at));
        written.map(|span| span.bytes as u64).sum()
    }

    pub(super) fn write(&mut self, span: &Span, bytes: &[u8], hash: [u8; 32]) -> Result<(), PullError> {
        let io = |e| PullError::file(&self.layout.part_path(), e);
        self.file.seek(SeekFrom::Start(span.at)).map_err(io)?;
        self.file.write_all(bytes).map_err(io)?;
        let line = format!("{} {} {}\n", span.at, span.bytes, blake3::Hash::from(hash));
        self.journal.write_all(line.as_bytes()).map_err(io)?;
        self.written.insert(span.at, hash);
        Ok(())
    }

    /// Reads everything back, and gives the file its name if it is what was sent.
    pub(super) fn finish(mut self) -> Result<(), PullError> {
        let (path, journal) = (self.layout.part_path(), self.layout.journal_path());
        let io = |e| PullError::file(&path, e);
        self.file.sync_all().map_err(io)?;
        for span in &self.layout.spans {
            if self.written.get(&span.at) != Some(&hash_of(&mut self.file, span).map_err(io)?) {
                return Err(PullError::Disk { path: path.clone(), tensor: span.name.clone() });
            }
        }
        std::fs::rename(&path, &self.layout.path).map_err(io)?;
        // It is of no use any more; one that stays does no harm.
        let _ = std::fs::remove_file(journal);
        Ok(())
    }
}

fn hash_of(file: &mut File, span: &Span) -> std::io::Result<[u8; 32]> {
    let mut bytes = vec![0; span.bytes];
    file.seek(SeekFrom::Start(span.at))?;
    file.read_exact(&mut bytes)?;
    Ok(*blake3::hash(&bytes).as_bytes())
}

/// Bytes and hash of each range, by its place. A line that was not finished says nothing, nor does a journal that can't be
/// read.
fn read_journal(path: &Path) -> HashMap<u64, (usize, [u8; 32])> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (at, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let hash = blake3::Hash::from_hex(words.next()?).ok()?;
        Some((at, (bytes, *hash.as_bytes())))
    };
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(line).collect()
}
