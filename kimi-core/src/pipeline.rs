//! Stages in a row. A batch goes from one to the next by itself: whichever thread has a stage's result hands it on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::batch::{Batch, PageId};
use crate::stage::{
    Done, Hidden, PageForm, SequenceOutput, StageError, StageOutput, StageResult, StageRunner, StageSpan,
    StageTime,
};

/// The stages of a model, in order. Batches go in with [`submit`](Self::submit); their results and the losses of stages go
/// to the pipeline's sink, on whichever thread has them.
///
/// It has no thread of its own. Where there is one stage, whoever submits computes short steps
/// ([`StageRunner::compute_here`]). Dropping it drops the stages.
#[derive(Debug)]
pub struct Pipeline {
    line: Arc<Line>,
}

/// What a pipeline reports.
#[derive(Debug)]
pub enum PipelineEvent {
    /// A batch has gone through, or failed.
    Step(StepOutput),
    /// A stage is lost. It is reported once, with or without a batch; all batches in flight are dropped, and no result of
    /// theirs comes.
    Lost {
        /// Its place in the pipeline.
        stage: usize,
        /// Why.
        error: StageError,
    },
}

/// The result of one batch.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// [`Batch::step`].
    pub step: u64,
    /// What the last stage returned, or the error of the first stage that failed.
    pub result: Result<Vec<SequenceOutput>, StageError>,
    /// Where each stage's time went; without those after a failed one.
    pub times: Vec<StageTime>,
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
    /// A stage was to be replaced by one that holds something else.
    #[error("stage {stage} holds layers {expected:?}; it can't be replaced by layers {found:?}")]
    Replacement {
        /// Index of the stage.
        stage: usize,
        /// What the replacement holds.
        found: std::ops::Range<usize>,
        /// What it has to hold.
        expected: std::ops::Range<usize>,
    },
    /// A stage was to be replaced that does not exist.
    #[error("there is no stage {stage}, the pipeline has {stages}")]
    NoStage {
        /// Index asked for.
        stage: usize,
        /// Number of stages.
        stages: usize,
    },
}

type Sink = Box<dyn Fn(PipelineEvent) + Send + Sync>;

struct Line {
    spans: Vec<StageSpan>,
    places: Vec<Place>,
    /// Counts losses: batches of an earlier count are dropped.
    epoch: AtomicU64,
    sink: Sink,
}

/// A stage's place. Whoever holds one place's runner takes only those of later places.
#[derive(Default)]
struct Place {
    /// Counts the stages that have had this place, in twos: even while one is there, odd while it is lost. So a loss is
    /// reported once, and that of an earlier stage is no news.
    tenant: AtomicU64,
    runner: Mutex<Option<Box<dyn StageRunner>>>,
}

/// A batch on its way.
struct Flight {
    batch: Arc<Batch>,
    times: Vec<StageTime>,
    epoch: u64,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("spans", &self.spans).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Puts stages in a row. `sink` gets all results and losses; it must not block, and not call the pipeline.
    ///
    /// # Errors
    /// [`PipelineError`] if there is no stage, if the layers do not start at 0 and follow each other, or if the
    /// embedding is not exactly in the first or the head not exactly in the last stage.
    pub fn new(
        stages: Vec<Box<dyn StageRunner>>,
        sink: impl Fn(PipelineEvent) + Send + Sync + 'static,
    ) -> Result<Self, PipelineError> {
        let spans: Vec<_> = stages.iter().map(|stage| stage.span()).collect();
        check_spans(&spans)?;
        let places = spans.iter().map(|_| Place::default()).collect();
        let pipeline =
            Self { line: Arc::new(Line { spans, places, epoch: AtomicU64::new(0), sink: Box::new(sink) }) };
        stages.into_iter().enumerate().for_each(|(i, runner)| pipeline.line.settle(i, runner));
        Ok(pipeline)
    }

    /// The parts of the model, in order.
    pub fn spans(&self) -> &[StageSpan] {
        &self.line.spans
    }

    /// Whether a batch may follow another before its tokens are known ([`StageRunner::chains`]): one stage has everything.
    pub fn chains(&self) -> bool {
        match self.line.places.as_slice() {
            [only] => only.runner().as_ref().is_some_and(|runner| runner.chains()),
            _ => false,
        }
    }

    /// Whether one more batch in flight than there are stages is of use ([`StageRunner::queues`]).
    pub fn queues(&self) -> bool {
        let queues = |place: &Place| place.runner().as_ref().is_some_and(|runner| runner.queues());
        self.line.places.iter().any(queues)
    }

    /// Hands a batch to the first stage. Waits for nothing but a short step of the only stage.
    pub fn submit(&self, batch: Batch) {
        let epoch = self.line.epoch.load(Ordering::SeqCst);
        let times = Vec::with_capacity(self.line.spans.len());
        self.line.enter(0, Flight { batch: Arc::new(batch), times, epoch }, None);
    }

    /// What pages look like outside of each stage's cache, see [`StageRunner::page_form`].
    pub fn page_forms(&self) -> Vec<Option<PageForm>> {
        let form = |place: &Place| place.runner().as_ref().and_then(|runner| runner.page_form());
        self.line.places.iter().map(form).collect()
    }

    /// Copies a page out of every stage, behind the batches submitted before. `done` gets the stages' bytes in order, or
    /// `None` if one of them has none to give; it is called once, on any thread, and must not call the pipeline.
    pub fn read_page(&self, page: PageId, done: impl FnOnce(Option<Vec<Bytes>>) + Send + 'static) {
        let gather = Gather::new(self.line.places.len(), done);
        for (stage, place) in self.line.places.iter().enumerate() {
            if let Some(runner) = &mut *place.runner() {
                let gather = gather.clone();
                runner.read_page(page, Box::new(move |bytes| gather.put(stage, bytes)));
            }
        }
    }

    /// Puts what [`Self::read_page`] has given into a page of every stage, ahead of batches submitted later. `done` is told
    /// whether all have it.
    pub fn write_page(&self, page: PageId, parts: Vec<Bytes>, done: impl FnOnce(bool) + Send + 'static) {
        let places = &self.line.places;
        let gather = Gather::new(places.len(), |written: Option<Vec<()>>| done(written.is_some()));
        for (stage, (place, bytes)) in places.iter().zip(parts).enumerate() {
            if let Some(runner) = &mut *place.runner() {
                let gather = gather.clone();
                runner.write_page(page, bytes, Box::new(move |result| gather.put(stage, result)));
            }
        }
    }

    /// Tells all stages whether sequences are running; see [`StageRunner::set_active`].
    pub fn set_active(&self, active: bool) {
        for place in &self.line.places {
            if let Some(runner) = &mut *place.runner() {
                runner.set_active(active);
            }
        }
    }

    /// Lets a stage go: all batches in flight are dropped, and no result of theirs comes. Waits for the stage's threads as
    /// dropping it does.
    ///
    /// # Errors
    /// [`PipelineError::NoStage`].
    pub fn remove(&self, stage: usize) -> Result<(), PipelineError> {
        let place = self.line.place(stage)?;
        // Odd: whatever the stage still reports is no news.
        place.tenant.fetch_or(1, Ordering::SeqCst);
        self.line.epoch.fetch_add(1, Ordering::SeqCst);
        let runner = place.runner().take();
        drop(runner); // not under the lock: its threads may be handing on a result
        Ok(())
    }

    /// Checks that a stage could take a place.
    ///
    /// # Errors
    /// [`PipelineError::NoStage`], or [`PipelineError::Replacement`] if it holds another part of the model.
    pub fn check_replacement(&self, stage: usize, span: &StageSpan) -> Result<(), PipelineError> {
        self.line.place(stage)?;
        let expected = &self.line.spans[stage];
        if expected == span {
            return Ok(());
        }
        let (found, expected) = (span.layers.clone(), expected.layers.clone());
        Err(PipelineError::Replacement { stage, found, expected })
    }

    /// Puts another stage, with an empty cache, in the place of one; see [`Self::remove`].
    ///
    /// # Errors
    /// As [`Self::check_replacement`]; nothing has changed then.
    pub fn replace(&self, stage: usize, runner: Box<dyn StageRunner>) -> Result<(), PipelineError> {
        self.check_replacement(stage, &runner.span())?;
        self.remove(stage)?;
        self.line.settle(stage, runner);
        Ok(())
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Here, since batches in flight hold the line, and the last of them ends on a stage's own thread.
        (0..self.line.places.len()).for_each(|stage| drop(self.remove(stage)));
    }
}

impl Line {
    fn place(&self, stage: usize) -> Result<&Place, PipelineError> {
        self.places.get(stage).ok_or(PipelineError::NoStage { stage, stages: self.places.len() })
    }

    /// Gives a stage its place.
    fn settle(self: &Arc<Self>, stage: usize, mut runner: Box<dyn StageRunner>) {
        let place = &self.places[stage];
        let tenant = (place.tenant.load(Ordering::SeqCst) | 1) + 1;
        place.tenant.store(tenant, Ordering::SeqCst);
        if self.places.len() == 1 {
            runner.compute_here(); // between stages the next batch would wait
        }
        let line = Arc::downgrade(self);
        runner.watch(Box::new(move |error| {
            if let Some(line) = line.upgrade() {
                line.lose(stage, tenant, error);
            }
        }));
        *place.runner() = Some(runner);
    }

    /// Hands a batch to a stage. One for a lost stage is dropped: whoever takes the loss drops all batches in flight.
    fn enter(self: &Arc<Self>, stage: usize, flight: Flight, input: Option<Hidden>) {
        let place = &self.places[stage];
        let mut runner = place.runner();
        let tenant = place.tenant.load(Ordering::SeqCst);
        let (Some(runner), 0) = (&mut *runner, tenant % 2) else { return };
        let (line, batch) = (self.clone(), flight.batch.clone());
        let done = Done::new(move |result, time| line.leave(stage, tenant, flight, result, time));
        runner.submit(batch, input, done);
    }

    /// Takes a stage's result, and hands it on.
    fn leave(
        self: &Arc<Self>,
        stage: usize,
        tenant: u64,
        mut flight: Flight,
        result: StageResult,
        time: StageTime,
    ) {
        if flight.epoch != self.epoch.load(Ordering::SeqCst) {
            return;
        }
        flight.times.push(time);
        let span = &self.spans[stage];
        let result = match result {
            Ok(StageOutput::Hidden(hidden)) if !span.last => {
                return self.enter(stage + 1, flight, Some(hidden));
            }
            Ok(StageOutput::Sequences(sequences)) if span.last => Ok(sequences),
            Ok(StageOutput::Hidden(_)) => Err(wrong_output(span, "activations", "tokens")),
            Ok(StageOutput::Sequences(_)) => Err(wrong_output(span, "tokens", "activations")),
            Err(error) if error.is_lost() => return self.lose(stage, tenant, error),
            Err(error) => Err(error),
        };
        let step = flight.batch.step;
        (self.sink)(PipelineEvent::Step(StepOutput { step, result, times: flight.times }));
    }

    /// Reports a loss, once. The stage itself is let go by whoever owns the pipeline: this may be one of its threads, and
    /// its place may be locked.
    fn lose(&self, stage: usize, tenant: u64, error: StageError) {
        let lost = self.places[stage].tenant.compare_exchange(
            tenant,
            tenant | 1,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        if lost.is_ok() {
            self.epoch.fetch_add(1, Ordering::SeqCst);
            (self.sink)(PipelineEvent::Lost { stage, error });
        }
    }
}

type Gathered<T> = Box<dyn FnOnce(Option<Vec<T>>) + Send>;

/// Waits for one thing from each stage. What a stage drops never comes, and the last to let go tells it.
struct Gather<T> {
    parts: Mutex<Vec<Option<T>>>,
    done: Mutex<Option<Gathered<T>>>,
}

impl<T> Gather<T> {
    fn new(stages: usize, done: impl FnOnce(Option<Vec<T>>) + Send + 'static) -> Arc<Self> {
        let parts = Mutex::new((0..stages).map(|_| None).collect());
        Arc::new(Self { parts, done: Mutex::new(Some(Box::new(done))) })
    }

    fn put(&self, stage: usize, part: Result<T, StageError>) {
        match part {
            Ok(part) => {
                let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
                parts[stage] = Some(part);
            }
            Err(error) => tracing::debug!(stage, %error, "a cache page was not copied"),
        }
    }
}

impl<T> Drop for Gather<T> {
    fn drop(&mut self) {
        let parts = std::mem::take(self.parts.get_mut().unwrap_or_else(PoisonError::into_inner));
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = done {
            done(parts.into_iter().collect());
        }
    }
}

impl Place {
    fn runner(&self) -> MutexGuard<'_, Option<Box<dyn StageRunner>>> {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
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

fn wrong_output(span: &StageSpan, found: &str, expected: &str) -> StageError {
    StageError::Input { span: span.clone(), what: format!("it returned {found}, expected {expected}") }
}
