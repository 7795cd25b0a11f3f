//! A cluster on this machine: this process holds the last layers, `kimi worker` processes the others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kimi_core::DeviceChoice;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::{ModelBytes, Plan};
use kimi_core::stage::CacheConfig;
use kimi_net::{ClusterKey, Trust};
use tokio::runtime::Handle;

use crate::cluster::child::{WorkerCommand, WorkerProcess};
use crate::cluster::{self, Built, Dialer, LoadWatch, Placement};
use crate::models::FoundModel;
use crate::placement;

/// How long a process of this machine may take to answer.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Name of this process among the nodes.
pub const COORDINATOR: &str = "coordinator";

/// Processes of this machine with a plan for them. They end when it is dropped.
#[derive(Debug)]
pub struct LocalCluster {
    plan: Plan,
    model: String,
    device: DeviceChoice,
    workers: Vec<WorkerProcess>,
    /// Of this cluster alone; ends with it.
    key: ClusterKey,
}

impl LocalCluster {
    /// Splits a model by bytes over this process and `stages - 1` new ones, all on the same choice of device.
    ///
    /// # Errors
    /// If there are more stages than layers, or a process does not start.
    pub fn start(
        found: &FoundModel,
        checkpoint: &Checkpoint,
        bytes: &ModelBytes,
        stages: usize,
        context: usize,
        config: Option<&Path>,
        device: &DeviceChoice,
    ) -> anyhow::Result<Self> {
        let layers = checkpoint.config().num_hidden_layers;
        anyhow::ensure!(stages <= layers, "{stages} stages for {layers} layers; each needs one at least");
        let mut names: Vec<_> = (1..stages).map(|i| format!("worker-{i}")).collect();
        let key = ClusterKey::generate().context("the system gives no random numbers")?;
        let command = WorkerCommand::new(found.local_name(), config, device, &key)
            .context("can't find this program's file")?;
        let workers = names.iter().map(|id| command.start(id)).collect::<Result<Vec<_>, _>>()?;
        names.push(COORDINATOR.to_owned());
        let plan = placement::local_plan(bytes, &names, context)?;
        let device = device.clone();
        Ok(Self { plan, model: found.id.clone(), device, workers, key })
    }

    /// Who holds what.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The workers' processes, in the order of their stages.
    pub fn workers(&self) -> &[WorkerProcess] {
        &self.workers
    }

    /// Loads all layers and connects the stages. The links run on `runtime`; call it from another thread than its own.
    ///
    /// # Errors
    /// If a worker does not answer or a stage can't be loaded.
    pub fn build(
        &self,
        checkpoint: &Checkpoint,
        cache: CacheConfig,
        watch: &LoadWatch,
        runtime: &Handle,
    ) -> anyhow::Result<Built> {
        let wanted: Vec<_> = self.workers.iter().map(WorkerProcess::wanted).collect();
        let placement = self.placement(cache);
        let connecting = cluster::connect(&wanted, wanted.len(), CONNECT_WAIT, &placement.dialer);
        let workers = runtime.block_on(connecting)?;
        Ok(cluster::build(checkpoint, &placement, workers, runtime, watch)?)
    }

    /// What goes where.
    pub fn placement(&self, cache: CacheConfig) -> Placement {
        let dialer = Dialer::new(COORDINATOR, Trust::Key(self.key.clone()));
        Placement::new(self.plan.clone(), cache, &self.model, self.device.clone(), dialer)
    }
}

/// Tells nobody.
pub fn silent() -> LoadWatch {
    Arc::new(|_, _| {})
}
