//! A stage on a device of this machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kimi_quant::Backend;

use super::started::{Chosen, Started, Wanted};
use super::{
    CacheConfig, Compute, Finish, Hidden, PageForm, StageError, StageOutput, StageResult, StageSpan,
};
use crate::batch::{Batch, PageId, SequenceSlice};
use crate::config::ModelConfig;
use crate::model::{DeviceHead, DeviceLayer, Geometry, Trace, forward_layer};

/// A range of layers on one device, with their latent caches.
pub struct Stage<B: Backend> {
    pub(super) backend: Arc<B>,
    pub(super) config: ModelConfig,
    pub(super) geometry: Geometry,
    pub(super) span: StageSpan,
    pub(super) cache: CacheConfig,
    pub(super) embedding: Option<B::Matrix>, // [V, H], first stage
    pub(super) layers: Vec<DeviceLayer<B>>,  // span.layers
    pub(super) caches: Vec<B::Cache>,        // one a layer
    pub(super) head: Option<DeviceHead<B>>,  // last stage
    pub(super) chosen: Option<Chosen<B>>,    // where it runs ahead
    pub(super) progress: Arc<AtomicU64>,     // layers begun
    pub(super) sampling: Duration,           // of the last batch, where the device does not queue
    pub(super) weight_bytes: u64,            // stored
}

/// Bytes of weights that are loaded at once. Up to here they are read once before the first step, if they are computed with from where they lie.
pub const SMALL_WEIGHTS: u64 = 64 << 20;

/// Tokens of the step that reads them: a short question.
const SMALL_PROMPT: usize = 24;

impl<B: Backend> std::fmt::Debug for Stage<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("span", &self.span).field("backend", &self.backend.name()).finish()
    }
}

impl<B: Backend> Stage<B> {
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
    /// [`StageError`].
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
    /// [`StageError`].
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
            1 => {
                let found = chosen.sequences.iter().find(|(id, _)| *id == s.id);
                found.map(|(_, place)| *place).ok_or_else(missing)
            }
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
            self.progress.fetch_add(1, Ordering::Relaxed);
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

    /// Starts to choose from the logits `[S, V]` for the sequences that want tokens.
    fn choose(&mut self, batch: &Batch, logits: B::Tensor) -> Result<Started<B>, StageError> {
        let (mut requests, mut wanted, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        let mut row = 0;
        for s in &batch.sequences {
            let rows = row..row + s.output_rows().len();
            row = rows.end;
            match s.choices() {
                [] if rows.is_empty() => {}
                [] => wanted.push((s.id, Wanted::Logits(rows))),
                choices => {
                    if choices.len() == 1 {
                        sequences.push((s.id, requests.len() as u32));
                    }
                    let rows = rows.zip(choices);
                    requests
                        .extend(rows.map(|(row, choice)| choice.params.request(row as u32, &choice.draw())));
                    wanted.push((s.id, Wanted::Tokens(choices.len())));
                }
            }
        }
        let begun = Instant::now();
        let tokens = match requests.as_slice() {
            [] => None,
            requests => Some(Arc::new(self.backend.start_sample(&logits, requests)?)),
        };
        // A device that queues has only been asked to.
        self.sampling = if self.backend.queues() { Duration::ZERO } else { begun.elapsed() };
        if let (Some(tokens), true) = (&tokens, self.chains()) {
            self.chosen = Some(Chosen { step: batch.step, sequences, tokens: tokens.clone() });
        }
        let logits = wanted.iter().any(|(_, wanted)| matches!(wanted, Wanted::Logits(_))).then_some(logits);
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

impl<B: Backend> Compute for Stage<B> {
    fn span(&self) -> StageSpan {
        self.span.clone()
    }

    fn queues(&self) -> bool {
        self.backend.queues()
    }

    fn chains(&self) -> bool {
        self.span.first && self.span.last && self.backend.queues()
    }

    fn steady(&self) -> bool {
        !self.backend.queues()
    }

    fn prepare(&mut self) {
        let tokens = SMALL_PROMPT.min(self.cache.tokens());
        if self.weight_bytes <= SMALL_WEIGHTS
            && !self.backend.copies_weights()
            && let Err(error) = self.compute_anything(tokens)
        {
            tracing::debug!(%error, "nothing was computed before the first step");
        }
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        let backend = self.backend.clone();
        self.sampling = Duration::ZERO;
        let started = backend.enter(|| self.begin(batch, input, None))?;
        if backend.queues() {
            return Ok(Box::new(move || started.finish(&backend)));
        }
        let output = backend.enter(|| started.finish(&backend));
        Ok(Box::new(move || output))
    }

    fn run(&mut self, batch: &Batch, input: Option<Hidden>) -> StageResult {
        self.forward(batch, input, None)
    }

    fn sampling_time(&self) -> Duration {
        self.sampling
    }

    fn nudge(&mut self) {
        if let Err(error) = self.backend.nudge() {
            tracing::debug!(%error, "an idle device took no work");
        }
    }

    fn count_progress(&mut self, count: Arc<AtomicU64>) {
        self.progress = count;
    }

    fn page_form(&self) -> Option<PageForm> {
        self.form_of_pages()
    }

    fn read_page(&mut self, page: PageId) -> Result<Bytes, StageError> {
        self.page_bytes(page)
    }

    fn write_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), StageError> {
        self.set_page_bytes(page, bytes)
    }
}

/// Little-endian bytes of floats, without a copy where the machine is little-endian.
pub(super) fn floats_to_bytes(values: Vec<f32>) -> Bytes {
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
