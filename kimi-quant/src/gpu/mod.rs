//! The GPU backend: WGSL kernels through wgpu, on Vulkan and Metal.
//!
//! Operations only record; bringing results out submits everything recorded so far and waits, so that a token costs one
//! submission and one wait. Activations are f32. Sums run in another order than on the CPU, so results differ from it by
//! rounding.

mod adapter;
mod alone;
mod attention;
mod bandwidth;
mod batched;
mod cuts;
mod denormals;
mod device;
mod dump;
mod f16_range;
mod grouped;
mod halves;
mod hardware;
mod interop;
mod kernels;
mod layout;
mod matvec;
#[cfg(target_os = "macos")]
mod metal_memory;
mod moe;
mod nudge;
mod pace;
mod pool;
mod profile;
mod recorder;
mod rows;
mod sample;
mod shader;
mod tally;
mod tensor;
#[cfg(test)]
mod tests;
mod tuning;
mod unroll;
mod upload;
mod weights;

use std::sync::{Arc, Mutex, PoisonError};

pub use adapter::{Adapter, AdapterKind, AdapterMemory, adapters};
pub use batched::BatchKernel;
pub use device::GpuOptions;
pub use interop::Handles;
pub use kernels::kernels_made_in_steps;
pub use profile::DispatchTime;
pub use sample::GpuChosen;
pub use tensor::{GpuHidden, GpuNormed, GpuTensor};
pub use tuning::Tuning;
pub use weights::{GpuExperts, GpuMatrix};
pub use wgpu;

use device::Device;
use grouped::Groups;
use layout::DeviceLayout;
use nudge::Nudge;
use pool::Buffer;
use recorder::Recorder;
use tensor::Input;

use crate::backend::check::{self, RoutingSize};
use crate::{
    AttentionInputs, Backend, BackendError, CacheShape, ExpertHidden, HeadShape, LatentProjections, Norm,
    PackedMatrix, Precision, Router, SampleError, SampleRequest, Sampled, TokenLayout,
};

type Result<T> = std::result::Result<T, BackendError>;

/// Runs the model on one GPU.
pub struct Gpu {
    recorder: Arc<Recorder>,
    tuning: Mutex<Option<Tuning>>,
    batch_kernel: Mutex<Option<BatchKernel>>,
    /// Stands in where a binding is not used.
    nothing: Arc<Buffer>,
    last_layout: Mutex<Option<Arc<DeviceLayout>>>,
    /// Made when it is first needed.
    nudge: Arc<Nudge>,
}

/// Results of attention on the device, in segments.
pub struct GpuAttended {
    tokens: usize,
    heads: usize,
    latent: usize,
    /// Sums of latents `[segment, head, latent]`, a latent filled up to whole cells of four.
    parts: Arc<Buffer>,
    /// Largest score and sum of exponentials, `[segment, head, 2]`.
    stats: Arc<Buffer>,
    layout: Arc<DeviceLayout>,
}

/// An f32 vector on the device.
#[derive(Clone, Debug)]
pub struct GpuVector {
    len: usize,
    buffer: Arc<Buffer>,
}

/// Chosen experts and their weights on the device.
pub struct GpuRouting {
    tokens: usize,
    chosen: usize,
    /// All ids are below this.
    experts: usize,
    ids: Arc<Buffer>,
    weights: Arc<Buffer>,
    groups: Mutex<Option<Groups>>,
}

/// The latent cache of one layer on the device.
pub struct GpuCache {
    shape: CacheShape,
    /// Whether each value of a key is an upper and a lower 16-bit float, for cooperative matrices, and not one of 32 bits.
    split: bool,
    buffer: Arc<Buffer>,
}

impl GpuCache {
    /// The bytes of a page in the buffer.
    fn page(&self, page: u32) -> std::ops::Range<u64> {
        let bytes = self.shape.page_bytes() as u64;
        let start = bytes * u64::from(page);
        start..start + bytes
    }
}

impl GpuRouting {
    fn size(&self) -> RoutingSize {
        RoutingSize { tokens: self.tokens, chosen: self.chosen, experts: self.experts }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("device", &self.recorder.device.info).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`BackendError::Device`] if there is none, naming those that there are, or if it lacks what the kernels need.
    pub fn new(options: &GpuOptions) -> Result<Self> {
        let gpu = Self::over(Device::open(options)?, options.tuning)?;
        gpu.try_denormals()?;
        gpu.recorder.examined();
        Ok(gpu)
    }

    fn over(device: Device, tuning: Option<Tuning>) -> Result<Self> {
        // Made now: on a device that is lost meanwhile, making it would look like a fault of ours.
        let nudge = Arc::new(Nudge::new(&device));
        let recorder = Arc::new(Recorder::new(device));
        let nothing = recorder.pool.keep("nothing", 256)?;
        Ok(Self {
            recorder,
            tuning: Mutex::new(tuning),
            batch_kernel: Mutex::default(),
            nothing,
            last_layout: Mutex::default(),
            nudge,
        })
    }

    /// How precisely products of many tokens are computed: [`Precision::Fast`] only where the device has kernels for it.
    pub fn precision(&self) -> Precision {
        self.recorder.device.hardware.precision
    }

    /// The adapter it runs on.
    pub fn adapter(&self) -> &Adapter {
        &self.recorder.device.about
    }

    /// Bytes of device memory that are allocated, staging included; `None` where the driver does not say.
    pub fn allocated(&self) -> Option<u64> {
        let report = self.recorder.device.device.generate_allocator_report()?;
        Some(report.total_reserved_bytes)
    }

    /// Loses the device, as a reset of the driver would: for tests of what follows.
    pub fn destroy(&self) {
        self.recorder.device.device.destroy();
        let _ = self.recorder.flush(); // an error: the device tells that it is lost while it is waited for
    }

    /// Waits until all recorded work is done.
    ///
    /// # Errors
    /// [`BackendError::Device`] if the device failed.
    pub fn wait(&self) -> Result<()> {
        self.recorder.flush()
    }

    /// Nanoseconds that the device spends on what `work` records; `None` where the adapter has no clock. Waits. Nothing else
    /// may use the device meanwhile, and `work` must bring nothing out. For measurements.
    ///
    /// # Errors
    /// Those of `work`, and [`BackendError::Device`] if the device failed.
    pub fn timed(&self, mut work: impl FnMut() -> Result<()>) -> Result<Option<f64>> {
        self.keep_busy()?;
        self.recorder.timed(&mut work)
    }

    /// Dispatches recorded since the device was opened.
    pub fn dispatches(&self) -> u64 {
        self.recorder.dispatches()
    }

    /// Starts on all recorded work without waiting for it.
    pub fn start(&self) {
        self.recorder.start();
    }

    /// The time of every dispatch that `work` records, in order; `None` where the adapter has no clock. Dispatches run one
    /// by one, so their times are a little more together than without a look at each. Waits. Nothing else may use the
    /// device meanwhile. For measurements.
    ///
    /// # Errors
    /// Those of `work`, and [`BackendError::Device`] if the device failed.
    pub fn profiled(&self, mut work: impl FnMut() -> Result<()>) -> Result<Option<Vec<DispatchTime>>> {
        self.recorder.profiled(&mut work)
    }

    /// Sizes of the product kernels from now on; chosen by format and shape for `None`. For measurements.
    pub fn set_tuning(&self, tuning: Option<Tuning>) {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner) = tuning;
    }

    pub(crate) fn tuning(&self) -> Option<Tuning> {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A routing from the host: `ids` and `weights` are `[tokens, chosen]`. For measurements and tests.
    ///
    /// # Errors
    /// [`BackendError::Shape`] if the lengths do not fit.
    pub fn upload_routing(&self, tokens: usize, ids: &[u32], weights: &[f32]) -> Result<GpuRouting> {
        let chosen = ids.len().checked_div(tokens).unwrap_or(0);
        BackendError::check("upload", "number of expert ids", ids.len(), tokens * chosen)?;
        BackendError::check("upload", "number of expert weights", weights.len(), ids.len())?;
        let experts = ids.iter().max().map_or(0, |&id| id as usize + 1);
        let weights = upload_words(self, bytemuck::cast_slice(weights))?;
        let ids = upload_words(self, ids)?;
        Ok(GpuRouting { tokens, chosen, experts, ids, weights, groups: Mutex::default() })
    }

    /// Activations with any contents.
    fn tensor(&self, rows: usize, cols: usize) -> Result<GpuTensor> {
        let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(4);
        Ok(GpuTensor { rows, cols, buffer: self.recorder.pool.take(bytes, false)? })
    }
}

/// Brings words in.
fn upload_words(gpu: &Gpu, words: &[u32]) -> Result<Arc<Buffer>> {
    let buffer = gpu.recorder.pool.take(4 * words.len() as u64, true)?;
    if !words.is_empty() {
        gpu.recorder.write(&buffer, 0, bytemuck::cast_slice(words));
    }
    Ok(buffer)
}

fn words<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

impl Backend for Gpu {
    type Matrix = GpuMatrix;
    type Experts = GpuExperts;
    type Vector = GpuVector;
    type Tensor = GpuTensor;
    type Normed = GpuNormed;
    type Hidden = GpuHidden;
    type Routing = GpuRouting;
    type Cache = GpuCache;
    type Attended = GpuAttended;
    type Chosen = GpuChosen;

    fn name(&self) -> String {
        self.recorder.device.name()
    }

    fn memory(&self) -> Option<u64> {
        self.recorder.device.memory
    }

    fn copies_weights(&self) -> bool {
        true
    }

    fn queues(&self) -> bool {
        true
    }

    fn rehearsal(&self) -> Option<Self> {
        Some(Gpu::rehearsal(self))
    }

    fn rehearsed(&self) -> u64 {
        Gpu::rehearsed(self)
    }

    fn make_kernels(&self, twin: &Self, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        Gpu::make_kernels(self, twin, progress)
    }

    fn nudge(&self) -> Result<()> {
        self.submit_nudge()
    }

    fn load_matrix(&self, matrix: PackedMatrix) -> Result<GpuMatrix> {
        GpuMatrix::load(&self.recorder, &matrix)
    }

    fn load_experts(&self, experts: Vec<PackedMatrix>) -> Result<GpuExperts> {
        GpuExperts::load(&self.recorder, &experts)
    }

    fn load_vector(&self, values: Vec<f32>) -> Result<GpuVector> {
        let buffer = self.recorder.pool.keep("a vector", 4 * values.len() as u64)?;
        if !values.is_empty() {
            self.recorder.write(&buffer, 0, bytemuck::cast_slice(&values));
        }
        Ok(GpuVector { len: values.len(), buffer })
    }

    fn new_cache(&self, shape: CacheShape) -> Result<GpuCache> {
        let width = shape.latent.saturating_add(shape.rope);
        let values = shape.pages.saturating_mul(shape.page_tokens).saturating_mul(width);
        let buffer = self.recorder.pool.keep("the latent cache", (values as u64).saturating_mul(4))?;
        Ok(GpuCache { shape, split: self.attends_cooperatively(shape), buffer })
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<GpuTensor> {
        check::upload(rows, cols, values)?;
        Ok(GpuTensor { rows, cols, buffer: upload_words(self, bytemuck::cast_slice(values))? })
    }

    fn wait_for(&self, tensor: &GpuTensor) -> Result<()> {
        self.recorder.read(&[(&tensor.buffer, 0..tensor.bytes().min(4))]).map(drop)
    }

    fn download(&self, tensor: &GpuTensor) -> Result<Vec<f32>> {
        let read = self.recorder.read(&[(&tensor.buffer, 0..tensor.bytes())])?;
        Ok(read.first().map(|b| words(b)).unwrap_or_default())
    }

    fn normalized(&self, x: &GpuNormed) -> Result<GpuTensor> {
        self.plain(x.input())
    }

    fn expert_activations(&self, hidden: &GpuHidden) -> Result<ExpertHidden<GpuTensor>> {
        let shared = hidden.shared().map(|shared| self.plain(shared)).transpose()?;
        Ok(ExpertHidden { routed: hidden.routed(), shared })
    }

    fn download_routing(&self, routing: &GpuRouting) -> Result<(Vec<u32>, Vec<f32>)> {
        let bytes = 4 * (routing.tokens * routing.chosen) as u64;
        let read = self.recorder.read(&[(&routing.ids, 0..bytes), (&routing.weights, 0..bytes)])?;
        match read.as_slice() {
            [ids, weights] => Ok((words(ids), words(weights))),
            _ => Err(BackendError::Device("a routing did not come back".to_owned())),
        }
    }

    fn download_cache(&self, cache: &GpuCache, layout: &TokenLayout) -> Result<Vec<f32>> {
        check::cache_layout("download_cache", cache.shape, layout)?;
        let slots = layout.positions().iter().enumerate().map(|(t, &p)| {
            let (page, offset) = layout.slot(t, p as usize);
            (page * layout.page_tokens() + offset) as u32
        });
        let slots = upload_words(self, &slots.collect::<Vec<_>>())?;
        let width = cache.shape.latent + cache.shape.rope;
        let keys = self.download(&self.gather_rows(&cache.buffer, width, &slots, layout.len())?)?;
        Ok(if cache.split { attention::from_split(&keys, cache.shape) } else { keys })
    }

    fn cache_form(&self, cache: &GpuCache) -> String {
        let values = if cache.split { "pairs of halves" } else { "floats" };
        format!("{values}, {}", self.recorder.device.name())
    }

    fn read_page(&self, caches: &[GpuCache], page: u32) -> Result<Vec<u8>> {
        check::page("read_page", caches.iter().map(|cache| cache.shape), page, None)?;
        let parts: Vec<_> = caches.iter().map(|cache| (&*cache.buffer, cache.page(page))).collect();
        Ok(self.recorder.read(&parts)?.concat())
    }

    fn write_page(&self, caches: &mut [GpuCache], page: u32, bytes: &[u8]) -> Result<()> {
        check::page("write_page", caches.iter().map(|cache| cache.shape), page, Some(bytes.len()))?;
        let mut rest = bytes;
        for cache in caches {
            let place = cache.page(page);
            let (own, others) = rest.split_at(cache.shape.page_bytes());
            self.recorder.write(&cache.buffer, place.start, own);
            rest = others;
        }
        Ok(())
    }

    fn embed(&self, table: &GpuMatrix, ids: &[u32]) -> Result<GpuTensor> {
        check::embed(table, ids)?;
        self.embed_rows(table, ids, None)
    }

    fn embed_chosen(&self, table: &GpuMatrix, chosen: &GpuChosen, requests: &[u32]) -> Result<GpuTensor> {
        let (tokens, places) = chosen.tokens(requests)?;
        self.embed_rows(table, &places, Some(tokens))
    }

    fn norm_project<const N: usize>(
        &self,
        x: &GpuTensor,
        norm: &Norm<GpuVector>,
        projections: [&GpuMatrix; N],
    ) -> Result<[GpuTensor; N]> {
        check::norm_project(x.size(), norm.weight.len, &projections)?;
        let mut outs = Vec::with_capacity(N);
        for m in projections {
            outs.push(self.tensor(x.rows, m.rows)?);
        }
        let on_the_way = projections.iter().all(|m| self.normalises(x.rows, m.rows, m.packing));
        let normed = if on_the_way { None } else { Some(self.rms_norm(x, norm)?) };
        let x = normed.as_ref().map_or(Input::normed(x, norm), Input::from);
        if let ([a, b], [first, second]) = (projections.as_slice(), outs.as_slice())
            && self.project_both(x, [a, b], [first, second])?
        {
            // One dispatch has done both.
        } else {
            for (m, out) in projections.iter().zip(&outs) {
                self.project(x, m, out, false)?;
            }
        }
        outs.try_into().map_err(|_| BackendError::Device("a projection has no result".to_owned()))
    }

    fn latent_query(
        &self,
        inputs: AttentionInputs<'_, Self>,
        cache: &mut GpuCache,
        projections: &LatentProjections<GpuMatrix>,
        heads: HeadShape,
        layout: &TokenLayout,
    ) -> Result<GpuTensor> {
        let AttentionInputs { q, kv, norm, rope } = inputs;
        let sizes = [q.size(), kv.size()];
        check::latent_query(sizes, norm.weight.len, rope, cache.shape, projections, heads, layout)?;
        self.latent(inputs, cache, projections, heads, layout)
    }

    fn attend_latent(
        &self,
        q: &GpuTensor,
        cache: &GpuCache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<GpuAttended> {
        check::attend_latent(q.size(), cache.shape, heads, layout)?;
        self.attend(q, cache, heads, scale, layout)
    }

    fn project_values(
        &self,
        attended: &GpuAttended,
        projections: &LatentProjections<GpuMatrix>,
        heads: HeadShape,
    ) -> Result<GpuTensor> {
        check::project_values([attended.tokens, attended.heads * attended.latent], projections, heads)?;
        BackendError::check("project_values", "attended heads", attended.heads, heads.heads)?;
        self.values(attended, projections, heads)
    }

    fn project_add(&self, x: &GpuTensor, w: &GpuMatrix, residual: &mut GpuTensor) -> Result<()> {
        check::project_add(x.size(), w, residual.size())?;
        self.project(x.into(), w, residual, true)
    }

    fn norm_swiglu(
        &self,
        x: &GpuTensor,
        norm: &Norm<GpuVector>,
        gate: &GpuMatrix,
        up: &GpuMatrix,
    ) -> Result<GpuTensor> {
        check::norm_swiglu(x.size(), norm.weight.len, gate, up)?;
        self.swiglu_dense(Input::normed(x, norm), gate, up)
    }

    fn route(
        &self,
        x: &GpuTensor,
        norm: &Norm<GpuVector>,
        router: &Router<GpuMatrix, GpuVector>,
    ) -> Result<(GpuNormed, GpuRouting)> {
        check::route(x.size(), norm.weight.len, &router.gate, router.bias.len, router.shape)?;
        self.choose(x, norm, router)
    }

    fn experts_swiglu(
        &self,
        x: &GpuNormed,
        routing: &GpuRouting,
        gate: &GpuExperts,
        up: &GpuExperts,
        shared: Option<(&GpuMatrix, &GpuMatrix)>,
    ) -> Result<GpuHidden> {
        check::experts_swiglu(x.input().size(), routing.size(), gate, up, shared)?;
        self.experts_hidden(x, routing, gate, up, shared)
    }

    fn experts_down_add(
        &self,
        hidden: &GpuHidden,
        routing: &GpuRouting,
        down: &GpuExperts,
        shared: Option<&GpuMatrix>,
        residual: &mut GpuTensor,
    ) -> Result<()> {
        let sizes = (hidden.routed().size(), hidden.shared().map(|shared| shared.size()));
        check::experts_down_add(sizes, routing.size(), down, shared, residual.size())?;
        self.experts_down(hidden, routing, down, shared, residual)
    }

    fn head(
        &self,
        x: &GpuTensor,
        rows: &[u32],
        norm: &Norm<GpuVector>,
        lm_head: &GpuMatrix,
    ) -> Result<GpuTensor> {
        check::head(x.size(), rows, norm.weight.len, lm_head)?;
        let [logits] = if x.rows == 1 && rows.len() == 1 {
            self.norm_project(x, norm, [lm_head])?
        } else {
            let picked = self.gather_rows(&x.buffer, x.cols, &*upload_words(self, rows)?, rows.len())?;
            self.norm_project(&picked, norm, [lm_head])?
        };
        Ok(logits)
    }

    fn start_sample(&self, logits: &GpuTensor, requests: &[SampleRequest<'_>]) -> Result<GpuChosen> {
        self.choose_tokens(logits, requests)
    }

    fn finish_sample(&self, chosen: &GpuChosen) -> Result<Vec<std::result::Result<Sampled, SampleError>>> {
        self.chosen_tokens(chosen)
    }
}
