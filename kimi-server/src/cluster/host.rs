//! The thread of a worker that loads layers and computes.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use kimi_core::checkpoint::Checkpoint;
use kimi_core::device::LoadedStage;
use kimi_core::plan::{HumanBytes, ModelBytes};
use kimi_core::stage::{CacheConfig, Hidden, LoadError, StageOutput};
use kimi_net::{
    Assign, Bytes, Cancel, Dtype, ErrorCode, ErrorReport, Fingerprint, Forward, LinkError, LoadPhase,
    LoadProgress, Ready, StepResult, Subject, WorkerSender,
};
use tokio::runtime::Handle;

use super::wire;
use super::worker::WorkerConfig;
use crate::models::LookupError;
use crate::system;

/// Cancelled steps that are remembered; a link has far fewer in flight.
const MAX_CANCELLED: usize = 4096;

/// Something for the thread to do.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) session: Session,
}

pub(super) enum Work {
    Load(Assign),
    Step(Forward, Bytes, Instant),
}

/// The link that a job came from.
#[derive(Clone)]
pub(super) struct Session {
    sender: WorkerSender,
    ended: Arc<AtomicBool>,
    cancelled: Arc<Mutex<HashSet<u64>>>,
}

impl Session {
    pub(super) fn new(sender: WorkerSender) -> Self {
        Self { sender, ended: Arc::default(), cancelled: Arc::default() }
    }

    /// Jobs of this link that wait are not done any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn cancel(&self, cancel: Cancel) {
        let mut cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        if cancelled.len() + cancel.steps.len() > MAX_CANCELLED {
            cancelled.clear(); // costs only the computing of steps that nobody waits for
        }
        cancelled.extend(cancel.steps);
    }

    fn is_cancelled(&self, step: u64) -> bool {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).remove(&step)
    }
}

/// The layers that are loaded, and what they were loaded for.
struct Loaded {
    key: Key,
    stage: LoadedStage,
    hidden_size: usize,
    weight_bytes: u64,
    cache_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    fingerprint: Fingerprint,
    layers: Range<usize>,
    cache: CacheConfig,
}

pub(super) struct Host {
    config: WorkerConfig,
    runtime: Handle,
    loaded: Option<Loaded>,
}

/// A refusal, with its code.
struct Refusal(ErrorCode, String);

impl Refusal {
    fn load(text: impl ToString) -> Self {
        Self(ErrorCode::LoadFailed, text.to_string())
    }
}

impl Host {
    pub(super) fn new(config: WorkerConfig, runtime: Handle) -> Self {
        Self { config, runtime, loaded: None }
    }

    /// Does jobs until nobody can send any more.
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        for Job { work, session } in jobs {
            if session.ended.load(Ordering::Relaxed) {
                continue;
            }
            let sent = match work {
                Work::Load(assign) => self.assign(assign, &session.sender),
                Work::Step(forward, payload, received) => self.step(forward, payload, received, &session),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "the coordinator has left before its answer");
            }
        }
    }

    fn assign(&mut self, assign: Assign, sender: &WorkerSender) -> Result<(), LinkError> {
        let started = Instant::now();
        let layers = format!("{}-{}", assign.layers.start, assign.layers.end.saturating_sub(1));
        match self.load(assign, sender) {
            Ok(loaded) => {
                let micros = started.elapsed().as_micros() as u64;
                let (weight_bytes, cache_bytes) = (loaded.weight_bytes, loaded.cache_bytes);
                let device = loaded.stage.device.clone();
                tracing::info!(layers, seconds = micros as f64 * 1e-6, device, "loaded");
                let ready = Ready { weight_bytes, cache_bytes, load_micros: micros, device };
                self.loaded = Some(loaded);
                self.runtime.block_on(sender.ready(ready))
            }
            Err(Refusal(code, text)) => {
                tracing::warn!(layers, "can't load: {text}");
                let report = ErrorReport::new(code, Subject::Assignment, text);
                self.runtime.block_on(sender.fail(report))
            }
        }
    }

    /// Loads what was assigned, or keeps it if it is there.
    fn load(&mut self, assign: Assign, sender: &WorkerSender) -> Result<Loaded, Refusal> {
        let layers = assign.layers.start as usize..assign.layers.end as usize;
        let cache =
            CacheConfig { pages: assign.cache_pages as usize, page_tokens: assign.page_tokens as usize };
        let key = Key { fingerprint: assign.fingerprint, layers: layers.clone(), cache };
        if let Some(loaded) = self.loaded.take_if(|loaded| loaded.key == key) {
            return Ok(loaded);
        }
        self.loaded = None; // its memory is needed
        let checkpoint = self.checkpoint(&assign)?;
        check_span(&assign, &layers, checkpoint.config().num_hidden_layers)?;
        let bytes = ModelBytes::of(&checkpoint).map_err(Refusal::load)?;
        let weight_bytes = bytes.weights(&layers);
        let cache_bytes = check_cache(&bytes, &layers, cache)?;
        let mut report = |loaded_bytes| {
            let progress =
                LoadProgress { phase: LoadPhase::Reading, loaded_bytes, total_bytes: weight_bytes };
            // Loading goes on if the coordinator has left: it may come back for the layers.
            let _ = self.runtime.block_on(sender.progress(progress));
        };
        report(0);
        let stage =
            self.config.device.load(&checkpoint, layers, cache, &mut report).map_err(|e| match e {
                LoadError::DoesNotFit { .. } => Refusal(ErrorCode::OutOfMemory, e.to_string()),
                _ => Refusal::load(e),
            })?;
        let hidden_size = checkpoint.config().hidden_size;
        Ok(Loaded { key, stage, hidden_size, weight_bytes, cache_bytes })
    }

    fn checkpoint(&self, assign: &Assign) -> Result<Checkpoint, Refusal> {
        let checkpoint = match &self.config.model {
            Some(checkpoint) => checkpoint.clone(),
            None => {
                let found = self.config.lookup.find_remote(&assign.model).and_then(|found| found.open());
                found.map_err(|e| match e {
                    LookupError::Checkpoint(_) => Refusal::load(e),
                    _ => Refusal(ErrorCode::UnknownModel, e.to_string()),
                })?
            }
        };
        let ours = Fingerprint(checkpoint.fingerprint());
        if ours != assign.fingerprint {
            let text = format!(
                "the checkpoints differ: {} has fingerprint {ours} here and {} at the coordinator; give both machines \
                 the same files",
                checkpoint.name(),
                assign.fingerprint
            );
            return Err(Refusal(ErrorCode::FingerprintMismatch, text));
        }
        Ok(checkpoint)
    }

    fn step(
        &mut self,
        forward: Forward,
        payload: Bytes,
        received: Instant,
        session: &Session,
    ) -> Result<(), LinkError> {
        let step = forward.step;
        let failed = |code, text: String| {
            tracing::warn!(step, "a step failed: {text}");
            self.runtime.block_on(session.sender.fail(ErrorReport::new(code, Subject::Step(step), text)))
        };
        if session.is_cancelled(step) {
            return failed(ErrorCode::Cancelled, "cancelled by the coordinator".to_owned());
        }
        let Some(loaded) = &mut self.loaded else {
            return failed(ErrorCode::Internal, "no layers are loaded".to_owned());
        };
        let queue_micros = received.elapsed().as_micros() as u64;
        let started = Instant::now();
        match compute(loaded, forward, payload) {
            Ok(hidden) => {
                let header = StepResult {
                    step,
                    rows: hidden.rows as u32,
                    cols: hidden.cols as u32,
                    dtype: Dtype::F32,
                    compute_micros: started.elapsed().as_micros() as u64,
                    queue_micros,
                    opaque: Vec::new(),
                };
                self.runtime.block_on(session.sender.result(header, hidden.data))
            }
            Err(Failure::Step(text)) => failed(ErrorCode::StepFailed, text),
            Err(Failure::Device(text)) => {
                let told = failed(ErrorCode::Internal, text);
                self.loaded = None; // the next coordinator gets a new device
                told
            }
        }
    }
}

/// Why a step has no result.
enum Failure {
    /// This step's fault; others may go on.
    Step(String),
    /// The device is gone.
    Device(String),
}

fn compute(loaded: &mut Loaded, forward: Forward, payload: Bytes) -> Result<Hidden, Failure> {
    let stage = &mut loaded.stage.runner;
    let (batch, input) =
        wire::from_forward(forward, payload, &stage.span(), loaded.hidden_size).map_err(Failure::Step)?;
    match stage.run(&batch, input) {
        Ok(StageOutput::Hidden(hidden)) => Ok(hidden),
        Ok(StageOutput::Sequences(_)) => {
            Err(Failure::Step("the stage is the last one; only a coordinator holds that".to_owned()))
        }
        Err(error) if error.is_lost() => Err(Failure::Device(error.to_string())),
        Err(error) => Err(Failure::Step(error.to_string())),
    }
}

fn check_span(assign: &Assign, layers: &Range<usize>, count: usize) -> Result<(), Refusal> {
    if assign.last || layers.end >= count {
        let text = format!(
            "layers {layers:?} of {count} were assigned, but the coordinator holds the last layers itself"
        );
        return Err(Refusal::load(text));
    }
    if assign.first != (layers.start == 0) || assign.dtype != Dtype::F32 {
        let found = (assign.first, layers.start, assign.dtype);
        return Err(Refusal::load(format!("(embedding, first layer, type) {found:?} do not go together")));
    }
    Ok(())
}

/// Bytes of the cache, if this machine can have them at all.
fn check_cache(bytes: &ModelBytes, layers: &Range<usize>, cache: CacheConfig) -> Result<u64, Refusal> {
    let tokens = cache.pages as u128 * cache.page_tokens as u128;
    let needed = tokens * u128::from(bytes.cache_per_token_layer) * layers.len() as u128;
    let room = system::memory_bytes().unwrap_or(1 << 40);
    if needed > u128::from(room) {
        let text =
            format!("a cache of {tokens} tokens takes {needed} bytes, this machine has {}", HumanBytes(room));
        return Err(Refusal(ErrorCode::OutOfMemory, text));
    }
    Ok(needed as u64)
}
