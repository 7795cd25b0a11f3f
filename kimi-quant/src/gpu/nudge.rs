//! A moment of work for an idle device, so that its clock stays up.
//!
//! It goes to the queue on its own. What operations have recorded and not submitted stays recorded, and the only buffer it
//! touches is its own.

use super::Gpu;
use super::device::Device;
use super::shader::{NUDGE, Spec};
use crate::BackendError;

/// Threads of a workgroup.
const WORKGROUP: u32 = 64;

/// How much work it is.
#[derive(Clone, Copy)]
struct Size {
    workgroups: u32,
    /// Rounds of three shifts and three exclusive ors, about 25 cycles each.
    steps: u32,
}

/// For hardware: 0.3 ms of the whole device at 1.5 GHz. Every 2 ms this brought four H200s from 345 to 1,980 MHz (190 W
/// instead of 90). A millisecond of one workgroup every 5 ms kept clocks that were up already (160 W), and did not raise
/// them; 64 us of the whole device every 5 ms, or of one workgroup every millisecond, did less.
const HARDWARE: Size = Size { workgroups: 512, steps: 16_384 };

/// For software, which has no clock of its own.
const SOFTWARE: Size = Size { workgroups: 1, steps: 256 };

/// The one dispatch, made ready.
pub(super) struct Nudge {
    workgroups: u32,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
}

impl Nudge {
    pub(super) fn new(device: &Device) -> Self {
        let Size { workgroups, steps } = if device.about.is_hardware() { HARDWARE } else { SOFTWARE };
        let device = &device.device;
        let text = Spec::new(&NUDGE, vec![("WORKGROUP", WORKGROUP), ("STEPS", steps)]).source(&NUDGE);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(NUDGE.name),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        // Said, not derived from the shader: wgpu cannot derive it under the limits of a simulated Apple GPU.
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(NUDGE.name),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: false },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            }],
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(NUDGE.name),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(NUDGE.name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(NUDGE.name),
            size: 4 * u64::from(WORKGROUP),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(NUDGE.name),
            layout: &bindings,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
        });
        Self { workgroups, pipeline, bind_group }
    }

    fn submit(&self, device: &Device) {
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bind_group, &[]);
            pass.dispatch_workgroups(self.workgroups, 1, 1);
        }
        device.queue.submit([encoder.finish()]);
    }
}

impl Gpu {
    /// Submits the moment of work. It takes none of the recorder's locks, so that it never waits for a thread that does.
    ///
    /// Inputs that the host has written are sent along. They go before all work that is recorded and not submitted, as they
    /// would without it.
    pub(super) fn submit_nudge(&self) -> Result<(), BackendError> {
        let device = &self.recorder.device;
        device.check()?;
        self.nudge.submit(device);
        Ok(())
    }
}
