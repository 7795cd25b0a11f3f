//! What this machine offers to a cluster: a device, and the memory that layers may fill.

use kimi_core::host_memory::HostMemory;
use kimi_core::{DeviceChoice, DeviceKind};
use kimi_quant::{Backend, Cpu};

/// A device and its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// What computes, for people.
    pub device: String,
    /// Bytes of its memory that this process can have; 0 where the system does not say.
    pub memory: u64,
    /// Whether the device has that memory for itself, and not with the rest of the machine.
    pub separate: bool,
    /// Bytes of the machine's memory that a GPU without memory of its own may hold, where its driver says: on a Mac what
    /// Metal recommends, which `iogpu.wired_limit_mb` sets.
    pub gpu_limit: Option<u64>,
}

impl Capacity {
    /// Of the device that a choice would probably take: which one it is in the end depends on what is to be loaded.
    pub fn of(choice: &DeviceChoice) -> Self {
        let host = HostMemory::total_bytes().unwrap_or(0);
        let gpu = if choice.kind == DeviceKind::Cpu { None } else { gpu(choice, host) };
        gpu.unwrap_or_else(|| Self {
            device: Cpu::new().name(),
            memory: host,
            separate: false,
            gpu_limit: None,
        })
    }

    /// Bytes that layers may fill now, those included that `held` bytes of layers take already. `None` where the system does
    /// not say.
    pub fn free(&self, held: u64) -> Option<u64> {
        match self.separate {
            true => Some(self.memory),
            false => self.shared(HostMemory::now().map(|now| now.available.bytes), held),
        }
    }

    /// The same where the memory is the machine's, of which `available` bytes are free.
    fn shared(&self, available: Option<u64>, held: u64) -> Option<u64> {
        let free = available.map(|bytes| bytes.saturating_add(held));
        free.into_iter().chain(self.gpu_limit).min()
    }
}

#[cfg(not(feature = "gpu"))]
fn gpu(_: &DeviceChoice, _: u64) -> Option<Capacity> {
    None
}

#[cfg(feature = "gpu")]
fn gpu(choice: &DeviceChoice, host: u64) -> Option<Capacity> {
    let fits = |a: &kimi_quant::gpu::Adapter| {
        let named = choice.adapter.as_ref().is_none_or(|wanted| {
            *wanted == a.number.to_string() || a.name.to_lowercase().contains(&wanted.to_lowercase())
        });
        named && a.missing.is_none() && (a.is_hardware() || choice.kind == DeviceKind::Gpu)
    };
    let adapter = kimi_quant::gpu::adapters().into_iter().find(fits)?;
    // Where the GPU has no memory of its own, it is the machine's.
    let total = adapter.memory.map(|memory| memory.total);
    let (own, gpu_limit) = if adapter.unified_memory { (None, total) } else { (total, None) };
    let memory = own.unwrap_or(host).min(choice.memory.unwrap_or(u64::MAX));
    let device = format!("{} ({})", adapter.name, adapter.api);
    Some(Capacity { device, memory, separate: own.is_some(), gpu_limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_may_hold_less_than_is_free() {
        let mac = |gpu_limit| Capacity { device: String::new(), memory: 512, separate: false, gpu_limit };
        assert_eq!(mac(None).shared(Some(400), 50), Some(450));
        assert_eq!(mac(Some(384)).shared(Some(400), 50), Some(384));
        assert_eq!(mac(Some(384)).shared(Some(200), 50), Some(250));
        assert_eq!(mac(Some(384)).shared(None, 50), Some(384));
    }
}
