//! What the system has given a process, and what it has taken away.

use kimi_core::host_memory::MacMemory;
use serde::{Deserialize, Serialize};

/// Bytes read for one page fault at least.
const PAGE_BYTES: u64 = 4096;

/// This process at one moment. `None` is what the system does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessState {
    /// How often it waited for a page to be read: of a mapped file such as weights, or from swap.
    pub major_page_faults: u64,
    /// Bytes read from disks for it, pages of mapped files included.
    pub disk_read_bytes: Option<u64>,
    /// Its memory that is in swap.
    pub swap_bytes: Option<u64>,
    /// Its memory that is not, pages of mapped files included.
    pub resident_bytes: Option<u64>,
    /// Time computing, of all threads together.
    pub cpu_seconds: f64,
    /// Open files and sockets.
    pub open_files: Option<u64>,
    /// Most of them.
    pub max_open_files: Option<u64>,
    /// The machine's memory, where it is a Mac.
    pub mac: Option<MacMemory>,
    /// Kernels of GPUs that were compiled in the middle of a step, which waited for them.
    pub kernels_made_in_steps: u64,
}

impl ProcessState {
    /// This process now.
    pub fn now() -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
        let status = read("status");
        let kilobytes = |name: &str| number_after(status.as_deref()?, name)?.checked_mul(1024);
        Self {
            disk_read_bytes: read("io").and_then(|io| number_after(&io, "read_bytes:")),
            swap_bytes: kilobytes("VmSwap:"),
            resident_bytes: kilobytes("VmRSS:"),
            // The folder itself is open while it is read.
            open_files: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|files| (files.count() as u64).saturating_sub(1)),
            mac: MacMemory::now(),
            #[cfg(feature = "gpu")]
            kernels_made_in_steps: kimi_quant::gpu::kernels_made_in_steps(),
            ..Self::usage()
        }
    }

    /// Bytes that were read since another moment because memory did not hold them. Nothing while no page was missing: files
    /// may be read.
    pub fn paged_in_since(&self, before: &Self) -> u64 {
        let faults = self.major_page_faults.saturating_sub(before.major_page_faults);
        let read = self.disk_read_bytes.unwrap_or(0).saturating_sub(before.disk_read_bytes.unwrap_or(0));
        // Systems read more than a page at a time, and some do not count it.
        if faults == 0 { 0 } else { read.max(faults.saturating_mul(PAGE_BYTES)) }
    }

    /// What every Unix tells.
    #[cfg(unix)]
    fn usage() -> Self {
        use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
        let max_open_files = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
            return Self { max_open_files, ..Self::default() };
        };
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Self {
            major_page_faults: usage.major_page_faults().unsigned_abs(),
            cpu_seconds: seconds(usage.user_time()) + seconds(usage.system_time()),
            max_open_files,
            ..Self::default()
        }
    }

    #[cfg(not(unix))]
    fn usage() -> Self {
        Self::default()
    }
}

/// The number after a name at the beginning of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let io = "rchar: 1\nread_bytes: 4096\nwrite_bytes: 8\ncancelled_write_bytes: 9\n";
        assert_eq!(number_after(io, "read_bytes:"), Some(4096));
        assert_eq!(number_after("VmSwap:\t     128 kB\n", "VmSwap:"), Some(128));
        assert_eq!(number_after("VmSwap:\tmany\n", "VmSwap:"), None);
        assert_eq!(number_after(io, "bytes:"), None);
    }

    #[test]
    fn files_that_are_read_are_not_paged_in() {
        let state = |major_page_faults, read| ProcessState {
            major_page_faults,
            disk_read_bytes: read,
            ..ProcessState::default()
        };
        let before = state(5, Some(1000));
        assert_eq!(state(5, Some(1_000_000)).paged_in_since(&before), 0);
        assert_eq!(state(6, Some(1_000_000)).paged_in_since(&before), 999_000);
        assert_eq!(state(7, None).paged_in_since(&before), 2 * 4096);
    }

    #[cfg(unix)]
    #[test]
    fn this_process_uses_something() {
        let files: Vec<_> = (0..50).map(|_| tempfile::tempfile().unwrap()).collect();
        let state = ProcessState::now();
        assert!(state.cpu_seconds > 0.0 && state.max_open_files > Some(50), "{state:?}");
        if cfg!(target_os = "linux") {
            assert!(state.open_files > Some(files.len() as u64), "{state:?}");
            assert!(state.resident_bytes > Some(1 << 20), "{state:?}");
        }
    }
}
