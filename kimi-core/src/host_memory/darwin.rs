//! How much memory a Mac has. There are neither control groups nor limits that macOS enforces.

use super::Span;

/// The machine.
#[cfg(target_os = "macos")]
pub(super) fn machine() -> Option<Span> {
    use kimi_quant::macos::{MemoryPages, sysctl_integer};
    let free = MemoryPages::now().map(|pages| {
        let MemoryPages { page_bytes, free, inactive, purgeable } = pages;
        free_bytes(page_bytes, [free, inactive, purgeable])
    });
    Some(span(sysctl_integer("hw.memsize")?, free))
}

/// This is no Mac.
#[cfg(not(target_os = "macos"))]
pub(super) fn machine() -> Option<Span> {
    None
}

#[cfg(any(target_os = "macos", test))]
pub(super) fn span(total: u64, free: Option<u64>) -> Span {
    Span { total, free: free.map_or(total, |free| free.min(total)) }
}

/// Free pages, and those that are dropped or written out before anything fails, in bytes.
#[cfg(any(target_os = "macos", test))]
pub(super) fn free_bytes(page_bytes: u64, pages: [u64; 3]) -> u64 {
    pages.iter().sum::<u64>().saturating_mul(page_bytes)
}
