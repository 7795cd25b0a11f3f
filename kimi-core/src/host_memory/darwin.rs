//! What macOS's `sysctl` and `vm_stat` say. There are neither control groups nor limits that it enforces.

use std::process::Command;

use super::Span;

/// The machine.
pub(super) fn machine() -> Option<Span> {
    let output = |program: &str, args: &[&str]| {
        String::from_utf8(Command::new(program).args(args).output().ok()?.stdout).ok()
    };
    let total = output("/usr/sbin/sysctl", &["-n", "hw.memsize"])?.trim().parse().ok()?;
    let free = output("/usr/bin/vm_stat", &[]).and_then(|text| free(&text));
    Some(Span { total, free: free.map_or(total, |free| free.min(total)) })
}

/// Free pages, and those that are dropped or written out before anything fails, in bytes.
pub(super) fn free(vm_stat: &str) -> Option<u64> {
    let (_, rest) = vm_stat.split_once("page size of ")?;
    let page: u64 = rest.split_whitespace().next()?.parse().ok()?;
    let pages = |key: &str| -> Option<u64> {
        let line = vm_stat.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches('.').parse().ok()
    };
    let kinds = ["Pages inactive:", "Pages speculative:", "Pages purgeable:"];
    let droppable: u64 = kinds.iter().filter_map(|key| pages(key)).sum();
    pages("Pages free:")?.checked_add(droppable)?.checked_mul(page)
}
