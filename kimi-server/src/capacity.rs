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
}

impl Capacity {
    /// Of the device that a choice would probably take: which one it is in the end depends on what is to be loaded.
    pub fn of(choice: &DeviceChoice) -> Self {
        let host = HostMemory::total_bytes().unwrap_or(0);
        let gpu = if choice.kind == DeviceKind::Cpu { None } else { gpu(choice, host) };
        gpu.unwrap_or_else(|| Self { device: Cpu::new().name(), memory: host, separate: false })
    }

    /// Bytes that layers may fill now, those included that `held` bytes of layers take already. `None` where the system does
    /// not say.
    pub fn free(&self, held: u64) -> Option<u64> {
        match self.separate {
            true => Some(self.memory),
            false => HostMemory::now().map(|now| now.available.bytes.saturating_add(held)),
        }
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
    let own = adapter.memory.map(|memory| memory.total).filter(|_| !adapter.unified_memory);
    let memory = own.unwrap_or(host).min(choice.memory.unwrap_or(u64::MAX));
    Some(Capacity { device: format!("{} ({})", adapter.name, adapter.api), memory, separate: own.is_some() })
}
