//! What a worker is to compute.

use serde::{Deserialize, Serialize};

use super::{ELEMENT_BYTES, MAX_PER_SEQUENCE, MAX_SEQUENCES, MessageError, at_most, ensure};

/// One sequence's part in a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceStep {
    /// The sequence.
    pub id: u64,
    /// Position of its first new token.
    pub start: u32,
    /// New tokens: as many rows of the payload.
    pub count: u32,
    /// Their ids: `count` of them for the first stage, else empty.
    pub tokens: Vec<u32>,
    /// The sequence's page table: its cache pages in order of position.
    pub pages: Vec<u32>,
}

/// A step to compute. The payload is the hidden state `[rows, cols]`, row major; empty for the first stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Number of the step; rises from each to the next.
    pub step: u64,
    /// The sequences, in the order of their rows.
    pub sequences: Vec<SequenceStep>,
    /// New tokens of all sequences together.
    pub rows: u32,
    /// Width of the hidden state.
    pub cols: u32,
}

impl StepResult {
    pub(super) fn check(&self, payload: u64) -> Result<(), MessageError> {
        payload_is(tensor_bytes(self.rows, self.cols)?, payload)
    }
}

impl Forward {
    /// Bytes that a worker holds for this step until its answer is sent: the hidden state, which it receives, returns or both,
    /// and the lists. At most; saturating.
    pub(crate) fn memory(&self) -> u64 {
        let lists = self.sequences.iter().map(|sequence| {
            let numbers = sequence.tokens.len() + sequence.pages.len();
            (size_of::<SequenceStep>() + numbers * size_of::<u32>()) as u64
        });
        let state = u64::from(self.rows) * u64::from(self.cols); // below 2^64: two 32-bit factors
        state.saturating_mul(ELEMENT_BYTES).saturating_add(lists.sum())
    }

    pub(super) fn check(&self, payload: u64) -> Result<(), MessageError> {
        at_most("sequences", self.sequences.len(), MAX_SEQUENCES)?;
        ensure(!self.sequences.is_empty(), "a step without sequences")?;
        let mut rows = 0;
        for sequence in &self.sequences {
            at_most("tokens of a sequence", sequence.tokens.len(), MAX_PER_SEQUENCE)?;
            at_most("pages of a sequence", sequence.pages.len(), MAX_PER_SEQUENCE)?;
            ensure(sequence.count > 0, "a sequence without tokens")?;
            ensure(sequence.start.checked_add(sequence.count).is_some(), "a position over 2^32")?;
            let (found, expected) = (sequence.tokens.len() as u64, u64::from(sequence.count));
            if found != expected && (found > 0 || payload == 0) {
                return Err(MessageError::Count { what: "token ids of a sequence", found, expected });
            }
            rows += expected;
        }
        if rows != u64::from(self.rows) {
            let (found, expected) = (u64::from(self.rows), rows);
            return Err(MessageError::Count { what: "rows (sum of the sequences' counts)", found, expected });
        }
        match payload {
            0 => Ok(()), // the first stage: token ids in place of a hidden state
            _ => payload_is(tensor_bytes(self.rows, self.cols)?, payload),
        }
    }
}

/// A step's output. The payload is `[rows, cols]`, row major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// The step that this answers.
    pub step: u64,
    /// Rows of the payload.
    pub rows: u32,
    /// Width of the hidden state.
    pub cols: u32,
    /// Time in the worker's stage, in microseconds, but for the wait for its device.
    pub compute_micros: u64,
    /// Time that the stage waited for its device, in microseconds.
    pub device_micros: u64,
    /// Time in the worker's queue before that, in microseconds.
    pub queue_micros: u64,
}

/// Whether steps are to be expected: a worker may let its device rest while nothing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Whether sequences are running.
    pub active: bool,
}

fn payload_is(expected: u64, found: u64) -> Result<(), MessageError> {
    if found == expected {
        Ok(())
    } else {
        Err(MessageError::Count { what: "payload bytes (rows x cols x 4)", found, expected })
    }
}

fn tensor_bytes(rows: u32, cols: u32) -> Result<u64, MessageError> {
    let values = u64::from(rows) * u64::from(cols); // below 2^64: two 32-bit factors
    values.checked_mul(ELEMENT_BYTES).ok_or(MessageError::Range { what: "rows x cols overflows" })
}
