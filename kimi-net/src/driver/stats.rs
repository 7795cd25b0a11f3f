//! Numbers of a link.

use std::time::{Duration, Instant};

/// Where the time of a step went, as its sender sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTiming {
    /// From the call to the last byte's hand-over to the operating system, in microseconds; includes the
    /// time behind earlier frames.
    pub send_micros: u64,
    /// From there to the last byte of the answer, in microseconds; includes the worker's queue and computing.
    pub wait_micros: u64,
}

/// Numbers of a link since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes handed to the operating system.
    pub bytes_sent: u64,
    /// Bytes taken from it.
    pub bytes_received: u64,
    /// Answered steps; 0 on the worker's side.
    pub steps: u64,
    /// Sums over the answered steps.
    pub total: StepTiming,
    /// Timing of the last answered step.
    pub last_step: Option<StepTiming>,
    /// The last ping's round trip; behind a large payload it includes that payload's time.
    pub last_round_trip: Option<Duration>,
    /// The shortest round trip: nearest to that of an idle link.
    pub min_round_trip: Option<Duration>,
    /// The mean over the last few, each new one with a weight of 1/8.
    pub mean_round_trip: Option<Duration>,
    /// When a ping came back last.
    pub answered: Option<Instant>,
    /// The peer's [`crate::Pong::progress`], and when another one than before was told.
    pub progress: Option<(u64, Instant)>,
    /// The peer's last [`crate::Pong::paged_in_bytes`].
    pub paged_in_bytes: u64,
}

impl LinkStats {
    pub(super) fn pong(&mut self, time: Duration, progress: u64, paged_in_bytes: u64) {
        let now = Instant::now();
        self.answered = Some(now);
        if self.progress.is_none_or(|(before, _)| before != progress) {
            self.progress = Some((progress, now));
        }
        self.paged_in_bytes = paged_in_bytes;
        self.last_round_trip = Some(time);
        self.min_round_trip = Some(self.min_round_trip.map_or(time, |min| min.min(time)));
        self.mean_round_trip = Some(self.mean_round_trip.map_or(time, |mean| (mean * 7 + time) / 8));
    }

    pub(super) fn step(&mut self, timing: StepTiming) {
        self.steps += 1;
        self.total.send_micros += timing.send_micros;
        self.total.wait_micros += timing.wait_micros;
        self.last_step = Some(timing);
    }
}
