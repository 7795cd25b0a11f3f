//! What the API needs of a model.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kimi_core::chat::Thinking;
use kimi_core::chat_model::{ModelDefaults, SamplingDefaults};
use kimi_core::engine::{EngineError, EngineStats};
use kimi_core::{ChatError, ChatEvent, ChatGeneration, ChatModel, ChatRequest};
use serde_json::{Value, json};

use super::error::ApiError;
use crate::cluster::{Loading, NodeStatus};
use crate::monitor::{ModelState, Seen};

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

    /// How far loading is; `None` when it has ended.
    fn loading(&self) -> Option<Loading> {
        None
    }

    /// What is known of its stages beyond their counts, in order.
    fn stages(&self) -> Vec<StageInfo> {
        Vec::new()
    }

    /// How tokens are chosen where a request does not say.
    fn defaults(&self) -> ModelDefaults {
        ModelDefaults::default()
    }

    /// The tokens of a request's prompt.
    ///
    /// # Errors
    /// [`ChatError`].
    fn tokens(&self, _request: &ChatRequest) -> Result<Vec<u32>, ChatError> {
        Err(no_tokenizer())
    }

    /// The text of some tokens.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`] for one that does not exist.
    fn text(&self, _tokens: &[u32]) -> Result<String, ChatError> {
        Err(no_tokenizer())
    }

    /// Starts an answer. It may take as long as rendering and tokenizing the prompt takes. `sink` gets
    /// [`ChatEvent::Finished`] or [`ChatEvent::Failed`] last.
    ///
    /// # Errors
    /// [`ChatError`]; `sink` is then never called.
    fn chat(&self, request: ChatRequest, sink: EventSink) -> Result<Box<dyn Running>, ChatError>;

    /// Starts several answers to one request, which differ in their seeds if it has one.
    ///
    /// # Errors
    /// [`ChatError`]; answers that had begun are cancelled then.
    fn choices(
        &self,
        request: ChatRequest,
        sinks: Vec<EventSink>,
    ) -> Result<Vec<Box<dyn Running>>, ChatError> {
        let choice = |(sink, choice)| {
            let params = request.params.for_choice(choice);
            self.chat(ChatRequest { params, ..request.clone() }, sink)
        };
        sinks.into_iter().zip(0..).map(choice).collect()
    }
}

fn no_tokenizer() -> ChatError {
    EngineError::Down { reason: "it has no tokenizer here".to_owned() }.into()
}

/// What is known of a stage, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageInfo {
    /// For instance `node-2: layers 0-43 on cpu avx2`.
    pub holds: String,
    /// Name of its node.
    pub name: String,
    /// Its layers.
    pub layers: Range<usize>,
    /// Stored bytes of their weights, and bytes of their cache.
    pub bytes: u64,
    /// What its node does.
    pub node: Option<NodeStatus>,
}

/// An answer under way. Dropping it cancels the answer.
pub trait Running: Send + Sync {
    /// Ends the answer; the sink is told so.
    fn cancel(&self);

    /// How many tokens its prompt has; 0 where that is not known.
    fn prompt_tokens(&self) -> usize {
        0
    }

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

    fn defaults(&self) -> ModelDefaults {
        self.defaults()
    }

    fn tokens(&self, request: &ChatRequest) -> Result<Vec<u32>, ChatError> {
        self.prompt(request)
    }

    fn text(&self, tokens: &[u32]) -> Result<String, ChatError> {
        Ok(self.tokenizer().decode(tokens, false)?)
    }

    fn chat(&self, request: ChatRequest, sink: EventSink) -> Result<Box<dyn Running>, ChatError> {
        Ok(Box::new(self.chat_with(request, sink)?))
    }

    fn choices(
        &self,
        request: ChatRequest,
        sinks: Vec<EventSink>,
    ) -> Result<Vec<Box<dyn Running>>, ChatError> {
        let running = self.choices_with(request, sinks)?;
        Ok(running.into_iter().map(|running| Box::new(running) as Box<dyn Running>).collect())
    }
}

impl Running for ChatGeneration {
    fn cancel(&self) {
        self.cancel();
    }

    fn prompt_tokens(&self) -> usize {
        self.prompt_tokens()
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
        Self { engine: Arc::new(engine), aliases: Vec::new(), created: unix_time() }
    }

    /// Also answers requests for other names.
    #[must_use]
    pub fn with_aliases(mut self, aliases: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.aliases.extend(aliases.into_iter().map(Into::into));
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
            // What vLLM and SGLang call it.
            "max_model_len": self.engine.context_tokens(),
            "state": match (self.engine.loading(), self.engine.down()) {
                (Some(_), _) => "loading",
                (None, Some(_)) => "unavailable",
                (None, None) => "loaded",
            },
            "default_sampling": default_sampling(&self.engine.defaults()),
            "aliases": self.aliases,
        })
    }

    /// Whether it can answer, as far as it is loaded.
    ///
    /// # Errors
    /// 503 with how far loading is.
    pub(super) fn check_loaded(&self) -> Result<(), ApiError> {
        match self.engine.loading() {
            Some(loading) => Err(ApiError::loading(self.id(), &loading)),
            None => Ok(()),
        }
    }

    /// The state of the moment, for `/health` and `/metrics`.
    pub(super) fn state(&self) -> ModelState {
        let engine = &self.engine;
        let seen = Seen { stats: engine.stats(), down: engine.down(), loading: engine.loading() };
        ModelState::new(self.id(), seen, engine.stages())
    }
}

/// Temperature and top_p of a request that does not say, and without thinking where that differs.
fn default_sampling(defaults: &ModelDefaults) -> Value {
    let mode = |sampling: SamplingDefaults| {
        // As the decimal numbers that they are in models' cards.
        let number = |value: f32| value.to_string().parse::<f64>().unwrap_or_default();
        json!({"temperature": number(sampling.temperature), "top_p": number(sampling.top_p)})
    };
    let mut shown = mode(defaults.mode(None));
    if defaults.thinking != Thinking::Never {
        shown["without_thinking"] = mode(defaults.mode(Some(false)));
    }
    shown
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
