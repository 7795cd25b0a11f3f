//! The CPU backend: rayon over rows, vector kernels over a row.
//!
//! What holds of its results:
//!
//! * Sums are f32, or exact integers over a few columns and f32 from there (`digits.rs`). A product's order of summation
//!   depends on the matrix and the instruction set only, so a token's result is the same bits alone or in any batch, and
//!   on any number of threads. Attention splits the positions of a sequence at fixed places for the same reason.
//! * Two instruction sets differ by rounding.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bandwidth;
mod codec;
mod dense;
mod dequant;
#[cfg(target_arch = "x86_64")]
mod digits;
mod isa;
mod kernel;
mod latent;
mod matmul;
mod moe;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norm;
mod order;
mod rope;
mod router;
mod scalar;
mod scales;
mod simd;
mod tensor;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use bandwidth::read_bandwidth;
pub use dequant::{dequantize, dequantize_row};
pub use isa::Isa;
#[cfg(feature = "gpu")]
pub(crate) use router::check as check_router;
pub use tensor::{Cache, Experts, Routing, Tensor};

use rayon::prelude::*;

use crate::{
    AttentionInputs, Backend, BackendError, CacheShape, ExpertHidden, HeadShape, LatentProjections, Norm,
    PackedMatrix, Rope, Router, SampleError, SampleRequest, Sampled, TokenLayout, sample,
};

type Result<T> = std::result::Result<T, BackendError>;

/// Runs the model on the CPU, on all threads of the current rayon pool.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    isa: Isa,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// Uses the fastest instruction set that this machine has.
    pub fn new() -> Self {
        Self { isa: Isa::best() }
    }

    /// Uses plain code: slow, and the same on every machine.
    pub fn scalar() -> Self {
        Self { isa: Isa::SCALAR }
    }

    /// Uses `isa`, if this machine has it.
    pub fn with_isa(isa: Isa) -> Option<Self> {
        Isa::available().contains(&isa).then_some(Self { isa })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
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
        const OP: &str = "store_latent";
        cache.check_layout(OP, layout)?;
        BackendError::check(OP, "tokens", kv.rows(), layout.len())?;
        BackendError::check(OP, "key width", kv.cols(), cache.width())?;
        BackendError::check(OP, "norm weight", norm.weight.len(), cache.shape().latent)?;
        check_rope(OP, rope, cache.shape().rope)?;
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
        const OP: &str = "absorb_query";
        latent::check_projections(OP, projections, heads)?;
        BackendError::check(OP, "tokens", q.rows(), layout.len())?;
        BackendError::check(OP, "query width", q.cols(), per_head(heads, heads.nope, heads.rope))?;
        check_rope(OP, rope, heads.rope)?;
        Ok(latent::absorb_query(self.isa, q, projections, heads, rope, layout))
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
        format!("cpu ({}, {} threads)", self.isa.name(), rayon::current_num_threads())
    }

    fn enter<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        rayon::scope(|_| step())
    }

    fn load_matrix(&self, matrix: PackedMatrix) -> Result<PackedMatrix> {
        Ok(matrix)
    }

    fn load_experts(&self, experts: Vec<PackedMatrix>) -> Result<Experts> {
        let Some((first, rest)) = experts.split_first() else {
            return Err(BackendError::Shape {
                op: "experts",
                what: "number of experts",
                found: 0,
                expected: 1,
            });
        };
        for expert in rest {
            BackendError::check("experts", "rows of an expert", expert.rows(), first.rows())?;
            BackendError::check("experts", "columns of an expert", expert.cols(), first.cols())?;
            if expert.format() != first.format() {
                let (found, expected) = (expert.format(), first.format());
                return Err(BackendError::Device(format!("experts are stored as {expected} and as {found}")));
            }
        }
        Ok(Experts { matrices: experts })
    }

    fn load_vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn new_cache(&self, shape: CacheShape) -> Result<Cache> {
        Cache::new(shape)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        BackendError::check("upload", "number of values", values.len(), rows.saturating_mul(cols))?;
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
        cache.check_layout("download_cache", layout)?;
        let mut out = Vec::with_capacity(layout.len() * cache.width());
        for (t, &position) in layout.positions().iter().enumerate() {
            let (page, offset) = layout.slot(t, position as usize);
            out.extend_from_slice(cache.slot(page, offset));
        }
        Ok(out)
    }

    fn embed(&self, table: &PackedMatrix, ids: &[u32]) -> Result<Tensor> {
        let mut out = Vec::new();
        for &id in ids {
            BackendError::check_range("embed", "token id", id as usize, table.rows())?;
            let start = out.len();
            out.resize(start + table.cols(), 0.0);
            dequant::row_exact(table, id as usize, &mut out[start..]);
        }
        Ok(Tensor::from_parts(ids.len(), table.cols(), out))
    }

    fn embed_chosen(&self, table: &PackedMatrix, chosen: &Self::Chosen, requests: &[u32]) -> Result<Tensor> {
        let token = |&request: &u32| {
            BackendError::check_range("embed_chosen", "chosen token", request as usize, chosen.len())?;
            Ok(chosen[request as usize].as_ref().map_or(0, |sampled| sampled.token))
        };
        self.embed(table, &requests.iter().map(token).collect::<Result<Vec<_>>>()?)
    }

    fn norm_project<const N: usize>(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        projections: [&PackedMatrix; N],
    ) -> Result<[Tensor; N]> {
        for m in projections {
            BackendError::check("norm_project", "input width", x.cols(), m.cols())?;
        }
        let x = norm::rms_norm("norm_project", x, norm)?;
        Ok(projections.map(|m| matmul::product(self.isa, m, &x)))
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
        self.store_latent(cache, kv, norm, rope, layout)?;
        self.absorb_query(q, projections, heads, rope, layout)
    }

    fn attend_latent(
        &self,
        q: &Tensor,
        cache: &Cache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        const OP: &str = "attend_latent";
        cache.check_layout(OP, layout)?;
        BackendError::check(OP, "tokens", q.rows(), layout.len())?;
        BackendError::check(OP, "latent query width", q.cols(), per_head(heads, heads.latent, heads.rope))?;
        BackendError::check(OP, "cached latent width", cache.shape().latent, heads.latent)?;
        BackendError::check(OP, "cached key width", cache.shape().rope, heads.rope)?;
        Ok(attention::attend(self.isa, q, cache, heads, scale, layout))
    }

    fn project_values(
        &self,
        attended: &Tensor,
        projections: &LatentProjections<PackedMatrix>,
        heads: HeadShape,
    ) -> Result<Tensor> {
        const OP: &str = "project_values";
        latent::check_projections(OP, projections, heads)?;
        BackendError::check(OP, "attention width", attended.cols(), per_head(heads, heads.latent, 0))?;
        Ok(latent::project_values(self.isa, attended, projections, heads))
    }

    fn project_add(&self, x: &Tensor, w: &PackedMatrix, residual: &mut Tensor) -> Result<()> {
        const OP: &str = "project_add";
        BackendError::check(OP, "input width", x.cols(), w.cols())?;
        BackendError::check(OP, "tokens of the residual", residual.rows(), x.rows())?;
        BackendError::check(OP, "width of the residual", residual.cols(), w.rows())?;
        matmul::product_add(self.isa, w, x, residual);
        Ok(())
    }

    fn norm_swiglu(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        gate: &PackedMatrix,
        up: &PackedMatrix,
    ) -> Result<Tensor> {
        check_halves("norm_swiglu", x, gate, up)?;
        let x = norm::rms_norm("norm_swiglu", x, norm)?;
        Ok(moe::swiglu_dense(self.isa, &x, gate, up))
    }

    fn route(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        router: &Router<PackedMatrix, Vec<f32>>,
    ) -> Result<(Tensor, Routing)> {
        const OP: &str = "route";
        let experts = router.gate.rows();
        BackendError::check(OP, "input width", x.cols(), router.gate.cols())?;
        BackendError::check(OP, "correction bias", router.bias.len(), experts)?;
        router::check(OP, router.shape, experts)?;
        let x = norm::rms_norm(OP, x, norm)?;
        let logits = matmul::product(self.isa, &router.gate, &x);
        let routing = router::choose(logits.data(), experts, &router.bias, router.shape);
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
        const OP: &str = "experts_swiglu";
        BackendError::check(OP, "tokens of the routing", routing.tokens, x.rows())?;
        BackendError::check(OP, "experts of up", up.matrices.len(), gate.matrices.len())?;
        check_ids(OP, routing, gate)?;
        if let (Some(gate), Some(up)) = (gate.matrices.first(), up.matrices.first()) {
            check_halves(OP, x, gate, up)?;
        }
        if let Some((gate, up)) = shared {
            check_halves(OP, x, gate, up)?;
        }
        Ok(moe::experts_swiglu(self.isa, x, routing, &gate.matrices, &up.matrices, shared))
    }

    fn experts_down_add(
        &self,
        hidden: &ExpertHidden<Tensor>,
        routing: &Routing,
        down: &Experts,
        shared: Option<&PackedMatrix>,
        residual: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "experts_down_add";
        check_ids(OP, routing, down)?;
        BackendError::check(OP, "tokens of the residual", residual.rows(), routing.tokens)?;
        BackendError::check(OP, "expert activations", hidden.routed.rows(), routing.ids.len())?;
        let shared_operand = shared.zip(hidden.shared.as_ref());
        BackendError::check(OP, "shared experts", shared.is_some().into(), hidden.shared.is_some().into())?;
        for (m, h) in down.matrices.first().map(|m| (m, &hidden.routed)).into_iter().chain(shared_operand) {
            BackendError::check(OP, "input width", h.cols(), m.cols())?;
            BackendError::check(OP, "width of the residual", residual.cols(), m.rows())?;
        }
        if let Some((_, h)) = shared_operand {
            BackendError::check(OP, "shared expert activations", h.rows(), routing.tokens)?;
        }
        moe::experts_down_add(self.isa, hidden, routing, &down.matrices, shared, residual);
        Ok(())
    }

    fn head(
        &self,
        x: &Tensor,
        rows: &[u32],
        norm: &Norm<Vec<f32>>,
        lm_head: &PackedMatrix,
    ) -> Result<Tensor> {
        const OP: &str = "head";
        BackendError::check(OP, "input width", x.cols(), lm_head.cols())?;
        let mut picked = Vec::with_capacity(rows.len() * x.cols());
        for &row in rows {
            BackendError::check_range(OP, "row", row as usize, x.rows())?;
            picked.extend_from_slice(x.row(row as usize));
        }
        let x = norm::rms_norm(OP, &Tensor::from_parts(rows.len(), x.cols(), picked), norm)?;
        Ok(matmul::product(self.isa, lm_head, &x))
    }

    fn start_sample(&self, logits: &Tensor, requests: &[SampleRequest<'_>]) -> Result<Self::Chosen> {
        requests
            .iter()
            .try_for_each(|r| BackendError::check_range("sample", "row", r.row as usize, logits.rows()))?;
        let choose = |r: &SampleRequest<'_>| sample::sample(&mut logits.row(r.row as usize).to_vec(), r);
        Ok(requests.par_iter().map(choose).collect())
    }

    fn finish_sample(&self, chosen: &Self::Chosen) -> Result<Self::Chosen> {
        Ok(chosen.clone())
    }
}

/// Width of all heads, each of two parts. A size that overflows is one that no tensor has.
fn per_head(heads: HeadShape, first: usize, second: usize) -> usize {
    heads.heads.saturating_mul(first.saturating_add(second))
}

fn check_rope(op: &'static str, rope: &Rope, width: usize) -> Result<()> {
    BackendError::check(op, "rotated width", 2 * rope.inv_freq.len(), width)
}

fn check_halves(op: &'static str, x: &Tensor, gate: &PackedMatrix, up: &PackedMatrix) -> Result<()> {
    BackendError::check(op, "input width of gate", x.cols(), gate.cols())?;
    BackendError::check(op, "input width of up", x.cols(), up.cols())?;
    BackendError::check(op, "outputs of up", up.rows(), gate.rows())
}

fn check_ids(op: &'static str, routing: &Routing, experts: &Experts) -> Result<()> {
    let limit = experts.matrices.len();
    routing.ids.iter().try_for_each(|&id| BackendError::check_range(op, "expert", id as usize, limit))
}
