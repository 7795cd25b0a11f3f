//! A stage from a checkpoint, if it fits the device.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kimi_quant::{Backend, PackedMatrix};

use super::{Stage, StageError, StageSpan};
use crate::checkpoint::Checkpoint;
use crate::host_memory::{HostMemory, Room};
use crate::layer_state::LayerState;
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
    /// The cache is this process's own memory, and there is too little.
    #[error(
        "the cache does not fit: {tokens} tokens in layers {first}-{last} take {cache}, but {available} are free \
         of {limit}, {missing} too little. Make it smaller with --cache-tokens or --context, or give this machine fewer layers",
        last = layers.end.saturating_sub(1), first = layers.start, cache = HumanBytes(*cache),
        available = HumanBytes(available.bytes), limit = available.limit,
        missing = HumanBytes(cache.saturating_sub(available.bytes))
    )]
    CacheDoesNotFit {
        /// Layers asked for.
        layers: Range<usize>,
        /// Tokens that the cache is to hold.
        tokens: usize,
        /// Bytes that takes.
        cache: u64,
        /// What is free.
        available: Room,
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

/// How far a stage is before it can compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStep {
    /// Stored bytes of weights in place.
    Weights(u64),
    /// Kernels compiled, after the weights.
    Kernels {
        /// Those that are.
        made: usize,
        /// Those that have to be.
        total: usize,
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

impl CacheConfig {
    /// Tokens that all pages of a layer hold.
    pub fn tokens(self) -> usize {
        self.pages.saturating_mul(self.page_tokens)
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
        weights.check_here(&layers)?;
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
            sampling: Duration::ZERO,
            weight_bytes: 0,
            progress: Arc::default(),
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
            stage.caches.push(match LayerState::of(&stage.config, index) {
                LayerState::LatentPages { .. } => {
                    let shape = stage.geometry.cache_shape(cache.pages, cache.page_tokens);
                    stage.backend.new_cache(shape)?
                }
            });
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
        stage.weight_bytes = loaded;
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
    let bytes = ModelBytes::of_source(weights)?;
    let stage = StageBytes::new(&bytes, layers, cache);
    match backend.memory() {
        Some(available) if device_bytes(stage.weights, stage.cache) > available => {
            let StageBytes { weights, cache, .. } = stage;
            Err(LoadError::DoesNotFit {
                device: backend.name(),
                layers: layers.clone(),
                weights,
                cache,
                available,
            })
        }
        None if !backend.copies_weights() => {
            let Some(memory) = HostMemory::now() else { return Ok(()) };
            match stage.check_host(layers, &memory)? {
                Some(paging) if weights.in_files() => tracing::warn!("{paging}"),
                _ => {}
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a stage takes.
#[derive(Debug, Clone, Copy)]
struct StageBytes {
    weights: u64,
    /// Weights that a token reads.
    token: u64,
    cache: u64,
    cache_tokens: usize,
}

/// Weights of which a part has to be read from the disk again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Paging {
    weights: u64,
    room: Room,
    /// Bytes that a token reads from the disk.
    token: u64,
}

impl StageBytes {
    fn new(bytes: &ModelBytes, layers: &Range<usize>, cache: CacheConfig) -> Self {
        let cache_tokens = cache.tokens();
        Self {
            weights: bytes.weights(layers),
            token: bytes.token_weights(layers),
            cache: bytes.cache(layers, cache_tokens),
            cache_tokens,
        }
    }

    /// On the CPU: a cache that does not fit is an error; weights that do not are read from the disk as they are needed.
    fn check_host(&self, layers: &Range<usize>, memory: &HostMemory) -> Result<Option<Paging>, LoadError> {
        let Self { weights, token, cache, cache_tokens } = *self;
        if cache > memory.available.bytes {
            let (layers, tokens, available) = (layers.clone(), cache_tokens, memory.available);
            return Err(LoadError::CacheDoesNotFit { layers, tokens, cache, available });
        }
        let room = Room { bytes: memory.resident.bytes.saturating_sub(cache), ..memory.resident };
        let missing = weights.saturating_sub(room.bytes);
        let share = missing as f64 / weights.max(1) as f64;
        Ok((missing > 0).then_some(Paging { weights, room, token: (token as f64 * share) as u64 }))
    }
}

impl fmt::Display for Paging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Bytes a second of a good solid-state disk.
        const DISK: u64 = 3_000_000_000;
        let Self { weights, room, token } = *self;
        write!(
            f,
            "{} of weights do not stay in memory: beside the cache {} are free of {}. A token then reads about {} from the \
             disk, {:.2} s at {} a second. Give this machine fewer layers, a smaller cache (--cache-tokens, --context), or a \
             model of fewer bits",
            HumanBytes(weights),
            HumanBytes(room.bytes),
            room.limit,
            HumanBytes(token),
            token as f64 / DISK as f64,
            HumanBytes(DISK),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_memory::Limit;

    const BYTES: StageBytes = StageBytes { weights: 1000, token: 100, cache: 300, cache_tokens: 30 };

    fn memory(available: u64, resident: u64) -> HostMemory {
        let room = |bytes, limit| Room { bytes, limit };
        HostMemory {
            total: room(9999, Limit::Machine),
            available: room(available, Limit::Cgroup),
            resident: room(resident, Limit::Machine),
        }
    }

    #[test]
    fn what_fits_passes_and_weights_that_do_not_are_paged() {
        assert_eq!(BYTES.check_host(&(0..2), &memory(300, 1300)).unwrap(), None);
        let paging = BYTES.check_host(&(0..2), &memory(300, 550)).unwrap().unwrap();
        assert_eq!((paging.weights, paging.room.bytes, paging.token), (1000, 250, 75));
        let big = Paging { weights: 80_000_000_000, token: 6_000_000_000, ..paging }.to_string();
        assert!(big.contains("80.0 GB of weights") && big.contains("2.00 s at 3.0 GB a second"), "{big}");
    }

    #[test]
    fn a_cache_that_does_not_fit_is_refused_with_the_numbers() {
        let error = BYTES.check_host(&(3..5), &memory(299, 9999)).unwrap_err().to_string();
        for part in [
            "30 tokens",
            "layers 3-4",
            "300 bytes",
            "299 bytes are free",
            "cgroup",
            "1 bytes",
            "--cache-tokens",
        ] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn sizes_that_overflow_are_refused_too() {
        let bytes = ModelBytes {
            embedding: 1,
            layers: vec![1; 3],
            token_layers: vec![1; 3],
            head: 1,
            hidden: 1,
            states: vec![LayerState::LatentPages { width: 576 }; 3],
        };
        let cache = CacheConfig { pages: usize::MAX, page_tokens: usize::MAX };
        let stage = StageBytes::new(&bytes, &(0..3), cache);
        assert!(matches!(
            stage.check_host(&(0..3), &memory(1 << 60, 1 << 60)),
            Err(LoadError::CacheDoesNotFit { .. })
        ));
    }
}
