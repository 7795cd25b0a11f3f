//! The engine's thread.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::draft_pace::{DecodeStep, DraftPace};
use super::pace::Pace;
use super::store::{Keeper, PageEvent};
use super::{EngineConfig, EngineError, LostStage, Speculation, StageStats, State, TokenEvent, Usage};
use crate::batch::{Batch, SequenceId};
use crate::constraint::Mask;
use crate::pipeline::{Pipeline, PipelineError, PipelineEvent, StepOutput};
use crate::scheduler::{
    NewSequence, Phase, Scheduler, SchedulerConfig, SchedulerStats, SequenceError, SequenceEvent,
};
use crate::stage::StageRunner;

/// What the engine's thread waits for.
pub(super) enum Message {
    Submit(Box<Submission>),
    /// By ticket.
    Cancel(u64),
    /// By ticket.
    SetPaused(u64, bool),
    Pipeline(PipelineEvent),
    Replace {
        stage: usize,
        runner: Box<dyn StageRunner>,
        done: Sender<Result<(), PipelineError>>,
    },
    /// Is told of losses.
    RecoverWith(Sender<LostStage>),
    /// A lost stage will not be replaced.
    GiveUp(String),
    /// Of a page that is kept on a disk.
    Page(PageEvent),
    /// Pages may be stored until then.
    Shutdown(Instant),
}

#[derive(Debug)]
pub(super) struct Submission {
    pub(super) ticket: u64,
    pub(super) at: Instant,
    pub(super) sink: Sink,
    pub(super) sequence: NewSequence,
}

/// A request's sink. Counts as a request, and is told the end even if it is dropped on the way.
pub(super) struct Sink {
    deliver: Box<dyn FnMut(TokenEvent) + Send>,
    state: Arc<State>,
    /// Whether it was told the end; its [`Generation`](super::Generation) looks too.
    ended: Arc<AtomicBool>,
}

impl Sink {
    /// [`EngineError::Busy`] if there are `limit` others.
    pub(super) fn new(
        deliver: Box<dyn FnMut(TokenEvent) + Send>,
        state: Arc<State>,
        limit: usize,
    ) -> Result<Self, EngineError> {
        let sink = Self { deliver, state, ended: Arc::default() };
        if sink.state.requests.fetch_add(1, Ordering::Relaxed) >= limit {
            sink.mute();
            return Err(EngineError::Busy { limit });
        }
        Ok(sink)
    }

    /// Becomes true when nothing is told any more.
    pub(super) fn ended(&self) -> Arc<AtomicBool> {
        self.ended.clone()
    }

    /// Nothing is told any more.
    pub(super) fn mute(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn end(mut self, event: TokenEvent) {
        self.mute();
        (self.deliver)(event);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.state.requests.fetch_sub(1, Ordering::Relaxed);
        if !self.ended.load(Ordering::Relaxed) {
            (self.deliver)(TokenEvent::Failed { error: self.state.down() });
        }
    }
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// A request that the scheduler knows.
struct Running {
    ticket: u64,
    sink: Sink,
    prompt_tokens: usize,
    submitted: Instant,
    /// When its first batch was submitted.
    started: Option<Instant>,
    /// When its first token was there.
    first_token: Option<Instant>,
}

impl Running {
    fn usage(&self, completion_tokens: u32, cached: u32) -> Usage {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: cached as usize,
            completion_tokens,
            reasoning_tokens: 0,
            queue: started - self.submitted,
            prefill: first - started,
            decode: now - first,
            time_to_first_token: self.first_token.map(|first| first - self.submitted),
        }
    }
}

/// Why the engine's thread ends, and until when pages may be stored.
struct Stop(String, Option<Instant>);

impl Stop {
    fn at_once(reason: impl Into<String>) -> Self {
        Self(reason.into(), None)
    }
}

/// Moves batches from the scheduler to the pipeline and results back, and tells the sinks.
pub(super) struct Driver {
    pub(super) scheduler: Scheduler,
    // Before the pipeline, so that sinks are told of the end before stages are waited for.
    requests: HashMap<SequenceId, Running>,
    pub(super) messages: Receiver<Message>,
    pub(super) pipeline: Pipeline,
    /// Where pages are kept on a disk.
    pub(super) keeper: Option<Keeper>,
    state: Arc<State>,
    pace: Pace,
    /// What guesses cost, where that decides whether there are any.
    draft_pace: Option<DraftPace>,
    /// When the last result came.
    last_result: Instant,
    token_budget: usize,
    /// Batches in flight.
    submitted: HashMap<u64, Submitted>,
    /// Whether the stages were told that sequences are running.
    active: bool,
    masks: Option<Sender<Mask>>,
    recovery: Duration,
    pub(super) lost: Vec<usize>,
    /// Since a stage was lost, until a step has gone through all stages again.
    outage: Option<Outage>,
    losses: Option<Sender<LostStage>>,
}

/// A time in which no step goes through, since a stage is lost or was replaced just now.
struct Outage {
    /// When requests stop waiting for its end.
    until: Instant,
    reason: String,
    /// Whether they have stopped: new ones fail at once while the stage is lost.
    over: bool,
}

/// A batch in flight.
struct Submitted {
    at: Instant,
    prompt_tokens: usize,
    sequences: usize,
    drafts: usize,
    follows: bool,
    /// Whether it is one token of one answer.
    single: bool,
}

impl Submitted {
    fn new(batch: &Batch, at: Instant, prompt_tokens: usize) -> Self {
        let drafts = batch.sequences.iter().map(|slice| slice.choices().len().saturating_sub(1)).sum();
        let (sequences, follows) = (batch.sequences.len(), batch.follows.is_some());
        let single = prompt_tokens == 0 && batch.tokens() == 1;
        Self { at, prompt_tokens, sequences, drafts, follows, single }
    }
}

impl Driver {
    /// Starts the thread; the receiver is disconnected when it has ended.
    pub(super) fn spawn(
        pipeline: Pipeline,
        keeper: Option<Keeper>,
        config: &EngineConfig,
        limits: &SchedulerConfig,
        state: Arc<State>,
        messages: Receiver<Message>,
    ) -> io::Result<Receiver<()>> {
        let (alive, thread) = mpsc::channel();
        let stages = pipeline.spans().len();
        let mut scheduler = Scheduler::new(limits.clone());
        if let Some(keeper) = &keeper {
            scheduler.store_pages(keeper.hashes());
        }
        let driver = Self {
            scheduler,
            keeper,
            requests: HashMap::new(),
            messages,
            pipeline,
            state,
            pace: Pace::new(stages, config.prompt_time),
            draft_pace: (config.speculation == Speculation::Auto).then(|| DraftPace::new(limits.chains)),
            last_result: Instant::now(),
            token_budget: limits.token_budget,
            submitted: HashMap::new(),
            active: false,
            masks: None,
            recovery: config.recovery,
            lost: Vec::new(),
            outage: None,
            losses: None,
        };
        driver.state.stats().stages = vec![StageStats::default(); stages];
        driver.publish();
        thread::Builder::new().name("kimi-engine".into()).spawn(move || driver.run(alive))?;
        Ok(thread)
    }

    /// `alive` is dropped last.
    fn run(mut self, _alive: Sender<()>) {
        let Stop(reason, deadline) = self.serve();
        tracing::info!(reason, "the engine stops");
        let _ = self.state.down.set(reason);
        if let Some(deadline) = deadline {
            self.requests.clear(); // they hear of the end before pages are stored
            self.store_rest(deadline);
        }
        self.state.stats().scheduler =
            SchedulerStats { pages_total: self.scheduler.pool().total(), ..Default::default() };
        drop(self);
    }

    fn serve(&mut self) -> Stop {
        loop {
            self.submit_batches();
            self.set_active(self.scheduler.is_active());
            self.keep_pages(!self.scheduler.is_active());
            self.publish();
            match self.next_message() {
                Ok(Some(message)) => {
                    if let Err(stop) = self.handle(message) {
                        return stop;
                    }
                }
                Ok(None) => self.end_outage(),
                Err(stop) => return stop,
            }
            // All that is there already is known before the next batch is made.
            while let Ok(message) = self.messages.try_recv() {
                if let Err(stop) = self.handle(message) {
                    return stop;
                }
            }
        }
    }

    /// The next message; `None` when an outage has lasted too long.
    fn next_message(&mut self) -> Result<Option<Message>, Stop> {
        let unused = || Stop::at_once("nobody uses it");
        let Some(Outage { until, over: false, .. }) = &self.outage else {
            return self.messages.recv().map(Some).map_err(|_| unused());
        };
        let wait = until.saturating_duration_since(Instant::now());
        match self.messages.recv_timeout(wait) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(unused()),
        }
    }

    /// Fails all requests: they have waited long enough for a stage.
    fn end_outage(&mut self) {
        let Some(outage) = &mut self.outage else { return };
        outage.over = true;
        let error = EngineError::StageLost { reason: outage.reason.clone(), after: self.recovery };
        tracing::error!(%error, requests = self.requests.len(), "requests fail");
        let ids: Vec<_> = self.requests.keys().copied().collect();
        for id in ids {
            // Its own end is not told: it did not ask for it.
            drop(self.scheduler.cancel(id));
            if let Some(request) = self.requests.remove(&id) {
                request.sink.end(TokenEvent::Failed { error: error.clone() });
            }
        }
    }

    fn publish(&self) {
        let mut stats = self.state.stats();
        stats.scheduler = self.scheduler.stats();
        stats.depth = self.pace.depth();
        stats.prompt_tokens = self.pace.prompt_tokens(self.token_budget);
        stats.stored_bytes = self.keeper.as_ref().map_or(0, Keeper::bytes);
    }

    /// Gives the pipeline all batches that it can have. None while a stage is lost.
    fn submit_batches(&mut self) {
        if !self.lost.is_empty() {
            return;
        }
        self.scheduler.set_depth(self.pace.depth());
        self.scheduler.set_prompt_tokens(self.pace.prompt_tokens(self.token_budget));
        if let Some(pace) = &self.draft_pace {
            self.scheduler.set_draft_costs(pace.costs());
        }
        while let Some(batch) = self.scheduler.next_batch() {
            self.set_active(true);
            let at = Instant::now();
            let mut prompt_tokens = 0;
            for slice in &batch.sequences {
                if self.scheduler.phase(slice.id) == Some(Phase::Prompt) {
                    prompt_tokens += slice.tokens.len();
                }
                if let Some(request) = self.requests.get_mut(&slice.id) {
                    request.started.get_or_insert(at);
                }
            }
            self.submitted.insert(batch.step, Submitted::new(&batch, at, prompt_tokens));
            self.compute_masks(&batch);
            self.pipeline.submit(batch);
        }
    }

    /// Has the batch's masks computed while its forward pass runs. Whoever samples would compute them otherwise.
    fn compute_masks(&mut self, batch: &Batch) {
        for mask in batch.masks() {
            let masks = self.masks.get_or_insert_with(|| {
                let (masks, source) = mpsc::channel::<Mask>();
                let compute = move || {
                    for mask in source {
                        mask.words();
                    }
                };
                if let Err(error) = thread::Builder::new().name("kimi-masks".into()).spawn(compute) {
                    tracing::warn!(%error, "no thread for masks: they are computed where tokens are chosen");
                }
                masks
            });
            let _ = masks.send(mask.clone());
        }
    }

    fn set_active(&mut self, active: bool) {
        if active != self.active {
            self.active = active;
            self.pipeline.set_active(active);
        }
    }

    fn handle(&mut self, message: Message) -> Result<(), Stop> {
        match message {
            Message::Submit(submission) => self.add(*submission),
            Message::Cancel(ticket) => {
                let event = self.find(ticket).and_then(|id| self.scheduler.cancel(id));
                self.tell(event);
            }
            Message::SetPaused(ticket, paused) => {
                if let Some(id) = self.find(ticket) {
                    self.scheduler.set_paused(id, paused);
                }
            }
            Message::Pipeline(PipelineEvent::Step(output)) => self.step(output),
            Message::Pipeline(PipelineEvent::Lost { stage, error }) => {
                return self.lose(stage, error.to_string());
            }
            Message::Replace { stage, runner, done } => {
                // Whoever asked may not wait for the answer.
                let _ = done.send(self.replace(stage, runner));
            }
            Message::RecoverWith(losses) => {
                let lost = self.state.lost();
                lost.into_iter().for_each(|lost| drop(losses.send(lost)));
                self.losses = Some(losses);
            }
            Message::GiveUp(reason) => return Err(Stop::at_once(reason)),
            Message::Page(event) => self.page_event(event),
            Message::Shutdown(deadline) => {
                return Err(Stop("it was shut down".to_owned(), Some(deadline)));
            }
        }
        Ok(())
    }

    /// Takes the loss of a stage: its device's memory is free afterwards, and all sequences wait.
    fn lose(&mut self, stage: usize, reason: String) -> Result<(), Stop> {
        if self.recovery.is_zero() {
            return Err(Stop::at_once(reason));
        }
        tracing::error!(stage, reason, "a stage is lost; waiting for another one");
        self.pipeline.remove(stage).map_err(|error| Stop::at_once(error.to_string()))?;
        self.forget();
        if !self.lost.contains(&stage) {
            self.lost.push(stage);
        }
        let until = Instant::now() + self.recovery;
        let outage = self.outage.get_or_insert(Outage { until, reason: String::new(), over: false });
        outage.reason.clone_from(&reason);
        let mut stats = self.state.stats();
        stats.losses += 1;
        stats.stages[stage].lost = Some(reason.clone());
        drop(stats);
        // Nobody may be there to find another one but those who call `replace_stage`.
        let _ = self.losses.as_ref().map(|losses| losses.send(LostStage { stage, reason }));
        Ok(())
    }

    fn replace(&mut self, stage: usize, runner: Box<dyn StageRunner>) -> Result<(), PipelineError> {
        self.pipeline.replace(stage, runner)?;
        self.forget();
        self.check_page_forms();
        self.lost.retain(|lost| *lost != stage);
        self.state.stats().stages[stage].lost = None;
        self.active = false; // the new one has to be told
        tracing::info!(stage, "a stage was replaced");
        Ok(())
    }

    fn forget(&mut self) {
        self.submitted.clear();
        self.scheduler.forget_cache();
        self.keeper.iter_mut().for_each(Keeper::forget);
    }

    fn find(&self, ticket: u64) -> Option<SequenceId> {
        self.requests.iter().find(|(_, request)| request.ticket == ticket).map(|(id, _)| *id)
    }

    fn add(&mut self, Submission { ticket, at, sink, sequence }: Submission) {
        if let (Some(Outage { over: true, reason, .. }), false) = (&self.outage, self.lost.is_empty()) {
            let error = EngineError::StageLost { reason: reason.clone(), after: self.recovery };
            return sink.end(TokenEvent::Failed { error });
        }
        let prompt_tokens = sequence.prompt.len();
        match self.scheduler.add(sequence) {
            Ok(id) => {
                let (started, first_token) = (None, None);
                let running = Running { ticket, sink, prompt_tokens, submitted: at, started, first_token };
                self.requests.insert(id, running);
            }
            // `Engine::submit` has checked the same already.
            Err(error) => sink.end(TokenEvent::Failed { error: SequenceError::from(error).into() }),
        }
    }

    fn step(&mut self, output: StepOutput) {
        let mut stats = self.state.stats();
        stats.steps += 1;
        for (stage, time) in stats.stages.iter_mut().zip(&output.times) {
            stage.steps += 1;
            stage.time += *time;
        }
        drop(stats);
        if let (Some(submitted), Ok(_)) = (self.submitted.remove(&output.step), &output.result) {
            let Submitted { at, prompt_tokens, sequences, drafts, follows, single } = submitted;
            let now = Instant::now();
            let time = now - at.max(std::mem::replace(&mut self.last_result, now));
            if let Some(pace) = self.draft_pace.as_mut().filter(|_| prompt_tokens == 0) {
                pace.step(DecodeStep { sequences, drafts, follows, time });
            }
            self.pace.step(prompt_tokens, now - at, &output.times);
            let mut stats = self.state.stats();
            stats.prompt_tokens_computed += prompt_tokens as u64;
            if single {
                for (stage, time) in stats.stages.iter_mut().zip(&output.times) {
                    stage.single.steps += 1;
                    stage.single.busy += time.busy();
                }
            }
            drop(stats);
            self.outage = None;
        }
        let events = match output.result {
            Ok(outputs) => self.scheduler.complete(output.step, outputs),
            Err(error) => {
                tracing::error!(step = output.step, %error, "a batch failed");
                self.scheduler.failed(output.step, &error)
            }
        };
        self.tell(events);
    }

    fn tell(&mut self, events: impl IntoIterator<Item = SequenceEvent>) {
        for event in events {
            match event {
                SequenceEvent::Token { id, index, sampled } => {
                    self.state.stats().tokens_generated += 1;
                    let Some(request) = self.requests.get_mut(&id) else { continue };
                    request.first_token.get_or_insert_with(Instant::now);
                    let (id, logprob, top) = (sampled.token, sampled.logprob, sampled.top);
                    (request.sink.deliver)(TokenEvent::Token { id, logprob, top, index });
                }
                SequenceEvent::Finished { id, reason, generated, cached } => {
                    let Some(mut request) = self.requests.remove(&id) else { continue };
                    if generated > 0 {
                        request.first_token.get_or_insert_with(Instant::now);
                    }
                    let usage = request.usage(generated, cached);
                    request.sink.end(TokenEvent::Finished { reason, usage });
                }
                SequenceEvent::Failed { id, error, .. } => {
                    let Some(request) = self.requests.remove(&id) else { continue };
                    request.sink.end(TokenEvent::Failed { error: error.into() });
                }
            }
        }
    }
}
