//! The adapters of this machine: what they are, what they can do, and how much memory they have.

use std::fmt;

use crate::BackendError;

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
    /// Its place in [`adapters`], from 0: the same in every process until a device is added or removed.
    pub number: usize,
    /// As the driver calls it.
    pub name: String,
    /// `Vulkan` or `Metal`.
    pub api: String,
    /// Where it is: its PCI address on Vulkan (`0000:41:00.0`), its registry id on Metal (`0x100000391`). Empty where the
    /// driver does not say.
    pub address: String,
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

    /// Whether `part` is in its name or API, in any case.
    fn is_named(&self, part: &str) -> bool {
        self.to_string().to_lowercase().contains(&part.to_lowercase())
    }

    /// With what tells it from others of its name.
    fn in_list(&self) -> String {
        let at = if self.address.is_empty() { "" } else { " at " };
        format!("{}: {self}{at}{}", self.number, self.address)
    }

    /// Numbered 0.
    fn of(adapter: &wgpu::Adapter) -> Self {
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
            number: 0,
            address: address(adapter, &info),
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

/// Numbers below this choose an adapter by its number; larger ones are part of a name, as in `RTX 4090`.
const NUMBERS: usize = 100;

/// The place of the adapter that `asked` means: its number, or the first with this in its name. `None` means the first.
///
/// # Errors
/// [`BackendError::NoAdapter`], which lists all that there are.
pub(super) fn choose(
    adapters: &[Adapter],
    asked: Option<&str>,
    hardware_only: bool,
) -> Result<usize, BackendError> {
    let number = asked.and_then(|asked| asked.trim().parse::<usize>().ok()).filter(|n| *n < NUMBERS);
    let is_meant = |adapter: &Adapter| match (number, asked) {
        (Some(number), _) => adapter.number == number,
        (None, Some(part)) => adapter.is_named(part),
        (None, None) => true,
    };
    let found = adapters.iter().position(|a| is_meant(a) && (a.is_hardware() || !hardware_only));
    found.ok_or_else(|| BackendError::NoAdapter {
        asked: match (number, asked) {
            (Some(number), _) => format!("number {number}"),
            (None, Some(part)) => format!("{part:?}"),
            (None, None) if hardware_only => "one that is not software".to_owned(),
            (None, None) => "any".to_owned(),
        },
        seen: match adapters {
            [] => "none".to_owned(),
            all => all.iter().map(Adapter::in_list).collect::<Vec<_>>().join(", "),
        },
    })
}

/// What the kernels need of an adapter and it lacks.
fn missing(has: wgpu::Features) -> Option<String> {
    let lacks = !has.contains(wgpu::Features::IMMEDIATES);
    lacks.then(|| "the adapter has no immediates (push constants), which the kernels need".to_owned())
}

/// All adapters in the order of their numbers, best kind first: discrete ones, integrated ones, virtual ones, software.
/// Those of one kind are in the order of their addresses.
///
/// There are none where no Vulkan loader is installed.
pub fn adapters() -> Vec<Adapter> {
    list().1
}

/// The adapters' handles, and what is known of each.
pub(super) fn list() -> (wgpu::Instance, Vec<Adapter>, Vec<wgpu::Adapter>) {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(backends));
    let (adapters, handles) = number(found.into_iter().map(|a| (Adapter::of(&a), a)).collect());
    (instance, adapters, handles)
}

/// Sorts and numbers adapters, each with its handle.
fn number<H>(mut adapters: Vec<(Adapter, H)>) -> (Vec<Adapter>, Vec<H>) {
    // The longer of two addresses is the larger number.
    let key = |a: &Adapter| (a.kind, a.address.len(), a.address.clone(), a.name.clone(), a.driver.clone());
    adapters.sort_by_key(|(adapter, _)| key(adapter));
    let numbered = adapters.into_iter().enumerate();
    numbered.map(|(number, (adapter, handle))| (Adapter { number, ..adapter }, handle)).unzip()
}

/// The PCI address.
#[cfg(not(target_vendor = "apple"))]
fn address(_: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> String {
    info.device_pci_bus_id.clone()
}

/// The registry id, which stays until the Mac restarts or the device is unplugged.
#[cfg(target_vendor = "apple")]
fn address(adapter: &wgpu::Adapter, _: &wgpu::AdapterInfo) -> String {
    use objc2_metal::MTLDevice;
    // SAFETY: the device is only asked for a number, while `adapter` holds it.
    let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>() };
    hal.map_or_else(String::new, |hal| format!("{:#x}", hal.raw_device().registryID()))
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

#[cfg(test)]
impl Adapter {
    /// One of this name and kind that is said to have nothing.
    pub(super) fn named(name: &str, kind: AdapterKind) -> Self {
        Self {
            number: 0,
            name: name.to_owned(),
            api: "Vulkan".to_owned(),
            address: String::new(),
            driver: String::new(),
            kind,
            memory: None,
            largest_binding: 0,
            largest_buffer: 0,
            subgroups: None,
            f16: false,
            cooperative_matrices: false,
            timestamps: false,
            unified_memory: false,
            missing: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: AdapterKind, address: &str) -> (Adapter, ()) {
        (Adapter { address: address.to_owned(), ..Adapter::named(name, kind) }, ())
    }

    /// In an order that a driver may list them in.
    fn host() -> Vec<Adapter> {
        let h100 = |address| adapter("NVIDIA H100 80GB HBM3", AdapterKind::Discrete, address);
        number(vec![
            adapter("llvmpipe (LLVM 15.0.6, 256 bits)", AdapterKind::Software, ""),
            h100("0000:9d:00.0"),
            h100("0000:19:00.0"),
            adapter("AMD Radeon Graphics", AdapterKind::Integrated, "0000:05:00.0"),
            h100("10000:01:00.0"),
            h100("0000:3b:00.0"),
        ])
        .0
    }

    #[test]
    fn numbers_follow_kind_and_address_whatever_the_order() {
        let mut listed = host();
        let addresses: Vec<_> = listed.iter().map(|a| (a.number, a.address.as_str())).collect();
        let expected = ["0000:19:00.0", "0000:3b:00.0", "0000:9d:00.0", "10000:01:00.0", "0000:05:00.0", ""];
        assert_eq!(addresses, expected.into_iter().enumerate().collect::<Vec<_>>());
        listed.reverse();
        assert_eq!(number(listed.into_iter().map(|a| (a, ())).collect()).0, host());
    }

    #[test]
    fn adapters_of_one_name_are_told_apart_by_number() {
        let all = host();
        let chosen = |asked| choose(&all, asked, false).map(|i| all[i].address.as_str());
        assert_eq!(chosen(None).unwrap(), "0000:19:00.0");
        assert_eq!(chosen(Some("h100")).unwrap(), "0000:19:00.0");
        assert_eq!(chosen(Some("0")).unwrap(), "0000:19:00.0");
        assert_eq!(chosen(Some("3")).unwrap(), "10000:01:00.0");
        assert_eq!(chosen(Some(" 4 ")).unwrap(), "0000:05:00.0");
        assert_eq!(chosen(Some("radeon")).unwrap(), "0000:05:00.0");
        assert_eq!(all[choose(&all, Some("llvm"), false).unwrap()].number, 5);
    }

    #[test]
    fn what_is_not_there_is_refused_with_the_list() {
        let all = host();
        let refused = |asked, hardware_only| choose(&all, asked, hardware_only).unwrap_err().to_string();
        // Not the H100, though 10 is in its name.
        let wrong = refused(Some("10"), false);
        assert!(wrong.contains("asked for number 10, there is 0: NVIDIA H100"), "{wrong}");
        assert!(wrong.contains("3: NVIDIA H100 80GB HBM3 (Vulkan) at 10000:01:00.0"), "{wrong}");
        assert!(wrong.contains("5: llvmpipe (LLVM 15.0.6, 256 bits) (Vulkan);"), "{wrong}");
        assert!(refused(Some("Voodoo"), false).contains("asked for \"Voodoo\""));
        assert!(refused(Some("5"), true).contains("number 5"), "it is software");
        let none = choose(&[], None, true).unwrap_err().to_string();
        assert!(none.contains("asked for one that is not software, there is none"), "{none}");
    }

    #[test]
    fn a_large_number_is_part_of_a_name() {
        let all = number(vec![
            adapter("NVIDIA GeForce RTX 3090", AdapterKind::Discrete, "0000:01:00.0"),
            adapter("NVIDIA GeForce RTX 4090", AdapterKind::Discrete, "0000:02:00.0"),
        ])
        .0;
        assert_eq!(choose(&all, Some("4090"), false).unwrap(), 1);
        assert!(choose(&all, Some("90"), false).is_err());
    }
}
