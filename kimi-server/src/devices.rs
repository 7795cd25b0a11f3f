//! What this machine can compute on, and how much of Kimi-K2 that holds.

use std::fmt;

use kimi_core::host_memory::HostMemory;
use kimi_core::plan::{HumanBytes, USABLE_MEMORY};
use kimi_core::stage::device_bytes;
use kimi_quant::{Backend, BitWidth, Cpu, FloatType, Format, FormatError};
use serde::Serialize;

use crate::bench::device::cpu_read_bandwidth;
use crate::table::Table;

/// Layers of Kimi-K2.
const LAYERS: u64 = 61;
/// Tokens of the cache that comes with each layer.
const CONTEXT: u64 = 32_768;

/// All devices of this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// GPUs, best first. Absent from a program that was built without them.
    pub gpus: Option<Vec<GpuReport>>,
    /// The CPU.
    pub cpu: CpuReport,
    /// Bytes of a layer of Kimi-K2 at 3.985 bits with its cache, on average.
    pub layer_bytes: u64,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuReport {
    /// What `--adapter` chooses it by.
    pub number: usize,
    /// As its driver calls it.
    pub name: String,
    /// `Vulkan` or `Metal`.
    pub api: String,
    /// Its PCI address on Vulkan, its registry id on Metal; empty where the driver does not say.
    pub address: String,
    /// The driver.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// Bytes of its memory, if the driver says.
    pub memory_bytes: Option<u64>,
    /// Bytes of it that are free, if the driver says.
    pub free_bytes: Option<u64>,
    /// Bytes of the largest binding.
    pub largest_binding_bytes: u64,
    /// Bytes of the largest buffer.
    pub largest_buffer_bytes: u64,
    /// Smallest and largest subgroup, if shaders can use them.
    pub subgroup_size: Option<(u32, u32)>,
    /// Half-precision arithmetic.
    pub f16: bool,
    /// Cooperative matrices.
    pub cooperative_matrices: bool,
    /// A clock for kernels.
    pub timestamps: bool,
    /// Whether it computes in the CPU's memory.
    pub unified_memory: bool,
    /// What the kernels need and it lacks.
    pub missing: Option<String>,
    /// Whether `--backend auto` may take it.
    pub auto: bool,
    /// Measured bytes a second, reading.
    pub read_bandwidth: Option<f64>,
    /// Layers of Kimi-K2 that fit.
    pub kimi_k2_layers: Option<u64>,
}

/// The CPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CpuReport {
    /// Its instruction set and threads.
    pub name: String,
    /// Bytes of its memory that this process may have, if the system says.
    pub memory_bytes: Option<u64>,
    /// Measured bytes a second, reading.
    pub read_bandwidth: Option<f64>,
    /// Layers of Kimi-K2 that fit in the share of the memory that kimi uses by default.
    pub kimi_k2_layers: Option<u64>,
}

impl Report {
    /// Looks at all devices; `measure` reads their memory too.
    ///
    /// # Errors
    /// If a device fails while it is measured.
    pub fn new(measure: bool) -> anyhow::Result<Self> {
        let layer_bytes = layer_bytes()?;
        let memory_bytes = HostMemory::total_bytes();
        let cpu = CpuReport {
            name: Cpu::new().name(),
            memory_bytes,
            read_bandwidth: measure.then(cpu_read_bandwidth),
            kimi_k2_layers: memory_bytes.map(|m| fitting((m as f64 * USABLE_MEMORY) as u64, layer_bytes)),
        };
        Ok(Self { gpus: gpus(measure, layer_bytes)?, cpu, layer_bytes })
    }
}

#[cfg(not(feature = "gpu"))]
fn gpus(_: bool, _: u64) -> anyhow::Result<Option<Vec<GpuReport>>> {
    Ok(None)
}

#[cfg(feature = "gpu")]
fn gpus(measure: bool, layer_bytes: u64) -> anyhow::Result<Option<Vec<GpuReport>>> {
    use kimi_quant::gpu::{AdapterKind, adapters};
    let report = |a: kimi_quant::gpu::Adapter| -> anyhow::Result<GpuReport> {
        let read_bandwidth = if measure && a.missing.is_none() { Some(gpu_bandwidth(&a)?) } else { None };
        Ok(GpuReport {
            auto: a.is_hardware() && a.missing.is_none(),
            kind: match a.kind {
                AdapterKind::Discrete => "discrete",
                AdapterKind::Integrated => "integrated",
                AdapterKind::Virtual => "virtual",
                AdapterKind::Software => "software",
                AdapterKind::Other => "other",
            },
            memory_bytes: a.memory.map(|m| m.total),
            free_bytes: a.memory.and_then(|m| m.free),
            kimi_k2_layers: a.memory.map(|m| fitting(m.available(), layer_bytes)),
            number: a.number,
            name: a.name,
            address: a.address,
            api: a.api,
            driver: a.driver,
            largest_binding_bytes: a.largest_binding,
            largest_buffer_bytes: a.largest_buffer,
            subgroup_size: a.subgroups,
            f16: a.f16,
            cooperative_matrices: a.cooperative_matrices,
            timestamps: a.timestamps,
            unified_memory: a.unified_memory,
            missing: a.missing,
            read_bandwidth,
        })
    };
    adapters().into_iter().map(report).collect::<anyhow::Result<_>>().map(Some)
}

#[cfg(feature = "gpu")]
fn gpu_bandwidth(adapter: &kimi_quant::gpu::Adapter) -> anyhow::Result<f64> {
    use kimi_quant::gpu::{Gpu, GpuOptions};
    const BYTES: usize = 1 << 30;
    let options = GpuOptions { adapter: Some(adapter.number.to_string()), ..GpuOptions::default() };
    Ok(Gpu::new(&options)?.read_bandwidth(BYTES)?)
}

/// How many layers fit, with what it takes to compute.
fn fitting(available: u64, layer: u64) -> u64 {
    (0..LAYERS).take_while(|n| device_bytes((n + 1) * layer, 0) <= available).count() as u64
}

/// Bytes of a layer with its cache, on average over the 61: the bits of the checkpoint `kimi-k2-4bit`, whose experts have
/// 4 bits but for gate and up of the layers from 9 on, which have 3.
fn layer_bytes() -> Result<u64, FormatError> {
    const HIDDEN: usize = 7168;
    const EXPERT: usize = 2048;
    const EXPERTS: u64 = 384;
    let packed = |bits, rows: usize, cols| {
        let format = Format::Affine { bits, group: 64, scales: FloatType::Bf16 };
        Ok::<u64, FormatError>(format.bytes(rows, cols)?.iter().sum::<usize>() as u64)
    };
    let mlp = |width, bits| {
        Ok::<u64, FormatError>(2 * packed(bits, width, HIDDEN)? + packed(BitWidth::B4, HIDDEN, width)?)
    };
    let four = |rows, cols| packed(BitWidth::B4, rows, cols);
    let attention = four(1536, HIDDEN)?
        + four(64 * 192, 1536)?
        + four(576, HIDDEN)?
        + four(64 * 256, 512)?
        + four(HIDDEN, 64 * 128)?;
    let router = EXPERTS * (2 * HIDDEN as u64 + 4);
    let shared = mlp(EXPERT, BitWidth::B4)?;
    let routed = EXPERTS * (8 * mlp(EXPERT, BitWidth::B4)? + 52 * mlp(EXPERT, BitWidth::B3)?);
    let dense = mlp(18_432, BitWidth::B4)?;
    let weights = LAYERS * attention + 60 * (router + shared) + routed + dense;
    Ok(weights / LAYERS + CONTEXT * 4 * (512 + 64))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), |n| HumanBytes(n).to_string());
        let fits = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), |n| format!("{n} of {LAYERS}"));
        let rate = |r: Option<f64>| r.map_or_else(String::new, |r| format!("{:.1} GB/s", r / 1e9));
        let mut table = Table::new(
            &["GPU", "device", "kind", "address", "memory", "free", "Kimi-K2 layers", "reads"],
            &[0, 4, 5, 6, 7],
        );
        for gpu in self.gpus.iter().flatten() {
            table.row([
                gpu.number.to_string(),
                format!("{} ({})", gpu.name, gpu.api),
                gpu.kind.to_owned(),
                gpu.address.clone(),
                bytes(gpu.memory_bytes),
                bytes(gpu.free_bytes),
                fits(gpu.kimi_k2_layers),
                rate(gpu.read_bandwidth),
            ]);
        }
        let cpu = &self.cpu;
        table.row([
            String::new(),
            cpu.name.clone(),
            "cpu".to_owned(),
            String::new(),
            bytes(cpu.memory_bytes),
            String::new(),
            fits(cpu.kimi_k2_layers),
            rate(cpu.read_bandwidth),
        ]);
        write!(f, "{table}")?;
        let layer = HumanBytes(self.layer_bytes);
        writeln!(
            f,
            "A layer of Kimi-K2 at 3.985 bits with a cache of {CONTEXT} tokens takes {layer} on average"
        )?;
        for gpu in self.gpus.iter().flatten() {
            writeln!(f, "\n{gpu}")?;
        }
        match &self.gpus {
            None => writeln!(f, "\nThis program was built without GPUs (feature `gpu`)"),
            Some(gpus) if gpus.is_empty() => {
                writeln!(
                    f,
                    "\nNo GPU was found; on Linux that takes a Vulkan driver and its loader (libvulkan.so.1)"
                )
            }
            Some(_) => Ok(()),
        }
    }
}

impl fmt::Display for GpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |b| if b { "yes" } else { "no" };
        let subgroups = match self.subgroup_size {
            Some((min, max)) if min == max => min.to_string(),
            Some((min, max)) => format!("{min} to {max}"),
            None => "no".to_owned(),
        };
        let Self { number, name, api, driver, .. } = self;
        writeln!(f, "{number}: {name} ({api}), driver {driver}")?;
        let (binding, buffer) =
            (HumanBytes(self.largest_binding_bytes), HumanBytes(self.largest_buffer_bytes));
        writeln!(f, "  largest binding {binding}, largest buffer {buffer}, subgroups {subgroups}")?;
        write!(
            f,
            "  f16 {}, cooperative matrices {}, timestamps {}, unified memory {}",
            yes(self.f16),
            yes(self.cooperative_matrices),
            yes(self.timestamps),
            yes(self.unified_memory)
        )?;
        match (&self.missing, self.kind) {
            (Some(missing), _) => write!(f, "\n  can't be used: {missing}"),
            (None, "software") => write!(f, "\n  software: used only where --backend gpu asks for it"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_the_size_of_the_real_checkpoint() {
        // 504 GB of 61 layers, embedding and head (1.4 GB) at 3.985 bits.
        let layer = layer_bytes().unwrap() - CONTEXT * 4 * 576;
        assert!((8.20e9..8.28e9).contains(&(layer as f64)), "{layer}");
        assert_eq!(fitting(0, layer), 0);
        assert_eq!(fitting(device_bytes(9 * layer, 0), layer), 9);
        assert_eq!(fitting(device_bytes(9 * layer, 0) - 1, layer), 8);
        assert_eq!(fitting(u64::MAX, layer), 61);
    }
}
