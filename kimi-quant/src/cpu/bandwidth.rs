//! How fast the CPU reads its memory: what kernels are measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// Bytes a second of all cores summing `buffer` (more than the caches hold), the best of some rounds within about `time`.
pub fn read_bandwidth(buffer: &[u64], time: Duration) -> f64 {
    let started = Instant::now();
    let mut best = 0.0f64;
    while best == 0.0 || started.elapsed() < time {
        let round = Instant::now();
        let sums = buffer.par_chunks(1 << 16).map(|c| c.iter().fold(0u64, |a, b| a.wrapping_add(*b)));
        black_box(sums.reduce(|| 0, u64::wrapping_add));
        best = best.max(size_of_val(buffer) as f64 / round.elapsed().as_secs_f64().max(1e-9));
        if buffer.is_empty() {
            break;
        }
    }
    best
}
