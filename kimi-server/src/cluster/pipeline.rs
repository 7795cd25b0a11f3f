//! A pipeline from a plan: workers load the first layers, this process the last.

use std::sync::{Arc, OnceLock};

use kimi_core::checkpoint::Checkpoint;
use kimi_core::device::{DeviceChoice, LoadedStage};
use kimi_core::engine::{EngineConfig, TOKEN_BUDGET};
use kimi_core::pipeline::{Pipeline, PipelineError};
use kimi_core::plan::{ModelBytes, Plan, PlannedStage};
use kimi_core::stage::{CacheConfig, LoadError, StageError, StageRunner, StageSpan};
use kimi_net::{Assign, Coordinator, Fingerprint, LinkError};
use tokio::runtime::Handle;

use super::{Connected, LoadWatch, RemoteStage, StageMeter};

/// What goes where.
#[derive(Debug)]
pub struct Placement<'a> {
    /// The layers of each node; the last is this process.
    pub plan: &'a Plan,
    /// The workers, in the plan's order.
    pub workers: Vec<Connected>,
    /// The latent cache of every stage.
    pub cache: CacheConfig,
    /// How workers look the model up.
    pub model: &'a str,
    /// What this process computes on.
    pub device: &'a DeviceChoice,
}

/// A pipeline that is ready.
#[derive(Debug)]
pub struct Built {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// Each stage's device, for people.
    pub devices: Vec<String>,
    /// Meters of the remote stages, in order.
    pub meters: Vec<Arc<StageMeter>>,
    /// The first worker that was lost, if one was: the model can't answer any more, even if no step has shown it.
    pub lost: Lost,
    /// Tokens that a batch may have. The engine's [`EngineConfig::token_budget`] must not be above it.
    pub max_tokens: usize,
}

/// Holds an engine's token budget against [`Built::max_tokens`].
///
/// # Errors
/// [`BuildError::TokenBudget`].
pub fn check_budget(max_tokens: usize, engine: &EngineConfig) -> Result<(), BuildError> {
    let budget = engine.token_budget;
    if budget <= max_tokens { Ok(()) } else { Err(BuildError::TokenBudget { budget, assigned: max_tokens }) }
}

/// Why a worker was lost; empty while all are there.
pub type Lost = Arc<OnceLock<String>>;

/// Why there is no pipeline.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The plan has another number of workers.
    #[error("the plan has {planned} stages, but there are {workers} workers and this process")]
    Workers {
        /// Stages of the plan.
        planned: usize,
        /// Workers given.
        workers: usize,
    },
    /// A worker could not load its layers.
    #[error("worker {id} can't take layers {first}-{last}: {cause}")]
    Worker {
        /// The worker.
        id: String,
        /// First of its layers.
        first: usize,
        /// Last of its layers.
        last: usize,
        /// Why.
        cause: LinkError,
    },
    /// This process could not load its layers.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine's batches are larger than what the workers were told.
    #[error(
        "the engine makes batches of {budget} tokens, but the workers take {assigned}; load the model again"
    )]
    TokenBudget {
        /// [`EngineConfig::token_budget`].
        budget: usize,
        /// [`Built::max_tokens`].
        assigned: usize,
    },
    /// The stages do not make a pipeline.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A loading task was ended from outside.
    #[error("loading was interrupted: {0}")]
    Interrupted(String),
}

/// Has all stages load at the same time, and connects them. Call it outside of the runtime's own threads.
///
/// # Errors
/// [`BuildError`]: the first stage that could not load.
pub fn build(
    checkpoint: &Checkpoint,
    placement: Placement<'_>,
    runtime: &Handle,
    watch: &LoadWatch,
) -> Result<Built, BuildError> {
    let Placement { plan, workers, cache, model, device } = placement;
    let Some((last, first)) = plan.stages.split_last().filter(|(_, first)| first.len() == workers.len())
    else {
        return Err(BuildError::Workers { planned: plan.stages.len(), workers: workers.len() });
    };
    let fingerprint = Fingerprint(checkpoint.fingerprint());
    let mut loading = Vec::with_capacity(workers.len());
    for (i, (stage, worker)) in first.iter().zip(workers).enumerate() {
        let assign = assignment(model, fingerprint, stage, cache, checkpoint.config().hidden_size);
        loading.push((stage, runtime.spawn(load_remote(i, worker, assign, watch.clone()))));
    }
    let local = load_local(checkpoint, device, first.len(), last, cache, watch);
    let hidden_size = checkpoint.config().hidden_size;
    let mut stages: Vec<Box<dyn StageRunner>> = Vec::with_capacity(plan.stages.len());
    let (mut devices, mut meters, lost) = (Vec::new(), Vec::new(), Lost::default());
    for (stage, task) in loading {
        let result = runtime.block_on(task).map_err(|e| BuildError::Interrupted(e.to_string()))?;
        let (link, device) = result.map_err(|cause| BuildError::Worker {
            id: stage.node.clone(),
            first: stage.first_layer,
            last: stage.last_layer,
            cause,
        })?;
        let span = StageSpan { layers: stage.layers(), first: stage.first_layer == 0, last: false };
        let meter = Arc::new(StageMeter::default());
        meters.push(meter.clone());
        devices.push(device);
        runtime.spawn(watch_link(stage.node.clone(), link.closed(), lost.clone()));
        stages.push(Box::new(RemoteStage::new(
            stage.node.clone(),
            span,
            hidden_size,
            link,
            runtime.clone(),
            meter,
        )));
    }
    let local = local?;
    devices.push(local.device);
    stages.push(local.runner);
    Ok(Built { pipeline: Pipeline::new(stages)?, devices, meters, lost, max_tokens: TOKEN_BUDGET })
}

/// Reports a link that ends without our having closed it, computing or idle.
async fn watch_link(node: String, closed: impl Future<Output = LinkError>, lost: Lost) {
    let reason = closed.await;
    if reason == LinkError::Closed {
        return;
    }
    let error = StageError::Lost { node, reason: reason.to_string() };
    tracing::error!("{error}");
    // Only the first loss is kept.
    let _ = lost.set(error.to_string());
}

fn assignment(
    model: &str,
    fingerprint: Fingerprint,
    stage: &PlannedStage,
    cache: CacheConfig,
    hidden_size: usize,
) -> Assign {
    Assign {
        model: model.to_owned(),
        fingerprint,
        layers: stage.first_layer as u32..stage.last_layer as u32 + 1,
        first: stage.first_layer == 0,
        cache_pages: cache.pages as u32,
        page_tokens: cache.page_tokens as u32,
        max_tokens: TOKEN_BUDGET as u32,
        hidden_size: hidden_size as u32,
    }
}

async fn load_remote(
    index: usize,
    worker: Connected,
    assign: Assign,
    watch: LoadWatch,
) -> Result<(Coordinator, String), LinkError> {
    let progress = watch.clone();
    let on_progress = move |p: kimi_net::LoadProgress| progress(index, p.loaded_bytes, p.total_bytes);
    let ready = worker.link.assign(assign, on_progress).await?;
    watch(index, ready.weight_bytes, ready.weight_bytes);
    Ok((worker.link, ready.device))
}

fn load_local(
    checkpoint: &Checkpoint,
    device: &DeviceChoice,
    index: usize,
    stage: &PlannedStage,
    cache: CacheConfig,
    watch: &LoadWatch,
) -> Result<LoadedStage, LoadError> {
    let layers = stage.layers();
    let total = ModelBytes::of(checkpoint)?.weights(&layers);
    let stage = device.load(checkpoint, layers, cache, &mut |loaded| watch(index, loaded, total))?;
    watch(index, total, total);
    Ok(stage)
}
