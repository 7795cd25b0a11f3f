//! A kernel that is no operation: it has one buffer, its own, and is made with the device.

use super::shader::{Op, Spec};

/// The kernel, made ready.
pub(super) struct Alone {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    /// Zeros, before it ran.
    pub(super) buffer: wgpu::Buffer,
}

impl Alone {
    /// With a buffer of `bytes` bytes.
    pub(super) fn new(
        device: &wgpu::Device,
        op: &'static Op,
        constants: Vec<(&'static str, u32)>,
        bytes: u64,
    ) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(op.name),
            source: wgpu::ShaderSource::Wgsl(Spec::new(op, constants).source(op).into()),
        });
        // Said, not derived from the shader: wgpu cannot derive it under the limits of a simulated Apple GPU.
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(op.name),
            entries: &[super::recorder::layout_entry(0, true)],
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(op.name),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(op.name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(op.name),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(op.name),
            layout: &bindings,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
        });
        Self { pipeline, bind_group, buffer }
    }

    /// Records it in a pass.
    pub(super) fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, workgroups: u32) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(workgroups, 1, 1);
    }
}
