//! The adapters of this machine: what they are, what they can do, and how much memory they have.

use std::fmt;

use super::device::missing;

/// What kind of device an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares the CPU's memory.
    Integrated,
    /// Of a virtual machine.
    Virtual,
    /// The CPU, playing a GPU.
    Software,
    /// The driver does not say.
    Other,
}

/// The memory that an adapter may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterMemory {
    /// Bytes in all: of the largest device-local heap, or what Metal recommends as a working set.
    pub total: u64,
    /// Bytes that this process may still take, if the driver says.
    pub free: Option<u64>,
}

impl AdapterMemory {
    /// Bytes to count on.
    pub fn available(&self) -> u64 {
        self.free.unwrap_or(self.total).min(self.total)
    }
}

/// An adapter: what it is and what it can do.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// As the driver calls it.
    pub name: String,
    /// `Vulkan` or `Metal`.
    pub api: String,
    /// Name and version of the driver; empty where it does not say.
    pub driver: String,
    /// What kind of device it is.
    pub kind: AdapterKind,
    /// `None` where the driver does not say.
    pub memory: Option<AdapterMemory>,
    /// Bytes of the largest binding: larger matrices are split.
    pub largest_binding: u64,
    /// Bytes of the largest buffer.
    pub largest_buffer: u64,
    /// Smallest and largest subgroup; `None` where shaders can't use them.
    pub subgroups: Option<(u32, u32)>,
    /// Half-precision arithmetic in shaders.
    pub f16: bool,
    /// Cooperative matrices of f16.
    pub cooperative_matrices: bool,
    /// A clock for measuring kernels.
    pub timestamps: bool,
    /// Whether the device computes in the CPU's memory.
    pub unified_memory: bool,
    /// What the kernels need and it lacks.
    pub missing: Option<String>,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.api)
    }
}

impl Adapter {
    /// Whether it is more than the CPU under another name.
    pub fn is_hardware(&self) -> bool {
        self.kind != AdapterKind::Software
    }

    /// Whether `part` is in its name or API, in any case; all names hold `None`.
    pub fn is_named(&self, part: Option<&str>) -> bool {
        part.is_none_or(|part| self.to_string().to_lowercase().contains(&part.to_lowercase()))
    }

    pub(super) fn of(adapter: &wgpu::Adapter) -> Self {
        let (info, has, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
            wgpu::DeviceType::Other => AdapterKind::Other,
        };
        let subgroups = (info.subgroup_min_size, info.subgroup_max_size);
        Self {
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            api: match info.backend {
                wgpu::Backend::Vulkan => "Vulkan".to_owned(),
                wgpu::Backend::Metal => "Metal".to_owned(),
                other => other.to_string(),
            },
            kind,
            memory: memory(adapter),
            largest_binding: limits.max_storage_buffer_binding_size,
            largest_buffer: limits.max_buffer_size,
            subgroups: has.contains(wgpu::Features::SUBGROUP).then_some(subgroups),
            f16: has.contains(wgpu::Features::SHADER_F16),
            cooperative_matrices: has.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            timestamps: has.contains(wgpu::Features::TIMESTAMP_QUERY),
            unified_memory: matches!(kind, AdapterKind::Integrated | AdapterKind::Software),
            missing: missing(has),
            name: info.name,
        }
    }
}

/// All adapters, best first: discrete ones, integrated ones, virtual ones, software.
///
/// There are none where no Vulkan loader is installed.
pub fn adapters() -> Vec<Adapter> {
    list().1.into_iter().map(|(_, adapter)| adapter).collect()
}

pub(super) fn list() -> (wgpu::Instance, Vec<(wgpu::Adapter, Adapter)>) {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(backends));
    let mut adapters: Vec<_> = adapters.into_iter().map(|a| (Adapter::of(&a), a)).collect();
    adapters.sort_by_key(|(about, _)| about.kind);
    (instance, adapters.into_iter().map(|(about, adapter)| (adapter, about)).collect())
}

/// The largest device-local heap.
#[cfg(not(target_vendor = "apple"))]
fn memory(adapter: &wgpu::Adapter) -> Option<AdapterMemory> {
    use ash::vk;
    // SAFETY: the handles below are only read from, while `adapter` holds them.
    let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = hal.shared_instance().raw_instance();
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    let has_budget = hal.physical_device_capabilities().supports_extension(ash::ext::memory_budget::NAME);
    if has_budget {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: instance and device are of `hal`; `properties` is a valid chain.
    unsafe { instance.get_physical_device_memory_properties2(hal.raw_physical_device(), &mut properties) };
    let heaps = properties.memory_properties;
    let local = |heap: &&(usize, &vk::MemoryHeap)| heap.1.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    let largest =
        heaps.memory_heaps_as_slice().iter().enumerate().filter(|h| local(&h)).max_by_key(|h| h.1.size);
    let (index, total) = largest.map(|(i, heap)| (i, heap.size))?;
    let free = has_budget.then(|| budget.heap_budget[index].saturating_sub(budget.heap_usage[index]));
    Some(AdapterMemory { total, free })
}

/// What Metal recommends as a working set: about three quarters of a Mac's memory.
#[cfg(target_vendor = "apple")]
fn memory(adapter: &wgpu::Adapter) -> Option<AdapterMemory> {
    use objc2_metal::MTLDevice;
    // SAFETY: the device is only asked for a number, while `adapter` holds it.
    let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>() }?;
    let device = hal.raw_device();
    let total = device.recommendedMaxWorkingSetSize();
    let used = device.currentAllocatedSize() as u64;
    (total > 0).then(|| AdapterMemory { total, free: Some(total.saturating_sub(used)) })
}
