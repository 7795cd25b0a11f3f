//! Pieces of a worker's files, for nodes that lack them: the other end of `kimi pull-layers`.

use kimi_core::checkpoint::{Checkpoint, CheckpointError};
use kimi_net::{Bytes, ErrorCode, Fetch, Item, Piece};

use super::super::refusal::Refusal;
use super::Host;

/// A checkpoint that an observer fetches.
pub(in crate::cluster) struct Shared {
    /// What the observer calls it.
    model: String,
    checkpoint: Checkpoint,
    manifest: Bytes,
    files: Vec<String>,
    tensors: Vec<String>,
}

impl Host {
    /// A piece of this worker's files, from what was opened for the last one if it is of the same model.
    pub(super) fn piece(
        &self,
        fetch: &Fetch,
        opened: Option<Shared>,
    ) -> Result<(Shared, Piece, Bytes), Refusal> {
        let shared = match opened.filter(|shared| shared.model == fetch.model) {
            Some(shared) => shared,
            None => {
                let checkpoint =
                    self.open(&fetch.model).map_err(|error| Refusal::lookup(&fetch.model, &error))?;
                Shared::new(&fetch.model, checkpoint).map_err(Refusal::load)?
            }
        };
        let (piece, payload) = shared.piece(fetch)?;
        Ok((shared, piece, payload))
    }
}

impl Shared {
    fn new(model: &str, checkpoint: Checkpoint) -> Result<Self, CheckpointError> {
        let manifest = checkpoint.manifest()?;
        let json = manifest.to_json().map_err(|e| CheckpointError::Manifest(e.to_string()))?;
        Ok(Self {
            model: model.to_owned(),
            checkpoint,
            manifest: json.into(),
            files: manifest.files,
            tensors: manifest.tensors.into_iter().map(|tensor| tensor.name).collect(),
        })
    }

    /// The bytes stay where they are, in the map of their file: they are hashed and sent from there.
    fn piece(&self, fetch: &Fetch) -> Result<(Piece, Bytes), Refusal> {
        if let Some(changed) = self.checkpoint.changed_shard() {
            return Err(Refusal::load(changed));
        }
        let whole = self.item(fetch.item)?;
        let start = usize::try_from(fetch.offset).ok().filter(|start| *start <= whole.len());
        let Some(start) = start else {
            let text =
                format!("byte {} of {:?} was asked for, which has {}", fetch.offset, fetch.item, whole.len());
            return Err(Refusal::new(ErrorCode::Malformed, text));
        };
        let end = start.saturating_add(fetch.bytes as usize).min(whole.len());
        let payload = whole.slice(start..end);
        let hash = *blake3::hash(&payload).as_bytes();
        Ok((Piece { total: whole.len() as u64, hash }, payload))
    }

    fn item(&self, item: Item) -> Result<Bytes, Refusal> {
        let unknown = || {
            let text = format!(
                "{item:?} was asked for, but the list has {} files and {} tensors",
                self.files.len(),
                self.tensors.len()
            );
            Refusal::new(ErrorCode::Malformed, text)
        };
        match item {
            Item::Manifest => Ok(self.manifest.clone()),
            Item::File(place) => {
                let name = self.files.get(place as usize).ok_or_else(unknown)?;
                self.checkpoint.file(name).map_err(Refusal::load)?.ok_or_else(unknown)
            }
            Item::Tensor(place) => {
                let name = self.tensors.get(place as usize).ok_or_else(unknown)?;
                if !self.checkpoint.is_here(name) {
                    let text =
                        format!("this worker has only a part of {} itself, without {name}", self.model);
                    return Err(Refusal::new(ErrorCode::UnknownModel, text));
                }
                self.checkpoint.tensor(name).map(|tensor| tensor.data.clone()).ok_or_else(unknown)
            }
        }
    }
}
