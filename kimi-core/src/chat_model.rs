//! A loaded model to talk to: tokenizer, chat template and engine in one handle.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kimi_core::{ChatModel, ChatRequest};
//! let model = ChatModel::load("path/to/Kimi-K2-Instruct-4bit")?;
//! for event in model.chat(ChatRequest::user("Why is the sky blue?"))? {
//!     print!("{}", event.text());
//! }
//! # Ok(()) }
//! ```

mod constrain;
mod event;
mod files;
mod generation;
mod output;
mod prompt;
mod replay;
mod reply;
mod sampling;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crate::chat::{ChatTemplate, ReasoningMode, TemplateError};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::device::DeviceChoice;
use crate::engine::{
    Engine, EngineConfig, EngineError, EngineStats, Request, RequestError, Speculation, SubmitError,
};
use crate::grammar::Grammars;
use crate::page_store::PageStoreConfig;
use crate::plan::cache_bytes;
use crate::sampler::{StopError, StopStrings};
use crate::stage::{CacheConfig, LoadError, StageRunner};
use crate::tokenizer::{Tokenizer, TokenizerError};
pub use event::{ChatEvent, ChatRequest, FinishReason, LikelyToken, RawPrompt, TokenLogprob};
pub use files::ChatFiles;
use generation::Slot;
pub use generation::{ChatEvents, ChatGeneration};
pub use output::{GrammarError, GrammarFault, GrammarPlace, OutputFormat, ToolChoice};
use replay::Replay;
use reply::ReplyStream;
pub use sampling::{ModelDefaults, SamplingDefaults};

/// Tokens in a page of the latent cache.
pub const PAGE_TOKENS: usize = 64;

/// How much context to serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Most tokens of a chat; `None` for 32,768 or the model's own limit, if that is less.
    pub context_tokens: Option<usize>,
    /// Tokens that the latent cache holds, of all chats together; `None` for several whole contexts, as many as
    /// [`Self::cache_memory`] allows, and one at least.
    pub cache_tokens: Option<usize>,
    /// Whole contexts that it holds, if `cache_tokens` does not say.
    pub conversations: Option<usize>,
    /// Bytes that the cache of all layers may take if `cache_tokens` does not say; `None` for 2 GB.
    pub cache_memory: Option<u64>,
    /// How long a step should take at most while answers are written: prompts are cut accordingly. `None` for 100 ms.
    pub prompt_time: Option<Duration>,
    /// Whether chats begin with what others have computed of the same text; `None` for yes. See [`crate::prefix_cache`].
    pub prefix_cache: Option<bool>,
    /// The folder in which computed text outlives the process, and the most bytes it may take; see [`crate::page_store`].
    pub prefix_cache_disk: Option<(PathBuf, u64)>,
    /// Whether tokens are guessed; the answers do not depend on it.
    pub speculation: Speculation,
    /// How long answers wait for a lost stage to be replaced; see [`EngineConfig::recovery`].
    pub recovery: Duration,
}

impl ModelOptions {
    /// Tokens of a chat, where the model allows as many and nothing else is asked for.
    pub const CONTEXT: usize = 32_768;
    /// Whole contexts in the cache, if there is room for them.
    const CONTEXTS: u64 = 8;
    const CACHE_MEMORY: u64 = 2_000_000_000;

    /// Most tokens of a chat with this model.
    pub fn context(&self, checkpoint: &Checkpoint) -> usize {
        let limit = checkpoint.config().max_position_embeddings;
        self.context_tokens.unwrap_or(Self::CONTEXT).min(limit)
    }

    /// Pages of the latent cache, the same on every stage.
    pub fn cache(&self, checkpoint: &Checkpoint) -> CacheConfig {
        let tokens = self.cache_tokens.unwrap_or_else(|| {
            let context = self.context(checkpoint);
            if let Some(conversations) = self.conversations {
                return context.saturating_mul(conversations);
            }
            let one = cache_bytes(checkpoint.config(), context).max(1);
            let fitting = self.cache_memory.unwrap_or(Self::CACHE_MEMORY) / one;
            context * fitting.clamp(1, Self::CONTEXTS) as usize
        });
        CacheConfig { pages: tokens.div_ceil(PAGE_TOKENS).max(1), page_tokens: PAGE_TOKENS }
    }
}

/// A model that is loaded and runs. Clones share it; it is unloaded with the last one.
#[derive(Debug, Clone)]
pub struct ChatModel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: String,
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    defaults: ModelDefaults,
    engine: Engine,
    grammars: Grammars,
    replay: Replay,
}

impl Shared {
    /// How thinking is told from the answer, where the prompt ends inside it (`thinking`) or not.
    fn reasoning_mode(&self, thinking: bool) -> ReasoningMode {
        // Where `<think>` is no token of its own, or the template knows no thinking, the tags are ordinary text.
        let knows_thinking =
            self.tokenizer.id_of("<think>").is_some() && self.template.source().contains("<think>");
        match (thinking, knows_thinking) {
            (true, _) => ReasoningMode::Open,
            (false, true) => ReasoningMode::Tagged,
            (false, false) => ReasoningMode::Off,
        }
    }
}

/// A prompt, and how thinking is told from the answer to it.
struct Prompt {
    tokens: Vec<u32>,
    reasoning: ReasoningMode,
}

/// Why a model can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint's files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A stage.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer's files.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// There is no tokenizer.
    #[error(
        "{model} has no tiktoken.model{beside}, so it can't read text; copy the file from Moonshot's repository of the model"
    )]
    NoTokenizer {
        /// The checkpoint.
        model: String,
        /// What it has in its place.
        beside: &'static str,
    },
    /// The special tokens have other ids than the model was trained with.
    #[error(
        "tokenizer_config.json gives id {id}, on which answers end, the name {name:?}, which is id {kimis} in Kimi's own files: a \
         conversion has numbered the special tokens anew. Take tokenizer_config.json from Moonshot's repository of the model"
    )]
    Renumbered {
        /// An end-of-sequence id.
        id: u32,
        /// Its name by the file.
        name: String,
        /// The id that the name has in Kimi's files, for a vocabulary of this size.
        kimis: u32,
    },
    /// The tokenizer is of another model.
    #[error(
        "the tokenizer has {tokenizer} ids, but the model only {model}; the files are of different models"
    )]
    Vocabulary {
        /// Ids of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The engine did not start: its stages do not fit together, say.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why a chat was not begun.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template refused it.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// It could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A stop string is out of bounds.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The form that the answer must have can't be enforced.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The request is at fault.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine is at fault.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<SubmitError> for ChatError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Request(e) => Self::Request(e),
            SubmitError::Engine(e) => Self::Engine(e),
        }
    }
}

impl ChatModel {
    /// Loads a whole checkpoint, onto a GPU if it fits one, else onto the CPU.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::on_device(&Checkpoint::open(folder)?, &ModelOptions::default(), &DeviceChoice::default())
    }

    /// Runs an opened checkpoint on the CPU, in one stage.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn on_cpu(checkpoint: &Checkpoint, options: &ModelOptions) -> Result<Self, ModelError> {
        Self::on_device(checkpoint, options, &DeviceChoice::cpu())
    }

    /// Runs an opened checkpoint on the device of choice, in one stage.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn on_device(
        checkpoint: &Checkpoint,
        options: &ModelOptions,
        device: &DeviceChoice,
    ) -> Result<Self, ModelError> {
        let files = ChatFiles::open(checkpoint)?;
        let (layers, cache) = (0..checkpoint.config().num_hidden_layers, options.cache(checkpoint));
        let stage = device.load(checkpoint, layers, cache, &mut |_| {})?;
        Self::start(files, checkpoint, vec![stage.runner], options)
    }

    /// Runs a checkpoint whose stages are loaded, wherever they are. Each must have [`ModelOptions::cache`].
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn start(
        files: ChatFiles,
        checkpoint: &Checkpoint,
        stages: Vec<Box<dyn StageRunner>>,
        options: &ModelOptions,
    ) -> Result<Self, ModelError> {
        let page_store = options.prefix_cache_disk.clone().map(|(folder, max_bytes)| PageStoreConfig {
            folder,
            max_bytes,
            model: checkpoint.description().fingerprint(),
        });
        let engine = EngineConfig {
            page_store,
            prompt_time: options.prompt_time.unwrap_or(EngineConfig::PROMPT_TIME),
            prefix_cache: options.prefix_cache.unwrap_or(true),
            speculation: options.speculation,
            recovery: options.recovery,
            eos_ids: files.stop_ids.clone(),
            ..EngineConfig::new(
                checkpoint.config().vocab_size as u32,
                options.context(checkpoint),
                options.cache(checkpoint),
            )
        };
        let engine = Engine::start(stages, engine)?;
        let id = checkpoint.name().to_owned();
        let ChatFiles { tokenizer, template, defaults, stop_ids, .. } = files;
        let tokenizer = Arc::new(tokenizer);
        let grammars = Grammars::new(tokenizer.clone(), stop_ids);
        let replay = Replay::default();
        let shared = Shared { id, tokenizer, template, defaults, engine, grammars, replay };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The checkpoint's name.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Most tokens of a chat, prompt and answer together.
    pub fn context_tokens(&self) -> usize {
        self.shared.engine.config().context_tokens
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// How tokens are chosen where a request does not say.
    pub fn defaults(&self) -> ModelDefaults {
        self.shared.defaults
    }

    /// Builds what constrained answers need, on a thread of its own, so that the first of them does not wait for it: for
    /// Kimi's vocabulary 73 MB and about a second.
    pub fn prepare_grammars(&self) {
        let shared = self.shared.clone();
        // A fault shows at the first constrained request, which builds it then.
        let prepare = move || drop(shared.grammars.prepare());
        if let Err(error) = std::thread::Builder::new().name("kimi-grammars".into()).spawn(prepare) {
            tracing::debug!(%error, "no thread to prepare grammars");
        }
    }

    /// The engine below, for tokens instead of text.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Counts of the engine.
    pub fn stats(&self) -> EngineStats {
        self.shared.engine.stats()
    }

    /// Begins an answer. `sink` gets its events on the engine's thread and must not block.
    ///
    /// # Errors
    /// [`ChatError`]; `sink` is then never called.
    pub fn chat_with(
        &self,
        mut request: ChatRequest,
        sink: impl FnMut(ChatEvent) + Send + 'static,
    ) -> Result<ChatGeneration, ChatError> {
        let prompt = self.prepare(&mut request)?;
        self.begin(&request, &prompt, 0, sink)
    }

    /// Begins several answers to one request, whose prompt is made once. With a seed, each has one of its own: the request's and
    /// its place.
    ///
    /// # Errors
    /// [`ChatError`]; answers that had begun are cancelled then.
    pub fn choices_with<S: FnMut(ChatEvent) + Send + 'static>(
        &self,
        mut request: ChatRequest,
        sinks: impl IntoIterator<Item = S>,
    ) -> Result<Vec<ChatGeneration>, ChatError> {
        let prompt = self.prepare(&mut request)?;
        sinks.into_iter().zip(0..).map(|(sink, choice)| self.begin(&request, &prompt, choice, sink)).collect()
    }

    fn prepare(&self, request: &mut ChatRequest) -> Result<Prompt, ChatError> {
        self.normalize_calls(&mut request.messages);
        let (tokens, thinking) = self.render(request)?;
        let reasoning = match &request.raw {
            Some(_) => ReasoningMode::Off,
            None => self.shared.reasoning_mode(thinking),
        };
        Ok(Prompt { tokens, reasoning })
    }

    fn begin(
        &self,
        request: &ChatRequest,
        prompt: &Prompt,
        choice: u64,
        mut sink: impl FnMut(ChatEvent) + Send + 'static,
    ) -> Result<ChatGeneration, ChatError> {
        let &Prompt { ref tokens, reasoning } = prompt;
        let stop = StopStrings::new(request.stop.clone())?;
        let slot = Arc::new(Slot::default());
        let constraint = constrain::constraint(&self.shared, request, reasoning, tokens.len())?;
        let mut stream = ReplyStream::new(self.shared.clone(), request, tokens, stop, reasoning);
        let engine_request = Request {
            prompt: tokens.clone(),
            constraint,
            params: request.params.for_choice(choice),
            max_tokens: request.max_tokens,
            min_tokens: request.min_tokens,
            stop_ids: request.stop_token_ids.clone(),
            ignore_eos: request.ignore_eos,
            top_logprobs: if request.logprobs { request.top_logprobs } else { 0 },
            ..Request::default()
        };
        let ender = slot.clone();
        let generation = self.shared.engine.submit(engine_request, move |event| {
            stream.push(event, &mut sink);
            if stream.ended_by_text() {
                ender.end();
            }
        })?;
        slot.fill(generation);
        Ok(ChatGeneration::new(slot, tokens.len()))
    }

    /// [`Self::chat_with`] for a thread that may block: the answer's events from an iterator.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn chat(&self, request: ChatRequest) -> Result<ChatEvents, ChatError> {
        let (sender, events) = mpsc::channel();
        let generation = self.chat_with(request, move |event| {
            // Nobody listens once the iterator is dropped, which cancels the chat too.
            let _ = sender.send(event);
        })?;
        Ok(ChatEvents::new(events, generation))
    }
}
