//! Tensors of a checkpoint that are no part of the text model.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::names::Names;
use crate::checkpoint::Checkpoint;
use crate::plan::HumanBytes;

/// Parts of names that stand for seeing.
const VISION: [&str; 4] = ["vision", "visual", "mm_projector", "multi_modal_projector"];

/// What a checkpoint holds beside the text model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What their names begin with, sorted: `vision_tower`, `mm_projector`.
    pub parts: Vec<String>,
}

impl Unread {
    pub(super) fn of(checkpoint: &Checkpoint, names: &Names) -> Option<Self> {
        let (mut tensors, mut bytes, mut parts) = (0, 0, BTreeSet::new());
        for (name, tensor) in checkpoint.tensors().filter(|(name, _)| names.own(name).is_none()) {
            tensors += 1;
            bytes += tensor.data.len() as u64;
            let inner = name.strip_prefix("model.").unwrap_or(name);
            parts.insert(inner.split('.').next().unwrap_or(inner).to_owned());
        }
        (tensors > 0).then(|| Self { tensors, bytes, parts: parts.into_iter().collect() })
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensors, bytes, parts } = self;
        let sees = parts.iter().all(|part| VISION.iter().any(|word| part.contains(word)));
        let kind = if sees { " vision" } else { "" };
        let s = if *tensors == 1 { "" } else { "s" };
        let are = if *tensors == 1 { "is" } else { "are" };
        let shown: Vec<String> = parts.iter().take(4).map(|part| format!("{part}.*")).collect();
        let more = if parts.len() > shown.len() { ", .." } else { "" };
        write!(
            f,
            "{tensors}{kind} tensor{s} ({}{more}) {are} not read: {}",
            shown.join(", "),
            HumanBytes(*bytes)
        )
    }
}
