//! Which device a stage runs on: the CPU, or a GPU that its weights and cache fit.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
#[cfg(feature = "gpu")]
use std::time::Instant;

use kimi_quant::cpu::Team;
use kimi_quant::{Backend, BackendError, Chip, Cpu};

use crate::checkpoint::Checkpoint;
#[cfg(feature = "gpu")]
use crate::kernel_store::KernelStore;
use crate::precision::PrecisionChoice;
#[cfg(feature = "gpu")]
use crate::stage::TOKEN_BUDGET;
use crate::stage::{CacheConfig, Compute, LoadError, LoadStep, Stage, StageRunner, StageThread};

/// What is to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU if there is one (software does not count) that the stage fits, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error.
    Gpu,
}

/// What is to compute, and on which adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceChoice {
    /// CPU or GPU.
    pub kind: DeviceKind,
    /// The GPU's number, or part of its name, in any case; `None` takes the first of the best kind.
    pub adapter: Option<String>,
    /// How precisely products are computed.
    pub precision: PrecisionChoice,
    /// Bytes of a GPU's memory to use at most, where that is less than what its driver says is free.
    pub memory: Option<u64>,
    /// Whether a GPU's clock may fall while it idles between the steps of running sequences.
    pub idle_clocks: bool,
    /// How long after the last step a GPU's weights must stay in memory, where the system could take it (macOS); `None` for
    /// three minutes.
    pub keep_alive: Option<Duration>,
    /// The chip of Apple's whose kernels and sizes a GPU takes in place of its own.
    pub as_metal: Option<&'static Chip>,
    /// Where machine code of kernels is kept between runs, if it is; see [`crate::kernel_store`].
    pub kernels: Option<PathBuf>,
    /// Threads that the CPU computes with, the first choice of a process for all of it; `None` for one on each fast core.
    pub threads: Option<NonZeroUsize>,
}

/// A stage on its device.
pub struct LoadedStage {
    /// Runs it.
    pub runner: Box<dyn StageRunner>,
    /// Name of the device, for people.
    pub device: String,
    /// Whether it computes from the checkpoint's files where they are mapped, so that they must stay as they are.
    pub maps_weights: bool,
}

impl LoadedStage {
    /// Puts a stage on threads of its own. With `keep_awake` its device gets a moment of work now and then while it idles
    /// between the steps of running sequences.
    ///
    /// # Errors
    /// [`LoadError::Thread`].
    pub fn new<B: Backend>(stage: Stage<B>, keep_awake: bool) -> Result<Self, LoadError> {
        let (device, maps_weights) = (stage.backend().name(), !stage.backend().copies_weights());
        let keep_awake = keep_awake && stage.queues();
        let runner = StageThread::spawn(Box::new(stage), keep_awake)
            .map_err(|e| LoadError::Thread { reason: e.to_string() })?;
        Ok(Self { runner: Box::new(runner), device, maps_weights })
    }
}

impl fmt::Debug for LoadedStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedStage").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What a stage is loaded from.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    layers: Range<usize>,
    cache: CacheConfig,
}

impl DeviceChoice {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { kind: DeviceKind::Cpu, ..Self::default() }
    }

    /// Loads layers of a checkpoint onto the device of choice. See [`Stage::load`].
    ///
    /// # Errors
    /// [`LoadError`]. Where the CPU is allowed, only those that it has too.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        layers: Range<usize>,
        cache: CacheConfig,
        progress: &mut dyn FnMut(LoadStep),
    ) -> Result<LoadedStage, LoadError> {
        let source = Source { checkpoint, layers, cache };
        match self.kind {
            DeviceKind::Cpu => self.on_cpu(&source, progress),
            DeviceKind::Gpu => self.on_gpu(&source, progress),
            DeviceKind::Auto => match self.on_gpu(&source, progress) {
                Err(reason @ LoadError::Backend(BackendError::NoAdapter { .. }))
                    if self.adapter.is_none() =>
                {
                    tracing::info!("running on the CPU: {reason}");
                    self.on_cpu(&source, progress)
                }
                Err(missing @ LoadError::Backend(BackendError::NoAdapter { .. })) => Err(missing),
                Err(
                    reason @ (LoadError::DoesNotFit { .. } | LoadError::Backend(_) | LoadError::WarmUp(_)),
                ) => {
                    tracing::warn!("running on the CPU: {reason}");
                    self.on_cpu(&source, progress)
                }
                other => other,
            },
        }
    }

    /// The CPU with the threads of choice.
    pub fn open_cpu(&self) -> Cpu {
        if let Some(threads) = self.threads {
            Team::set_shared(threads);
        }
        Cpu::new().with_precision(self.precision.on_cpu())
    }

    fn on_cpu(
        &self,
        source: &Source<'_>,
        progress: &mut dyn FnMut(LoadStep),
    ) -> Result<LoadedStage, LoadError> {
        LoadedStage::new(load(Arc::new(self.open_cpu()), source, progress)?, false)
    }

    #[cfg(feature = "gpu")]
    fn on_gpu(
        &self,
        source: &Source<'_>,
        progress: &mut dyn FnMut(LoadStep),
    ) -> Result<LoadedStage, LoadError> {
        let gpu = Arc::new(self.open_gpu()?);
        let hardware = gpu.adapter().is_hardware();
        let kept = MachineCode::of(&gpu, self.kernels.as_deref().filter(|_| hardware));
        let mut stage = load(gpu, source, progress)?;
        if hardware {
            // Software takes minutes to compile what may not be needed.
            let start = Instant::now();
            let mut made = |made, total| progress(LoadStep::Kernels { made, total });
            stage.make_kernels(TOKEN_BUDGET, &mut made).map_err(LoadError::WarmUp)?;
            let kernels = stage.backend().kernels();
            tracing::info!(seconds = start.elapsed().as_secs_f32(), kernels, "kernels made");
            let start = Instant::now();
            stage.warm_up().map_err(LoadError::WarmUp)?;
            tracing::info!(seconds = start.elapsed().as_secs_f32(), "warmed up");
            kept.keep(stage.backend());
        }
        LoadedStage::new(stage, hardware && !self.idle_clocks)
    }

    /// Opens the GPU of choice, whatever the kind: no software if it is [`DeviceKind::Auto`].
    ///
    /// # Errors
    /// [`BackendError`] if there is none, naming those that there are.
    #[cfg(feature = "gpu")]
    pub fn open_gpu(&self) -> Result<kimi_quant::Gpu, BackendError> {
        kimi_quant::Gpu::new(&kimi_quant::gpu::GpuOptions {
            adapter: self.adapter.clone(),
            hardware_only: self.kind == DeviceKind::Auto,
            precision: self.precision.on_gpu(),
            memory: self.memory,
            keep_alive: self.keep_alive,
            as_metal: self.as_metal,
            ..kimi_quant::gpu::GpuOptions::default()
        })
    }

    #[cfg(not(feature = "gpu"))]
    fn on_gpu(&self, _: &Source<'_>, _: &mut dyn FnMut(LoadStep)) -> Result<LoadedStage, LoadError> {
        let asked = self.adapter.clone().unwrap_or_else(|| "any".to_owned());
        let seen = "none in this program: it was built without the feature `gpu`".to_owned();
        Err(BackendError::NoAdapter { asked, seen }.into())
    }
}

/// Machine code of a GPU's kernels, kept between runs.
#[cfg(feature = "gpu")]
struct MachineCode {
    store: Option<KernelStore>,
    /// What was there.
    before: Option<Vec<u8>>,
}

#[cfg(feature = "gpu")]
impl MachineCode {
    /// Has the GPU use what is kept in a folder.
    fn of(gpu: &kimi_quant::Gpu, folder: Option<&std::path::Path>) -> Self {
        let store = folder.zip(gpu.machine_code_key()).map(|(folder, key)| KernelStore::new(folder, &key));
        let before = store.as_ref().and_then(KernelStore::read);
        if store.is_some() {
            // SAFETY: what the store returns is, by its hash, what this program wrote in `keep` under the same key.
            unsafe { gpu.keep_machine_code(before.as_deref()) };
        }
        Self { store, before }
    }

    /// Keeps what the GPU has now.
    fn keep(&self, gpu: &kimi_quant::Gpu) {
        let Some(store) = &self.store else { return };
        match gpu.machine_code() {
            Some(code) if self.before.as_ref() != Some(&code) => store.write(&code),
            _ => {}
        }
    }
}

fn load<B: Backend>(
    backend: Arc<B>,
    source: &Source<'_>,
    progress: &mut dyn FnMut(LoadStep),
) -> Result<Stage<B>, LoadError> {
    let mut progress = |bytes| progress(LoadStep::Weights(bytes));
    let stage = Stage::load(source.checkpoint, backend, source.layers.clone(), source.cache, &mut progress)?;
    tracing::info!(layers = ?source.layers, device = stage.backend().name(), "loaded");
    Ok(stage)
}
