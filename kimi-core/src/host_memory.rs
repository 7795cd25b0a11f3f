//! How much memory this process may still take: of the machine, of its control group (a container), and of its limits.
//!
//! Two things need memory on the CPU. Weights are pages of files: the system brings them in and drops them as it likes, so
//! too little makes a model slow. Caches are the process's own: too little ends the process, or another one.

mod cgroup;
mod darwin;
mod linux;
mod mac;

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

pub use mac::{MacMemory, MemoryPressure};

/// Memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// What it can have at most.
    pub total: Room,
    /// What it can still take as its own, in bytes. Pages of files that the system would drop count as free.
    pub available: Room,
    /// What is left for both its own memory and pages of files: limits of the process alone do not count those.
    pub resident: Room,
}

/// A number of bytes, and what sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// What sets it.
    pub limit: Limit,
}

/// What limits memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// How much the machine has.
    Machine,
    /// The control group of a container or of a service.
    Cgroup,
    /// `ulimit -v`.
    AddressSpace,
    /// `ulimit -d`.
    Data,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "this machine's memory",
            Self::Cgroup => "the memory limit of its container or service (cgroup)",
            Self::AddressSpace => "its limit of address space (ulimit -v)",
            Self::Data => "its limit of data (ulimit -d)",
        })
    }
}

/// Bytes that a limit allows, and those of them that are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    total: u64,
    free: u64,
}

impl HostMemory {
    /// As the system says now; `None` where it does not.
    pub fn now() -> Option<Self> {
        if cfg!(target_os = "macos") {
            return Some(Self::of(darwin::machine()?, None, None, None));
        }
        Self::from_files(Path::new("/"))
    }

    /// From Linux's files below `root`.
    fn from_files(root: &Path) -> Option<Self> {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let machine = linux::machine(&read("proc/meminfo")?)?;
        let cgroup = read("proc/self/cgroup").and_then(|list| cgroup::smallest(root, &list));
        let (limits, status) = (read("proc/self/limits"), read("proc/self/status"));
        let of_process =
            |limit: &str, used: &str| linux::process(limits.as_deref()?, limit, status.as_deref()?, used);
        let address_space = of_process("Max address space", "VmSize:");
        let data = of_process("Max data size", "VmData:");
        Some(Self::of(machine, cgroup, address_space, data))
    }

    fn of(machine: Span, cgroup: Option<Span>, address_space: Option<Span>, data: Option<Span>) -> Self {
        let all = [
            (Some(machine), Limit::Machine),
            (cgroup, Limit::Cgroup),
            (address_space, Limit::AddressSpace),
            (data, Limit::Data),
        ];
        let min = |spans: &[(Option<Span>, Limit)], bytes: fn(Span) -> u64| {
            let rooms = spans
                .iter()
                .filter_map(|(span, limit)| span.map(|span| Room { bytes: bytes(span), limit: *limit }));
            let machine = Room { bytes: bytes(machine), limit: Limit::Machine };
            rooms.min_by_key(|room| room.bytes).unwrap_or(machine)
        };
        Self {
            total: min(&all, |span| span.total),
            available: min(&all, |span| span.free),
            resident: min(&all[..2], |span| span.free),
        }
    }

    /// Most bytes that this process can have, asked for once.
    pub fn total_bytes() -> Option<u64> {
        static TOTAL: OnceLock<Option<u64>> = OnceLock::new();
        *TOTAL.get_or_init(|| Self::now().map(|memory| memory.total.bytes))
    }
}

#[cfg(test)]
mod tests;
