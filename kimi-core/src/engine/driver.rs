//! The engine's thread.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use super::{EngineError, State, TokenEvent, Usage};
use crate::batch::SequenceId;
use crate::pipeline::{Pipeline, PipelineError, PipelineInput, PipelineOutput, StepOutput};
use crate::scheduler::{
    NewSequence, Scheduler, SchedulerConfig, SchedulerStats, SequenceError, SequenceEvent,
};

/// What the engine's thread waits for.
#[derive(Debug)]
pub(super) enum Message {
    Submit(Box<Submission>),
    /// By ticket.
    Cancel(u64),
    Step(Result<StepOutput, PipelineError>),
    Shutdown,
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
    ended: bool,
}

impl Sink {
    /// [`EngineError::Busy`] if there are `limit` others.
    pub(super) fn new(
        deliver: Box<dyn FnMut(TokenEvent) + Send>,
        state: Arc<State>,
        limit: usize,
    ) -> Result<Self, EngineError> {
        let mut sink = Self { deliver, state, ended: false };
        if sink.state.requests.fetch_add(1, Ordering::Relaxed) >= limit {
            sink.mute();
            return Err(EngineError::Busy { limit });
        }
        Ok(sink)
    }

    /// Nothing is told any more.
    pub(super) fn mute(&mut self) {
        self.ended = true;
    }

    fn end(mut self, event: TokenEvent) {
        self.mute();
        (self.deliver)(event);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.state.requests.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
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
    fn usage(&self, completion_tokens: u32) -> Usage {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            queue: started - self.submitted,
            prefill: first - started,
            decode: now - first,
            time_to_first_token: self.first_token.map(|first| first - self.submitted),
        }
    }
}

/// Why the engine's thread ends.
struct Stop(String);

/// Moves batches from the scheduler to the pipeline and results back, and tells the sinks.
pub(super) struct Driver {
    scheduler: Scheduler,
    // Before the pipeline, so that sinks are told of the end before stages are waited for.
    requests: HashMap<SequenceId, Running>,
    messages: Receiver<Message>,
    pipeline: PipelineInput,
    state: Arc<State>,
}

impl Driver {
    /// Starts the thread; the receiver is disconnected when it has ended.
    pub(super) fn spawn(
        pipeline: Pipeline,
        limits: &SchedulerConfig,
        state: Arc<State>,
        mailbox: &Sender<Message>,
        messages: Receiver<Message>,
    ) -> io::Result<Receiver<()>> {
        let (alive, thread) = mpsc::channel();
        let (pipeline, results) = pipeline.split();
        let scheduler = Scheduler::new(limits.clone());
        state.stats().stage_busy = vec![Default::default(); pipeline.depth()];
        let driver = Self { scheduler, requests: HashMap::new(), messages, pipeline, state };
        let mailbox = mailbox.clone();
        thread::Builder::new().name("kimi-steps".into()).spawn(move || forward(results, &mailbox))?;
        thread::Builder::new().name("kimi-engine".into()).spawn(move || driver.run(alive))?;
        Ok(thread)
    }

    /// `alive` is dropped last.
    fn run(mut self, _alive: Sender<()>) {
        let Stop(reason) = self.serve();
        tracing::info!(reason, "the engine stops");
        let _ = self.state.down.set(reason);
        self.state.stats().scheduler =
            SchedulerStats { pages_total: self.scheduler.pool().total(), ..Default::default() };
        drop(self);
    }

    fn serve(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.submit_batches() {
                return stop;
            }
            self.state.stats().scheduler = self.scheduler.stats();
            let Ok(message) = self.messages.recv() else { return Stop("nobody uses it".into()) };
            if let Err(stop) = self.handle(message) {
                return stop;
            }
            // All that is there already is known before the next batch is made.
            while let Ok(message) = self.messages.try_recv() {
                if let Err(stop) = self.handle(message) {
                    return stop;
                }
            }
        }
    }

    fn submit_batches(&mut self) -> Result<(), Stop> {
        while let Some(batch) = self.scheduler.next_batch() {
            let now = Instant::now();
            for slice in &batch.sequences {
                if let Some(request) = self.requests.get_mut(&slice.id) {
                    request.started.get_or_insert(now);
                }
            }
            self.pipeline.submit(batch).map_err(|e| Stop(e.to_string()))?;
        }
        Ok(())
    }

    fn handle(&mut self, message: Message) -> Result<(), Stop> {
        match message {
            Message::Submit(submission) => self.add(*submission),
            Message::Cancel(ticket) => self.cancel(ticket),
            Message::Step(Ok(step)) => return self.step(step),
            Message::Step(Err(error)) => return Err(Stop(error.to_string())),
            Message::Shutdown => return Err(Stop("it was shut down".into())),
        }
        Ok(())
    }

    fn add(&mut self, Submission { ticket, at, sink, sequence }: Submission) {
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

    fn cancel(&mut self, ticket: u64) {
        let found = self.requests.iter().find(|(_, request)| request.ticket == ticket);
        let Some((&id, _)) = found else { return };
        let event = self.scheduler.cancel(id);
        self.tell(event);
    }

    fn step(&mut self, output: StepOutput) -> Result<(), Stop> {
        let mut stats = self.state.stats();
        stats.steps += 1;
        for (busy, time) in stats.stage_busy.iter_mut().zip(&output.stage_times) {
            *busy += *time;
        }
        drop(stats);
        let events = match output.result {
            Ok(outputs) => self.scheduler.complete(output.step, outputs),
            Err(error) if error.is_lost() => return Err(Stop(error.to_string())),
            Err(error) => {
                tracing::error!(step = output.step, %error, "a batch failed");
                self.scheduler.failed(output.step, &error)
            }
        };
        self.tell(events);
        Ok(())
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
                SequenceEvent::Finished { id, reason, generated } => {
                    let Some(mut request) = self.requests.remove(&id) else { continue };
                    if generated > 0 {
                        request.first_token.get_or_insert_with(Instant::now);
                    }
                    let usage = request.usage(generated);
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

/// Moves results to the engine's mailbox, so that its thread waits in one place.
fn forward(mut results: PipelineOutput, mailbox: &Sender<Message>) {
    loop {
        let result = results.recv();
        let stopped = result.is_err();
        if mailbox.send(Message::Step(result)).is_err() || stopped {
            return;
        }
    }
}
