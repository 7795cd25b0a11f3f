//! What the API needs of a model.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kimi_core::engine::{EngineStats, StageStats};
use kimi_core::stage::StageTime;
use kimi_core::{ChatError, ChatEvent, ChatGeneration, ChatModel, ChatRequest};
use serde_json::{Value, json};

/// Where a model's events go: called on the model's thread, so it must not block.
pub type EventSink = Box<dyn FnMut(ChatEvent) + Send>;

/// A model that answers chats. [`ChatModel`] is one; a test may bring its own.
pub trait ChatEngine: Send + Sync + 'static {
    /// Name of the model in requests and responses.
    fn id(&self) -> &str;

    /// Most tokens of prompt and answer together.
    fn context_tokens(&self) -> usize;

    /// Counts of the moment.
    fn stats(&self) -> EngineStats;

    /// Why it cannot answer any more; `None` while it can.
    fn down(&self) -> Option<String>;

    /// Starts an answer. It may take as long as rendering and tokenizing the prompt takes. `sink` gets
    /// [`ChatEvent::Finished`] or [`ChatEvent::Failed`] last.
    ///
    /// # Errors
    /// [`ChatError`]; `sink` is then never called.
    fn chat(&self, request: ChatRequest, sink: EventSink) -> Result<Box<dyn Running>, ChatError>;
}

/// An answer under way. Dropping it cancels the answer.
pub trait Running: Send + Sync {
    /// Ends the answer; the sink is told so.
    fn cancel(&self);

    /// Lets the answer rest while its client does not read, or go on. An answer that can't rest goes on.
    fn set_paused(&self, _paused: bool) {}
}

impl ChatEngine for ChatModel {
    fn id(&self) -> &str {
        self.id()
    }

    fn context_tokens(&self) -> usize {
        self.context_tokens()
    }

    fn stats(&self) -> EngineStats {
        self.stats()
    }

    fn down(&self) -> Option<String> {
        self.engine().down().map(|error| super::down_text(&error))
    }

    fn chat(&self, request: ChatRequest, sink: EventSink) -> Result<Box<dyn Running>, ChatError> {
        Ok(Box::new(self.chat_with(request, sink)?))
    }
}

impl Running for ChatGeneration {
    fn cancel(&self) {
        self.cancel();
    }

    fn set_paused(&self, paused: bool) {
        self.set_paused(paused);
    }
}

/// A model and the names it is served under.
#[derive(Clone)]
pub struct ServedModel {
    engine: Arc<dyn ChatEngine>,
    aliases: Vec<String>,
    stages: Vec<String>,
    /// When it was loaded, in seconds since 1970.
    created: u64,
}

impl fmt::Debug for ServedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedModel").field("id", &self.id()).field("aliases", &self.aliases).finish()
    }
}

impl ServedModel {
    /// Serves a model under its own id.
    pub fn new(engine: impl ChatEngine) -> Self {
        Self { engine: Arc::new(engine), aliases: Vec::new(), stages: Vec::new(), created: unix_time() }
    }

    /// Also answers requests for other names.
    #[must_use]
    pub fn with_aliases(mut self, aliases: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.aliases.extend(aliases.into_iter().map(Into::into));
        self
    }

    /// What `/health` says about each stage, in order: for instance `node-2: layers 0-43`.
    #[must_use]
    pub fn with_stages(mut self, stages: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stages = stages.into_iter().map(Into::into).collect();
        self
    }

    /// The model's id.
    pub fn id(&self) -> &str {
        self.engine.id()
    }

    pub(super) fn engine(&self) -> &Arc<dyn ChatEngine> {
        &self.engine
    }

    pub(super) fn answers_to(&self, name: &str) -> bool {
        self.id() == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// The model as `/v1/models` shows it.
    pub(super) fn describe(&self) -> Value {
        json!({
            "id": self.id(),
            "object": "model",
            "created": self.created,
            "owned_by": "kimi",
            "context_length": self.engine.context_tokens(),
            "aliases": self.aliases,
        })
    }

    /// The model as `/health` shows it.
    pub(super) fn health(&self) -> Value {
        let (stats, down) = (self.engine.stats(), self.engine.down());
        let EngineStats { scheduler, steps, tokens_generated, stages, depth, prompt_tokens, losses } = stats;
        let lost = stages.iter().find_map(|stage| stage.lost.clone());
        let stage = |(i, stage): (usize, &StageStats)| {
            let StageTime { queue, compute, wire } = stage.time;
            json!({
                "stage": i,
                "holds": self.stages.get(i),
                "status": if stage.lost.is_none() { "ok" } else { "lost" },
                "reason": stage.lost,
                "steps": stage.steps,
                "compute_seconds": compute.as_secs_f64(),
                "queue_seconds": queue.as_secs_f64(),
                "wire_seconds": wire.as_secs_f64(),
            })
        };
        let stages: Vec<_> = stages.iter().enumerate().map(stage).collect();
        let status = match (&down, &lost) {
            (Some(_), _) => "unavailable",
            (None, Some(_)) => "recovering",
            (None, None) => "ok",
        };
        json!({
            "id": self.id(),
            "status": status,
            "reason": down.or(lost),
            "stages": stages,
            "sequences": {"running": scheduler.running, "waiting": scheduler.waiting},
            "pages": {"used": scheduler.pages_used, "total": scheduler.pages_total},
            "evictions": scheduler.evictions,
            "steps": steps,
            "losses": losses,
            "batches": {"in_flight": scheduler.in_flight, "limit": depth},
            "prompt_tokens_a_step": prompt_tokens,
            "tokens_generated": tokens_generated,
        })
    }
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
