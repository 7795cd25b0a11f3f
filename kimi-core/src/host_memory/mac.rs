//! What macOS says of the machine's memory: how much is free, how pressed it is, what is compressed, what is in swap, what
//! GPUs may wire. What the numbers mean is read the same way everywhere, so that it is tested everywhere.

#[cfg(target_os = "macos")]
use kimi_quant::macos;
use serde::{Deserialize, Serialize};

/// How short memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryPressure {
    /// There is enough.
    #[default]
    Normal,
    /// The system compresses and swaps.
    Warning,
    /// The system is about to end programs.
    Critical,
}

/// A Mac's memory at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MacMemory {
    /// How short it is.
    pub pressure: MemoryPressure,
    /// Bytes that compressed pages take.
    pub compressed_bytes: u64,
    /// Bytes in swap.
    pub swap_bytes: u64,
    /// Bytes of swap in all, which grows as it is needed.
    pub swap_total_bytes: u64,
    /// Bytes that GPUs may wire, where that is set (`iogpu.wired_limit_mb`).
    pub wired_limit_bytes: Option<u64>,
}

impl MemoryPressure {
    /// From `kern.memorystatus_vm_pressure_level`: 1, 2 or 4.
    #[cfg(any(target_os = "macos", test))]
    fn of_level(level: u64) -> Self {
        match level {
            0..2 => Self::Normal,
            2..4 => Self::Warning,
            _ => Self::Critical,
        }
    }
}

#[cfg(any(target_os = "macos", test))]
impl MacMemory {
    /// From what `number` and `bytes` say of a name: an integer of 4 or 8 bytes, and a structure.
    fn of(number: impl Fn(&str) -> Option<u64>, bytes: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Self> {
        let pressure = MemoryPressure::of_level(number("kern.memorystatus_vm_pressure_level")?);
        let limit = number("iogpu.wired_limit_mb").filter(|megabytes| *megabytes > 0);
        let swap = bytes("vm.swapusage");
        let swap = |at| swap.as_deref().and_then(|usage| swap_count(usage, at)).unwrap_or(0);
        Some(Self {
            pressure,
            compressed_bytes: number("vm.compressor_bytes_used").unwrap_or(0),
            swap_bytes: swap(2),
            swap_total_bytes: swap(0),
            wired_limit_bytes: limit.and_then(|megabytes| megabytes.checked_mul(1 << 20)),
        })
    }
}

/// Of `struct xsw_usage`, which has total, available and used bytes, 8 each, then others.
#[cfg(any(target_os = "macos", test))]
fn swap_count(usage: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*usage.as_chunks().0.get(at)?))
}

#[cfg(target_os = "macos")]
impl MacMemory {
    /// Now.
    pub fn now() -> Option<Self> {
        Self::of(macos::sysctl_integer, macos::sysctl)
    }
}

#[cfg(not(target_os = "macos"))]
impl MacMemory {
    /// This is no Mac.
    pub fn now() -> Option<Self> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_macos_writes_them() {
        let number = |name: &str| match name {
            "kern.memorystatus_vm_pressure_level" => Some(2),
            "vm.compressor_bytes_used" => Some(3 << 30),
            "iogpu.wired_limit_mb" => Some(460_000),
            _ => None,
        };
        let usage: Vec<u8> = [4u64 << 30, 3 << 30, 1 << 30].into_iter().flat_map(u64::to_ne_bytes).collect();
        let found = MacMemory::of(number, |_| Some(usage.clone())).unwrap();
        assert_eq!(found.pressure, MemoryPressure::Warning);
        assert_eq!((found.compressed_bytes, found.swap_bytes), (3 << 30, 1 << 30));
        assert_eq!(found.swap_total_bytes, 4 << 30);
        assert_eq!(found.wired_limit_bytes, Some(460_000 << 20));
        assert_eq!(MacMemory::of(|_| None, |_| None), None, "another system");
        let little = MacMemory::of(|name| name.starts_with("kern").then_some(1), |_| None).unwrap();
        assert_eq!(little, MacMemory::default());
        assert_eq!(MacMemory::of(|_| Some(0), |_| None).unwrap().wired_limit_bytes, None, "0 is the default");
    }

    #[test]
    fn levels_and_short_answers() {
        assert_eq!((swap_count(&[0; 23], 2), swap_count(&[0; 24], 2)), (None, Some(0)));
        let levels = [1, 2, 4].map(MemoryPressure::of_level);
        assert_eq!(levels, [MemoryPressure::Normal, MemoryPressure::Warning, MemoryPressure::Critical]);
    }
}
