//! How much work one submission holds: not so much that a slow device's watchdog takes it for hung.

use std::time::{Duration, Instant};

/// The time of one submission that is aimed at; watchdogs bite after one to several seconds.
const TARGET: Duration = Duration::from_millis(200);

/// Multiply-adds a second before anything was measured: few enough for any GPU.
const FIRST_RATE: f64 = 5e10;

/// Less work than this says nothing about the rate: its time is that of starting it.
const TELLING: f64 = 1e9;

/// Counts the multiply-adds of recorded work, and learns the device's rate from what is done.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Multiply-adds a second.
    rate: f64,
    recorded: f64,
    submitted: Work,
    /// When the device was last done with something.
    done: Option<Instant>,
}

/// Work that was submitted and is waited for together.
#[derive(Debug, Default)]
pub(crate) struct Work {
    products: f64,
    since: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: FIRST_RATE, recorded: 0.0, submitted: Work::default(), done: None }
    }
}

impl Pace {
    /// `products` multiply-adds were recorded.
    pub(crate) fn record(&mut self, products: f64) {
        self.recorded += products;
    }

    /// Whether what is recorded is enough for a submission.
    pub(crate) fn is_full(&self) -> bool {
        self.recorded >= self.rate * TARGET.as_secs_f64()
    }

    /// What is recorded was submitted.
    pub(crate) fn submit(&mut self, now: Instant) {
        self.submitted.products += std::mem::take(&mut self.recorded);
        self.submitted.since.get_or_insert(now);
    }

    /// What was submitted since this was last asked.
    pub(crate) fn submitted(&mut self) -> Work {
        std::mem::take(&mut self.submitted)
    }

    /// `work` is done. It began when it was submitted, or when the work before it was done.
    pub(crate) fn done(&mut self, work: &Work, now: Instant) {
        let before = self.done.replace(now);
        let Some(since) = work.since.filter(|_| work.products >= TELLING) else { return };
        let seconds =
            now.saturating_duration_since(before.map_or(since, |done| done.max(since))).as_secs_f64();
        self.rate = work.products / seconds.max(1e-6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_take_about_the_target() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.record(1e9);
        assert!(!pace.is_full());
        pace.record(1e10);
        assert!(pace.is_full(), "nothing measured: little work a submission");
        pace.submit(start);
        assert!(!pace.is_full(), "what is submitted does not count");
        pace.record(1.9e10);
        pace.submit(start + Duration::from_millis(1));
        let work = pace.submitted();
        pace.done(&work, start + Duration::from_millis(10)); // 3e12 a second
        pace.record(5.9e11);
        assert!(!pace.is_full());
        pace.record(0.2e11);
        assert!(pace.is_full());
    }

    #[test]
    fn little_work_teaches_nothing() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.record(1e6);
        pace.submit(start);
        let work = pace.submitted();
        pace.done(&work, start + Duration::from_secs(1));
        pace.record(9e9);
        assert!(!pace.is_full());
    }

    #[test]
    fn work_that_waits_for_other_work_is_not_slower_for_it() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let [first, second] = [0, 1].map(|ms| {
            pace.record(1e10);
            pace.submit(at(ms));
            pace.submitted()
        });
        pace.done(&first, at(100));
        pace.done(&second, at(110)); // 1e12 a second
        pace.record(1.9e11);
        assert!(!pace.is_full());
        pace.record(0.2e11);
        assert!(pace.is_full());
    }
}
