//! Batches as messages, and back.
//!
//! The coordinator holds the last stage, so a worker never samples: it needs positions and page tables, and token ids
//! only if it holds the embedding.

use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::fingerprint::Description;
use kimi_core::stage::{Hidden, StageSpan};
use kimi_net::{Bytes, CheckpointDescription, Fingerprint, Forward, SequenceStep, StepResult};

/// A checkpoint's description as a message.
pub(super) fn to_description(description: Description) -> CheckpointDescription {
    let Description { version, config, tensors } = description;
    let tensors = tensors.into_iter().map(|(group, hash)| (group, Fingerprint(hash))).collect();
    CheckpointDescription { version, config, tensors }
}

/// A peer's description of its checkpoint, to compare ours with.
pub(super) fn from_description(description: &CheckpointDescription) -> Description {
    let CheckpointDescription { version, config, tensors } = description.clone();
    let tensors = tensors.into_iter().map(|(group, Fingerprint(hash))| (group, hash)).collect();
    Description { version, config, tensors }
}

/// A batch and its input as a message. `hidden_size` is the model's.
pub(super) fn to_forward(
    step: u64,
    batch: &Batch,
    span: &StageSpan,
    hidden_size: usize,
    input: Option<Hidden>,
) -> (Forward, Bytes) {
    let sequences = batch.sequences.iter().map(|s| SequenceStep {
        id: s.id.0,
        start: s.start,
        count: s.tokens.len() as u32,
        tokens: if span.first { s.tokens.clone() } else { Vec::new() },
        pages: s.pages.clone(),
    });
    let forward = Forward {
        step,
        sequences: sequences.collect(),
        rows: batch.tokens() as u32,
        cols: hidden_size as u32,
    };
    (forward, input.map(|hidden| hidden.data).unwrap_or_default())
}

/// A message as a batch and its input, for a stage that is not the last.
///
/// # Errors
/// What does not fit the stage, before anything is allocated for it.
pub(super) fn from_forward(
    forward: Forward,
    payload: Bytes,
    span: &StageSpan,
    hidden_size: usize,
) -> Result<(Batch, Option<Hidden>), String> {
    let (rows, cols) = (forward.rows as usize, forward.cols as usize);
    // kimi-net has held rows, columns and pages against the assignment.
    if cols != hidden_size {
        return Err(format!("got activations of width {cols}, expected {hidden_size}"));
    }
    let input = match (span.first, payload.is_empty()) {
        (true, true) => None,
        (true, false) => return Err("got activations, but the first stage takes tokens".to_owned()),
        (false, true) => return Err("got no activations from the stage before it".to_owned()),
        (false, false) => Some(Hidden { rows, cols, data: payload }),
    };
    let sequences = forward.sequences.into_iter().map(|s| {
        // Other stages only count them. kimi-net has checked that the counts add up to the rows of the payload.
        let tokens = if span.first { s.tokens } else { vec![0; s.count as usize] };
        let output = Output::None;
        SequenceSlice { id: SequenceId(s.id), start: s.start, tokens, pages: s.pages, output }
    });
    Ok((Batch { step: forward.step, sequences: sequences.collect(), follows: None }, input))
}

/// A worker's output as activations.
///
/// # Errors
/// What was found and expected.
pub(super) fn to_hidden(
    header: &StepResult,
    payload: Bytes,
    rows: usize,
    cols: usize,
) -> Result<Hidden, String> {
    let found = (header.rows as usize, header.cols as usize);
    if found != (rows, cols) {
        return Err(format!("returned [{}, {}], expected [{rows}, {cols}]", found.0, found.1));
    }
    Ok(Hidden { rows, cols, data: payload })
}
