//! The stages of a plan: workers load the first layers, this process the last.

use kimi_core::checkpoint::Checkpoint;
use kimi_core::device::{DeviceChoice, LoadedStage};
use kimi_core::engine::LostStage;
use kimi_core::fingerprint::Description;
use kimi_core::plan::{ModelBytes, Plan, PlannedStage};
use kimi_core::stage::{CacheConfig, LoadError, StageRunner, StageSpan, TOKEN_BUDGET};
use kimi_net::{Assign, Coordinator, Fingerprint, LinkError};
use tokio::runtime::Handle;

use super::{Connected, LoadWatch, RemoteStage, wire};
use crate::bus_error;

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

/// Stages that are loaded.
pub struct Built {
    /// The stages, in order.
    pub stages: Vec<Box<dyn StageRunner>>,
    /// Each stage's device, for people.
    pub devices: Vec<String>,
    /// The checkpoint, where this process computes from its mapped files.
    pub mapped: Option<Checkpoint>,
}

impl std::fmt::Debug for Built {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Built").field("devices", &self.devices).finish_non_exhaustive()
    }
}

/// Why the stages are not loaded.
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
    let description = checkpoint.description();
    let hidden_size = checkpoint.config().hidden_size;
    let mut loading = Vec::with_capacity(workers.len());
    for (i, (stage, worker)) in first.iter().zip(workers).enumerate() {
        let assign = assignment(model, &description, stage, cache, hidden_size);
        loading.push((stage, runtime.spawn(load_remote(i, worker, assign, watch.clone()))));
    }
    // What fails here fails at once: workers may take minutes.
    let local = load_local(checkpoint, device, first.len(), last, cache, watch)?;
    let mut stages: Vec<Box<dyn StageRunner>> = Vec::with_capacity(plan.stages.len());
    let mut devices = Vec::with_capacity(plan.stages.len());
    for (stage, task) in loading {
        let result = runtime.block_on(task).map_err(|e| BuildError::Interrupted(e.to_string()))?;
        let (link, device) = result.map_err(|cause| BuildError::Worker {
            id: stage.node.clone(),
            first: stage.first_layer,
            last: stage.last_layer,
            cause,
        })?;
        let span = StageSpan { layers: stage.layers(), first: stage.first_layer == 0, last: false };
        devices.push(device);
        stages.push(Box::new(RemoteStage::new(stage.node.clone(), span, hidden_size, link, runtime.clone())));
    }
    let mapped = local.maps_weights.then(|| checkpoint.clone());
    devices.push(local.device);
    stages.push(local.runner);
    Ok(Built { stages, devices, mapped })
}

/// Finds another stage in place of a lost one, where that can be done from here: the coordinator's own layers are loaded
/// again, on another device if theirs is gone. Other machines' are not.
pub fn reload_last(
    checkpoint: &Checkpoint,
    device: &DeviceChoice,
    plan: &Plan,
    cache: CacheConfig,
) -> impl FnMut(&LostStage) -> Result<Box<dyn StageRunner>, String> + Send + 'static {
    let (checkpoint, device) = (checkpoint.clone(), device.clone());
    let layers: Vec<_> = plan.stages.iter().map(PlannedStage::layers).collect();
    move |lost| {
        if lost.stage + 1 != layers.len() {
            return Err("its layers are loaded again when the model is started again".to_owned());
        }
        let stage = device.load(&checkpoint, layers[lost.stage].clone(), cache, &mut |_| {});
        stage.map(|stage| stage.runner).map_err(|e| format!("its layers can't be loaded again: {e}"))
    }
}

fn assignment(
    model: &str,
    description: &Description,
    stage: &PlannedStage,
    cache: CacheConfig,
    hidden_size: usize,
) -> Assign {
    Assign {
        model: model.to_owned(),
        fingerprint: Fingerprint(description.fingerprint()),
        description: wire::from_description(description),
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
    if stage.maps_weights {
        bus_error::name_shards_of(checkpoint);
    }
    Ok(stage)
}
