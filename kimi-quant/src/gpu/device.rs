//! The device made from an adapter.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::adapter::{self, Adapter};
use super::hardware::{Hardware, metal_limits};
use super::tuning::Tuning;
use crate::chips::Chip;
use crate::{BackendError, Precision};

/// What to run on, and how.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// The adapter's number in [`adapters`](super::adapters), or part of its name, in any case; what is a number below 100
    /// is no part of a name. Without it the first is taken, which is of the fastest kind.
    pub adapter: Option<String>,
    /// Takes no software adapter, which is slower than the CPU backend.
    pub hardware_only: bool,
    /// Bytes of device memory to use at most, where that is less than what the driver says is free.
    pub memory: Option<u64>,
    /// How long after the last step weights must stay in memory, where the system could take it (macOS); `None` for three
    /// minutes.
    pub keep_alive: Option<Duration>,
    /// Sends weights through staging memory even where the host can write the device's own.
    pub staged_upload: bool,
    /// How precisely products of many tokens are computed where the adapter has cooperative matrices. Elsewhere, and for few
    /// tokens, they are exact either way.
    pub precision: Precision,
    /// Uses plain shared memory even where the adapter has subgroups.
    pub no_subgroups: bool,
    /// Multiplies without cooperative matrices even where the adapter has them.
    pub no_cooperative: bool,
    /// Takes exactly the path of this chip of Apple's on Metal: the same kernels and sizes, chosen by what it has and by its
    /// limits, as far as the adapter has them too (a subgroup has 32 threads or is not used).
    pub as_metal: Option<&'static Chip>,
    /// Bytes of the largest binding, where that is less than the adapter's limit: weights above it are split.
    pub max_binding: Option<u64>,
    /// Sizes of the product kernels; chosen by format and shape where it is `None`.
    pub tuning: Option<Tuning>,
}

/// A device and what of it the kernels must know.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) instance: wgpu::Instance,
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) about: Adapter,
    pub(crate) limits: wgpu::Limits,
    /// What kernels are chosen by.
    pub(crate) hardware: Hardware,
    /// The chip that it plays.
    pub(super) as_metal: Option<&'static Chip>,
    /// Whether denormal 16-bit floats are numbers to it and not zero, as far as that was tried.
    pub(crate) half_denormals: Arc<AtomicBool>,
    /// Bytes that weights and caches may take, if known.
    pub(crate) memory: Option<u64>,
    /// See [`GpuOptions::keep_alive`].
    #[cfg(target_os = "macos")]
    pub(super) keep_alive: Option<Duration>,
    /// The first error; the device can't be used after it.
    pub(super) failure: Arc<OnceLock<String>>,
    /// Collects the machine code of kernels, where that is asked for and the driver hands it out.
    pub(super) machine_code: Arc<OnceLock<wgpu::PipelineCache>>,
}

/// Bytes of immediate data that the kernels use at most. Vulkan guarantees 128.
pub(super) const IMMEDIATE_BYTES: u32 = 96;

/// Features that are used where there are any.
const WANTED: wgpu::Features = wgpu::Features::IMMEDIATES
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);

/// Not used by the kernels: burn, where the device is shared with it, uses all of these that the adapter has, whatever the
/// device was made with.
const BURN: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::SHADER_F64)
    .union(wgpu::Features::SHADER_INT64)
    .union(wgpu::Features::SHADER_FLOAT32_ATOMIC);

impl Device {
    pub(crate) fn open(options: &GpuOptions) -> Result<Self, BackendError> {
        let (instance, mut all, mut handles) = adapter::list();
        let chosen = adapter::choose(&all, options.adapter.as_deref(), options.hardware_only)?;
        let (adapter, about) = (handles.swap_remove(chosen), all.swap_remove(chosen));
        Self::from_adapter(instance, adapter, about, options)
    }

    fn from_adapter(
        instance: wgpu::Instance,
        adapter: wgpu::Adapter,
        about: Adapter,
        options: &GpuOptions,
    ) -> Result<Self, BackendError> {
        if let Some(what) = &about.missing {
            return Err(BackendError::Device(format!("{about}: {what}")));
        }
        let mut features = adapter.features() & (WANTED | BURN);
        if !about.unified_memory || options.staged_upload {
            features.remove(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS); // slow on a card of its own
        }
        let cooperative = options.as_metal.is_none() && has_cooperative(&adapter);
        let matrices = match (options.no_cooperative, cooperative) {
            (true, _) => wgpu::Features::empty(),
            (false, true) => COOPERATIVE,
            (false, false) if has_cooperative_8x8(&adapter) => COOPERATIVE_8X8,
            (false, false) => wgpu::Features::empty(),
        };
        features |= matrices;
        let mut limits = wgpu::Limits { max_immediate_size: IMMEDIATE_BYTES, ..adapter.limits() };
        let binding = &mut limits.max_storage_buffer_binding_size;
        *binding = options.max_binding.unwrap_or(u64::MAX).min(*binding);
        if options.as_metal.is_some() {
            metal_limits(&mut limits);
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("kimi"),
            required_features: features,
            required_limits: limits.clone(),
            // Small blocks: larger buffers have memory of their own, so that nothing of a block is wasted.
            memory_hints: wgpu::MemoryHints::Manual { suballocated_device_memory_block_size: BLOCK_BYTES },
            experimental_features: match !matrices.is_empty() {
                // SAFETY: what is experimental are cooperative matrices. Only cooperative.wgsl, attend_cooperative.wgsl and
                // cooperative_8x8.wgsl use them, in uniform control flow, on shared memory that they have written and on buffers as large as
                // they take them to be, and only where the adapter lists their shape.
                true => unsafe { wgpu::ExperimentalFeatures::enabled() },
                false => wgpu::ExperimentalFeatures::disabled(),
            },
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| BackendError::Device(format!("{about}: no device: {e}")))?;
        let failure = watch(&device);
        let info = adapter.get_info();
        let mut hardware = Hardware::new(&about, &info, features, options);
        let memory = options.memory.into_iter().chain(about.memory.map(|m| m.available())).min();
        let room = limits.max_compute_workgroup_storage_size >= COOPERATIVE_SHARED;
        let whole = hardware.subgroups && hardware.lanes == 32;
        hardware.cooperative = matrices == COOPERATIVE && whole && room;
        hardware.cooperative_8x8 = matrices == COOPERATIVE_8X8 && whole;
        if hardware.cooperative {
            hardware.precision = match options.precision {
                Precision::Fast => Precision::Fast,
                Precision::Exact | Precision::Close => Precision::Exact,
            };
        }
        Ok(Self {
            instance,
            adapter,
            device,
            queue,
            info,
            about,
            limits,
            hardware,
            as_metal: options.as_metal,
            half_denormals: Arc::default(),
            memory,
            #[cfg(target_os = "macos")]
            keep_alive: options.keep_alive,
            failure,
            machine_code: Arc::default(),
        })
    }

    /// The first error that the device reported outside of a call's own result.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        match self.failure.get() {
            None => Ok(()),
            Some(what) => Err(BackendError::Device(format!("{}: {what}", self.about))),
        }
    }

    /// Whether codes may be read as denormal 16-bit floats.
    pub(crate) fn keeps_denormals(&self) -> bool {
        self.half_denormals.load(Ordering::Relaxed)
    }

    /// Threads that a workgroup may have along one dimension.
    pub(crate) fn max_threads(&self) -> u32 {
        self.limits.max_compute_invocations_per_workgroup.min(self.limits.max_compute_workgroup_size_x)
    }

    /// Threads of a workgroup that goes over `cells` cells: a power of two.
    pub(crate) fn workgroup_of(&self, cells: usize) -> u32 {
        let max_threads = 1 << self.max_threads().ilog2();
        (cells.next_power_of_two() as u32).clamp(self.hardware.lanes.max(64), 1024).min(max_threads)
    }

    pub(crate) fn name(&self) -> String {
        let fast = if self.hardware.precision == Precision::Fast { ", fast" } else { "" };
        match self.as_metal {
            Some(chip) => format!("{}, as {}{fast}", self.about, chip.short_name()),
            None => format!("{}{fast}", self.about),
        }
    }

    /// Whether the host can write weights straight into the memory that the device computes in.
    pub(crate) fn writes_in_place(&self) -> bool {
        self.device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
    }
}

/// Keeps the first error: wgpu's own handlers would end the process.
pub(super) fn watch(device: &wgpu::Device) -> Arc<OnceLock<String>> {
    let failure = Arc::new(OnceLock::new());
    let (on_error, on_loss) = (failure.clone(), failure.clone());
    device.on_uncaptured_error(Arc::new(move |e| {
        let _ = on_error.set(e.to_string()); // only the first is kept
    }));
    device.set_device_lost_callback(move |_, what| {
        let _ = on_loss.set(format!("the device is lost: {what}"));
    });
    failure
}

/// Device memory that small buffers share, at first and when there are many.
const BLOCK_BYTES: std::ops::Range<u64> = 4 << 20..16 << 20;

/// What `cooperative.wgsl` and `attend_cooperative.wgsl` need.
pub(super) const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// What `cooperative_8x8.wgsl` needs.
const COOPERATIVE_8X8: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;

/// Bytes of shared memory that `cooperative.wgsl` and `attend_cooperative.wgsl` use at most.
const COOPERATIVE_SHARED: u32 = 40 << 10;

/// Whether the adapter multiplies 16x16 matrices of f16 into f32.
fn has_cooperative(adapter: &wgpu::Adapter) -> bool {
    adapter.features().contains(COOPERATIVE) && has_matrices(adapter, 16, wgpu::CooperativeScalarType::F16)
}

/// Whether the adapter multiplies 8x8 matrices of f32: Metal's.
fn has_cooperative_8x8(adapter: &wgpu::Adapter) -> bool {
    adapter.features().contains(COOPERATIVE_8X8) && has_matrices(adapter, 8, wgpu::CooperativeScalarType::F32)
}

/// Whether the adapter multiplies square matrices of `size` rows, with values of `factors`, into f32.
fn has_matrices(adapter: &wgpu::Adapter, size: u32, factors: wgpu::CooperativeScalarType) -> bool {
    adapter.cooperative_matrix_properties().iter().any(|p| {
        [p.m_size, p.n_size, p.k_size] == [size; 3]
            && p.ab_type == factors
            && p.cr_type == wgpu::CooperativeScalarType::F32
    })
}
