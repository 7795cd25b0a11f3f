//! How fast the CPU reads its memory: what kernels are measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::team;

/// Bytes a second of all cores summing `buffer` (more than the caches hold), the best of some rounds within about `time`.
pub fn read_bandwidth(buffer: &[u64], time: Duration) -> f64 {
    let started = Instant::now();
    let mut best = 0.0f64;
    while best == 0.0 || started.elapsed() < time {
        let round = Instant::now();
        let sum = |part: &[u64]| part.iter().fold(0u64, |a, b| a.wrapping_add(*b));
        let parts: Vec<&[u64]> = buffer.chunks(1 << 16).collect();
        black_box(team::map(parts.len(), |i| sum(parts[i])));
        best = best.max(size_of_val(buffer) as f64 / round.elapsed().as_secs_f64().max(1e-9));
        if buffer.is_empty() {
            break;
        }
    }
    best
}
