//! What becomes of a lost stage: another one with the same layers, on its worker when that is back, on a spare one, or, for
//! the coordinator's own layers, on a device of this machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kimi_core::checkpoint::Checkpoint;
use kimi_core::engine::LostStage;
use kimi_core::fingerprint::Description;
use kimi_core::stage::StageRunner;
use tokio::runtime::Handle;

use super::pipeline::{LoadedRemote, Placement};
use super::{LoadWatch, NodeState, Wanted};

/// Pause between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(500);

/// Finds stages in place of lost ones, for [`kimi_core::engine::Engine::recover_with`].
#[derive(Debug)]
pub struct Recovery {
    checkpoint: Checkpoint,
    description: Description,
    placement: Placement,
    /// Who has which stage; without the last, which is this process.
    workers: Vec<Wanted>,
    /// Workers that hold no layers.
    spares: Vec<Wanted>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
}

/// Ends a [`Recovery`] when it is dropped.
#[derive(Debug)]
pub struct StopsRecovery(Arc<AtomicBool>);

impl Drop for StopsRecovery {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Recovery {
    /// For the stages of a placement. `workers` are those that hold its stages, in order.
    pub fn new(
        checkpoint: &Checkpoint,
        placement: Placement,
        workers: Vec<Wanted>,
        spares: Vec<Wanted>,
        runtime: Handle,
    ) -> Self {
        let (checkpoint, description) = (checkpoint.clone(), checkpoint.description());
        Self { checkpoint, description, placement, workers, spares, runtime, stop: Arc::default() }
    }

    /// Ends the search for other stages when it is dropped.
    pub fn guard(&self) -> StopsRecovery {
        StopsRecovery(self.stop.clone())
    }

    /// A stage in place of a lost one. Waits until there is one.
    ///
    /// # Errors
    /// Why there will be none.
    pub fn replace(&mut self, lost: &LostStage) -> Result<Box<dyn StageRunner>, String> {
        if lost.stage + 1 == self.placement.plan.stages.len() {
            return self.reload_last(lost.stage);
        }
        let mut said = String::new();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err("the program ends".to_owned());
            }
            let own = &self.workers[lost.stage];
            if let Some(NodeState::Taken { reason }) = self.placement.status.get(&own.id).map(|s| s.state)
                && self.spares.is_empty()
            {
                return Err(reason);
            }
            match self.ask_all(lost.stage) {
                Ok(stage) => return Ok(stage),
                Err(reason) if reason != said => {
                    tracing::warn!(stage = lost.stage, "no other stage yet: {reason}");
                    said = reason;
                }
                Err(_) => {}
            }
            thread::sleep(PAUSE);
        }
    }

    /// The coordinator's own layers again, on another device if theirs is gone.
    fn reload_last(&self, index: usize) -> Result<Box<dyn StageRunner>, String> {
        let silent: LoadWatch = Arc::new(|_, _| {});
        let stage = &self.placement.plan.stages[index];
        let loaded = self.placement.load_local(&self.checkpoint, index, stage, &silent);
        loaded.map(|loaded| loaded.runner).map_err(|e| format!("its layers can't be loaded again: {e}"))
    }

    /// Asks the stage's own worker, then the spare ones; one that is stuck last, as it takes its time to say so.
    fn ask_all(&mut self, stage: usize) -> Result<Box<dyn StageRunner>, String> {
        let own = self.workers[stage].clone();
        let mut candidates: Vec<_> = std::iter::once(own).chain(self.spares.iter().cloned()).collect();
        let stuck = |worker: &Wanted| {
            let known = self.placement.status.get(&worker.id).map(|known| known.state);
            matches!(known, Some(NodeState::Stuck { .. }))
        };
        candidates.sort_by_key(stuck);
        let mut reasons = Vec::new();
        for worker in candidates {
            match self.ask(stage, worker.clone()) {
                Ok(loaded) => {
                    if let Some(spare) = self.spares.iter().position(|spare| *spare == worker) {
                        // Whoever is replaced may be asked when the next one is lost.
                        self.spares[spare] = std::mem::replace(&mut self.workers[stage], worker.clone());
                    }
                    tracing::info!(stage, worker = worker.id, "has the layers of the lost stage");
                    return Ok(Box::new(loaded.into_stage(self.runtime.clone())));
                }
                Err(reason) => reasons.push(format!("{}: {reason}", worker.id)),
            }
        }
        Err(reasons.join("; "))
    }

    fn ask(&self, stage: usize, worker: Wanted) -> Result<LoadedRemote, String> {
        let planned = &self.placement.plan.stages[stage];
        let remote = self.placement.remote(worker, planned, &self.description, self.checkpoint.config());
        self.runtime.block_on(remote.load(None, false, |_| {})).map_err(|error| error.to_string())
    }
}
