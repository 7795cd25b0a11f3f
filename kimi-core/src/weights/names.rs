//! How a checkpoint names the model's tensors. Inside kimi they are named as in Kimi-K2's own files: `model.layers.0. ..`,
//! `lm_head. ..`; models that see as well have them below another name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;

/// What stands at the beginning of names in place of `model.` and of `lm_head`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    body: String,
    head: String,
}

const BODY: &str = "model.";
const HEAD: &str = "lm_head";

impl Names {
    /// Looks for a tensor that every layer of this architecture has, and no vision tower.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, _) in checkpoint.tensors() {
            let Some(layer) = name.strip_suffix(".self_attn.kv_a_layernorm.weight") else { continue };
            if let Some((body, number)) = layer.rsplit_once("layers.")
                && number.bytes().all(|b| b.is_ascii_digit())
            {
                *layers.entry(body).or_default() += 1;
            }
        }
        // The usual name wins, so that nothing beside the model can take its place.
        let most = layers.iter().max_by_key(|(_, count)| **count).map(|(body, _)| *body);
        let body = if layers.contains_key(BODY) { BODY } else { most.unwrap_or(BODY) };
        let outside = body.strip_suffix(BODY).unwrap_or_default();
        let parent = body.strip_suffix('.').and_then(|b| b.rsplit_once('.')).map_or("", |(parent, _)| parent);
        let candidates = [
            format!("{outside}{HEAD}"),
            HEAD.to_owned(),
            format!("{body}{HEAD}"),
            format!("{parent}.{HEAD}"),
        ];
        let stored = |head: &&String| {
            ["weight", "weight_packed"]
                .iter()
                .any(|part| checkpoint.tensor(&format!("{head}.{part}")).is_some())
        };
        let head = candidates.iter().find(stored).unwrap_or(&candidates[0]).clone();
        Self { body: body.to_owned(), head }
    }

    /// What stands in place of `model.`.
    pub(super) fn body(&self) -> &str {
        &self.body
    }

    /// The checkpoint's name of what Kimi-K2's own files call `name`.
    pub(super) fn stored<'n>(&self, name: &'n str) -> Cow<'n, str> {
        let found = replaced(name, BODY, &self.body).or_else(|| replaced(name, HEAD, &self.head));
        found.unwrap_or(Cow::Borrowed(name))
    }

    /// The name in Kimi-K2's own files of what the checkpoint calls `name`; `None` for what is no part of the model.
    pub(super) fn own<'n>(&self, name: &'n str) -> Option<Cow<'n, str>> {
        // The head first: its name may begin as the body's do.
        replaced(name, &self.head, HEAD).or_else(|| replaced(name, &self.body, BODY))
    }

    /// Names that a checkpoint has in place of `missing`, for people: those that end alike, else any.
    pub(super) fn there(checkpoint: &Checkpoint, missing: &str) -> String {
        const SHOWN: usize = 3;
        let parts: Vec<&str> = missing.rsplit('.').collect();
        let module = parts.get(1).copied().unwrap_or(missing);
        let mut all: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
        all.sort_unstable();
        let alike: Vec<&str> =
            all.iter().copied().filter(|name| name.split('.').any(|part| part == module)).collect();
        let shown = if alike.is_empty() { &all } else { &alike };
        let list = shown.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        format!("{} tensors, such as {list}", all.len())
    }
}

/// The name with `to` at its beginning in place of `from`; `None` if it begins otherwise.
fn replaced<'n>(name: &'n str, from: &str, to: &str) -> Option<Cow<'n, str>> {
    let rest = name.strip_prefix(from)?;
    Some(if from == to { Cow::Borrowed(name) } else { format!("{to}{rest}").into() })
}
