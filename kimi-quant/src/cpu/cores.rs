//! How many cores are worth a thread.

use std::num::NonZeroUsize;
use std::thread;

/// Cores for threads that all wait for the slowest of them: not more than the process may use, one thread a core, and
/// where there are slower cores beside fast ones only the fast ones.
pub(crate) fn fast() -> NonZeroUsize {
    let allowed = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    cores().and_then(NonZeroUsize::new).map_or(allowed, |cores| cores.min(allowed))
}

/// What the system says of its cores.
#[cfg(target_os = "linux")]
fn cores() -> Option<usize> {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let core = |cpu: usize| {
        let cpu = format!("/sys/devices/system/cpu/cpu{cpu}");
        let siblings = read(format!("{cpu}/topology/thread_siblings_list"))?;
        // Of Arm's cores; Intel's fast and slow ones have different highest clocks.
        let capacity =
            read(format!("{cpu}/cpu_capacity")).or_else(|| read(format!("{cpu}/cpufreq/cpuinfo_max_freq")));
        Some((siblings, capacity.and_then(|c| c.trim().parse().ok()).unwrap_or(0)))
    };
    Some(fast_ones(&(0..).map_while(core).collect::<Vec<_>>())).filter(|&count| count > 0)
}

/// What the system says of its cores.
#[cfg(target_os = "macos")]
fn cores() -> Option<usize> {
    usize::try_from(crate::macos::sysctl_integer("hw.perflevel0.physicalcpu")?).ok()
}

/// What the system says of its cores.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn cores() -> Option<usize> {
    None
}

/// Of threads, each with the list of those on its core and its speed (0 if nobody knows), the cores that are not much
/// slower than the fastest: favoured cores of one kind differ by a few per cent.
#[cfg(any(target_os = "linux", test))]
fn fast_ones(threads: &[(String, u64)]) -> usize {
    let fastest = threads.iter().map(|(_, speed)| *speed).max().unwrap_or(0);
    let fast = threads.iter().filter(|(_, speed)| 100 * speed >= 85 * fastest);
    fast.map(|(siblings, _)| siblings).collect::<std::collections::BTreeSet<_>>().len()
}

/// Asks the system to run this thread on a fast core.
#[cfg(target_os = "macos")]
pub(crate) fn prefer_fast() {
    // SAFETY: it takes two numbers, and changes the calling thread only.
    unsafe {
        libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INITIATED, 0);
    }
}

/// Asks the system to run this thread on a fast core: elsewhere it does so by itself with threads that are busy.
#[cfg(not(target_os = "macos"))]
pub(crate) fn prefer_fast() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_cores_and_second_threads_of_a_core_do_not_count() {
        let cpu = |siblings: &str, speed| (siblings.to_owned(), speed);
        // Two fast cores of two threads, one of them a favoured one, and four slow ones.
        let mut hybrid = vec![cpu("0-1", 5_000), cpu("0-1", 5_000), cpu("2-3", 4_800), cpu("2-3", 4_800)];
        hybrid.extend((4..8).map(|i| cpu(&i.to_string(), 3_600)));
        assert_eq!(fast_ones(&hybrid), 2);
        assert_eq!(fast_ones(&[cpu("0", 0), cpu("1", 0)]), 2);
        assert_eq!(fast_ones(&[]), 0);
        assert!(fast().get() >= 1);
    }
}
