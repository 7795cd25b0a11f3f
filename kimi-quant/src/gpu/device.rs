//! The adapter and the device made from it.

use std::sync::{Arc, Mutex, PoisonError};

use super::tuning::Tuning;
use crate::BackendError;

/// What to run on, and how.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Part of the adapter's name, in any case. Without it the fastest kind of adapter is taken: discrete, then
    /// integrated, then software.
    pub adapter: Option<String>,
    /// Uses plain shared memory even where the adapter has subgroups.
    pub no_subgroups: bool,
    /// Multiplies without cooperative matrices even where the adapter has them.
    pub no_cooperative: bool,
    /// Bytes of the largest binding, where that is less than the adapter's limit: weights above it are split.
    pub max_binding: Option<u64>,
    /// Sizes of the product kernels; chosen by format and shape where it is `None`.
    pub tuning: Option<Tuning>,
}

/// A device and what of it the kernels must know.
pub(crate) struct Device {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) limits: wgpu::Limits,
    /// Threads that one row's sum is spread over: the size of a subgroup where there are subgroups.
    pub(crate) lanes: u32,
    pub(crate) subgroups: bool,
    /// Whether it has the cooperative matrices of `cooperative.wgsl`.
    pub(crate) cooperative: bool,
    failure: Arc<Mutex<Option<String>>>,
}

/// Names of all adapters, best first.
pub fn adapters() -> Vec<String> {
    list().iter().map(|a| describe(&a.get_info())).collect()
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({})", info.name, info.backend)
}

fn list() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    let mut adapters = pollster::block_on(instance.enumerate_adapters(backends));
    adapters.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Cpu => 3,
        wgpu::DeviceType::Other => 4,
    });
    adapters
}

/// Words of immediate data that the kernels take.
const IMMEDIATE_BYTES: u32 = 64;

impl Device {
    pub(crate) fn open(options: &GpuOptions) -> Result<Self, BackendError> {
        let all = list();
        let names: Vec<String> = all.iter().map(|a| describe(&a.get_info())).collect();
        let wanted = options.adapter.as_ref().map(|w| w.to_lowercase());
        let fits = |name: &String| wanted.as_ref().is_none_or(|w| name.to_lowercase().contains(w));
        let found = names.iter().position(fits).and_then(|i| all.into_iter().nth(i));
        let adapter = found.ok_or_else(|| {
            let seen = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let asked = options.adapter.as_deref().unwrap_or("any");
            BackendError::Device(format!(
                "no GPU adapter: asked for {asked}, there is {seen}; install a Vulkan driver and loader, \
                 or use the CPU backend"
            ))
        })?;
        Self::from_adapter(&adapter, options)
    }

    fn from_adapter(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Self, BackendError> {
        let info = adapter.get_info();
        let has = adapter.features();
        let refuse = |what: String| BackendError::Device(format!("{}: {what}", describe(&info)));
        if !has.contains(wgpu::Features::IMMEDIATES) {
            return Err(refuse(
                "the adapter has no immediates (push constants), which the kernels need".into(),
            ));
        }
        let wanted = wgpu::Features::IMMEDIATES | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        let mut features = has & wanted;
        let cooperative = !options.no_cooperative && has_cooperative(adapter);
        features.set(COOPERATIVE, cooperative);
        let mut limits = wgpu::Limits { max_immediate_size: IMMEDIATE_BYTES, ..adapter.limits() };
        let binding = &mut limits.max_storage_buffer_binding_size;
        *binding = options.max_binding.unwrap_or(u64::MAX).min(*binding);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("kimi"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: match cooperative {
                // SAFETY: what is experimental are cooperative matrices. Only cooperative.wgsl uses them, in uniform
                // control flow, on shared memory that it has written, and only where the adapter lists their shape.
                true => unsafe { wgpu::ExperimentalFeatures::enabled() },
                false => wgpu::ExperimentalFeatures::disabled(),
            },
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| refuse(format!("no device: {e}")))?;
        let failure = Arc::new(Mutex::new(None));
        let note = |failure: &Arc<Mutex<Option<String>>>, what: String| {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        };
        let (on_error, on_loss) = (failure.clone(), failure.clone());
        device.on_uncaptured_error(Arc::new(move |e| note(&on_error, e.to_string())));
        device.set_device_lost_callback(move |reason, what| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&on_loss, format!("the device is lost: {what}"));
            }
        });
        let (lanes, subgroups) = subgroup_lanes(&info, features, options);
        let cooperative = cooperative && subgroups && lanes == 32;
        Ok(Self { device, queue, info, limits, lanes, subgroups, cooperative, failure })
    }

    /// The first error that the device reported outside of a call's own result.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(what) => Err(BackendError::Device(what.clone())),
        }
    }

    pub(crate) fn name(&self) -> String {
        describe(&self.info)
    }
}

/// What `cooperative.wgsl` needs.
const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Whether the adapter multiplies 16x16 matrices of f16 into f32.
fn has_cooperative(adapter: &wgpu::Adapter) -> bool {
    adapter.features().contains(COOPERATIVE)
        && adapter.cooperative_matrix_properties().iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [16; 3]
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
}

/// Lanes of a row, and whether they are a subgroup: only where its size is certain. Apple's GPUs have 32 lanes, though the
/// adapter says 4 to 64.
fn subgroup_lanes(info: &wgpu::AdapterInfo, features: wgpu::Features, options: &GpuOptions) -> (u32, bool) {
    let apple = info.backend == wgpu::Backend::Metal && info.name.starts_with("Apple");
    let size = match (info.subgroup_min_size, info.subgroup_max_size) {
        _ if apple => Some(32),
        (min, max) if min == max && min.is_power_of_two() && (4..=64).contains(&min) => Some(min),
        _ => None,
    };
    match size {
        Some(size) if features.contains(wgpu::Features::SUBGROUP) && !options.no_subgroups => (size, true),
        _ => (32, false),
    }
}
