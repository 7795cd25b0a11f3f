//! Batches as messages, and back.
//!
//! The coordinator holds the last stage, so a worker never samples: it needs positions and page tables, and token ids
//! only if it holds the embedding.

use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::fingerprint::Description;
use kimi_core::stage::{Hidden, StageSpan};
use kimi_core::{LayerState, PrecisionChoice};
use kimi_net::{Bytes, Forward, Precision, SequenceStep, StepResult, printable};

/// What a layer keeps, as an assignment names it.
pub(super) fn from_state(state: LayerState) -> kimi_net::LayerState {
    match state {
        LayerState::LatentPages { .. } => kimi_net::LayerState::LatentPages,
    }
}

/// How precisely is computed, as an assignment says it.
pub(super) fn from_precision(choice: PrecisionChoice) -> Precision {
    match choice {
        PrecisionChoice::Exact => Precision::Exact,
        PrecisionChoice::Close => Precision::Close,
        PrecisionChoice::Fast => Precision::Fast,
        PrecisionChoice::Auto => Precision::Auto,
    }
}

/// The same for a worker.
pub(super) fn to_precision(precision: Precision) -> PrecisionChoice {
    match precision {
        Precision::Exact => PrecisionChoice::Exact,
        Precision::Close => PrecisionChoice::Close,
        Precision::Fast => PrecisionChoice::Fast,
        Precision::Auto => PrecisionChoice::Auto,
    }
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

/// A checkpoint's description for an assignment; empty if it is too long to be sent, which no checkpoint's is.
pub(super) fn from_description(description: &Description) -> Vec<u8> {
    let bytes = postcard::to_stdvec(description).unwrap_or_default();
    if bytes.len() <= Description::MAX_BYTES { bytes } else { Vec::new() }
}

/// What differs between a worker's checkpoint and the coordinator's, for people.
pub(super) fn difference(ours: &Description, theirs: &[u8]) -> String {
    let theirs = postcard::from_bytes::<Description>(theirs).ok();
    let difference = theirs.and_then(|theirs| ours.difference(&theirs));
    difference.map_or_else(
        || "the coordinator does not say how; run the same release of kimi on both machines".to_owned(),
        |difference| printable(&difference.between("here", "at the coordinator")).into_owned(),
    )
}
