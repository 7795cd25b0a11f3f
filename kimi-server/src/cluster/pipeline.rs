//! The stages of a plan: workers load the first layers, this process the last.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use kimi_core::LayerState;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::config::ModelConfig;
use kimi_core::device::{DeviceChoice, LoadedStage};
use kimi_core::fingerprint::Description;
use kimi_core::plan::{ModelBytes, Plan, PlannedStage};
use kimi_core::stage::{CacheConfig, LoadError, LoadStep, StageRunner, StageSpan, TOKEN_BUDGET};
use kimi_net::{Assign, Coordinator, ErrorCode, Fingerprint, LinkError, LoadProgress};
use tokio::runtime::Handle;

use super::remote::Remote;
use super::{
    ClusterStatus, Connected, Dialer, LoadWatch, NodeLoad, NodeState, Patience, RemoteStage, RouteError,
    Wanted, wire,
};
use crate::bus_error;

/// Pause before a worker is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// What goes where.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The layers of each node; the last is this process.
    pub plan: Plan,
    /// The latent cache of every stage.
    pub cache: CacheConfig,
    /// How workers look the model up.
    pub model: String,
    /// What this process computes on.
    pub device: DeviceChoice,
    /// How workers are reached.
    pub dialer: Dialer,
    /// How long they are waited for.
    pub patience: Patience,
    /// Is told what they do.
    pub status: ClusterStatus,
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
        cause: AssignError,
    },
    /// This process could not load its layers.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A loading task was ended from outside.
    #[error("loading was interrupted: {0}")]
    Interrupted(String),
}

/// Why a worker does not have its layers.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// The link or the worker failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It can't be reached.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// It stopped in the middle.
    #[error("loading has stood still for {} s", after.as_secs_f64())]
    Stalled {
        /// [`Patience::load`].
        after: Duration,
    },
}

impl AssignError {
    /// Whether it may help to ask again.
    fn may_pass(&self) -> bool {
        let (Self::Link(error) | Self::Route(RouteError::Link(error))) = self else { return false };
        match error {
            LinkError::Io { .. } | LinkError::Lost { .. } | LinkError::Silent { .. } => true,
            LinkError::HandshakeTimeout { .. } | LinkError::PeerLeft { .. } => true,
            LinkError::Peer(report) => report.code == ErrorCode::Overloaded,
            _ => false,
        }
    }
}

/// Has all stages load at the same time, and connects them. Call it outside of the runtime's own threads.
///
/// # Errors
/// [`BuildError`]: the first stage that could not load.
pub fn build(
    checkpoint: &Checkpoint,
    placement: &Placement,
    workers: Vec<Connected>,
    runtime: &Handle,
    watch: &LoadWatch,
) -> Result<Built, BuildError> {
    let plan = &placement.plan;
    let Some((last, first)) = plan.stages.split_last().filter(|(_, first)| first.len() == workers.len())
    else {
        return Err(BuildError::Workers { planned: plan.stages.len(), workers: workers.len() });
    };
    let description = checkpoint.description();
    for stage in &plan.stages {
        // Before a node says how far it is, so that the total is there from the start.
        placement.status.set(
            &stage.node,
            NodeState::Loading(NodeLoad { total: stage.weight_bytes, ..NodeLoad::default() }),
        );
    }
    let mut loading = Vec::with_capacity(workers.len());
    for (i, (stage, Connected { worker, link })) in first.iter().zip(workers).enumerate() {
        let remote = placement.remote(worker, stage, &description, checkpoint.config());
        let watch = watch.clone();
        let progress = move |p: LoadProgress| watch(i, node_load(p));
        loading.push((stage, runtime.spawn(async move { remote.load(Some(link), true, progress).await })));
    }
    // What fails here fails at once: workers may take minutes.
    let local = placement.load_local(checkpoint, first.len(), last, watch)?;
    let mut stages: Vec<Box<dyn StageRunner>> = Vec::with_capacity(plan.stages.len());
    let mut devices = Vec::with_capacity(plan.stages.len());
    for (i, (stage, task)) in loading.into_iter().enumerate() {
        let result = runtime.block_on(task).map_err(|e| BuildError::Interrupted(e.to_string()))?;
        let loaded = result.map_err(|cause| BuildError::Worker {
            id: stage.node.clone(),
            first: stage.first_layer,
            last: stage.last_layer,
            cause,
        })?;
        watch(i, NodeLoad::of(loaded.weight_bytes, loaded.weight_bytes));
        devices.push(loaded.device.clone());
        stages.push(Box::new(loaded.into_stage(runtime.clone())));
    }
    let mapped = local.maps_weights.then(|| checkpoint.clone());
    devices.push(local.device);
    stages.push(local.runner);
    Ok(Built { stages, devices, mapped })
}

/// What a worker says of its loading.
fn node_load(progress: LoadProgress) -> NodeLoad {
    let kernels = progress.kernels.map(|(made, total)| (made as usize, total as usize));
    NodeLoad { kernels, ..NodeLoad::of(progress.loaded_bytes, progress.total_bytes) }
}

impl Placement {
    /// A placement with the usual patience, whose status nobody has seen yet.
    pub fn new(plan: Plan, cache: CacheConfig, model: &str, device: DeviceChoice, dialer: Dialer) -> Self {
        let (patience, status) = (Patience::default(), ClusterStatus::default());
        Self { plan, cache, model: model.to_owned(), device, dialer, patience, status }
    }

    /// What a worker is given.
    pub(super) fn remote(
        &self,
        worker: Wanted,
        stage: &PlannedStage,
        description: &Description,
        config: &ModelConfig,
    ) -> Remote {
        let assign = Assign {
            model: self.model.clone(),
            fingerprint: Fingerprint(description.fingerprint()),
            description: wire::from_description(description),
            layers: stage.first_layer as u32..stage.last_layer as u32 + 1,
            first: stage.first_layer == 0,
            precision: wire::from_precision(self.device.precision),
            state: wire::from_state(LayerState::of(config, stage.first_layer)),
            cache_pages: self.cache.pages as u32,
            page_tokens: self.cache.page_tokens as u32,
            max_tokens: TOKEN_BUDGET as u32,
            hidden_size: config.hidden_size as u32,
            session: RandomState::new().hash_one(()),
            resume: false,
        };
        let span = StageSpan { layers: stage.layers(), first: stage.first_layer == 0, last: false };
        let (dialer, patience, status) = (self.dialer.clone(), self.patience, self.status.clone());
        Remote { worker, dialer, assign, span, patience, status }
    }

    /// Loads this process's own layers.
    pub(super) fn load_local(
        &self,
        checkpoint: &Checkpoint,
        index: usize,
        stage: &PlannedStage,
        watch: &LoadWatch,
    ) -> Result<LoadedStage, LoadError> {
        let layers = stage.layers();
        let total = ModelBytes::of(checkpoint)?.weights(&layers);
        let mut progress = |step| {
            let load = match step {
                LoadStep::Weights(loaded) => NodeLoad::of(loaded, total),
                LoadStep::Kernels { made, total: kernels } => {
                    NodeLoad { kernels: Some((made, kernels)), ..NodeLoad::of(total, total) }
                }
            };
            self.status.set(&stage.node, NodeState::Loading(load));
            watch(index, load);
        };
        progress(LoadStep::Weights(0));
        let loaded = self.device.load(checkpoint, layers, self.cache, &mut progress);
        let loaded = loaded.inspect_err(|error| {
            self.status.set(&stage.node, NodeState::Lost { reason: error.to_string() });
        })?;
        self.status.set(&stage.node, NodeState::Ready);
        watch(index, NodeLoad::of(total, total));
        if loaded.maps_weights {
            bus_error::name_shards_of(checkpoint);
        }
        Ok(loaded)
    }
}

/// Layers that a worker has loaded.
pub(super) struct LoadedRemote {
    remote: Remote,
    link: Coordinator,
    pub(super) device: String,
    pub(super) weight_bytes: u64,
}

impl LoadedRemote {
    pub(super) fn into_stage(self, runtime: Handle) -> RemoteStage {
        RemoteStage::new(self.remote, self.link, runtime)
    }
}

impl Remote {
    /// Has the worker load its layers, over a link that is there or a new one. With `again`, one that was lost while it loads
    /// is asked again for a while, and so is one that serves another coordinator: that may be one whose end it has not noticed.
    pub(super) async fn load(
        self,
        mut link: Option<Coordinator>,
        again: bool,
        progress: impl Fn(LoadProgress) + Send + Sync + Clone + 'static,
    ) -> Result<LoadedRemote, AssignError> {
        let started = Instant::now();
        loop {
            let found = match link.take() {
                Some(link) => Ok(link),
                None => self.dialer.link(&self.worker).await,
            };
            let loaded = match found {
                Ok(link) => self.load_over(&link, progress.clone()).await.map(|ready| (link, ready)),
                Err(error) => Err(error.into()),
            };
            match loaded {
                Ok((link, ready)) => {
                    return Ok(LoadedRemote {
                        remote: self,
                        link,
                        device: ready.device,
                        weight_bytes: ready.weight_bytes,
                    });
                }
                Err(error) if again && error.may_pass() && started.elapsed() < self.patience.load => {
                    tracing::info!(worker = self.worker.id, "{error}; asking again");
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn load_over(
        &self,
        link: &Coordinator,
        progress: impl Fn(LoadProgress) + Send + 'static,
    ) -> Result<kimi_net::Ready, AssignError> {
        let (status, id) = (self.status.clone(), self.worker.id.clone());
        let (moved, mut moves) = tokio::sync::watch::channel(());
        let on_progress = move |p: LoadProgress| {
            status.set(&id, NodeState::Loading(node_load(p)));
            progress(p);
            moved.send_replace(());
        };
        let assigned = link.assign(self.assign.clone(), on_progress);
        tokio::pin!(assigned);
        loop {
            let stalled = tokio::time::timeout(self.patience.load, moves.changed());
            tokio::select! {
                biased;
                ready = &mut assigned => return Ok(ready?),
                stalled = stalled => match stalled {
                    Ok(Ok(())) => {}
                    // The answer is about to come: nobody tells of progress any more.
                    Ok(Err(_)) => return Ok(assigned.await?),
                    Err(_) => return Err(AssignError::Stalled { after: self.patience.load }),
                },
            }
        }
    }
}
