//! The threads that a stage of this process computes on.
//!
//! One thread starts batches. Where the device queues them, a second one waits for their results, so that the next batch
//! is prepared meanwhile. Both end with the [`StageThread`].
//!
//! To wake a thread and to be woken by it takes as long as a few operations of a small model. So where whoever submits has
//! nothing else to do ([`StageRunner::compute_here`]), it computes short steps itself.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    Compute, Done, Finish, Hidden, PageForm, PageReader, PageWriter, StageError, StageResult, StageRunner,
    StageSpan, StageTime,
};
use crate::batch::{Batch, PageId};

/// How long a dropped stage is waited for while it still computes.
const DROP_WAIT: Duration = Duration::from_secs(5);
/// How long a device is left idle between the steps of running sequences before it gets a moment of work.
const IDLE: Duration = Duration::from_millis(2);
/// Longest step that whoever submits it computes itself: until it is done nobody else's words are heard.
const SHORT: Duration = Duration::from_millis(10);

/// A stage of this process on threads of its own. Dropping it waits until they have ended, for at most five seconds.
pub struct StageThread {
    /// `None` while it is dropped, and after computing has panicked.
    jobs: Option<Sender<Job>>,
    /// Jobs that the thread has been given and has not done.
    pending: Arc<AtomicUsize>,
    /// What computes, shared with the thread; `None` only while this is dropped.
    worker: Option<Arc<Mutex<Worker>>>,
    /// Whether steps could be computed by whoever submits them.
    steady: bool,
    /// Whether short ones are.
    here: bool,
    keep_awake: bool,
    span: StageSpan,
    page_form: Option<PageForm>,
    queues: bool,
    chains: bool,
    /// Disconnected when the threads have ended.
    ended: Receiver<()>,
}

enum Job {
    Step(Step),
    SetActive(bool),
    CountProgress(Arc<AtomicU64>),
    ReadPage(PageId, PageReader),
    WritePage(PageId, Bytes, PageWriter),
}

struct Step {
    batch: Arc<Batch>,
    input: Option<Hidden>,
    done: Done,
    submitted: Instant,
}

/// A step that the device has been given.
struct Started {
    finish: Result<Finish, StageError>,
    done: Done,
    submitted: Instant,
    begun: Instant,
    /// When the device had all of its work.
    given: Instant,
    sampling: Duration,
}

impl StageThread {
    /// Moves a stage onto threads of its own. With `keep_awake` an idle device is given a moment of work now and then
    /// while sequences run.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn spawn(stage: Box<dyn Compute>, keep_awake: bool) -> io::Result<Self> {
        let (jobs, source) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        let (span, queues, chains) = (stage.span(), stage.queues(), stage.chains());
        let page_form = stage.page_form();
        let in_flight = Arc::new(AtomicUsize::new(0));
        let mut finisher = Finisher { last: Instant::now(), waits: queues };
        let results = match queues {
            false => Results::Here(finisher),
            true => {
                let (sender, started) = mpsc::channel();
                let (alive, in_flight) = (alive.clone(), in_flight.clone());
                let wait = move || {
                    for started in started {
                        let finished = finisher.finish(started);
                        in_flight.fetch_sub(1, Ordering::Relaxed);
                        finished.tell();
                    }
                    drop(alive);
                };
                thread::Builder::new().name("kimi-results".into()).spawn(wait)?;
                Results::There(sender)
            }
        };
        let steady = stage.steady() && !queues;
        let worker = Arc::new(Mutex::new(Worker { stage, results, short: 0 }));
        let pending = Arc::new(AtomicUsize::new(1)); // to prepare
        let thread =
            Thread { worker: worker.clone(), pending: pending.clone(), in_flight, keep_awake, active: false };
        let work = move || {
            thread.run(&source); // drops the stage: its memory is free before anyone hears of the end
            drop(alive);
        };
        thread::Builder::new().name("kimi-stage".into()).spawn(work)?;
        let (jobs, worker) = (Some(jobs), Some(worker));
        Ok(Self {
            jobs,
            pending,
            worker,
            steady,
            here: false,
            keep_awake,
            span,
            page_form,
            queues,
            chains,
            ended,
        })
    }

    fn send(&self, job: Job) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        // A job that can't be sent is dropped, and its step reports that the stage has stopped.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }

    /// What computes, where a step of so many tokens is to be computed on the calling thread: behind all others, and if it
    /// is short.
    fn worker_for(&self, tokens: usize) -> Option<MutexGuard<'_, Worker>> {
        let idle = self.here && self.jobs.is_some() && self.pending.load(Ordering::Acquire) == 0;
        self.worker.as_ref().filter(|_| idle)?.try_lock().ok().filter(|worker| tokens <= worker.short)
    }
}

impl StageRunner for StageThread {
    fn span(&self) -> StageSpan {
        self.span.clone()
    }

    fn queues(&self) -> bool {
        self.queues
    }

    fn chains(&self) -> bool {
        self.chains
    }

    fn submit(&mut self, batch: Arc<Batch>, input: Option<Hidden>, done: Done) {
        let step = Step { batch, input, done, submitted: Instant::now() };
        let Some(mut worker) = self.worker_for(step.batch.tokens()) else {
            return self.send(Job::Step(step));
        };
        // A panic ends this stage as it would end its thread: the step reports it, and none comes after it.
        let finished = catch_unwind(AssertUnwindSafe(|| worker.start(step)));
        drop(worker);
        match finished {
            Ok(finished) => finished.into_iter().for_each(Finished::tell),
            Err(_) => self.jobs = None,
        }
    }

    fn compute_here(&mut self) {
        self.here = self.steady;
    }

    fn set_active(&mut self, active: bool) {
        if self.keep_awake {
            self.send(Job::SetActive(active));
        }
    }

    fn count_progress(&mut self, count: Arc<AtomicU64>) {
        self.send(Job::CountProgress(count));
    }

    fn page_form(&self) -> Option<PageForm> {
        self.page_form.clone()
    }

    fn read_page(&mut self, page: PageId, done: PageReader) {
        self.send(Job::ReadPage(page, done));
    }

    fn write_page(&mut self, page: PageId, bytes: Bytes, done: PageWriter) {
        self.send(Job::WritePage(page, bytes, done));
    }
}

impl Drop for StageThread {
    fn drop(&mut self) {
        (self.jobs, self.worker) = (None, None);
        if self.ended.recv_timeout(DROP_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a stage is still busy after {DROP_WAIT:?}; not waiting for it");
        }
    }
}

impl fmt::Debug for StageThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageThread").field("span", &self.span).finish_non_exhaustive()
    }
}

/// What computes, on whichever thread.
struct Worker {
    stage: Box<dyn Compute>,
    results: Results,
    /// Tokens of the largest step that is expected to take no longer than [`SHORT`].
    short: usize,
}

/// Who waits for results.
enum Results {
    Here(Finisher),
    There(Sender<Started>),
}

impl Worker {
    /// Starts a step; where it is computed at once, returns its result.
    fn start(&mut self, Step { batch, input, done, submitted }: Step) -> Option<Finished> {
        let begun = Instant::now();
        let finish = self.stage.start(&batch, input);
        let (given, sampling) = (Instant::now(), self.stage.sampling_time());
        let started = Started { finish, done, submitted, begun, given, sampling };
        match &mut self.results {
            Results::Here(finisher) => {
                let finished = finisher.finish(started);
                let tokens = batch.tokens();
                self.short = match finished.time.busy() <= SHORT {
                    true => self.short.max(tokens),
                    false => self.short.min(tokens.saturating_sub(1)),
                };
                Some(finished)
            }
            Results::There(results) => {
                // Fails only if that thread has died; the step then reports that the stage has stopped.
                drop(results.send(started));
                None
            }
        }
    }
}

/// The thread that starts batches.
struct Thread {
    worker: Arc<Mutex<Worker>>,
    pending: Arc<AtomicUsize>,
    /// Steps that the device has.
    in_flight: Arc<AtomicUsize>,
    keep_awake: bool,
    active: bool,
}

impl Thread {
    fn run(mut self, jobs: &Receiver<Job>) {
        self.worker().stage.prepare();
        self.pending.fetch_sub(1, Ordering::Release);
        while let Some(job) = self.next(jobs) {
            let finished = self.work(job);
            // Before the result is told, so that who hears of it finds this thread idle.
            self.pending.fetch_sub(1, Ordering::Release);
            finished.into_iter().for_each(Finished::tell);
        }
    }

    fn work(&mut self, job: Job) -> Option<Finished> {
        match job {
            Job::SetActive(active) => self.active = active,
            Job::CountProgress(count) => self.worker().stage.count_progress(count),
            Job::Step(step) => {
                self.in_flight.fetch_add(1, Ordering::Relaxed);
                let finished = self.worker().start(step);
                if finished.is_some() {
                    self.in_flight.fetch_sub(1, Ordering::Relaxed);
                }
                return finished;
            }
            Job::ReadPage(page, done) => {
                let bytes = self.worker().stage.read_page(page);
                done(bytes);
            }
            Job::WritePage(page, bytes, done) => {
                let written = self.worker().stage.write_page(page, &bytes);
                done(written);
            }
        }
        None
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        // Nothing is sent any more to a stage that has panicked.
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job. Until there is one, an idle device gets a moment of work now and then.
    fn next(&self, jobs: &Receiver<Job>) -> Option<Job> {
        if !(self.keep_awake && self.active) {
            return jobs.recv().ok();
        }
        loop {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.in_flight.load(Ordering::Relaxed) == 0 => {
                    self.worker().stage.nudge();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Waits for started batches, in their order.
struct Finisher {
    /// When the last result was there.
    last: Instant,
    /// Whether a device computes meanwhile.
    waits: bool,
}

impl Finisher {
    fn finish(&mut self, Started { finish, done, submitted, begun, given, sampling }: Started) -> Finished {
        let result = finish.and_then(|finish| finish());
        let now = Instant::now();
        // The time behind the batch before it is that batch's.
        let alone = begun.max(self.last);
        let given = if self.waits { given.max(alone) } else { now };
        let time = StageTime {
            queue: alone - submitted,
            compute: (given - alone).saturating_sub(sampling),
            device: now - given,
            sampling,
            wire: Duration::ZERO,
        };
        self.last = now;
        Finished { done, result, time }
    }
}

/// A result, and who is to be told.
struct Finished {
    done: Done,
    result: StageResult,
    time: StageTime,
}

impl Finished {
    fn tell(self) {
        self.done.finish(self.result, self.time);
    }
}
