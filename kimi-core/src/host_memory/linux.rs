//! `/proc/meminfo`, and the limits of a process.

use super::Span;

/// The machine. Kernels before 3.14 do not say what is available: then free pages and those of files count.
pub(super) fn machine(meminfo: &str) -> Option<Span> {
    let value = |key: &str| kilobytes(meminfo, key);
    let free = value("MemAvailable:").or_else(|| value("MemFree:")?.checked_add(value("Cached:")?))?;
    Some(Span { total: value("MemTotal:")?, free })
}

/// A soft limit of `/proc/self/limits` and what `/proc/self/status` says is used of it; `None` for no limit.
pub(super) fn process(limits: &str, limit: &str, status: &str, used: &str) -> Option<Span> {
    let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
    let total: u64 = line.split_whitespace().next()?.parse().ok()?; // or the word unlimited
    Some(Span { total, free: total.saturating_sub(kilobytes(status, used).unwrap_or(0)) })
}

/// Bytes of a line such as `MemTotal: 16 kB`.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
