//! The threads that a stage of this process computes on.
//!
//! One thread starts batches. Where the device queues them, a second one waits for their results, so that the next batch
//! is prepared meanwhile. Both end with the [`StageThread`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    Compute, Done, Finish, Hidden, PageForm, PageReader, PageWriter, StageError, StageRunner, StageSpan,
    StageTime,
};
use crate::batch::{Batch, PageId};

/// How long a dropped stage is waited for while it still computes.
const DROP_WAIT: Duration = Duration::from_secs(5);
/// How long a device is left idle between the steps of running sequences before it gets a moment of work.
const IDLE: Duration = Duration::from_millis(2);

/// A stage of this process on threads of its own. Dropping it waits until they have ended, for at most five seconds.
pub struct StageThread {
    /// `None` only while it is dropped.
    jobs: Option<Sender<Job>>,
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
        let results = match queues {
            false => {
                Results::Here(Finisher { last: Instant::now(), in_flight: in_flight.clone(), waits: false })
            }
            true => {
                let (sender, started) = mpsc::channel();
                let (alive, in_flight) = (alive.clone(), in_flight.clone());
                let mut finisher = Finisher { last: Instant::now(), in_flight, waits: true };
                let wait = move || {
                    started.into_iter().for_each(|started| finisher.finish(started));
                    drop(alive);
                };
                thread::Builder::new().name("kimi-results".into()).spawn(wait)?;
                Results::There(sender)
            }
        };
        let mut worker = Worker { stage, results, in_flight, keep_awake, active: false };
        let work = move || {
            worker.run(&source);
            drop(worker); // the device's memory is free before anyone hears of the end
            drop(alive);
        };
        thread::Builder::new().name("kimi-stage".into()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), span, page_form, queues, chains, ended })
    }

    fn send(&self, job: Job) {
        // A job that can't be sent is dropped, and its step reports that the stage has stopped.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
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
        self.send(Job::Step(Step { batch, input, done, submitted: Instant::now() }));
    }

    fn set_active(&mut self, active: bool) {
        self.send(Job::SetActive(active));
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
        self.jobs = None;
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

/// The thread that starts batches.
struct Worker {
    stage: Box<dyn Compute>,
    results: Results,
    in_flight: Arc<AtomicUsize>,
    keep_awake: bool,
    active: bool,
}

/// Who waits for results.
enum Results {
    Here(Finisher),
    There(Sender<Started>),
}

impl Worker {
    fn run(&mut self, jobs: &Receiver<Job>) {
        while let Some(job) = self.next(jobs) {
            match job {
                Job::SetActive(active) => self.active = active,
                Job::CountProgress(count) => self.stage.count_progress(count),
                Job::Step(step) => self.start(step),
                Job::ReadPage(page, done) => done(self.stage.read_page(page)),
                Job::WritePage(page, bytes, done) => done(self.stage.write_page(page, &bytes)),
            }
        }
    }

    /// The next job. Until there is one, an idle device gets a moment of work now and then.
    fn next(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        while self.keep_awake && self.active {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.in_flight.load(Ordering::Relaxed) == 0 => {
                    self.stage.nudge();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        jobs.recv().ok()
    }

    fn start(&mut self, Step { batch, input, done, submitted }: Step) {
        let begun = Instant::now();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let finish = self.stage.start(&batch, input);
        let (given, sampling) = (Instant::now(), self.stage.sampling_time());
        let started = Started { finish, done, submitted, begun, given, sampling };
        match &mut self.results {
            Results::Here(finisher) => finisher.finish(started),
            // Fails only if that thread has died; the step then reports that the stage has stopped.
            Results::There(results) => drop(results.send(started)),
        }
    }
}

/// Waits for started batches, in their order.
struct Finisher {
    /// When the last result was there.
    last: Instant,
    in_flight: Arc<AtomicUsize>,
    /// Whether a device computes meanwhile.
    waits: bool,
}

impl Finisher {
    fn finish(&mut self, Started { finish, done, submitted, begun, given, sampling }: Started) {
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
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        done.finish(result, time);
    }
}
