//! A stage: a range of layers with their cache pages.

mod started;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kimi_quant::{AttentionInputs, Backend};

use crate::batch::{Batch, Output, PageId, Sampling, SequenceId, SequenceSlice};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::model::{DeviceHead, DeviceLayer, Geometry, Trace, forward_layer};
use crate::plan::{HumanBytes, ModelBytes};
use crate::sampler::{SampleError, Sampled};
use crate::source::ModelSource;
use crate::weights::{WeightError, Weights};
use started::{Chosen, Started, Wanted};

/// Which part of the model a stage holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSpan {
    /// Layers, counted from the embedding.
    pub layers: Range<usize>,
    /// Whether it holds the embedding: its input is the batch's tokens.
    pub first: bool,
    /// Whether it holds the final norm, the head and the sampler: its output is tokens.
    pub last: bool,
}

/// Activations between two stages: f32, little-endian, `[rows, cols]`, a row a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// Tokens.
    pub rows: usize,
    /// Hidden size.
    pub cols: usize,
    /// `4 * rows * cols` bytes.
    pub data: Bytes,
}

/// What a stage returns.
#[derive(Debug, Clone, PartialEq)]
pub enum StageOutput {
    /// Input of the next stage.
    Hidden(Hidden),
    /// From the last stage: one entry for each sequence whose output is not `None`, in the batch's order.
    Sequences(Vec<SequenceOutput>),
}

/// What the last stage returns for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOutput {
    /// Whose.
    pub id: SequenceId,
    /// The sampled token, if one was asked for, or why there is none: a sequence fails alone.
    pub sampled: Option<Result<Sampled, SampleError>>,
    /// Logits `[rows, V]`, if they were asked for.
    pub logits: Vec<f32>,
}

/// The end of a batch that was started: waits for its output.
pub type Finish = Box<dyn FnOnce() -> Result<StageOutput, StageError> + Send>;

/// Runs batches through one stage, wherever it is: in this process or on another machine.
///
/// Batches arrive in the order of their steps. A runner lives on a thread of its own, so `run` may block.
pub trait StageRunner: Send {
    /// The part of the model it holds.
    fn span(&self) -> StageSpan;

    /// Whether a batch can be started before the one before it is done, and follow it ([`Batch::follows`]).
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Starts on a batch; what it returns may be called on another thread, while the next batch is started.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let output = self.run(batch, input)?;
        Ok(Box::new(move || Ok(output)))
    }

    /// Computes one batch. `input` is `None` for the first stage and the previous stage's output for any other.
    ///
    /// # Errors
    /// [`StageError`]; [`StageError::is_lost`] tells whether the stage will come back by itself.
    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<StageOutput, StageError>;
}

/// Why a stage did not compute a batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StageError {
    /// The batch or its input does not fit the stage: a mistake of the caller.
    #[error("stage {first}-{last}: {what}", first = span.layers.start, last = span.layers.end.saturating_sub(1))]
    Input {
        /// The stage.
        span: StageSpan,
        /// What does not fit, with the values found and expected.
        what: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] kimi_quant::BackendError),
    /// The stage's machine is gone.
    #[error("the stage on {node} is lost: {reason}")]
    Lost {
        /// Name of the node.
        node: String,
        /// What was seen.
        reason: String,
    },
}

impl StageError {
    /// Whether the stage will not come back by itself: its machine or its device is gone.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Backend(kimi_quant::BackendError::Device(_)))
    }
}

/// Why a stage could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint's tensors do not make the model.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Backend(#[from] kimi_quant::BackendError),
    /// It computed nothing when it was tried.
    #[error("the first step failed: {0}")]
    WarmUp(#[source] StageError),
    /// The device's memory is too small.
    #[error(
        "layers {first}-{last} do not fit {device}: {weights} of weights and {cache} of cache need {needed} with what it \
         takes to compute, but {available} are free, {missing} too little. Give it fewer layers (add a machine), \
         shorten the context or the cache (--context, --cache-tokens), or use the CPU",
        last = layers.end.saturating_sub(1), first = layers.start, weights = HumanBytes(*weights), cache = HumanBytes(*cache),
        needed = HumanBytes(device_bytes(*weights, *cache)), available = HumanBytes(*available),
        missing = HumanBytes(device_bytes(*weights, *cache).saturating_sub(*available))
    )]
    DoesNotFit {
        /// The device.
        device: String,
        /// Layers asked for.
        layers: Range<usize>,
        /// Bytes of their weights.
        weights: u64,
        /// Bytes of their cache.
        cache: u64,
        /// Bytes that the device has free.
        available: u64,
    },
    /// A range that the model does not have.
    #[error("layers {found:?} were asked for, the model has layers 0..{layers}")]
    Layers {
        /// The range asked for.
        found: Range<usize>,
        /// Layers of the model.
        layers: usize,
    },
}

/// Bytes that a device needs for weights and cache: 3 % more, for activations and the ends of buffers.
pub fn device_bytes(weights: u64, cache: u64) -> u64 {
    let held = weights.saturating_add(cache);
    held.saturating_add(held / 100 * 3)
}

/// How many cache pages a stage holds, and how large they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Pages a layer.
    pub pages: usize,
    /// Tokens a page.
    pub page_tokens: usize,
}

/// A range of layers on one device, with their latent caches.
pub struct Stage<B: Backend> {
    backend: Arc<B>,
    config: ModelConfig,
    geometry: Geometry,
    span: StageSpan,
    cache: CacheConfig,
    embedding: Option<B::Matrix>, // [V, H], first stage
    layers: Vec<DeviceLayer<B>>,  // span.layers
    caches: Vec<B::Cache>,        // one a layer
    head: Option<DeviceHead<B>>,  // last stage
    chosen: Option<Chosen<B>>,    // where it runs ahead
}

impl<B: Backend> std::fmt::Debug for Stage<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("span", &self.span).field("backend", &self.backend.name()).finish()
    }
}

impl<B: Backend> Stage<B> {
    /// Loads `layers` of a checkpoint. The first range gets the embedding, the last one the head. `progress` is told
    /// the stored bytes loaded so far after each layer.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        layers: Range<usize>,
        cache: CacheConfig,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        Self::load_from(&Weights::new(checkpoint), backend, layers, cache, progress)
    }

    /// The same from anything that has a model's weights.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load_from(
        weights: &dyn ModelSource,
        backend: Arc<B>,
        layers: Range<usize>,
        cache: CacheConfig,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        let config = weights.config().clone();
        let count = config.num_hidden_layers;
        if layers.is_empty() || layers.end > count {
            return Err(LoadError::Layers { found: layers, layers: count });
        }
        check_memory(weights, backend.as_ref(), &layers, cache)?;
        let geometry = Geometry::new(&config);
        let span = StageSpan { first: layers.start == 0, last: layers.end == count, layers };
        let mut loaded = 0;
        let mut report = |bytes: u64| {
            loaded += bytes;
            progress(loaded);
        };
        let mut stage = Self {
            embedding: None,
            layers: Vec::with_capacity(span.layers.len()),
            caches: Vec::with_capacity(span.layers.len()),
            head: None,
            chosen: None,
            cache,
            geometry,
            span,
            config,
            backend,
        };
        if stage.span.first {
            let table = weights.embedding()?;
            report(table.bytes());
            stage.embedding = Some(stage.backend.load_matrix(table)?);
            if stage.backend.copies_weights() {
                weights.give_back("model.embed_tokens.");
            }
        }
        for index in stage.span.layers.clone() {
            let layer = weights.layer(index)?;
            let bytes = layer.bytes();
            stage.layers.push(layer.load(stage.backend.as_ref())?);
            let shape = stage.geometry.cache_shape(cache.pages, cache.page_tokens);
            stage.caches.push(stage.backend.new_cache(shape)?);
            if stage.backend.copies_weights() {
                weights.give_back(&format!("model.layers.{index}."));
            }
            report(bytes);
        }
        if stage.span.last {
            let head = weights.head()?;
            report(head.lm_head.bytes());
            stage.head = Some(head.load(stage.backend.as_ref())?);
            if stage.backend.copies_weights() {
                weights.give_back("lm_head.");
            }
        }
        Ok(stage)
    }

    /// The device it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The latent cache of the stage's `i`-th layer.
    pub fn cache(&self, i: usize) -> Option<&B::Cache> {
        self.caches.get(i)
    }

    /// Computes one batch, showing intermediate values to `trace`.
    ///
    /// # Errors
    /// As [`StageRunner::run`].
    pub fn forward(
        &mut self,
        batch: &Batch,
        input: Option<Hidden>,
        trace: Option<&mut dyn Trace<B>>,
    ) -> Result<StageOutput, StageError> {
        let backend = self.backend.clone();
        backend.enter(|| self.begin(batch, input, trace)?.finish(&backend))
    }

    /// Computes one batch without bringing anything out: the input of the next stage, `[T, H]`, or from the last one the
    /// logits `[S, V]` of the rows that the batch asks for ([`Batch::output_rows`]). `input` is `None` for the first
    /// stage and the previous one's activations for any other.
    ///
    /// # Errors
    /// As [`StageRunner::run`].
    pub fn forward_on_device(
        &mut self,
        batch: &Batch,
        input: Option<B::Tensor>,
    ) -> Result<B::Tensor, StageError> {
        let backend = self.backend.clone();
        backend.enter(|| {
            let x = self.embed(batch, input)?;
            let x = self.run_layers(batch, x, None)?;
            match &self.head {
                None => Ok(x),
                Some(head) => self.logits(&x, &batch.output_rows(), head),
            }
        })
    }

    /// Computes a token and a short prompt whose results nobody sees, so that what a device does once (it compiles its
    /// kernels and brings the weights into reach) does not delay the first request. Before any request: it writes to the
    /// cache's first pages.
    ///
    /// # Errors
    /// As [`StageRunner::run`].
    pub fn warm_up(&mut self) -> Result<(), StageError> {
        const PROMPT: usize = 128;
        let CacheConfig { pages, page_tokens } = self.cache;
        for tokens in [1, PROMPT.min(pages.saturating_mul(page_tokens))] {
            let sampling = Sampling {
                params: Arc::default(),
                history: Vec::new(),
                uniform: 0.0,
                top_logprobs: 0,
                allowed: None,
            };
            let sequence = SequenceSlice {
                id: SequenceId(0),
                start: 0,
                tokens: vec![0; tokens],
                pages: (0..tokens.div_ceil(page_tokens.max(1)) as PageId).collect(),
                output: Output::Sample(sampling),
            };
            let cols = self.config.hidden_size;
            let zeros = || Hidden { rows: tokens, cols, data: floats_to_bytes(vec![0.0; tokens * cols]) };
            let input = (!self.span.first).then(zeros);
            let batch = Batch { sequences: vec![sequence], ..Batch::default() };
            self.forward(&batch, input, None)?;
        }
        Ok(())
    }

    /// Fills the cache of the batch's tokens with arbitrary latents, without computing the layers: for measurements of
    /// long contexts.
    ///
    /// # Errors
    /// As [`StageRunner::run`].
    pub fn fill_cache(&mut self, batch: &Batch) -> Result<(), StageError> {
        let layout = batch.layout(self.cache.page_tokens)?;
        let Geometry { heads, rope, .. } = &self.geometry;
        let random = |count: usize| -> Vec<f32> {
            // Steps through a turn of a circle that never meet: as good as random here.
            (0..count).map(|i| (i as f32 * 2.399_963).sin()).collect()
        };
        let (q_width, kv_width) = (heads.heads * (heads.nope + heads.rope), heads.latent + heads.rope);
        let q = self.backend.upload(layout.len(), q_width, &vec![0.0; layout.len() * q_width])?;
        let kv = self.backend.upload(layout.len(), kv_width, &random(layout.len() * kv_width))?;
        for (layer, cache) in self.layers.iter().zip(&mut self.caches) {
            let attention = &layer.attention;
            let inputs = AttentionInputs { q: &q, kv: &kv, norm: &attention.kv_a_norm, rope };
            self.backend.latent_query(inputs, cache, &attention.latent, *heads, &layout)?;
        }
        Ok(())
    }

    /// Gives the device a step.
    fn begin(
        &mut self,
        batch: &Batch,
        input: Option<Hidden>,
        trace: Option<&mut dyn Trace<B>>,
    ) -> Result<Started<B>, StageError> {
        let input = input.map(|hidden| self.upload(batch, &hidden)).transpose()?;
        let x = self.embed(batch, input)?;
        let x = self.run_layers(batch, x, trace)?;
        let Some(head) = &self.head else {
            return Ok(Started::Hidden { rows: batch.tokens(), cols: self.config.hidden_size, x });
        };
        let rows = batch.output_rows(); // [S]
        if rows.is_empty() {
            return Ok(Started::Nothing(x));
        }
        let logits = self.logits(&x, &rows, head)?;
        self.choose(batch, logits)
    }

    /// The batch's activations before the first layer: `[T, H]`.
    fn embed(&self, batch: &Batch, input: Option<B::Tensor>) -> Result<B::Tensor, StageError> {
        match (&self.embedding, input) {
            (Some(table), None) => match batch.follows {
                None => Ok(self.backend.embed(table, &batch.ids())?),
                Some(step) => self.embed_chosen(table, batch, step),
            },
            (None, Some(hidden)) => Ok(hidden),
            (Some(_), Some(_)) => {
                Err(self.wrong("got activations, but the first stage takes tokens".to_owned()))
            }
            (None, None) => Err(self.wrong("got no activations from the stage before it".to_owned())),
        }
    }

    /// The same for the tokens that an earlier step chooses.
    fn embed_chosen(&self, table: &B::Matrix, batch: &Batch, step: u64) -> Result<B::Tensor, StageError> {
        let missing =
            || self.wrong(format!("step {} follows {step}, whose tokens are not there", batch.step));
        let chosen = self.chosen.as_ref().filter(|chosen| chosen.step == step).ok_or_else(missing)?;
        let request = |s: &SequenceSlice| match s.tokens.len() {
            1 => chosen.sequences.iter().position(|id| *id == s.id).map(|i| i as u32).ok_or_else(missing),
            n => Err(self
                .wrong(format!("got {n} tokens of a sequence, expected the one that step {step} chooses"))),
        };
        let requests = batch.sequences.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        Ok(self.backend.embed_chosen(table, &chosen.tokens, &requests)?)
    }

    fn run_layers(
        &mut self,
        batch: &Batch,
        mut x: B::Tensor,
        mut trace: Option<&mut dyn Trace<B>>,
    ) -> Result<B::Tensor, StageError> {
        let layout = batch.layout(self.cache.page_tokens)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let (index, cache) = (self.span.layers.start + i, &mut self.caches[i]);
            forward_layer(
                self.backend.as_ref(),
                index,
                layer,
                &self.geometry,
                cache,
                &layout,
                &mut x,
                &mut trace,
            )?;
        }
        Ok(x)
    }

    /// `[S, V]`.
    fn logits(&self, x: &B::Tensor, rows: &[u32], head: &DeviceHead<B>) -> Result<B::Tensor, StageError> {
        Ok(self.backend.head(x, rows, &head.norm, &head.lm_head)?)
    }

    /// Starts to choose from the logits `[S, V]` for the sequences that want a token.
    fn choose(&mut self, batch: &Batch, logits: B::Tensor) -> Result<Started<B>, StageError> {
        let (mut requests, mut wanted) = (Vec::new(), Vec::<Wanted>::new());
        let mut row = 0;
        for s in &batch.sequences {
            let rows = match &s.output {
                Output::None => continue,
                Output::Sample(sampling) => {
                    requests.push(sampling.params.request(row as u32, &sampling.draw()));
                    1
                }
                Output::LastLogits => 1,
                Output::AllLogits => s.tokens.len(),
            };
            let samples = matches!(s.output, Output::Sample(_));
            wanted.push((s.id, (!samples).then_some(row..row + rows)));
            row += rows;
        }
        let tokens = match requests.as_slice() {
            [] => None,
            requests => Some(Arc::new(self.backend.start_sample(&logits, requests)?)),
        };
        if let (Some(tokens), true) = (&tokens, self.runs_ahead()) {
            let sampling = wanted.iter().filter(|(_, rows)| rows.is_none());
            let sequences = sampling.map(|(id, _)| *id).collect();
            self.chosen = Some(Chosen { step: batch.step, sequences, tokens: tokens.clone() });
        }
        let logits = wanted.iter().any(|(_, rows)| rows.is_some()).then_some(logits);
        Ok(Started::Sequences { wanted, tokens, vocabulary: self.config.vocab_size, logits })
    }

    fn upload(&self, batch: &Batch, hidden: &Hidden) -> Result<B::Tensor, StageError> {
        let (rows, cols) = (batch.tokens(), self.config.hidden_size);
        let bytes = hidden.data.len();
        if (hidden.rows, hidden.cols) != (rows, cols) || bytes != 4 * rows * cols {
            return Err(self.wrong(format!(
                "got activations [{}, {}] in {bytes} bytes, expected [{rows}, {cols}] in f32",
                hidden.rows, hidden.cols
            )));
        }
        match bytemuck::try_cast_slice(&hidden.data) {
            Ok(values) if cfg!(target_endian = "little") => Ok(self.backend.upload(rows, cols, values)?),
            _ => Ok(self.backend.upload(rows, cols, &bytes_to_floats(&hidden.data))?),
        }
    }

    fn wrong(&self, what: String) -> StageError {
        StageError::Input { span: self.span.clone(), what }
    }
}

/// Compares weights and cache with the device's memory, before anything is loaded.
fn check_memory<B: Backend>(
    weights: &dyn ModelSource,
    backend: &B,
    layers: &Range<usize>,
    cache: CacheConfig,
) -> Result<(), LoadError> {
    let Some(available) = backend.memory() else { return Ok(()) };
    let bytes = ModelBytes::of_source(weights)?;
    let weights = bytes.weights(layers);
    let cache = bytes.cache(layers, cache.pages.saturating_mul(cache.page_tokens));
    if device_bytes(weights, cache) <= available {
        return Ok(());
    }
    Err(LoadError::DoesNotFit { device: backend.name(), layers: layers.clone(), weights, cache, available })
}

impl<B: Backend> StageRunner for Stage<B> {
    fn span(&self) -> StageSpan {
        self.span.clone()
    }

    fn runs_ahead(&self) -> bool {
        self.span.first && self.span.last && self.backend.queues()
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let backend = self.backend.clone();
        let started = backend.enter(|| self.begin(batch, input, None))?;
        Ok(Box::new(move || started.finish(&backend)))
    }

    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<StageOutput, StageError> {
        self.forward(batch, input, None)
    }
}

/// Little-endian bytes of floats, without a copy where the machine is little-endian.
fn floats_to_bytes(values: Vec<f32>) -> Bytes {
    struct Floats(Vec<f32>);
    impl AsRef<[u8]> for Floats {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if cfg!(target_endian = "little") {
        Bytes::from_owner(Floats(values))
    } else {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }
}

fn bytes_to_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
