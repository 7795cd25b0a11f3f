//! The threads that the CPU backend computes on.
//!
//! A token of a small model is some fifty operations of a few microseconds, which is what waking a sleeping thread costs.
//! So the helpers of a [`Team`] wait for the next operation by looking for it again and again while a step is computed
//! ([`Team::step`]), and sleep between steps. Nobody ever waits for a helper that has not begun to help: a step that
//! outruns a waking thread, or one on a machine that is busy with something else, is computed by the caller alone.
//!
//! A team serves one operation at a time. Whoever finds it busy (another stage of the process, or a task that is one of an
//! operation itself) computes alone.

use std::any::Any;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use super::cores;

/// Looks for the next operation before a helper lets other threads run first: about 20 us.
const EAGER: u32 = 1_000;

/// Looks after which a helper sleeps though a step goes on: at most about a millisecond more.
const PATIENT: u32 = EAGER + 2_000;

/// Sleeping helpers that one thread wakes; each wakes as many others.
const WOKEN: usize = 2;

/// Tasks a thread that an operation is cut into, so that a thread that was interrupted holds up the others less.
const TASKS_PER_THREAD: usize = 4;

/// The team of this process for whoever asked for no other.
static SHARED: OnceLock<Team> = OnceLock::new();

thread_local! {
    /// The team that this thread asked for.
    static CURRENT: RefCell<Option<Team>> = const { RefCell::new(None) };
}

/// A calling thread and its helpers. Clones are the same team.
#[derive(Debug, Clone)]
pub struct Team(Arc<Crew>);

/// Ends the helpers when the last clone is dropped.
#[derive(Debug)]
struct Crew {
    desk: Arc<Desk>,
    helpers: Vec<JoinHandle<()>>,
}

/// What the threads of a team look at.
#[derive(Debug, Default)]
struct Desk {
    /// Whether somebody's operation is under way.
    busy: AtomicBool,
    /// Operations so far.
    round: AtomicUsize,
    /// The operation while it has tasks left, else null.
    job: AtomicPtr<Job<'static>>,
    /// Helpers that may be at the operation.
    inside: AtomicUsize,
    /// Steps that are being computed.
    steps: AtomicUsize,
    ended: AtomicBool,
    helpers: OnceLock<Vec<Helper>>,
}

#[derive(Debug)]
struct Helper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// Calls of a function with the numbers below `count`.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    /// Does tasks until none is left.
    fn work(&self) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= self.count {
                    return;
                }
                (self.task)(i);
            }
        }));
        if let Err(panic) = done {
            self.next.store(self.count, Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

impl Team {
    /// A team of `threads`, the caller's among them. Where the system gives fewer, the team is smaller.
    pub fn new(threads: NonZeroUsize) -> Self {
        let desk = Arc::new(Desk::default());
        let (mut helpers, mut handles) = (Vec::new(), Vec::new());
        for _ in 1..threads.get() {
            let (desk, asleep) = (desk.clone(), Arc::new(AtomicBool::new(false)));
            let sleeper = asleep.clone();
            let run = move || {
                cores::prefer_fast();
                desk.help(&sleeper);
            };
            let Ok(handle) = thread::Builder::new().name("kimi-cpu".into()).spawn(run) else { break };
            helpers.push(Helper { thread: handle.thread().clone(), asleep });
            handles.push(handle);
        }
        let _ = desk.helpers.set(helpers);
        Self(Arc::new(Crew { desk, helpers: handles }))
    }

    /// Sets the size of the team that this process computes with, unless it has computed already: then it returns false.
    pub fn set_shared(threads: NonZeroUsize) -> bool {
        let mut set = false;
        SHARED.get_or_init(|| {
            set = true;
            Self::new(threads)
        });
        set
    }

    /// The team that this thread computes with: the one of [`Self::install`], else the process's, which has a thread for
    /// each fast core.
    pub fn current() -> Self {
        let installed = CURRENT.with_borrow(Clone::clone);
        installed.unwrap_or_else(|| SHARED.get_or_init(|| Self::new(cores::fast())).clone())
    }

    /// Computes `f` with this team.
    pub fn install<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Team>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.with_borrow_mut(|current| *current = self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        f()
    }

    /// Threads, the caller's among them.
    pub fn threads(&self) -> usize {
        1 + self.0.helpers.len()
    }

    /// Computes `f`, some operations in a row, with helpers that stay awake.
    pub fn step<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Leave<'a>(&'a Desk);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.steps.fetch_sub(1, Release);
            }
        }
        let desk = &*self.0.desk;
        desk.steps.fetch_add(1, SeqCst);
        let _leave = Leave(desk);
        desk.wake();
        f()
    }

    /// Calls `task` with every number below `count`, in any order, on several threads where that is possible.
    pub(crate) fn for_each(&self, count: usize, task: impl Fn(usize) + Sync) {
        let desk = &*self.0.desk;
        let alone = count < 2 || self.0.helpers.is_empty();
        if alone || desk.busy.compare_exchange(false, true, Acquire, Relaxed).is_err() {
            return (0..count).for_each(task);
        }
        let job = Job { task: &task, count, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        let at = (&raw const job).cast::<Job<'static>>().cast_mut();
        desk.job.store(at, SeqCst);
        desk.round.fetch_add(1, SeqCst);
        desk.wake();
        job.work();
        // No helper comes to the job from here on; those that did are waited for, because it ends with this function.
        desk.job.store(std::ptr::null_mut(), SeqCst);
        let mut looks = 0;
        while desk.inside.load(SeqCst) > 0 {
            looks += 1;
            wait(looks);
        }
        desk.busy.store(false, Release);
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

impl Desk {
    /// A helper's life.
    fn help(&self, asleep: &AtomicBool) {
        let mut seen = self.round.load(SeqCst);
        let mut looks = 0;
        while !self.ended.load(Acquire) {
            let round = self.round.load(SeqCst);
            if round != seen {
                (seen, looks) = (round, 0);
                self.wake();
                self.inside.fetch_add(1, SeqCst);
                let job = self.job.load(SeqCst);
                // SAFETY: this thread has been counted before it looked, both in the one order that all threads see, and
                // the job's owner takes the job away before it waits for the count to be zero: a job that is still there
                // outlives the count.
                if let Some(job) = unsafe { job.as_ref() } {
                    job.work();
                }
                self.inside.fetch_sub(1, SeqCst);
                continue;
            }
            looks += 1;
            let idle = self.steps.load(SeqCst) == 0;
            if looks > PATIENT || (idle && looks > EAGER / 10) {
                asleep.store(true, SeqCst);
                // Whoever brings work counts the round or the step before looking who sleeps.
                let work = self.round.load(SeqCst) != seen || (idle && self.steps.load(SeqCst) > 0);
                if !work && !self.ended.load(SeqCst) {
                    thread::park();
                }
                asleep.store(false, SeqCst);
                looks = 0;
            } else {
                wait(looks);
            }
        }
    }

    /// Wakes some sleeping helpers, which will wake others.
    fn wake(&self) {
        let helpers = self.helpers.get().map_or(&[][..], Vec::as_slice);
        let asleep = |helper: &&Helper| {
            helper.asleep.load(SeqCst) && helper.asleep.swap(false, SeqCst) // one waker each
        };
        helpers.iter().filter(asleep).take(WOKEN).for_each(|helper| helper.thread.unpark());
    }
}

/// Waits a moment, before the `looks`-th look.
fn wait(looks: u32) {
    if looks < EAGER { std::hint::spin_loop() } else { thread::yield_now() }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.desk.ended.store(true, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            let _ = helper.join();
        }
    }
}

/// Calls `task` with every number below `count` on the current team.
pub(crate) fn for_each(count: usize, task: impl Fn(usize) + Sync) {
    match count {
        0 | 1 => (0..count).for_each(task),
        _ => Team::current().for_each(count, task),
    }
}

/// Calls `task` with each chunk of `size` values and its number on the current team; the last may be shorter.
pub(crate) fn for_each_chunk<T: Send>(data: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    struct Start<T>(*mut T);
    // SAFETY: the tasks take turns at nothing: each makes a slice of a part of its own.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        fn get(&self) -> *mut T {
            self.0
        }
    }
    let (size, length) = (size.max(1), data.len());
    let start = Start(data.as_mut_ptr());
    for_each(length.div_ceil(size), |i| {
        let first = i * size;
        // SAFETY: every number comes once, and chunks of different numbers do not overlap; all lie in `data`, which is
        // borrowed until all tasks are done.
        let chunk =
            unsafe { std::slice::from_raw_parts_mut(start.get().add(first), size.min(length - first)) };
        task(i, chunk)
    })
}

/// What `task` makes of every number below `count`, on the current team.
pub(crate) fn map<T: Send>(count: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut out: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for_each_chunk(&mut out, 1, |i, out| out[0] = Some(task(i)));
    out.into_iter().flatten().collect()
}

/// The same in parts of neighbouring numbers that cost `unit` each, as in [`part`]: together they may cost less than a
/// second thread. Parts are as large as is fair, for tasks that ask the memory for what the next one reads.
pub(crate) fn map_parts<T: Send>(count: usize, unit: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let part = count.div_ceil(TASKS_PER_THREAD * Team::current().threads()).max(part(count, unit, 1));
    let mut out: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for_each_chunk(&mut out, part, |i, out| {
        out.iter_mut().enumerate().for_each(|(j, out)| *out = Some(task(i * part + j)));
    });
    out.into_iter().flatten().collect()
}

/// The size of the parts into which to cut `units` that cost `unit` bytes of reading (or as much time) each: none so small
/// that handing it to another thread costs more than it does, and a multiple of `multiple`.
pub(crate) fn part(units: usize, unit: usize, multiple: usize) -> usize {
    /// What a thread reads and multiplies in about a microsecond.
    const MIN: usize = 16 << 10;
    /// Small enough for a core's second-level cache.
    const MAX: usize = 128 << 10;
    let unit = unit.max(1);
    let fair = units.div_ceil(TASKS_PER_THREAD * Team::current().threads());
    let (min, max) = (MIN.div_ceil(unit), (MAX / unit).max(1));
    fair.clamp(min.min(max), max).next_multiple_of(multiple)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(threads: usize) -> Team {
        Team::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn every_task_is_done_once_whatever_the_size_of_the_team() {
        for threads in [1, 2, 7] {
            let team = team(threads);
            assert_eq!(team.threads(), threads);
            team.install(|| {
                for count in [0, 1, 2, 3, 100, 1001] {
                    let mut seen = vec![0u32; count];
                    team.step(|| {
                        for_each_chunk(&mut seen, 3, |_, seen| seen.iter_mut().for_each(|s| *s += 1))
                    });
                    assert!(seen.iter().all(|&s| s == 1), "{threads} {count}");
                    assert_eq!(map(count, |i| i * i), (0..count).map(|i| i * i).collect::<Vec<_>>());
                }
            });
        }
    }

    #[test]
    fn many_short_operations_in_steps_and_outside_all_end() {
        let team = team(4);
        let sum = AtomicUsize::new(0);
        for step in 0..300 {
            let work = || {
                for _ in 0..10 {
                    team.for_each(9, |i| _ = sum.fetch_add(i, Relaxed));
                }
            };
            if step % 3 == 0 {
                work()
            } else {
                team.step(work)
            }
            if step % 50 == 0 {
                thread::sleep(std::time::Duration::from_millis(3)); // the helpers fall asleep
            }
        }
        assert_eq!(sum.into_inner(), 300 * 10 * 36);
    }

    #[test]
    fn an_operation_within_a_task_or_beside_another_is_computed_too() {
        let team = team(3);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        team.for_each(5, |_| team.for_each(5, |_| _ = sum.fetch_add(1, Relaxed)));
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * 25);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_working() {
        let team = team(3);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            team.for_each(100, |i| assert!(i != 50, "on purpose"));
        }));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        team.for_each(100, |i| _ = sum.fetch_add(i, Relaxed));
        assert_eq!(sum.into_inner(), 4950);
    }
}
