//! The CPU backend: a team of threads over rows, vector kernels over a row.
//!
//! What holds of its results:
//!
//! * Sums are f32, or exact integers over a few columns and f32 from there (`digits.rs`, `rounded.rs`). A product's order of summation
//!   depends on the matrix and the instruction set only, so a token's result is the same bits alone or in any batch, and
//!   on any number of threads. Attention splits the positions of a sequence at fixed places for the same reason.
//! * Two instruction sets differ by rounding.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod bandwidth;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod bytes;
mod codec;
mod cores;
mod dense;
mod dequant;
#[cfg(target_arch = "x86_64")]
mod digits;
mod exp;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod few;
mod isa;
mod kernel;
mod latent;
mod matmul;
mod moe;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
mod norm;
mod order;
mod rope;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod rounded;
mod router;
mod scalar;
mod scales;
mod simd;
mod team;
mod tensor;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use bandwidth::read_bandwidth;
pub use dequant::{dequantize, dequantize_row};
use isa::Arithmetic;
pub use isa::Isa;
pub use team::Team;
pub use tensor::{Cache, Experts, Routing, Tensor};

use crate::backend::check;
use crate::{
    AttentionInputs, Backend, BackendError, CacheShape, ExpertHidden, HeadShape, LatentProjections, Norm,
    PackedMatrix, Precision, Rope, Router, SampleError, SampleRequest, Sampled, TokenLayout, sample,
};

type Result<T> = std::result::Result<T, BackendError>;

/// Runs the model on the CPU, on the threads of the current [`Team`].
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    arithmetic: Arithmetic,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// Uses the fastest instruction set that this machine has.
    pub fn new() -> Self {
        Self::exact(Isa::best())
    }

    /// Uses plain code: slow, and the same on every machine.
    pub fn scalar() -> Self {
        Self::exact(Isa::SCALAR)
    }

    /// Uses `isa`, if this machine has it.
    pub fn with_isa(isa: Isa) -> Option<Self> {
        Isa::available().contains(&isa).then_some(Self::exact(isa))
    }

    fn exact(isa: Isa) -> Self {
        Self { arithmetic: Arithmetic { isa, precision: Precision::Exact } }
    }

    /// Computes products with `precision`, which is [`Precision::Exact`] otherwise.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { arithmetic: Arithmetic { precision, ..self.arithmetic } }
    }

    /// How precisely products are computed.
    pub fn precision(&self) -> Precision {
        self.arithmetic.precision
    }

    /// For names: nothing if it is exact.
    fn named_precision(&self) -> String {
        match self.precision() {
            Precision::Exact => String::new(),
            other => format!(", {other}"),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.arithmetic.isa
    }

    /// Stores each token's key: `kv [T, kl + rope]` with its latent part normalised and its positional part rotated.
    ///
    /// # Errors
    /// [`BackendError`] where the operands do not fit.
    pub fn store_latent(
        &self,
        cache: &mut Cache,
        kv: &Tensor,
        norm: &Norm<Vec<f32>>,
        rope: &Rope,
        layout: &TokenLayout,
    ) -> Result<()> {
        check::store_latent("store_latent", kv.size(), norm.weight.len(), rope, cache.shape(), layout)?;
        attention::store_latent(cache, kv, norm, rope, layout);
        Ok(())
    }

    /// Turns queries `[T, nh * (nope + rope)]` into latent queries `[T, nh * (kl + rope)]`: the first part through
    /// `W_UK`, the second rotated.
    ///
    /// # Errors
    /// [`BackendError`] where the operands do not fit.
    pub fn absorb_query(
        &self,
        q: &Tensor,
        projections: &LatentProjections<PackedMatrix>,
        heads: HeadShape,
        rope: &Rope,
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        check::absorb_query("absorb_query", q.size(), projections, heads, rope, layout)?;
        Ok(latent::absorb_query(self.arithmetic, q, projections, heads, rope, layout))
    }
}

impl Backend for Cpu {
    type Matrix = PackedMatrix;
    type Experts = Experts;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Normed = Tensor;
    type Hidden = ExpertHidden<Tensor>;
    type Routing = Routing;
    type Cache = Cache;
    type Attended = Tensor;
    type Chosen = Vec<std::result::Result<Sampled, SampleError>>;

    fn name(&self) -> String {
        let precision = self.named_precision();
        format!("cpu ({}{precision}, {} threads)", self.isa().name(), Team::current().threads())
    }

    fn enter<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        Team::current().step(step)
    }

    fn load_matrix(&self, matrix: PackedMatrix) -> Result<PackedMatrix> {
        Ok(matmul::loaded(self.arithmetic, matrix))
    }

    fn load_experts(&self, experts: Vec<PackedMatrix>) -> Result<Experts> {
        check::load_experts(&experts)?;
        let loaded = |m| matmul::loaded(self.arithmetic, m);
        Ok(Experts { matrices: experts.into_iter().map(loaded).collect() })
    }

    fn load_vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn new_cache(&self, shape: CacheShape) -> Result<Cache> {
        Cache::new(shape)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        check::upload(rows, cols, values)?;
        Ok(Tensor::from_parts(rows, cols, values.to_vec()))
    }

    fn wait_for(&self, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(tensor.data().to_vec())
    }

    fn normalized(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn expert_activations(&self, hidden: &ExpertHidden<Tensor>) -> Result<ExpertHidden<Tensor>> {
        Ok(hidden.clone())
    }

    fn download_routing(&self, routing: &Routing) -> Result<(Vec<u32>, Vec<f32>)> {
        Ok((routing.ids.clone(), routing.weights.clone()))
    }

    fn download_cache(&self, cache: &Cache, layout: &TokenLayout) -> Result<Vec<f32>> {
        check::cache_layout("download_cache", cache.shape(), layout)?;
        let mut out = Vec::with_capacity(layout.len() * cache.width());
        for (t, &position) in layout.positions().iter().enumerate() {
            let (page, offset) = layout.slot(t, position as usize);
            out.extend_from_slice(cache.slot(page, offset));
        }
        Ok(out)
    }

    fn cache_form(&self, _: &Cache) -> String {
        // The number of threads changes no result.
        format!("floats, cpu {}{}", self.isa().name(), self.named_precision())
    }

    fn read_page(&self, caches: &[Cache], page: u32) -> Result<Vec<u8>> {
        check::page("read_page", caches.iter().map(Cache::shape), page, None)?;
        let bytes = caches.iter().map(|cache| bytemuck::cast_slice::<f32, u8>(cache.page(page as usize)));
        Ok(bytes.collect::<Vec<_>>().concat())
    }

    fn write_page(&self, caches: &mut [Cache], page: u32, bytes: &[u8]) -> Result<()> {
        check::page("write_page", caches.iter().map(Cache::shape), page, Some(bytes.len()))?;
        let mut rest = bytes;
        for cache in caches {
            let slots = bytemuck::cast_slice_mut::<f32, u8>(cache.page_mut(page as usize));
            let (own, others) = rest.split_at(slots.len());
            slots.copy_from_slice(own);
            rest = others;
        }
        Ok(())
    }

    fn embed(&self, table: &PackedMatrix, ids: &[u32]) -> Result<Tensor> {
        check::embed(table, ids)?;
        let mut out = Vec::new();
        for &id in ids {
            let start = out.len();
            out.resize(start + table.cols(), 0.0);
            dequant::row_exact(table, id as usize, &mut out[start..]);
        }
        Ok(Tensor::from_parts(ids.len(), table.cols(), out))
    }

    fn embed_chosen(&self, table: &PackedMatrix, chosen: &Self::Chosen, requests: &[u32]) -> Result<Tensor> {
        check::embed_chosen(requests, chosen.len())?;
        let token = |&request: &u32| chosen[request as usize].as_ref().map_or(0, |sampled| sampled.token);
        self.embed(table, &requests.iter().map(token).collect::<Vec<_>>())
    }

    fn norm_project<const N: usize>(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        projections: [&PackedMatrix; N],
    ) -> Result<[Tensor; N]> {
        check::norm_project(x.size(), norm.weight.len(), &projections)?;
        let x = norm::rms_norm(x, norm);
        Ok(projections.map(|m| matmul::product(self.arithmetic, m, &x)))
    }

    fn latent_query(
        &self,
        inputs: AttentionInputs<'_, Self>,
        cache: &mut Cache,
        projections: &LatentProjections<PackedMatrix>,
        heads: HeadShape,
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        let AttentionInputs { q, kv, norm, rope } = inputs;
        let sizes = [q.size(), kv.size()];
        check::latent_query(sizes, norm.weight.len(), rope, cache.shape(), projections, heads, layout)?;
        attention::store_latent(cache, kv, norm, rope, layout);
        Ok(latent::absorb_query(self.arithmetic, q, projections, heads, rope, layout))
    }

    fn attend_latent(
        &self,
        q: &Tensor,
        cache: &Cache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        check::attend_latent(q.size(), cache.shape(), heads, layout)?;
        Ok(attention::attend(self.arithmetic.isa, q, cache, heads, scale, layout))
    }

    fn project_values(
        &self,
        attended: &Tensor,
        projections: &LatentProjections<PackedMatrix>,
        heads: HeadShape,
    ) -> Result<Tensor> {
        check::project_values(attended.size(), projections, heads)?;
        Ok(latent::project_values(self.arithmetic, attended, projections, heads))
    }

    fn project_add(&self, x: &Tensor, w: &PackedMatrix, residual: &mut Tensor) -> Result<()> {
        check::project_add(x.size(), w, residual.size())?;
        matmul::product_add(self.arithmetic, w, x, residual);
        Ok(())
    }

    fn norm_swiglu(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        gate: &PackedMatrix,
        up: &PackedMatrix,
    ) -> Result<Tensor> {
        check::norm_swiglu(x.size(), norm.weight.len(), gate, up)?;
        let x = norm::rms_norm(x, norm);
        Ok(moe::swiglu_dense(self.arithmetic, &x, gate, up))
    }

    fn route(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        router: &Router<PackedMatrix, Vec<f32>>,
    ) -> Result<(Tensor, Routing)> {
        let (experts, shape) = (router.gate.rows(), router.shape);
        check::route(x.size(), norm.weight.len(), &router.gate, router.bias.len(), shape)?;
        let x = norm::rms_norm(x, norm);
        let logits = matmul::product(self.arithmetic, &router.gate, &x);
        let routing = router::choose(logits.data(), experts, &router.bias, shape);
        Ok((x, routing))
    }

    fn experts_swiglu(
        &self,
        x: &Tensor,
        routing: &Routing,
        gate: &Experts,
        up: &Experts,
        shared: Option<(&PackedMatrix, &PackedMatrix)>,
    ) -> Result<ExpertHidden<Tensor>> {
        check::experts_swiglu(x.size(), routing.size(), gate, up, shared)?;
        Ok(moe::experts_swiglu(self.arithmetic, x, routing, &gate.matrices, &up.matrices, shared))
    }

    fn experts_down_add(
        &self,
        hidden: &ExpertHidden<Tensor>,
        routing: &Routing,
        down: &Experts,
        shared: Option<&PackedMatrix>,
        residual: &mut Tensor,
    ) -> Result<()> {
        let sizes = (hidden.routed.size(), hidden.shared.as_ref().map(Tensor::size));
        check::experts_down_add(sizes, routing.size(), down, shared, residual.size())?;
        moe::experts_down_add(self.arithmetic, hidden, routing, &down.matrices, shared, residual);
        Ok(())
    }

    fn head(
        &self,
        x: &Tensor,
        rows: &[u32],
        norm: &Norm<Vec<f32>>,
        lm_head: &PackedMatrix,
    ) -> Result<Tensor> {
        check::head(x.size(), rows, norm.weight.len(), lm_head)?;
        let picked: Vec<f32> = rows.iter().flat_map(|&row| x.row(row as usize)).copied().collect();
        let x = norm::rms_norm(&Tensor::from_parts(rows.len(), x.cols(), picked), norm);
        Ok(matmul::product(self.arithmetic, lm_head, &x))
    }

    fn start_sample(&self, logits: &Tensor, requests: &[SampleRequest<'_>]) -> Result<Self::Chosen> {
        check::sample(logits.size(), requests)?;
        let choose = |r: &SampleRequest<'_>| sample::sample_row(logits.row(r.row as usize), r);
        Ok(team::map(requests.len(), |i| choose(&requests[i])))
    }

    fn finish_sample(&self, chosen: &Self::Chosen) -> Result<Self::Chosen> {
        Ok(chosen.clone())
    }
}
