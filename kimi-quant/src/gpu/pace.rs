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
    submitted: f64,
    since: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: FIRST_RATE, recorded: 0.0, submitted: 0.0, since: None }
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
        self.submitted += std::mem::take(&mut self.recorded);
        self.since.get_or_insert(now);
    }

    /// All that was submitted is done.
    pub(crate) fn done(&mut self, now: Instant) {
        let submitted = std::mem::take(&mut self.submitted);
        let Some(since) = self.since.take().filter(|_| submitted >= TELLING) else { return };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        self.rate = submitted / seconds.max(1e-6);
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
        pace.done(start + Duration::from_millis(10)); // 3e12 a second
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
        pace.done(start + Duration::from_secs(1));
        pace.record(9e9);
        assert!(!pace.is_full());
    }
}
