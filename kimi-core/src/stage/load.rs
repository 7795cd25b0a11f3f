//! A stage from a checkpoint, if it fits the device.

use std::ops::Range;
use std::sync::Arc;

use kimi_quant::{Backend, PackedMatrix};

use super::{Stage, StageError, StageSpan};
use crate::checkpoint::Checkpoint;
use crate::model::Geometry;
use crate::plan::{HumanBytes, ModelBytes};
use crate::source::ModelSource;
use crate::weights::{WeightError, Weights};

/// Why a stage could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint's tensors do not make the model.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Backend(#[from] kimi_quant::BackendError),
    /// The operating system gave no thread.
    #[error("can't start the stage's thread: {reason}")]
    Thread {
        /// What the system said.
        reason: String,
    },
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
            check_numbers("model.embed_tokens", &table)?;
            report(table.bytes());
            stage.embedding = Some(stage.backend.load_matrix(table)?);
            if stage.backend.copies_weights() {
                weights.give_back("model.embed_tokens.");
            }
        }
        for index in stage.span.layers.clone() {
            let layer = weights.layer(index)?;
            let bytes = layer.bytes();
            layer.check_numbers(index)?;
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
            check_numbers("lm_head", &head.lm_head)?;
            report(head.lm_head.bytes());
            stage.head = Some(head.load(stage.backend.as_ref())?);
            if stage.backend.copies_weights() {
                weights.give_back("lm_head.");
            }
        }
        Ok(stage)
    }
}

/// See [`HostLayer::check_numbers`](crate::model::HostLayer::check_numbers).
fn check_numbers(module: &str, matrix: &PackedMatrix) -> Result<(), WeightError> {
    let found = matrix.first_nan_row();
    found.map_or(Ok(()), |row| Err(WeightError::NotANumber { module: module.to_owned(), row }))
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
