//! Stages in a row, a thread each, so that several batches are computed at once.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::stage::{Finish, Hidden, SequenceOutput, StageError, StageOutput, StageRunner, StageSpan};

/// How long a dropped pipeline waits for stages that are still computing.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// The stages of a model, in order. Batches go in with [`submit`](Self::submit) and their results come out of
/// [`recv`](Self::recv) in the same order.
///
/// Dropping it stops the threads; a stage that hangs is given up after five seconds.
#[derive(Debug)]
pub struct Pipeline {
    output: PipelineOutput, // before the input, which waits for what is in it
    input: PipelineInput,
}

/// The end of a [`Pipeline`] that takes batches. Dropping it stops the threads once they are done.
#[derive(Debug)]
pub struct PipelineInput {
    /// `None` only while it is dropped.
    work: Option<Sender<Work>>,
    spans: Vec<StageSpan>,
    runs_ahead: bool,
    /// Disconnected when the last stage thread has ended, and nothing is left that it has started on.
    threads: Receiver<()>,
}

/// The end of a [`Pipeline`] that gives results.
#[derive(Debug)]
pub struct PipelineOutput {
    steps: Receiver<Landing>,
    last: StageSpan,
    /// When the last result was there.
    landed: Option<Instant>,
}

/// The result of one batch.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// [`Batch::step`].
    pub step: u64,
    /// What the last stage returned, or the error of the first stage that failed.
    pub result: Result<Vec<SequenceOutput>, StageError>,
    /// How long each stage took, waits for its machine included; 0 for those after a failed one.
    pub stage_times: Vec<Duration>,
}

/// What is wrong with a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// The stages do not make up a model.
    #[error(
        "stage {stage} of {stages}: {what} is {found}, expected {expected}; the placement does not cover the model"
    )]
    Spans {
        /// Index of the stage.
        stage: usize,
        /// Number of stages.
        stages: usize,
        /// The property of the stage.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would fit the stage before it.
        expected: String,
    },
    /// There is no stage.
    #[error("a pipeline takes at least one stage, found none")]
    Empty,
    /// The operating system gave no thread.
    #[error("can't start the thread of stage {stage}: {reason}")]
    Thread {
        /// Index of the stage.
        stage: usize,
        /// What the system said.
        reason: String,
    },
    /// A stage's thread has ended, though it should not.
    #[error("a stage of the pipeline has stopped; start the model again")]
    Stopped,
}

/// A batch on its way through the stages.
struct Work {
    batch: Arc<Batch>,
    hidden: Result<Option<Hidden>, StageError>,
    times: Vec<Duration>,
}

/// A batch that the last stage has started on.
struct Landing {
    step: u64,
    /// `None` if a stage before failed.
    started: Option<Instant>,
    finish: Result<Finish, StageError>,
    /// Of the stages before.
    times: Vec<Duration>,
    alive: Sender<()>,
}

/// Where a stage's results go.
enum Next {
    Stage(Sender<Work>),
    Results(Sender<Landing>),
}

impl Pipeline {
    /// Starts a thread for each stage.
    ///
    /// # Errors
    /// [`PipelineError`] if there is no stage, if the layers do not start at 0 and follow each other, if the
    /// embedding is not exactly in the first or the head not exactly in the last stage, or if there is no thread.
    pub fn new(stages: Vec<Box<dyn StageRunner>>) -> Result<Self, PipelineError> {
        let spans: Vec<_> = stages.iter().map(|stage| stage.span()).collect();
        check_spans(&spans)?;
        let runs_ahead = matches!(stages.as_slice(), [only] if only.runs_ahead());
        let last = spans.last().ok_or(PipelineError::Empty)?.clone();
        let (alive, threads) = mpsc::channel();
        let (work, mut source) = mpsc::channel();
        let (results, steps) = mpsc::channel();
        for (i, (runner, span)) in stages.into_iter().zip(spans.clone()).enumerate() {
            let (next, next_source) = mpsc::channel();
            let next = if span.last { Next::Results(results.clone()) } else { Next::Stage(next) };
            let source = std::mem::replace(&mut source, next_source);
            let alive = alive.clone();
            let spawned = thread::Builder::new()
                .name(format!("kimi-stage-{i}"))
                .spawn(move || stage_loop(alive, runner, &span, next, source));
            spawned.map_err(|e| PipelineError::Thread { stage: i, reason: e.to_string() })?;
        }
        let input = PipelineInput { work: Some(work), spans, runs_ahead, threads };
        Ok(Self { output: PipelineOutput { steps, last, landed: None }, input })
    }

    /// Number of stages: how many batches can be computed at once.
    pub fn depth(&self) -> usize {
        self.input.depth()
    }

    /// The parts of the model, in order.
    pub fn spans(&self) -> &[StageSpan] {
        &self.input.spans
    }

    /// See [`PipelineInput::runs_ahead`].
    pub fn runs_ahead(&self) -> bool {
        self.input.runs_ahead()
    }

    /// Hands a batch to the first stage. Does not wait.
    ///
    /// # Errors
    /// [`PipelineError::Stopped`].
    pub fn submit(&self, batch: Batch) -> Result<(), PipelineError> {
        self.input.submit(batch)
    }

    /// Waits for the next result. With no batch in flight it waits for one to be submitted.
    ///
    /// # Errors
    /// [`PipelineError::Stopped`].
    pub fn recv(&mut self) -> Result<StepOutput, PipelineError> {
        self.output.recv()
    }

    /// The two ends, for two threads.
    pub fn split(self) -> (PipelineInput, PipelineOutput) {
        (self.input, self.output)
    }
}

impl PipelineInput {
    /// See [`Pipeline::depth`].
    pub fn depth(&self) -> usize {
        self.spans.len()
    }

    /// Whether a batch may follow the one before it while that is computed: there is one stage, and it queues.
    pub fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }

    /// See [`Pipeline::submit`].
    ///
    /// # Errors
    /// [`PipelineError::Stopped`].
    pub fn submit(&self, batch: Batch) -> Result<(), PipelineError> {
        let times = Vec::with_capacity(self.spans.len());
        let work = Work { batch: Arc::new(batch), hidden: Ok(None), times };
        self.work.as_ref().and_then(|to| to.send(work).ok()).ok_or(PipelineError::Stopped)
    }
}

impl PipelineOutput {
    /// See [`Pipeline::recv`].
    ///
    /// # Errors
    /// [`PipelineError::Stopped`].
    pub fn recv(&mut self) -> Result<StepOutput, PipelineError> {
        let Landing { step, started, finish, mut times, alive } =
            self.steps.recv().map_err(|_| PipelineError::Stopped)?;
        let result = match finish.and_then(|finish| finish()) {
            Ok(StageOutput::Sequences(sequences)) => Ok(sequences),
            Ok(StageOutput::Hidden(_)) => Err(wrong_output(&self.last, "activations", "tokens")),
            Err(error) => Err(error),
        };
        drop(alive); // the device is not used any more
        // What it waited for the batch before it is that batch's time.
        let (before, now) = (self.landed.max(started), Instant::now());
        self.landed = Some(now);
        times.push(started.and(before).map_or(Duration::ZERO, |before| now - before));
        Ok(StepOutput { step, result, stage_times: times })
    }
}

impl Drop for PipelineInput {
    fn drop(&mut self) {
        self.work = None;
        if self.threads.recv_timeout(DROP_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "a stage is still busy {DROP_WAIT:?} after its pipeline was dropped; not waiting for it"
            );
        }
    }
}

fn check_spans(spans: &[StageSpan]) -> Result<(), PipelineError> {
    let stages = spans.len();
    let mut layer = 0;
    for (stage, span) in spans.iter().enumerate() {
        let checks = [
            ("its first layer", span.layers.start.to_string(), layer.to_string()),
            ("the end of its layers", span.layers.end.to_string(), span.layers.end.max(layer).to_string()),
            ("having the embedding", span.first.to_string(), (stage == 0).to_string()),
            ("having the head", span.last.to_string(), (stage + 1 == stages).to_string()),
        ];
        if let Some((what, found, expected)) = checks.into_iter().find(|(_, found, wanted)| found != wanted) {
            return Err(PipelineError::Spans { stage, stages, what, found, expected });
        }
        layer = span.layers.end;
    }
    if stages == 0 { Err(PipelineError::Empty) } else { Ok(()) }
}

/// Computes batches until one of the channels is closed. Drops `alive` last, after the runner.
fn stage_loop(
    alive: Sender<()>,
    mut runner: Box<dyn StageRunner>,
    span: &StageSpan,
    next: Next,
    source: Receiver<Work>,
) {
    for work in source {
        let sent = match &next {
            Next::Stage(next) => next.send(pass(&mut *runner, span, work)).is_ok(),
            Next::Results(results) => results.send(start(&mut *runner, work, &alive)).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

/// Runs a stage, unless one before it failed.
fn pass(runner: &mut dyn StageRunner, span: &StageSpan, mut work: Work) -> Work {
    let started = work.hidden.is_ok().then(Instant::now);
    work.hidden = work.hidden.and_then(|hidden| match runner.run(&work.batch, hidden)? {
        StageOutput::Hidden(hidden) => Ok(Some(hidden)),
        StageOutput::Sequences(_) => Err(wrong_output(span, "tokens", "activations")),
    });
    work.times.push(started.map_or(Duration::ZERO, |started| started.elapsed()));
    work
}

/// Starts the last stage, unless one before it failed.
fn start(runner: &mut dyn StageRunner, work: Work, alive: &Sender<()>) -> Landing {
    let Work { batch, hidden, times } = work;
    let started = hidden.is_ok().then(Instant::now);
    let finish = hidden.and_then(|hidden| runner.start(&batch, hidden));
    Landing { step: batch.step, started, finish, times, alive: alive.clone() }
}

fn wrong_output(span: &StageSpan, found: &str, expected: &str) -> StageError {
    StageError::Input { span: span.clone(), what: format!("it returned {found}, expected {expected}") }
}
