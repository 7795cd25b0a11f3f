//! A step between its start and its end: what the device has been given, and what is to be brought out.

use std::ops::Range;
use std::sync::Arc;

use kimi_quant::Backend;

use super::local::floats_to_bytes;
use super::{Hidden, SequenceOutput, StageError, StageOutput};
use crate::batch::SequenceId;

/// The tokens that a step chooses.
pub(super) struct Chosen<B: Backend> {
    pub(super) step: u64,
    /// Whose they are, and their places among the step's choices. Without sequences that choose several.
    pub(super) sequences: Vec<(SequenceId, u32)>,
    pub(super) tokens: Arc<B::Chosen>,
}

/// What a sequence wants.
pub(super) enum Wanted {
    /// So many of the step's choices.
    Tokens(usize),
    /// Its rows of the logits.
    Logits(Range<usize>),
}

/// A step that the device has been given, and what is to be brought out.
pub(super) enum Started<B: Backend> {
    Hidden {
        rows: usize,
        cols: usize,
        x: B::Tensor,
    },
    /// Nothing is wanted. It is waited for all the same: whoever hands batches over must not get far ahead of the device.
    Nothing(B::Tensor),
    Sequences {
        wanted: Vec<(SequenceId, Wanted)>,
        tokens: Option<Arc<B::Chosen>>,
        vocabulary: usize,
        /// `[S, V]`, if some are wanted: only then do they leave the device.
        logits: Option<B::Tensor>,
    },
}

impl<B: Backend> Started<B> {
    /// Waits.
    pub(super) fn finish(self, backend: &B) -> Result<StageOutput, StageError> {
        let (wanted, tokens, vocabulary, logits) = match self {
            Self::Hidden { rows, cols, x } => {
                let data = floats_to_bytes(backend.download(&x)?);
                return Ok(StageOutput::Hidden(Hidden { rows, cols, data }));
            }
            Self::Nothing(x) => {
                backend.wait_for(&x)?;
                return Ok(StageOutput::Sequences(Vec::new()));
            }
            Self::Sequences { wanted, tokens, vocabulary, logits } => (wanted, tokens, vocabulary, logits),
        };
        let sampled = tokens.map(|tokens| backend.finish_sample(&tokens)).transpose()?;
        let values = logits.map(|logits| backend.download(&logits)).transpose()?.unwrap_or_default();
        let mut sampled = sampled.into_iter().flatten();
        let outputs = wanted.into_iter().map(|(id, wanted)| match wanted {
            Wanted::Tokens(count) => {
                SequenceOutput { id, sampled: sampled.by_ref().take(count).collect(), logits: Vec::new() }
            }
            Wanted::Logits(rows) => {
                let own = values.get(rows.start * vocabulary..rows.end * vocabulary);
                SequenceOutput { id, sampled: Vec::new(), logits: own.unwrap_or_default().to_vec() }
            }
        });
        Ok(StageOutput::Sequences(outputs.collect()))
    }
}
