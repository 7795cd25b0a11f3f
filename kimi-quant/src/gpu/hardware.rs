//! What kernels and their sizes are chosen by.

use super::adapter::Adapter;
use super::device::GpuOptions;
use crate::Precision;
use crate::chips::Chip;

/// All that a device's kernels, their sizes and their grids follow from, besides its limits. Nothing else looks at what
/// kind of device it is: so another one can be played, see [`GpuOptions::as_metal`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hardware {
    /// Threads that one row's sum is spread over: the size of a subgroup where there are subgroups.
    pub(crate) lanes: u32,
    pub(crate) subgroups: bool,
    /// Whether there is an instruction for the dot product of four bytes. Metal has none, and neither has a CPU.
    pub(crate) integer_dot: bool,
    /// Whether it has the cooperative matrices of `cooperative.wgsl` and `attend_cooperative.wgsl`.
    pub(crate) cooperative: bool,
    /// Whether it has the cooperative matrices of `cooperative_8x8.wgsl` instead.
    pub(crate) cooperative_8x8: bool,
    /// How precisely cooperative matrices multiply. Exact where there are none.
    pub(crate) precision: Precision,
    /// Whether it is the CPU: it is slow where threads idle, and has no instruction cache to save.
    pub(crate) software: bool,
    /// Cores (multiprocessors), each of which runs some workgroups at a time.
    pub(crate) cores: usize,
    /// Threads of a product of one token that a core runs at a time: their registers fill it.
    pub(crate) resident_threads: usize,
    /// Threads of a workgroup of a per-head product: twice as many keep twice the loads in flight.
    pub(crate) head_threads: usize,
}

/// Cores of a device that is not in the table: an H100's.
const CORES: usize = 132;

/// The same for Apple's GPUs: those of a Max.
const APPLE_CORES: usize = 40;

/// As measured on an H100.
const RESIDENT_THREADS: usize = 512;

/// On an M1 or M2 by the registers that Mesa's compiler gives the kernels (docs/metal-instructions.md). An H100 that plays one
/// is as fast with 768 as with 1,024, and slower with 512.
const APPLE_RESIDENT_THREADS: usize = 768;

/// PCI vendor.
pub(crate) const NVIDIA: u32 = 0x10de;

impl Hardware {
    /// What a device is, or what it plays.
    pub(crate) fn new(
        adapter: &Adapter,
        info: &wgpu::AdapterInfo,
        features: wgpu::Features,
        options: &GpuOptions,
    ) -> Self {
        let (lanes, subgroups) = subgroup_lanes(info, features, options);
        match options.as_metal {
            Some(chip) => Self::apple(lanes, subgroups, Some(chip)),
            None if is_apple(info) => {
                let chip = Chip::of_device(&info.name);
                Self::apple(lanes, subgroups, chip)
            }
            None => Self {
                lanes,
                subgroups,
                integer_dot: info.backend == wgpu::Backend::Vulkan && adapter.is_hardware(),
                cooperative: false,
                cooperative_8x8: false,
                precision: Precision::Exact,
                software: !adapter.is_hardware(),
                cores: Chip::of_device(&adapter.name).map_or(CORES, |chip| chip.cores as usize),
                resident_threads: RESIDENT_THREADS,
                head_threads: if info.vendor == NVIDIA { 512 } else { 256 },
            },
        }
    }

    /// An Apple GPU. It has no packed dot product; whether it has cooperative matrices (of 8x8) its adapter says.
    pub(crate) fn apple(lanes: u32, subgroups: bool, chip: Option<&Chip>) -> Self {
        Self {
            lanes,
            subgroups,
            integer_dot: false,
            cooperative: false,
            cooperative_8x8: false,
            precision: Precision::Exact,
            software: false,
            cores: chip.map_or(APPLE_CORES, |chip| chip.cores as usize),
            resident_threads: APPLE_RESIDENT_THREADS,
            head_threads: 256,
        }
    }

    /// Whether products of many tokens go through cooperative matrices.
    pub(crate) fn has_matrices(&self) -> bool {
        self.cooperative || self.cooperative_8x8
    }

    /// As many workgroups as are `per_core` for every core.
    pub(crate) fn workgroups(&self, per_core: f64) -> usize {
        (per_core * self.cores as f64).round() as usize
    }
}

/// Limits of Metal: what [`GpuOptions::as_metal`] leaves of an adapter's.
pub(crate) fn metal_limits(limits: &mut wgpu::Limits) {
    let least = |limit: &mut u32, metal: u32| *limit = metal.min(*limit);
    least(&mut limits.max_compute_workgroup_storage_size, 32 << 10);
    least(&mut limits.max_storage_buffers_per_shader_stage, 29);
    least(&mut limits.max_compute_invocations_per_workgroup, 1024);
    least(&mut limits.max_compute_workgroup_size_x, 1024);
    least(&mut limits.max_compute_workgroups_per_dimension, 0xffff);
}

fn is_apple(info: &wgpu::AdapterInfo) -> bool {
    info.backend == wgpu::Backend::Metal && info.name.starts_with("Apple")
}

/// Lanes of a row, and whether they are a subgroup: only where its size is certain. Apple's GPUs have 32 lanes, though the
/// adapter says 4 to 64; another that plays one has 32 or none.
fn subgroup_lanes(info: &wgpu::AdapterInfo, features: wgpu::Features, options: &GpuOptions) -> (u32, bool) {
    let size = match (info.subgroup_min_size, info.subgroup_max_size) {
        _ if is_apple(info) => Some(32),
        (min, max) if min == max && min.is_power_of_two() && (4..=64).contains(&min) => Some(min),
        _ => None,
    };
    match size {
        Some(size) if size != 32 && options.as_metal.is_some() => (32, false),
        Some(size) if features.contains(wgpu::Features::SUBGROUP) && !options.no_subgroups => (size, true),
        _ => (32, false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::adapter::{Adapter, AdapterKind};
    use super::*;

    fn hardware(name: &str, kind: AdapterKind, sizes: (u32, u32), as_metal: Option<&str>) -> Hardware {
        let device_type = match kind {
            AdapterKind::Software => wgpu::DeviceType::Cpu,
            _ => wgpu::DeviceType::DiscreteGpu,
        };
        let info = wgpu::AdapterInfo {
            name: name.to_owned(),
            vendor: if name.starts_with("NVIDIA") { NVIDIA } else { 0 },
            subgroup_min_size: sizes.0,
            subgroup_max_size: sizes.1,
            ..wgpu::AdapterInfo::new(device_type, wgpu::Backend::Vulkan)
        };
        let as_metal = as_metal.map(|name| Chip::of_apple(name).unwrap());
        let options = GpuOptions { as_metal, ..GpuOptions::default() };
        Hardware::new(&Adapter::named(name, kind), &info, wgpu::Features::SUBGROUP, &options)
    }

    #[test]
    fn an_h100_keeps_the_sizes_that_were_measured_on_it() {
        let h100 = hardware("NVIDIA H100 80GB HBM3", AdapterKind::Discrete, (32, 32), None);
        assert_eq!((h100.lanes, h100.subgroups, h100.integer_dot), (32, true, true));
        assert_eq!((h100.cores, h100.resident_threads, h100.head_threads), (132, 512, 512));
        assert_eq!([1.515, 1.94, 0.727].map(|n| h100.workgroups(n)), [200, 256, 96]);
    }

    #[test]
    fn any_adapter_plays_one_of_apples() {
        let h100 = hardware("NVIDIA H100 80GB HBM3", AdapterKind::Discrete, (32, 32), Some("M2 Ultra"));
        assert_eq!((h100.lanes, h100.subgroups, h100.integer_dot), (32, true, false));
        assert_eq!((h100.cores, h100.head_threads, h100.software), (76, 256, false));
        let lavapipe = hardware("llvmpipe", AdapterKind::Software, (8, 8), Some("M3 Max"));
        assert_eq!((lavapipe.lanes, lavapipe.subgroups, lavapipe.cores), (32, false, 40));
        assert!(!lavapipe.software);
        let itself = hardware("llvmpipe", AdapterKind::Software, (8, 8), None);
        assert!(itself.software && !itself.integer_dot && itself.subgroups);
    }

    #[test]
    fn metals_limits_are_at_most_the_adapters() {
        let mut limits = wgpu::Limits {
            max_compute_workgroup_storage_size: 48 << 10,
            max_storage_buffers_per_shader_stage: 16,
            ..wgpu::Limits::unlimited()
        };
        metal_limits(&mut limits);
        assert_eq!(limits.max_compute_workgroup_storage_size, 32 << 10);
        assert_eq!(limits.max_storage_buffers_per_shader_stage, 16);
        assert_eq!(limits.max_compute_invocations_per_workgroup, 1024);
    }
}
