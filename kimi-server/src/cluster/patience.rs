//! How long a coordinator waits for what.

use std::collections::VecDeque;
use std::time::Duration;

/// How long a coordinator waits for a worker before it takes it for lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a new connection in place of a broken one, while the worker's caches are taken to live on.
    pub resume: Duration,
    /// For a step without any progress on the worker, beyond what such steps have taken before.
    pub step: Duration,
    /// For loading without any progress.
    pub load: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            resume: Duration::from_secs(30),
            step: Duration::from_millis(1500),
            load: Duration::from_secs(60),
        }
    }
}

/// How long a stage's last steps took, for what the next one may take.
#[derive(Debug, Default)]
pub(super) struct StepTimes {
    /// New tokens and time, the latest last.
    recent: VecDeque<(usize, Duration)>,
}

impl StepTimes {
    /// How many steps count.
    const COUNT: usize = 32;
    /// How many times as long as expected a step may take.
    const FACTOR: f64 = 8.0;
    /// Before anything is known, and at most: a first step may have kernels to compile.
    const LONGEST: Duration = Duration::from_secs(60);

    pub(super) fn note(&mut self, tokens: usize, time: Duration) {
        if self.recent.len() == Self::COUNT {
            self.recent.pop_front();
        }
        self.recent.push_back((tokens.max(1), time));
    }

    /// How long a step of `tokens` may go without any progress: `least`, and several times what the slowest of the last steps
    /// lets expect, as if time rose with the number of tokens.
    pub(super) fn limit(&self, tokens: usize, least: Duration) -> Duration {
        let expected = |(count, time): &(usize, Duration)| {
            let more = (tokens as f64 / *count as f64).max(1.0);
            time.as_secs_f64() * more
        };
        let Some(slowest) = self.recent.iter().map(expected).reduce(f64::max) else {
            return Self::LONGEST.max(least);
        };
        let limit = least.as_secs_f64() + Self::FACTOR * slowest;
        Duration::from_secs_f64(limit.min(Self::LONGEST.max(least).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_limit_follows_size_and_past() {
        let mut times = StepTimes::default();
        assert_eq!(times.limit(1, SECOND), StepTimes::LONGEST);
        times.note(1, SECOND / 100);
        assert_eq!(times.limit(1, SECOND), SECOND + 8 * SECOND / 100);
        assert_eq!(times.limit(100, SECOND), 9 * SECOND);
        assert_eq!(times.limit(512, SECOND), SECOND + 512 * 8 * SECOND / 100);
        times.note(512, 2 * SECOND);
        assert_eq!(times.limit(1, SECOND), 17 * SECOND);
        for _ in 0..StepTimes::COUNT {
            times.note(1, SECOND / 100);
        }
        assert_eq!(times.limit(1, SECOND), SECOND + 8 * SECOND / 100, "what was long ago counts no more");
        times.note(1, 100 * SECOND);
        assert_eq!(times.limit(1, SECOND), StepTimes::LONGEST);
    }
}
