//! Generates many sequences at once: the [`Scheduler`](crate::scheduler::Scheduler) and the [`Pipeline`] on a
//! thread of their own, behind a handle that any thread may use.
//!
//! An idle engine blocks on its channel and takes no CPU time.
//!
//! A stage may be lost, with its machine or its device. If [`EngineConfig::recovery`] allows it the engine then waits for
//! another one ([`Engine::replace_stage`], or [`Engine::recover_with`]), computes the caches of all running requests again,
//! and goes on with them; the stages that are there stay loaded. Requests wait for that only so long. Without recovery it goes
//! down.

mod config;
mod draft_pace;
mod driver;
mod error;
mod pace;
mod request;
mod stats;
mod store;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::constraint::MinLength;
use crate::lookup::PromptLookup;
use crate::pipeline::Pipeline;
use crate::scheduler::{NewSequence, SchedulerConfig};
use crate::stage::StageRunner;
use driver::{Driver, Message, Sink, Submission};
use store::Keeper;

pub use crate::scheduler::{FinishReason, RequestError};
pub use config::{EngineConfig, Speculation};
pub use error::{EngineError, SubmitError};
pub use request::{Request, TokenEvent, Usage};
pub use stats::{EngineStats, LostStage, SingleSteps, StageStats};

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
    fn lost(&self) -> Option<LostStage> {
        let lost = |(stage, stats): (usize, &StageStats)| {
            stats.lost.clone().map(|reason| LostStage { stage, reason })
        };
        self.stats().stages.iter().enumerate().find_map(lost)
    }

    fn down(&self) -> EngineError {
        let reason = self.down.get().map_or("its thread has stopped", String::as_str).to_owned();
        EngineError::Down { reason }
    }

    fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts an engine over stages in a row. Every stage must have [`EngineConfig::cache`].
    ///
    /// # Errors
    /// [`EngineError::Pipeline`], [`EngineError::Config`] or [`EngineError::Thread`].
    pub fn start(stages: Vec<Box<dyn StageRunner>>, config: EngineConfig) -> Result<Self, EngineError> {
        let (mailbox, messages) = mpsc::channel();
        let events = mailbox.clone();
        // Fails once the engine has stopped, and then nobody waits for results.
        let pipeline = Pipeline::new(stages, move |event| drop(events.send(Message::Pipeline(event))))?;
        let limits = config.scheduler(&pipeline)?;
        let state = Arc::new(State::default());
        let store = config.page_store.as_ref().filter(|_| config.prefix_cache);
        let keeper = store.map(|store| Keeper::start(store, limits.cache, &pipeline, mailbox.clone()));
        let thread = Driver::spawn(pipeline, keeper.transpose()?, &config, &limits, state.clone(), messages)
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
        let (ticket, ended) = (next_ticket.fetch_add(1, Ordering::Relaxed), sink.ended());
        let submission = Submission { ticket, at: Instant::now(), sink, sequence: self.sequence(request) };
        if let Err(mpsc::SendError(Message::Submit(refused))) =
            mailbox.send(Message::Submit(Box::new(submission)))
        {
            refused.sink.mute();
            return Err(state.down().into());
        }
        Ok(Generation { ticket, ended, mailbox: mailbox.clone() })
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

    /// The first stage that is lost and not replaced yet; `None` while all are there. Requests that run wait for it, see
    /// [`EngineConfig::recovery`].
    pub fn lost(&self) -> Option<LostStage> {
        self.inner.state.lost()
    }

    /// Puts another stage, with an empty cache of as many pages, in the place of a lost one. Requests that run go on once
    /// their caches are computed again; their texts do not show it. A stage that is not lost is let go first.
    ///
    /// # Errors
    /// [`EngineError::Pipeline`] if it holds another part of the model, [`EngineError::Down`] if it comes too late.
    pub fn replace_stage(&self, stage: usize, runner: Box<dyn StageRunner>) -> Result<(), EngineError> {
        let (done, answer) = mpsc::channel();
        let sent = self.inner.mailbox.send(Message::Replace { stage, runner, done });
        sent.map_err(|_| self.inner.state.down())?;
        Ok(answer.recv().map_err(|_| self.inner.state.down())??)
    }

    /// Has `replacement` find another stage whenever one is lost, on a thread of its own: it may load one, which takes long,
    /// and gives up with the reason, which takes the engine down. The lost stage itself has been dropped before.
    ///
    /// # Errors
    /// [`EngineError::Thread`].
    pub fn recover_with(
        &self,
        mut replacement: impl FnMut(&LostStage) -> Result<Box<dyn StageRunner>, String> + Send + 'static,
    ) -> Result<(), EngineError> {
        let (losses, lost) = mpsc::channel::<LostStage>();
        let mailbox = self.inner.mailbox.clone();
        let recover = move || {
            for loss in lost {
                let message = match replacement(&loss) {
                    Ok(runner) => Message::Replace { stage: loss.stage, runner, done: mpsc::channel().0 },
                    Err(reason) => Message::GiveUp(format!("{}; {reason}", loss.reason)),
                };
                if mailbox.send(message).is_err() {
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name("kimi-recovery".into()).spawn(recover);
        spawned.map_err(|e| EngineError::Thread { reason: e.to_string() })?;
        self.inner.mailbox.send(Message::RecoverWith(losses)).map_err(|_| self.inner.state.down())
    }

    /// Why the engine is down; `None` while it works.
    pub fn down(&self) -> Option<EngineError> {
        self.inner.state.down.get().map(|_| self.inner.state.down())
    }

    /// Stops the engine for all handles; what still runs fails with [`EngineError::Down`]. Waits for its threads
    /// for at most `wait` and says whether they have ended. A program that computes on a GPU calls this before it ends: drivers
    /// may crash if they are in use then.
    pub fn shutdown(&self, wait: Duration) -> bool {
        // Three quarters of the time for pages that are to be stored, the rest for a batch.
        let _ = self.inner.mailbox.send(Message::Shutdown(Instant::now() + wait.mul_f32(0.75)));
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
        if let Some(max) = request.max_tokens.filter(|&max| max < request.min_tokens) {
            return Err(RequestError::MinTokens { min: request.min_tokens, max }.into());
        }
        let biased = request.params.logit_bias().iter().map(|&(token, _)| ("logit_bias", token));
        let mut named = biased.chain(request.stop_ids.iter().map(|&token| ("stop_token_ids", token)));
        if let Some((field, token)) = named.find(|&(_, token)| token >= config.vocab_size) {
            return Err(RequestError::NoSuchToken { field, token, last: config.vocab_size - 1 }.into());
        }
        Ok(())
    }

    fn sequence(&self, request: Request) -> NewSequence {
        let mut stop_ids = request.stop_ids;
        if !request.ignore_eos {
            stop_ids.extend(&self.inner.config.eos_ids);
        }
        let vocabulary = self.inner.config.vocab_size as usize;
        NewSequence {
            prompt: request.prompt,
            min_length: MinLength::new(request.min_tokens as usize, &stop_ids, vocabulary),
            seed: request.params.seed().unwrap_or_else(|| RandomState::new().hash_one(())),
            params: Arc::new(request.params),
            max_tokens: request.max_tokens,
            stop_ids,
            top_logprobs: request.top_logprobs,
            constraint: request.constraint,
            drafter: request.drafter.or_else(|| match self.inner.config.speculation {
                Speculation::Off => None,
                Speculation::Auto | Speculation::Fixed(_) => Some(Arc::new(PromptLookup::default())),
            }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Fails if the thread has ended already.
        let _ = self.mailbox.send(Message::Shutdown(Instant::now() + STORE_TIME));
    }
}

/// How long pages may be stored after the last handle is gone.
const STORE_TIME: Duration = Duration::from_secs(10);

/// A request that runs. Dropping it cancels the request; it does not keep the engine alive.
#[must_use = "dropping a generation cancels it"]
pub struct Generation {
    ticket: u64,
    /// Whether its last event was told.
    ended: Arc<AtomicBool>,
    mailbox: Sender<Message>,
}

impl Generation {
    /// Ends the request; the sink gets [`FinishReason::Cancelled`] unless it has ended already.
    pub fn cancel(&self) {
        // An idle engine is not woken for what has ended.
        if !self.ended.load(Ordering::Relaxed) {
            // Fails if the engine has stopped, and the request with it.
            let _ = self.mailbox.send(Message::Cancel(self.ticket));
        }
    }

    /// Lets the request rest while nobody takes its tokens, or go on. A token or two that were under way still come.
    pub fn set_paused(&self, paused: bool) {
        let _ = self.mailbox.send(Message::SetPaused(self.ticket, paused));
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
