//! GPUs that are not here: the program's own choices for their features and limits, on wgpu's backend that computes
//! nothing.

use std::sync::Arc;

use super::super::adapter::{Adapter, AdapterKind};
use super::super::device::{COOPERATIVE, Device, GpuOptions, IMMEDIATE_BYTES, watch};
use super::super::hardware::{Hardware, NVIDIA};
use super::super::shader::{Op, Packing, Spec};
use super::super::tuning::Tuning;
use super::super::weights::{GpuExperts, GpuMatrix, Part};
use super::super::{Gpu, GpuHidden, GpuTensor, GpuVector, wgpu};
use crate::{
    AttentionInputs, Backend, BackendError, BitWidth, CacheShape, ExpertHidden, FloatType, Format, HeadShape,
    LatentProjections, Norm, Precision, Rope, Router, RouterShape, SampleRequest, TokenLayout,
};

type Result<T = ()> = std::result::Result<T, BackendError>;

/// What kernels are chosen by.
#[derive(Clone, Copy)]
pub(super) struct Looks {
    pub(super) name: &'static str,
    kind: AdapterKind,
    backend: wgpu::Backend,
    vendor: u32,
    /// The smallest and the largest that the driver says, where there are any.
    subgroups: Option<(u32, u32)>,
    cooperative: bool,
    cooperative_8x8: bool,
    precision: Precision,
    /// Bytes of memory that a workgroup shares.
    pub(super) shared: u32,
    pub(super) threads: u32,
    /// Bytes of a binding.
    binding: u64,
    /// Storage buffers of a shader.
    buffers: u32,
}

const H100: Looks = Looks {
    name: "NVIDIA H100 80GB HBM3",
    kind: AdapterKind::Discrete,
    backend: wgpu::Backend::Vulkan,
    vendor: NVIDIA,
    subgroups: Some((32, 32)),
    cooperative: true,
    cooperative_8x8: false,
    precision: Precision::Exact,
    shared: 48 << 10,
    threads: 1024,
    binding: (1 << 31) - 1,
    buffers: 1 << 20,
};

pub(super) const LOOKS: [Looks; 6] = [
    H100,
    Looks { name: "NVIDIA H100 80GB HBM3, fast", precision: Precision::Fast, ..H100 },
    Looks { name: "NVIDIA without cooperative matrices", cooperative: false, ..H100 },
    Looks {
        name: "Apple M3 Ultra",
        kind: AdapterKind::Integrated,
        backend: wgpu::Backend::Metal,
        vendor: 0,
        subgroups: Some((4, 64)),
        cooperative: false,
        cooperative_8x8: true,
        precision: Precision::Exact,
        shared: 32 << 10,
        threads: 1024,
        binding: (1 << 32) - 4,
        buffers: 29,
    },
    Looks {
        name: "Mesa's CPU driver",
        kind: AdapterKind::Software,
        backend: wgpu::Backend::Vulkan,
        vendor: 0x10005,
        subgroups: Some((8, 8)),
        cooperative: false,
        cooperative_8x8: false,
        precision: Precision::Exact,
        shared: 32 << 10,
        threads: 1024,
        binding: 128 << 20,
        buffers: 1 << 20,
    },
    Looks {
        name: "subgroups of unknown size, and little of everything",
        kind: AdapterKind::Discrete,
        backend: wgpu::Backend::Vulkan,
        vendor: 0x1002,
        subgroups: None,
        cooperative: false,
        cooperative_8x8: false,
        precision: Precision::Exact,
        shared: 32 << 10,
        threads: 256,
        binding: 128 << 20,
        buffers: 10,
    },
];

impl Looks {
    pub(super) fn is_metal(&self) -> bool {
        self.backend == wgpu::Backend::Metal
    }

    /// With cooperative matrices, of this precision.
    pub(super) fn cooperative(precision: Precision) -> &'static Self {
        LOOKS.iter().find(|looks| looks.cooperative && looks.precision == precision).unwrap()
    }

    /// Apple's.
    pub(super) fn apple() -> &'static Self {
        LOOKS.iter().find(|looks| looks.is_metal()).unwrap()
    }

    /// The same under another name, which says how many cores it has.
    pub(super) fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    pub(super) fn gpu(&self) -> Result<Gpu> {
        let failed = |e: String| BackendError::Device(format!("{}: {e}", self.name));
        let mut features = wgpu::Features::IMMEDIATES;
        features.set(wgpu::Features::SUBGROUP, self.subgroups.is_some());
        features.set(COOPERATIVE, self.cooperative);
        let experimental = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        features.set(experimental, self.cooperative || self.cooperative_8x8);
        let limits = wgpu::Limits {
            max_compute_workgroup_storage_size: self.shared,
            max_compute_invocations_per_workgroup: self.threads,
            max_compute_workgroup_size_x: self.threads,
            max_compute_workgroups_per_dimension: 65535,
            max_storage_buffer_binding_size: self.binding,
            max_storage_buffers_per_shader_stage: self.buffers,
            max_immediate_size: IMMEDIATE_BYTES,
            ..wgpu::Limits::unlimited()
        };
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::NOOP;
        descriptor.backend_options.noop = wgpu::NoopBackendOptions {
            enable: true,
            limits: Some(limits.clone()),
            features: Some(features),
            ..Default::default()
        };
        let instance = wgpu::Instance::new(descriptor);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::NOOP));
        let adapter = adapters.into_iter().next().ok_or_else(|| failed("no noop adapter".to_owned()))?;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: limits.clone(),
            // SAFETY: nothing is computed.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| failed(e.to_string()))?;
        let device_type = match self.kind {
            AdapterKind::Discrete => wgpu::DeviceType::DiscreteGpu,
            AdapterKind::Integrated => wgpu::DeviceType::IntegratedGpu,
            _ => wgpu::DeviceType::Cpu,
        };
        let (subgroup_min_size, subgroup_max_size) = self.subgroups.unwrap_or((4, 128));
        let info = wgpu::AdapterInfo {
            name: self.name.to_owned(),
            vendor: self.vendor,
            subgroup_min_size,
            subgroup_max_size,
            ..wgpu::AdapterInfo::new(device_type, self.backend)
        };
        let about = Adapter {
            number: 0,
            address: String::new(),
            name: self.name.to_owned(),
            api: self.backend.to_string(),
            driver: String::new(),
            kind: self.kind,
            memory: None,
            largest_binding: self.binding,
            largest_buffer: limits.max_buffer_size,
            subgroups: self.subgroups,
            f16: self.cooperative,
            cooperative_matrices: self.cooperative || self.cooperative_8x8,
            timestamps: false,
            unified_memory: self.kind != AdapterKind::Discrete,
            missing: None,
        };
        let failure = watch(&device);
        let hardware = Hardware::new(&about, &info, features, &GpuOptions::default());
        let device = Device {
            instance,
            adapter,
            device,
            queue,
            info,
            about,
            limits,
            hardware: Hardware {
                cooperative: self.cooperative,
                cooperative_8x8: self.cooperative_8x8,
                precision: self.precision,
                ..hardware
            },
            as_metal: None,
            half_denormals: Arc::new((!hardware.integer_dot).into()),
            memory: None,
            failure,
            machine_code: std::sync::Arc::default(),
        };
        Gpu::over(device, None)
    }
}

/// Sizes of a model.
#[derive(Clone, Copy)]
pub(super) struct Model {
    pub(super) hidden: usize,
    pub(super) query: usize,
    pub(super) heads: HeadShape,
    dense: usize,
    expert: usize,
    experts: usize,
    chosen: usize,
    pub(super) vocabulary: usize,
}

pub(super) const K2: Model = Model {
    hidden: 7168,
    query: 1536,
    heads: HeadShape { heads: 64, nope: 128, rope: 64, value: 128, latent: 512 },
    dense: 18432,
    expert: 2048,
    experts: 384,
    chosen: 8,
    vocabulary: 163_840,
};

/// The embedded checkpoint.
const TINY: Model = Model {
    hidden: 256,
    query: 128,
    heads: HeadShape { heads: 4, nope: 64, rope: 32, value: 64, latent: 128 },
    dense: 768,
    expert: 192,
    experts: 16,
    chosen: 4,
    vocabulary: 4096,
};

/// The checkpoints that MLX's goldens are of.
const ORACLE: Model = Model {
    query: 192,
    heads: HeadShape { value: 32, ..TINY.heads },
    dense: 512,
    expert: 128,
    vocabulary: 2048,
    ..TINY
};

/// Records the operations of a model whose weights have room for nothing.
pub(super) struct Run<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) model: Model,
    pub(super) format: Format,
}

impl Run<'_> {
    pub(super) fn matrix(&self, rows: usize, cols: usize) -> Result<GpuMatrix> {
        self.matrix_of(self.format, rows, cols)
    }

    fn matrix_of(&self, format: Format, rows: usize, cols: usize) -> Result<GpuMatrix> {
        let recorder = &self.gpu.recorder;
        let packing = Packing::new(format, cols);
        GpuMatrix::in_parts(recorder, rows, packing, |range| Part::unfilled(recorder, range))
    }

    fn experts(&self, rows: usize, cols: usize) -> Result<GpuExperts> {
        let recorder = &self.gpu.recorder;
        let packing = Packing::of_experts(self.format, rows, cols);
        GpuExperts::in_parts(recorder, [self.model.experts, rows], packing, |range| {
            Part::unfilled(recorder, range)
        })
    }

    pub(super) fn norm(&self, width: usize) -> Result<Norm<GpuVector>> {
        Ok(Norm { weight: self.gpu.load_vector(vec![1.0; width])?, eps: 1e-6 })
    }

    pub(super) fn attention(&self, joint: bool, layout: &TokenLayout) -> Result {
        let (gpu, heads, tokens) = (self.gpu, self.model.heads, layout.len());
        let HeadShape { heads: n, nope, rope, value, latent } = heads;
        let projections = match joint {
            true => LatentProjections::Joint(self.matrix(n * (nope + value), latent)?),
            false => LatentProjections::Split {
                embed_q: self.matrix(n * latent, nope)?,
                unembed_out: self.matrix(n * value, latent)?,
            },
        };
        let shape = CacheShape { pages: 1, page_tokens: layout.page_tokens(), latent, rope };
        let mut cache = gpu.new_cache(shape)?;
        let (q, kv) = (gpu.tensor(tokens, n * (nope + rope))?, gpu.tensor(tokens, latent + rope)?);
        let turn = Rope { inv_freq: vec![1.0; rope / 2], mscale: 1.0 };
        let inputs = AttentionInputs { q: &q, kv: &kv, norm: &self.norm(latent)?, rope: &turn };
        let q = gpu.latent_query(inputs, &mut cache, &projections, heads, layout)?;
        let attended = gpu.attend_latent(&q, &cache, heads, 0.1, layout)?;
        gpu.project_values(&attended, &projections, heads).map(drop)
    }

    /// The feed-forward part of a layer without experts.
    pub(super) fn dense(&self, x: &mut GpuTensor, norm: &Norm<GpuVector>) -> Result {
        let (gpu, Model { hidden, dense, .. }) = (self.gpu, self.model);
        let h = gpu.norm_swiglu(x, norm, &self.matrix(dense, hidden)?, &self.matrix(dense, hidden)?)?;
        gpu.project_add(&h, &self.matrix(hidden, dense)?, x)
    }

    /// That of a layer with experts; `one_by_one` also with results of theirs that came one by one.
    pub(super) fn routed(&self, x: &mut GpuTensor, norm: &Norm<GpuVector>, one_by_one: bool) -> Result {
        let (gpu, Model { hidden, expert, experts, chosen, .. }) = (self.gpu, self.model);
        let gate = self.matrix_of(Format::Float(FloatType::Bf16), experts, hidden)?;
        let shape = RouterShape { chosen, groups: 1, kept_groups: 1, normalize: true, scale: 2.827 };
        let router = Router { gate, bias: gpu.load_vector(vec![0.0; experts])?, shape };
        let (normed, routing) = gpu.route(x, norm, &router)?;
        let (gate, up) = (self.experts(expert, hidden)?, self.experts(expert, hidden)?);
        let down = self.experts(hidden, expert)?;
        let [shared_gate, shared_up] = [self.matrix(expert, hidden)?, self.matrix(expert, hidden)?];
        let h = gpu.experts_swiglu(&normed, &routing, &gate, &up, Some((&shared_gate, &shared_up)))?;
        gpu.experts_down_add(&h, &routing, &down, Some(&self.matrix(hidden, expert)?), x)?;
        if !one_by_one {
            return Ok(());
        }
        let apart = |rows| gpu.tensor(rows, expert);
        let shared = Some(apart(x.rows())?);
        let h: GpuHidden = ExpertHidden { routed: apart(x.rows() * chosen)?, shared }.into();
        gpu.experts_down_add(&h, &routing, &down, Some(&self.matrix(hidden, expert)?), x)
    }

    /// Everything that a step of `tokens` tokens computes.
    fn step(&self, tokens: usize) -> Result {
        let (gpu, Model { hidden, query, heads, vocabulary, .. }) = (self.gpu, self.model);
        let mut x = gpu.embed(&self.matrix(vocabulary, hidden)?, &vec![0; tokens])?;
        let norm = self.norm(hidden)?;
        let (q_a, kv_a) = (self.matrix(query, hidden)?, self.matrix(heads.latent + heads.rope, hidden)?);
        let [q, _] = gpu.norm_project(&x, &norm, [&q_a, &kv_a])?;
        let q_b = self.matrix(heads.heads * (heads.nope + heads.rope), query)?;
        let [_] = gpu.norm_project(&q, &self.norm(query)?, [&q_b])?;
        // A prompt, and one token of each of many sequences; all in one page, since nothing is written.
        let mut prompt = TokenLayout::new(64);
        prompt.push(1600, tokens, &vec![0; (1600 + tokens).div_ceil(64)])?;
        let mut decode = TokenLayout::new(64);
        (0..tokens).try_for_each(|_| decode.push(100, 1, &[0, 0]))?;
        for layout in [&prompt, &decode] {
            self.attention(true, layout)?;
            self.attention(false, layout)?;
        }
        let values = gpu.tensor(tokens, heads.heads * heads.value)?;
        gpu.project_add(&values, &self.matrix(hidden, heads.heads * heads.value)?, &mut x)?;
        self.dense(&mut x, &norm)?;
        self.routed(&mut x, &norm, true)?;
        let rows: Vec<u32> = (0..tokens.min(8) as u32).collect();
        let logits = gpu.head(&x, &rows, &norm, &self.matrix(vocabulary, hidden)?)?;
        let greedy = SampleRequest::greedy(0);
        let sampled = SampleRequest { temperature: 0.6, ..greedy };
        for request in [greedy, sampled, SampleRequest { top_p: 0.95, top_logprobs: 5, ..sampled }] {
            gpu.start_sample(&logits, &[request])?;
        }
        gpu.wait()
    }
}

pub(super) fn affine(bits: BitWidth, group: usize, scales: FloatType) -> Format {
    Format::Affine { bits, group, scales }
}

/// Those that checkpoints of the size of K2 have.
fn common() -> Vec<Format> {
    let mut all: Vec<_> = BitWidth::ALL.map(|bits| affine(bits, 64, FloatType::Bf16)).to_vec();
    all.extend([Format::Mxfp4, Format::Mxfp8, Format::Nvfp4, Format::Float(FloatType::Bf16)]);
    all.push(Format::Int4 { group: 32, scales: FloatType::Bf16 });
    all.push(Format::Fp8 { scales: FloatType::F32 });
    all
}

/// Those that there are besides.
fn rare() -> Vec<Format> {
    let mut all = [FloatType::F16, FloatType::F32].map(Format::Float).to_vec();
    for bits in BitWidth::ALL {
        all.extend([8, 16, 32, 128].map(|group| affine(bits, group, FloatType::Bf16)));
        all.extend([FloatType::F16, FloatType::F32].map(|scales| affine(bits, 64, scales)));
    }
    all
}

/// What models do not have and operations allow.
fn oddities(gpu: &Gpu) -> Result {
    let (four, ragged) = (affine(BitWidth::B4, 64, FloatType::Bf16), Format::Float(FloatType::Bf16));
    let run = Run { gpu, model: TINY, format: four };
    for tokens in [1, 3, 100] {
        // Rows that are no whole number of quads; gate and up of two formats.
        let mut out = gpu.tensor(tokens, 50)?;
        gpu.project_add(&gpu.tensor(tokens, 77)?, &run.matrix_of(ragged, 50, 77)?, &mut out)?;
        let norm = run.norm(128)?;
        let (gate, up) = (run.matrix(50, 128)?, run.matrix_of(ragged, 50, 128)?);
        gpu.norm_swiglu(&gpu.tensor(tokens, 128)?, &norm, &gate, &up)?;
        // Groups of experts.
        let shape = RouterShape { chosen: 3, groups: 4, kept_groups: 2, normalize: false, scale: 1.0 };
        let router = Router { gate: run.matrix(16, 128)?, bias: gpu.load_vector(vec![0.0; 16])?, shape };
        gpu.route(&gpu.tensor(tokens, 128)?, &norm, &router)?;
    }
    // Heads that fill no tile; latents that cooperative matrices do not take.
    let odd = HeadShape { heads: 7, nope: 32, rope: 6, value: 11, latent: 96 };
    let large = HeadShape { heads: 6, nope: 192, rope: 64, value: 192, latent: 1024 };
    for heads in [odd, large] {
        let run = Run { model: Model { heads, ..TINY }, format: Format::Float(FloatType::F32), ..run };
        let mut layout = TokenLayout::new(16);
        layout.push(3, 9, &[0])?;
        run.attention(true, &layout)?;
    }
    gpu.read_bandwidth(1 << 16)?;
    gpu.wait()
}

/// Those of one token of Kimi-K2 in four bits.
pub(super) fn of_one_token(looks: &Looks) -> Result<Vec<(&'static Op, Spec)>> {
    of_tokens(looks, BitWidth::B4, 1, None)
}

/// Those of some tokens of Kimi-K2, with the sizes that are given.
pub(super) fn of_tokens(
    looks: &Looks,
    bits: BitWidth,
    tokens: usize,
    tuning: Option<Tuning>,
) -> Result<Vec<(&'static Op, Spec)>> {
    let gpu = &looks.gpu()?;
    gpu.set_tuning(tuning);
    Run { gpu, model: K2, format: affine(bits, 64, FloatType::Bf16) }.step(tokens)?;
    Ok(std::mem::take(&mut gpu.recorder.lock().made))
}

/// All specialisations that the program makes for a device of such looks, for models and batches of many kinds.
pub(super) fn specialisations(looks: &Looks) -> Result<Vec<(&'static Op, Spec)>> {
    let gpu = &looks.gpu()?;
    let mut kernels = vec![None];
    kernels.extend(gpu.batch_kernels().into_iter().map(Some));
    for format in common() {
        for tokens in [1, 8, 64, 512] {
            Run { gpu, model: K2, format }.step(tokens)?;
        }
        for (model, tokens) in [(TINY, 1), (TINY, 5), (ORACLE, 1), (ORACLE, 40)] {
            Run { gpu, model, format }.step(tokens)?;
        }
    }
    // They differ in what devices share.
    let exact = looks.precision == Precision::Exact;
    let rare = if exact && (looks.cooperative || looks.is_metal()) { rare() } else { Vec::new() };
    for format in rare {
        for tokens in [1, 6, 200] {
            Run { gpu, model: TINY, format }.step(tokens)?;
        }
    }
    // Kernels that the program would not choose.
    for kernel in kernels {
        gpu.set_batch_kernel(kernel);
        for format in
            [affine(BitWidth::B4, 64, FloatType::Bf16), Format::Nvfp4, Format::Float(FloatType::F32)]
        {
            Run { gpu, model: TINY, format }.step(3)?;
        }
        oddities(gpu)?;
    }
    gpu.set_batch_kernel(None);
    Ok(std::mem::take(&mut gpu.recorder.lock().made))
}
