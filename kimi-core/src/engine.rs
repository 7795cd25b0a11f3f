//! Generates many sequences at once: the [`Scheduler`](crate::scheduler::Scheduler) and the [`Pipeline`] on a thread of their own, behind a handle that any thread may use.
//!
//! An idle engine blocks on its channel and takes no CPU time.

mod driver;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::pipeline::{Pipeline, PipelineError};
use crate::sampler::SamplingParams;
use crate::scheduler::{NewSequence, SchedulerConfig, SchedulerStats, SequenceError};
use driver::{Driver, Message, Sink, Submission};

pub use crate::scheduler::{FinishReason, RequestError};

/// Most new tokens in a batch, where nothing else is said.
pub const TOKEN_BUDGET: usize = 512;

/// Sizes of an [`Engine`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Most tokens of a sequence, prompt and answer together.
    pub context_tokens: usize,
    /// Pages of the latent cache, the same number on every stage.
    pub cache_pages: u32,
    /// Tokens in a page.
    pub page_tokens: usize,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Most new tokens in a batch.
    pub token_budget: usize,
    /// Most sequences that run at once; others wait.
    pub max_sequences: usize,
    /// Most requests, running and waiting; others are refused.
    pub max_requests: usize,
}

impl EngineConfig {
    /// Batches of [`TOKEN_BUDGET`] tokens, 32 running sequences, 1024 requests, no end-of-sequence ids.
    pub fn new(vocab_size: u32, context_tokens: usize, cache_pages: u32, page_tokens: usize) -> Self {
        Self {
            vocab_size,
            context_tokens,
            cache_pages,
            page_tokens,
            eos_ids: Vec::new(),
            token_budget: TOKEN_BUDGET,
            max_sequences: 32,
            max_requests: 1024,
        }
    }

    fn scheduler(&self, depth: usize, ahead: bool) -> Result<SchedulerConfig, EngineError> {
        let sizes = [
            ("vocab_size", self.vocab_size as usize, 1),
            ("context_tokens", self.context_tokens, 2),
            ("cache_pages", self.cache_pages as usize, 1),
            ("page_tokens", self.page_tokens, 1),
            ("token_budget", self.token_budget, 1),
            ("max_sequences", self.max_sequences, 1),
            ("max_requests", self.max_requests, 1),
        ];
        if let Some(&(name, found, least)) = sizes.iter().find(|(_, found, least)| found < least) {
            return Err(EngineError::Config { name, found, least });
        }
        Ok(SchedulerConfig {
            context_tokens: self.context_tokens,
            pages: self.cache_pages,
            page_tokens: self.page_tokens,
            token_budget: self.token_budget,
            max_sequences: self.max_sequences,
            depth,
            ahead,
        })
    }
}

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen. Without a seed one is drawn.
    pub params: SamplingParams,
    /// Most tokens to generate; `None` for as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Tokens that end the answer, beside the model's own.
    pub stop_ids: Vec<u32>,
    /// Go on after the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
    /// How many most likely tokens to report beside each sampled one.
    pub top_logprobs: u8,
}

/// Something that happened to a request.
#[derive(Debug, Clone)]
pub enum TokenEvent {
    /// A new token, never one that ends the answer.
    Token {
        /// Its id.
        id: u32,
        /// Natural logarithm of its probability.
        logprob: f32,
        /// The most likely tokens with their log-probabilities, best first, as many as asked for.
        top: Vec<(u32, f32)>,
        /// Counts the tokens of the answer from 0.
        index: u32,
    },
    /// The last event.
    Finished {
        /// How it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The last event, if the engine could not go on.
    Failed {
        /// What happened.
        error: EngineError,
    },
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, the one that ended the answer included.
    pub completion_tokens: u32,
    /// From submission to the first batch.
    pub queue: Duration,
    /// From the first batch to the first generated token.
    pub prefill: Duration,
    /// From the first generated token to the end.
    pub decode: Duration,
    /// From submission to the first generated token; `None` if there was none.
    pub time_to_first_token: Option<Duration>,
}

/// Why the engine could not do what a valid request asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The engine has stopped for good.
    #[error("the engine is down: {reason}")]
    Down {
        /// What stopped it.
        reason: String,
    },
    /// Too many requests.
    #[error("{limit} requests run or wait already, which is the limit; try again later")]
    Busy {
        /// [`EngineConfig::max_requests`].
        limit: usize,
    },
    /// The sequence of this request failed; others may go on.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// A size in the configuration is too small.
    #[error("engine configuration: {name} is {found}, expected at least {least}")]
    Config {
        /// Field of [`EngineConfig`].
        name: &'static str,
        /// Its value.
        found: usize,
        /// The smallest value that works.
        least: usize,
    },
    /// The operating system gave no thread.
    #[error("can't start the engine's thread: {reason}")]
    Thread {
        /// What the system said.
        reason: String,
    },
}

/// Why [`Engine::submit`] refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// The request is at fault.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine is at fault.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Counts of an [`Engine`], taken between two batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences and pages of the moment.
    pub scheduler: SchedulerStats,
    /// Batches computed.
    pub steps: u64,
    /// Tokens generated for all requests, those that ended an answer not included.
    pub tokens_generated: u64,
    /// Time each stage has spent on batches, waits for its machine included.
    pub stage_busy: Vec<Duration>,
}

/// A handle to a running engine; clones share it.
///
/// When the last handle is dropped the engine stops and what still runs fails with [`EngineError::Down`].
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EngineConfig,
    limits: SchedulerConfig,
    mailbox: Sender<Message>,
    state: Arc<State>,
    next_ticket: AtomicU64,
    /// Disconnected when the engine's thread has ended.
    thread: Mutex<Receiver<()>>,
}

/// What the engine's thread shares with its handles.
#[derive(Debug, Default)]
struct State {
    down: OnceLock<String>,
    requests: AtomicUsize,
    stats: Mutex<EngineStats>,
}

impl State {
    fn down(&self) -> EngineError {
        let reason = self.down.get().map_or("its thread has stopped", String::as_str).to_owned();
        EngineError::Down { reason }
    }

    fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts an engine over a pipeline. Every stage must have [`EngineConfig::cache_pages`] pages.
    ///
    /// # Errors
    /// [`EngineError::Config`] or [`EngineError::Thread`].
    pub fn start(pipeline: Pipeline, config: EngineConfig) -> Result<Self, EngineError> {
        let limits = config.scheduler(pipeline.depth(), pipeline.runs_ahead())?;
        let state = Arc::new(State::default());
        state.stats().scheduler.pages_total = config.cache_pages;
        let (mailbox, messages) = mpsc::channel();
        let thread = Driver::spawn(pipeline, &limits, state.clone(), &mailbox, messages)
            .map_err(|e| EngineError::Thread { reason: e.to_string() })?;
        let (next_ticket, thread) = (AtomicU64::new(0), Mutex::new(thread));
        Ok(Self { inner: Arc::new(Inner { config, limits, mailbox, state, next_ticket, thread }) })
    }

    /// Queues a request. `sink` gets its events on the engine's thread, [`TokenEvent::Finished`] or
    /// [`TokenEvent::Failed`] exactly once and last; it must not block, as everything waits for it.
    ///
    /// # Errors
    /// [`SubmitError`]; `sink` is then never called.
    pub fn submit(
        &self,
        request: Request,
        sink: impl FnMut(TokenEvent) + Send + 'static,
    ) -> Result<Generation, SubmitError> {
        self.check(&request)?;
        let Inner { config, mailbox, state, next_ticket, .. } = &*self.inner;
        let sink = Sink::new(Box::new(sink), state.clone(), config.max_requests)?;
        let ticket = next_ticket.fetch_add(1, Ordering::Relaxed);
        let submission = Submission { ticket, at: Instant::now(), sink, sequence: self.sequence(request) };
        if let Err(mpsc::SendError(Message::Submit(mut refused))) =
            mailbox.send(Message::Submit(Box::new(submission)))
        {
            refused.sink.mute();
            return Err(state.down().into());
        }
        Ok(Generation { ticket, mailbox: mailbox.clone() })
    }

    /// [`Self::submit`] for a thread that may block: events are read from an iterator.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn generate(&self, request: Request) -> Result<Tokens, SubmitError> {
        let (sender, events) = mpsc::channel();
        let generation = self.submit(request, move |event| {
            // Nobody listens once the iterator is dropped, which cancels the request too.
            let _ = sender.send(event);
        })?;
        Ok(Tokens { events, generation })
    }

    /// Counts, at most one batch old.
    pub fn stats(&self) -> EngineStats {
        self.inner.state.stats().clone()
    }

    /// What the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// Why the engine is down; `None` while it works.
    pub fn down(&self) -> Option<EngineError> {
        self.inner.state.down.get().map(|_| self.inner.state.down())
    }

    /// Stops the engine for all handles; what still runs fails with [`EngineError::Down`]. Waits for its threads
    /// for at most `wait` and says whether they have ended. A program that computes on a GPU calls this before it ends: drivers
    /// may crash if they are in use then.
    pub fn shutdown(&self, wait: Duration) -> bool {
        let _ = self.inner.mailbox.send(Message::Shutdown);
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected)
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let Inner { config, limits, state, .. } = &*self.inner;
        if state.down.get().is_some() {
            return Err(state.down().into());
        }
        limits.check(request.prompt.len(), request.max_tokens)?;
        let outside = request.prompt.iter().position(|&token| token >= config.vocab_size);
        if let Some(position) = outside {
            let (token, last) = (request.prompt[position], config.vocab_size - 1);
            return Err(RequestError::Token { position, token, last }.into());
        }
        Ok(())
    }

    fn sequence(&self, request: Request) -> NewSequence {
        let mut stop_ids = request.stop_ids;
        if !request.ignore_eos {
            stop_ids.extend(&self.inner.config.eos_ids);
        }
        NewSequence {
            prompt: request.prompt,
            seed: request.params.seed().unwrap_or_else(|| RandomState::new().hash_one(())),
            params: Arc::new(request.params),
            max_tokens: request.max_tokens,
            stop_ids,
            top_logprobs: request.top_logprobs,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Fails if the thread has ended already.
        let _ = self.mailbox.send(Message::Shutdown);
    }
}

/// A request that runs. Dropping it cancels the request; it does not keep the engine alive.
#[must_use = "dropping a generation cancels it"]
pub struct Generation {
    ticket: u64,
    mailbox: Sender<Message>,
}

impl Generation {
    /// Ends the request; the sink gets [`FinishReason::Cancelled`] unless it has ended already.
    pub fn cancel(&self) {
        // Fails if the engine has stopped, and the request with it.
        let _ = self.mailbox.send(Message::Cancel(self.ticket));
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

/// The events of a request, see [`Engine::generate`]. Ends after [`TokenEvent::Finished`] or
/// [`TokenEvent::Failed`]; dropping it cancels the request.
#[derive(Debug)]
pub struct Tokens {
    events: Receiver<TokenEvent>,
    generation: Generation,
}

impl Tokens {
    /// See [`Generation::cancel`].
    pub fn cancel(&self) {
        self.generation.cancel();
    }
}

impl Iterator for Tokens {
    type Item = TokenEvent;

    fn next(&mut self) -> Option<TokenEvent> {
        self.events.recv().ok()
    }
}

impl From<PipelineError> for EngineError {
    fn from(error: PipelineError) -> Self {
        Self::Down { reason: error.to_string() }
    }
}
