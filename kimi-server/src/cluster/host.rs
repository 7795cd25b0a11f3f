//! What a worker holds: layers for one coordinator, and a thread that loads them.

mod share;
pub(super) mod status;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use kimi_core::checkpoint::Checkpoint;
use kimi_core::device::LoadedStage;
use kimi_core::plan::ModelBytes;
use kimi_core::stage::{
    CacheConfig, Done, LoadError, LoadStep, StageError, StageOutput, StageResult, StageTime,
};
use kimi_core::{DeviceChoice, PrecisionChoice};
use kimi_net::{
    Assign, Bytes, ErrorCode, ErrorReport, Fingerprint, Forward, LayerState, LinkError, LoadProgress,
    ProgressCount, Ready, StepResult, Subject, WorkerSender,
};

use super::config::WorkerConfig;
use super::refusal::Refusal;
use super::wire;
use crate::bus_error;
use crate::capacity::Capacity;
use crate::models::LookupError;

/// Most tokens of a step. A coordinator sends 512; far more would take memory and hours before anyone could stop it. Input
/// and output of a step of Kimi-K2 are 59 MB together.
const MAX_STEP_TOKENS: u32 = 1024;

/// How long the device may stand still with a step before the stage counts as stuck: no step without layers to begin takes as
/// long.
const STUCK: Duration = Duration::from_secs(20);

/// Something for the thread that loads.
pub(super) enum Job {
    /// Load this, and tell the coordinator.
    Load(Assign, WorkerSender),
    /// The device is gone: let the layers go, so that the next coordinator gets a new one.
    Unload(Key),
}

/// The layers that are loaded, and what they were loaded for.
struct Loaded {
    key: Key,
    /// Of the coordinator that filled the caches.
    session: u64,
    stage: LoadedStage,
    hidden_size: usize,
    weight_bytes: u64,
    cache_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    fingerprint: Fingerprint,
    layers: Range<usize>,
    precision: PrecisionChoice,
    cache: CacheConfig,
}

/// What all links of a worker share.
pub(super) struct Host {
    config: WorkerConfig,
    /// What this machine offers; looked up when somebody asks.
    capacity: OnceLock<Capacity>,
    loaded: Mutex<Option<Loaded>>,
    jobs: mpsc::Sender<Job>,
    /// Rises while something is computed or loaded.
    progress: Arc<AtomicU64>,
    /// Steps that the stage has and has not answered.
    steps: Arc<AtomicUsize>,
}

impl Host {
    /// A host without layers, and the jobs for [`Self::run`].
    pub(super) fn new(config: WorkerConfig) -> (Arc<Self>, mpsc::Receiver<Job>) {
        let (jobs, source) = mpsc::channel();
        let (progress, steps) = (Arc::default(), Arc::default());
        let (capacity, loaded) = (OnceLock::new(), Mutex::new(None));
        (Arc::new(Self { config, capacity, loaded, jobs, progress, steps }), source)
    }

    /// How much was computed and loaded, for coordinators.
    pub(super) fn progress(&self) -> ProgressCount {
        self.progress.clone().into()
    }

    /// Does jobs, on a thread of its own: loading takes minutes.
    pub(super) fn run(&self, jobs: &mpsc::Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Load(assign, sender) => {
                    if let Err(error) = self.assign(assign, &sender) {
                        tracing::debug!(%error, "the coordinator has left before its answer");
                    }
                }
                Job::Unload(key) => {
                    let lost = self.loaded().take_if(|loaded| loaded.key == key);
                    drop(lost); // not under the lock: its threads may take a while to end
                }
            }
        }
    }

    /// Has layers loaded; the coordinator is told when they are.
    pub(super) fn load_later(&self, assign: Assign, sender: WorkerSender) {
        // Fails only if the thread has died, which ends the worker.
        let _ = self.jobs.send(Job::Load(assign, sender));
    }

    /// Whether sequences are running; see [`kimi_core::stage::StageRunner::set_active`].
    pub(super) fn set_active(&self, active: bool) {
        if let Some(loaded) = &mut *self.loaded() {
            loaded.stage.runner.set_active(active);
        }
    }

    /// Hands a step to the stage, which tells the coordinator what became of it. Does not wait.
    pub(super) fn submit(&self, forward: Forward, payload: Bytes, sender: &WorkerSender) {
        let step = forward.step;
        let mut loaded = self.loaded();
        let Some(Loaded { key, stage, hidden_size, .. }) = &mut *loaded else {
            return answer(sender, step, Err((ErrorCode::Internal, "no layers are loaded".to_owned())));
        };
        let runner = &mut stage.runner;
        let (batch, input) = match wire::from_forward(forward, payload, &runner.span(), *hidden_size) {
            Ok(step) => step,
            Err(text) => return answer(sender, step, Err((ErrorCode::StepFailed, text))),
        };
        let (sender, jobs, key) = (sender.clone(), self.jobs.clone(), key.clone());
        let (steps, progress) = (self.steps.clone(), self.progress.clone());
        steps.fetch_add(1, Ordering::Relaxed);
        let done = Done::new(move |result, time| {
            steps.fetch_sub(1, Ordering::Relaxed);
            progress.fetch_add(1, Ordering::Relaxed);
            let lost = result.as_ref().is_err_and(StageError::is_lost);
            answer(&sender, step, outcome(step, result, time));
            if lost {
                // Fails only if the thread has died, which ends the worker.
                let _ = jobs.send(Job::Unload(key));
            }
        });
        runner.submit(Arc::new(batch), input, done);
    }

    fn loaded(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(&self, assign: Assign, sender: &WorkerSender) -> Result<(), LinkError> {
        let started = Instant::now();
        let layers = format!("{}-{}", assign.layers.start, assign.layers.end.saturating_sub(1));
        match self.load(assign, sender) {
            Ok(loaded) => {
                let micros = started.elapsed().as_micros() as u64;
                let (weight_bytes, cache_bytes) = (loaded.weight_bytes, loaded.cache_bytes);
                let device = loaded.stage.device.clone();
                tracing::info!(layers, seconds = micros as f64 * 1e-6, device, "loaded");
                *self.loaded() = Some(loaded); // before the coordinator sends its first step
                sender.ready(Ready { weight_bytes, cache_bytes, load_micros: micros, device })
            }
            Err(Refusal { code, text, told }) => {
                tracing::warn!(layers, "can't load: {text}");
                sender.fail(ErrorReport::new(code, Subject::Assignment, told))
            }
        }
    }

    /// Loads what was assigned, or keeps it if it is there.
    fn load(&self, assign: Assign, sender: &WorkerSender) -> Result<Loaded, Refusal> {
        let layers = assign.layers.start as usize..assign.layers.end as usize;
        let cache = match assign.state {
            LayerState::LatentPages => {
                CacheConfig { pages: assign.cache_pages as usize, page_tokens: assign.page_tokens as usize }
            }
        };
        let precision = wire::to_precision(assign.precision);
        let key = Key { fingerprint: assign.fingerprint, layers: layers.clone(), precision, cache };
        self.check_moves()?;
        let mut held = self.loaded();
        if assign.resume {
            let ours = held.take_if(|loaded| loaded.key == key && loaded.session == assign.session);
            return ours.ok_or_else(|| {
                let text = "the worker does not have the caches any more: it was started again, or served another \
                            coordinator meanwhile";
                Refusal::new(ErrorCode::CacheLost, text)
            });
        }
        let before = held.take();
        drop(held);
        match before {
            Some(loaded) if loaded.key == key => return Ok(Loaded { session: assign.session, ..loaded }),
            other => drop(other), // its memory is needed
        }
        let checkpoint = self.checkpoint(&assign)?;
        let hidden_size = checkpoint.config().hidden_size;
        check_assignment(&assign, &layers, checkpoint.config().num_hidden_layers, hidden_size)?;
        match (assign.state, kimi_core::LayerState::of(checkpoint.config(), layers.start)) {
            (LayerState::LatentPages, kimi_core::LayerState::LatentPages { .. }) => {}
        }
        let bytes = ModelBytes::of(&checkpoint).map_err(Refusal::load)?;
        let weight_bytes = bytes.weights(&layers);
        let cache_bytes = bytes.cache(&layers, cache.tokens());
        let mut report = |step| {
            self.progress.fetch_add(1, Ordering::Relaxed);
            let (loaded_bytes, kernels) = match step {
                LoadStep::Weights(loaded) => (loaded, None),
                LoadStep::Kernels { made, total } => (weight_bytes, Some((made as u32, total as u32))),
            };
            // Loading goes on if the coordinator has left: it may come back for the layers.
            let _ = sender.progress(LoadProgress { loaded_bytes, total_bytes: weight_bytes, kernels });
        };
        report(LoadStep::Weights(0));
        let device = DeviceChoice { precision, ..self.config.device.clone() };
        let mut stage = device.load(&checkpoint, layers, cache, &mut report).map_err(|e| match e {
            LoadError::DoesNotFit { .. } | LoadError::CacheDoesNotFit { .. } => {
                Refusal::new(ErrorCode::OutOfMemory, e)
            }
            _ => Refusal::load(e),
        })?;
        if stage.maps_weights {
            bus_error::name_shards_of(&checkpoint);
        }
        stage.runner.count_progress(self.progress.clone());
        Ok(Loaded { key, session: assign.session, stage, hidden_size, weight_bytes, cache_bytes })
    }

    /// Makes sure that the stage computes, if it has steps: those of a coordinator that has left.
    fn check_moves(&self) -> Result<(), Refusal> {
        let (start, count) = (Instant::now(), || self.progress.load(Ordering::Relaxed));
        let before = count();
        while self.steps.load(Ordering::Relaxed) > 0 && count() == before {
            if start.elapsed() > STUCK {
                let text = format!(
                    "the worker's computing has stood still for {} s in the middle of a step; start `kimi worker` again",
                    STUCK.as_secs()
                );
                return Err(Refusal::new(ErrorCode::Stuck, text));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// This worker's files of a model that another machine names.
    fn open(&self, model: &str) -> Result<Checkpoint, LookupError> {
        match &self.config.model {
            Some(checkpoint) => Ok(checkpoint.clone()),
            None => self.config.lookup.find_remote(model).and_then(|found| found.open()),
        }
    }

    fn checkpoint(&self, assign: &Assign) -> Result<Checkpoint, Refusal> {
        let checkpoint = self.open(&assign.model).map_err(|e| Refusal::lookup(&assign.model, &e))?;
        let ours = checkpoint.description();
        if Fingerprint(ours.fingerprint()) != assign.fingerprint {
            let difference = wire::difference(&ours, &assign.description);
            let text = format!("the checkpoints differ ({} on this worker): {difference}", checkpoint.name());
            return Err(Refusal::new(ErrorCode::FingerprintMismatch, text));
        }
        Ok(checkpoint)
    }
}

/// What to tell of a step: its output, or a code and a text.
type Outcome = Result<(StepResult, Bytes), (ErrorCode, String)>;

fn outcome(step: u64, result: StageResult, time: StageTime) -> Outcome {
    match result {
        Ok(StageOutput::Hidden(hidden)) => {
            let header = StepResult {
                step,
                rows: hidden.rows as u32,
                cols: hidden.cols as u32,
                compute_micros: time.compute.as_micros() as u64,
                device_micros: time.device.as_micros() as u64,
                queue_micros: time.queue.as_micros() as u64,
            };
            Ok((header, hidden.data))
        }
        Ok(StageOutput::Sequences(_)) => {
            let text = "the stage is the last one; only a coordinator holds that";
            Err((ErrorCode::StepFailed, text.to_owned()))
        }
        Err(error) if error.is_lost() => Err((ErrorCode::Internal, error.to_string())),
        Err(error) => Err((ErrorCode::StepFailed, error.to_string())),
    }
}

fn answer(sender: &WorkerSender, step: u64, outcome: Outcome) {
    let sent = match outcome {
        Ok((header, payload)) => sender.result(header, payload),
        Err((code, text)) => {
            tracing::warn!(step, "a step failed: {text}");
            sender.fail(ErrorReport::new(code, Subject::Step(step), text))
        }
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "the coordinator has left before its answer");
    }
}

fn check_assignment(
    assign: &Assign,
    layers: &Range<usize>,
    count: usize,
    hidden_size: usize,
) -> Result<(), Refusal> {
    if layers.end >= count {
        let text = format!(
            "layers {layers:?} of {count} were assigned, but the coordinator holds the last layers itself"
        );
        return Err(Refusal::load(text));
    }
    if assign.first != (layers.start == 0) {
        let found = (assign.first, layers.start);
        return Err(Refusal::load(format!("(embedding, first layer) {found:?} do not go together")));
    }
    if assign.hidden_size as usize != hidden_size {
        let text =
            format!("a hidden size of {} was assigned, the model has {hidden_size}", assign.hidden_size);
        return Err(Refusal::load(text));
    }
    if assign.max_tokens > MAX_STEP_TOKENS {
        let text = format!(
            "steps of up to {} tokens were assigned, this worker takes at most {MAX_STEP_TOKENS}",
            assign.max_tokens
        );
        return Err(Refusal::load(text));
    }
    Ok(())
}
