//! The batches that are measured, and how.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kimi_core::batch::{Batch, Output, Sampling, SequenceId, SequenceSlice};
use kimi_core::config::ModelConfig;
use kimi_core::sampler::SamplingParams;
use kimi_core::stage::{Compute, LoadError, Stage, StageError, device_bytes};
use kimi_quant::{Backend, BackendError, SampleRequest};

use super::Workload;
use super::device::{Kernel, Measured};
use super::median::median;
use super::report::{Operation, Operations, Phase, Turn};
use super::timed::{Call, Notes, Timed};

/// Idle devices slow their clocks down: a step is repeated for so long before its time counts.
const WARM: Duration = Duration::from_millis(500);
/// A step is measured for so long.
const MEASURED: Duration = Duration::from_millis(1500);
/// The same is cut into so many turns, with a look at the read bandwidth after each: a shared machine changes by the second.
const TURNS: u32 = 3;
/// Slow steps are not repeated once they took so long together.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most repetitions in a turn; one at least.
const MAX_ROUNDS: usize = 100;
/// Steps that follow each other are timed so many together: a result that is seen late makes the next one seem early.
const TOGETHER: usize = 4;
/// Repetitions of what looks into a step.
const LOOKS: usize = 5;
/// Tokens of the cache filled at once.
const FILLED: usize = 512;

/// A step to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One token of one sequence.
    Decode,
    /// One token of each sequence.
    Sequences,
    /// The tokens of a prompt.
    Prefill,
}

/// Runs and measures steps of a model.
pub struct Steps<B: Measured> {
    stage: Stage<Timed<B>>,
    backend: Arc<Timed<B>>,
    workload: Workload,
    layers: usize,
    vocabulary: usize,
    meter: B::Meter,
    filled: bool,
}

/// Compares weights and cache with the device's memory, before it is filled with anything.
///
/// # Errors
/// [`LoadError::DoesNotFit`] says by how much.
pub fn check_fits<B: Measured>(
    backend: &B,
    layers: usize,
    weights: u64,
    cache: u64,
) -> Result<(), LoadError> {
    match backend.memory() {
        Some(available) if device_bytes(weights, cache) > available => Err(LoadError::DoesNotFit {
            device: backend.name(),
            layers: 0..layers,
            weights,
            cache,
            available,
        }),
        _ => Ok(()),
    }
}

impl<B: Measured> Steps<B> {
    /// For a stage that is the whole model, with the cache of the workload.
    pub fn new(
        stage: Stage<Timed<B>>,
        backend: Arc<Timed<B>>,
        config: &ModelConfig,
        workload: Workload,
        meter: B::Meter,
    ) -> Self {
        let (layers, vocabulary) = (config.num_hidden_layers, config.vocab_size);
        Self { stage, backend, workload, layers, vocabulary, meter, filled: false }
    }

    /// Measures one kind of step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn measure(&mut self, kind: Kind) -> Result<Phase, StageError> {
        if kind != Kind::Prefill && !self.filled {
            self.fill()?;
        }
        let batch = self.batch(kind);
        let start = Instant::now();
        self.backend.begin(Notes::Experts);
        self.run(&batch)?;
        let calls = self.backend.end();
        // The first step of a GPU is busy with making pipelines, a slow CPU's is as warm as can be.
        if B::RECORDS || start.elapsed() < WARM {
            self.warm(&batch)?;
        }
        let turns = self.turns(&batch)?;
        let phase = Phase::new(&calls, &turns, batch.tokens(), batch.sequences.len());
        let (host, device) = self.host_and_device(&batch)?;
        let operations = self.operations(&batch, &calls, phase.read_gb_per_second * 1e9)?;
        Ok(phase.with_device(host, device, B::RECORDS.then_some(self.layers)).with_operations(operations))
    }

    fn batch(&self, kind: Kind) -> Batch {
        let Workload { context, prompt, sequences } = self.workload;
        let (count, start, tokens) = match kind {
            Kind::Decode => (1, context, 1),
            Kind::Sequences => (sequences, context, 1),
            Kind::Prefill => (1, 0, prompt),
        };
        self.slices(count, start, tokens, &greedy())
    }

    fn slices(&self, count: usize, start: usize, tokens: usize, output: &Output) -> Batch {
        let pages = self.workload.pages_each();
        let slice = |i: usize| SequenceSlice {
            id: SequenceId(i as u64),
            start: start as u32,
            tokens: (0..tokens).map(|t| ((i * 7919 + t * 104_729 + 17) % self.vocabulary) as u32).collect(),
            pages: (i * pages..(i + 1) * pages).map(|p| p as u32).collect(),
            output: output.clone(),
        };
        Batch { sequences: (0..count).map(slice).collect(), ..Batch::default() }
    }

    /// Fills every sequence's cache up to the context.
    fn fill(&mut self) -> Result<(), StageError> {
        for start in (0..self.workload.context).step_by(FILLED) {
            let tokens = FILLED.min(self.workload.context - start);
            let all = self.slices(self.workload.sequences, start, tokens, &Output::None);
            for sequence in all.sequences {
                self.stage.fill_cache(&Batch { sequences: vec![sequence], ..Batch::default() })?;
                self.backend.inner().wait()?;
            }
        }
        self.filled = true;
        Ok(())
    }

    /// One step alone: waits for the tokens.
    fn run(&mut self, batch: &Batch) -> Result<(), StageError> {
        self.stage.forward(batch, None, None).map(drop)
    }

    fn warm(&mut self, batch: &Batch) -> Result<(), StageError> {
        let start = Instant::now();
        while start.elapsed() < WARM {
            self.run(batch)?;
        }
        Ok(())
    }

    /// Steps, and the read bandwidth, in turn.
    fn turns(&mut self, batch: &Batch) -> Result<Vec<Turn>, StageError> {
        let (mut turns, start) = (Vec::new(), Instant::now());
        while turns.len() < TURNS as usize && (turns.is_empty() || start.elapsed() < PATIENCE) {
            let seconds = self.rounds(batch)?;
            turns.push(Turn {
                seconds,
                read_bandwidth: self.backend.inner().read_bandwidth(&mut self.meter)?,
            });
        }
        Ok(turns)
    }

    /// Seconds of steps, one after another as they are served: where the scheduler has one follow the other
    /// ([`Batch::follows`]), from one result to the next.
    fn rounds(&mut self, batch: &Batch) -> Result<Vec<f64>, StageError> {
        let follows = self.stage.chains() && batch.sequences.iter().all(|s| s.tokens.len() == 1);
        let mut before = if follows { Some(self.stage.start(batch, None)?) } else { None };
        let start = Instant::now();
        let mut ends = vec![start];
        while ends.len() == 1 || (start.elapsed() < MEASURED / TURNS && ends.len() <= MAX_ROUNDS) {
            match before.take() {
                Some(finish) => {
                    let step = ends.len() as u64;
                    let next = Batch { step, follows: Some(step - 1), ..batch.clone() };
                    before = Some(self.stage.start(&next, None)?);
                    finish()?;
                }
                None => self.run(batch)?,
            }
            ends.push(Instant::now());
        }
        before.map_or(Ok(()), |finish| finish().map(drop))?;
        let together = if follows { TOGETHER.min(ends.len() - 1) } else { 1 };
        let spans = ends.windows(together + 1).map(|w| (w[together] - w[0]).as_secs_f64() / together as f64);
        Ok(spans.collect())
    }

    /// Seconds that the host takes to record and submit a step, and that the device takes to compute it.
    fn host_and_device(&mut self, batch: &Batch) -> Result<(Option<f64>, Option<f64>), StageError> {
        if !B::RECORDS {
            return Ok((None, None));
        }
        let (mut host, mut device) = (Vec::new(), Vec::new());
        for _ in 0..LOOKS {
            let start = Instant::now();
            record(&mut self.stage, &self.backend, batch)?;
            self.backend.inner().start();
            host.push(start.elapsed().as_secs_f64());
            self.backend.inner().wait()?;
        }
        for _ in 0..LOOKS {
            self.run(batch)?;
            let (stage, backend) = (&mut self.stage, &self.backend);
            device.extend(backend.inner().time(&mut || record(stage, backend, batch))?.map(|ns| ns * 1e-9));
        }
        Ok((median(host), median(device)))
    }

    /// The time of every operation. `looked_at` are the step's calls with the bytes that they read.
    fn operations(
        &mut self,
        batch: &Batch,
        looked_at: &[Call],
        read_bandwidth: f64,
    ) -> Result<Operations, StageError> {
        let mut rounds = Vec::new();
        let start = Instant::now();
        while rounds.len() < LOOKS && start.elapsed() < PATIENCE / 2 {
            if B::RECORDS {
                self.run(batch)?; // the device must not have been idle
            }
            let (stage, backend) = (&mut self.stage, &self.backend);
            let first = backend.inner().mark();
            backend.begin(Notes::Marks);
            let kernels = backend.inner().profile(&mut || record(stage, backend, batch));
            let calls = backend.end();
            let kernels = kernels?;
            let parts = looked_at.iter().zip(&calls).map(|(seen, timed)| Operation {
                call: seen,
                kernels: kernels_of::<B>(timed, kernels.as_deref(), first),
            });
            rounds.push(Operations::new(parts, read_bandwidth));
        }
        Ok(Operations::median(rounds))
    }
}

/// The kernels of one call: on a CPU the call itself.
fn kernels_of<B: Measured>(call: &Call, kernels: Option<&[Kernel]>, first: u64) -> Vec<Kernel> {
    let [start, end] = call.marks;
    if !B::RECORDS {
        return vec![Kernel { name: "", matrices: 1, nanoseconds: end.saturating_sub(start) as f64 }];
    }
    let range = start.saturating_sub(first) as usize..end.saturating_sub(first) as usize;
    kernels.and_then(|all| all.get(range)).unwrap_or_default().to_vec()
}

/// Records a step, sampling included, without waiting for it.
fn record<B: Measured>(
    stage: &mut Stage<Timed<B>>,
    backend: &Timed<B>,
    batch: &Batch,
) -> Result<(), BackendError> {
    let logits = stage.forward_on_device(batch, None).map_err(|e| match e {
        StageError::Backend(e) => e,
        other => BackendError::Device(other.to_string()),
    })?;
    if batch.output_rows().is_empty() {
        return Ok(());
    }
    let requests: Vec<_> = (0..batch.output_rows().len() as u32).map(SampleRequest::greedy).collect();
    backend.start_sample(&logits, &requests).map(drop)
}

fn greedy() -> Output {
    let params = Arc::new(SamplingParams::greedy());
    Output::Sample(vec![Sampling {
        params,
        counts: Arc::default(),
        uniform: 0.0,
        top_logprobs: 0,
        allowed: None,
    }])
}
