//! Runs recorded prompts and compares: logits by their largest difference, greedy tokens one by one.

use std::sync::mpsc::{self, Receiver};

use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::pipeline::{Pipeline, PipelineError, PipelineEvent};
use kimi_core::stage::{CacheConfig, StageError, StageRunner};
use serde::Serialize;

use crate::cli::defaults::VERIFY_CHUNK;
use crate::distance::{Distance, likeliest};
use crate::golden::Case;

/// Something that computes logits of one sequence at a time.
pub trait Engine {
    /// Begins a new sequence of at most `tokens` tokens.
    ///
    /// # Errors
    /// If there is no room for it.
    fn start(&mut self, tokens: usize) -> Result<(), VerifyError>;

    /// Appends tokens to the sequence. Returns the logits of all of them, `[T, V]`, or of the last one, `[1, V]`.
    ///
    /// # Errors
    /// If they can't be computed.
    fn feed(&mut self, tokens: &[u32], every_position: bool) -> Result<Vec<f32>, VerifyError>;
}

/// Why a case could not be run.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A stage failed.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The engine's answer has the wrong size.
    #[error("the engine returned {found} logits, expected {expected}")]
    Size {
        /// Values returned.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// The case is longer than the cache that was set up for it.
    #[error("a case of {tokens} tokens does not fit the cache of {room}")]
    Room {
        /// Tokens of the case.
        tokens: usize,
        /// Tokens that the cache holds.
        room: usize,
    },
    /// Another engine's error.
    #[error("{0}")]
    Other(String),
}

/// The result of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub case: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Largest difference of any logit, of the prompt run at once and token by token; `null` if one is not a number.
    pub max_abs_err: Option<f64>,
    /// The same, of the prompt run token by token alone.
    pub stepwise_max_abs_err: Option<f64>,
    /// How far the logits of the prompt run at once are, at every position that has recorded ones.
    pub distance: Option<Distance>,
    /// Greedy tokens that are equal.
    pub greedy_match: usize,
    /// Greedy tokens compared.
    pub greedy_total: usize,
    /// Whether the case passes.
    pub pass: bool,
}

/// The results of all cases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// What computed.
    pub backend: String,
    /// Over how many processes.
    pub stages: usize,
    /// Largest difference that passes.
    pub tolerance: f64,
    /// Every case.
    pub cases: Vec<CaseReport>,
    /// Whether all pass.
    pub pass: bool,
}

/// Runs one case.
///
/// # Errors
/// [`VerifyError`] if it can't be run; a difference is no error.
pub fn run_case(engine: &mut dyn Engine, case: &Case, tolerance: f64) -> Result<CaseReport, VerifyError> {
    let vocab = case.logits.len() / if case.every_position { case.ids.len() } else { 1 };
    let total = case.ids.len() + case.greedy.len();

    engine.start(total)?;
    let mut last = Vec::new();
    let mut at_once = Vec::with_capacity(case.logits.len());
    for chunk in case.ids.chunks(VERIFY_CHUNK) {
        let logits = sized(engine.feed(chunk, case.every_position)?, rows(case, chunk) * vocab)?;
        last = logits[logits.len() - vocab..].to_vec();
        if case.every_position {
            at_once.extend(logits);
        }
    }
    if !case.every_position {
        at_once.clone_from(&last);
    }
    let greedy_match = decode(engine, &case.greedy, last)?;

    engine.start(total)?;
    let mut stepwise = Vec::with_capacity(case.logits.len());
    for (i, token) in case.ids.iter().enumerate() {
        let logits = sized(engine.feed(&[*token], false)?, vocab)?;
        if case.every_position || i + 1 == case.ids.len() {
            stepwise.extend(logits);
        }
    }
    let stepwise = largest_difference(&stepwise, &case.logits);
    let worst = largest_difference(&at_once, &case.logits).zip(stepwise).map(|(a, b)| a.max(b));
    let pass = worst.is_some_and(|w| w <= tolerance) && greedy_match == case.greedy.len();
    Ok(CaseReport {
        case: case.name.clone(),
        prompt_tokens: case.ids.len(),
        max_abs_err: worst,
        stepwise_max_abs_err: stepwise,
        distance: Distance::between(&at_once, &case.logits, vocab),
        greedy_match,
        greedy_total: case.greedy.len(),
        pass,
    })
}

/// Decodes greedily from the logits after the prompt, and counts the tokens equal to the recorded ones. It feeds its
/// own tokens, so that it is decoding that is tested: after a difference little can be equal.
fn decode(engine: &mut dyn Engine, recorded: &[u32], mut logits: Vec<f32>) -> Result<usize, VerifyError> {
    let vocab = logits.len();
    let mut equal = 0;
    for (i, wanted) in recorded.iter().enumerate() {
        let token = likeliest(&logits);
        equal += usize::from(token == *wanted);
        if i + 1 < recorded.len() {
            logits = sized(engine.feed(&[token], false)?, vocab)?;
        }
    }
    Ok(equal)
}

fn rows(case: &Case, chunk: &[u32]) -> usize {
    if case.every_position { chunk.len() } else { 1 }
}

fn sized(logits: Vec<f32>, expected: usize) -> Result<Vec<f32>, VerifyError> {
    let found = logits.len();
    if found == expected && expected > 0 { Ok(logits) } else { Err(VerifyError::Size { found, expected }) }
}

/// `None` if the sizes differ or a difference is not a number.
fn largest_difference(found: &[f32], recorded: &[f32]) -> Option<f64> {
    if found.len() != recorded.len() {
        return None;
    }
    found.iter().zip(recorded).try_fold(0.0, |worst: f64, (a, b)| {
        let difference = (f64::from(*a) - f64::from(*b)).abs();
        difference.is_finite().then(|| worst.max(difference))
    })
}

/// A pipeline as an [`Engine`]. Each sequence takes all pages of the cache, in falling order, so that a wrong use of the
/// page table shows.
#[derive(Debug)]
pub struct PipelineEngine {
    pipeline: Pipeline,
    events: Receiver<PipelineEvent>,
    cache: CacheConfig,
    step: u64,
    sequence: u64,
    position: u32,
}

impl PipelineEngine {
    /// Puts stages in a row that all have this cache.
    ///
    /// # Errors
    /// [`VerifyError::Pipeline`] if they do not make up a model.
    pub fn new(stages: Vec<Box<dyn StageRunner>>, cache: CacheConfig) -> Result<Self, VerifyError> {
        let (sender, events) = mpsc::channel();
        // Fails when nobody reads any more.
        let pipeline = Pipeline::new(stages, move |event| drop(sender.send(event)))?;
        Ok(Self { pipeline, events, cache, step: 0, sequence: 0, position: 0 })
    }
}

impl Engine for PipelineEngine {
    fn start(&mut self, tokens: usize) -> Result<(), VerifyError> {
        let room = self.cache.tokens();
        if tokens > room {
            return Err(VerifyError::Room { tokens, room });
        }
        self.sequence += 1;
        self.position = 0;
        Ok(())
    }

    fn feed(&mut self, tokens: &[u32], every_position: bool) -> Result<Vec<f32>, VerifyError> {
        self.step += 1;
        let slice = SequenceSlice {
            id: SequenceId(self.sequence),
            start: self.position,
            tokens: tokens.to_vec(),
            pages: (0..self.cache.pages as u32).rev().collect(),
            output: if every_position { Output::AllLogits } else { Output::LastLogits },
        };
        self.pipeline.submit(Batch { step: self.step, sequences: vec![slice], follows: None });
        self.position += tokens.len() as u32;
        let outputs = match self.events.recv() {
            Ok(PipelineEvent::Step(step)) => step.result?,
            Ok(PipelineEvent::Lost { error, .. }) => return Err(error.into()),
            Err(_) => return Err(StageError::Stopped.into()),
        };
        Ok(outputs.into_iter().next().map(|o| o.logits).unwrap_or_default())
    }
}

/// The model as plain burn modules: slow, readable, and independent of the engine.
#[cfg(feature = "reference")]
#[derive(Debug)]
pub struct ReferenceEngine {
    model: kimi_core::reference::Model,
    cache: kimi_core::reference::Cache,
}

#[cfg(feature = "reference")]
impl ReferenceEngine {
    /// An engine over a loaded model.
    pub fn new(model: kimi_core::reference::Model) -> Self {
        Self { model, cache: kimi_core::reference::Cache::new() }
    }
}

#[cfg(feature = "reference")]
impl Engine for ReferenceEngine {
    fn start(&mut self, _tokens: usize) -> Result<(), VerifyError> {
        self.cache = kimi_core::reference::Cache::new();
        Ok(())
    }

    fn feed(&mut self, tokens: &[u32], every_position: bool) -> Result<Vec<f32>, VerifyError> {
        let other = |e: &dyn std::fmt::Display| VerifyError::Other(e.to_string());
        let logits = self.model.activations(tokens, &mut self.cache).map_err(|e| other(&e))?.logits;
        let [rows, _] = logits.dims();
        let logits = if every_position { logits } else { logits.narrow(0, rows - 1, 1) };
        logits.try_into_vec_as().map_err(|e| other(&e))
    }
}
