//! A backend that stores activations in bf16, as mlx-lm does.

use kimi_quant::cpu::{Cache, Experts, Routing, Tensor};
use kimi_quant::{
    AttentionInputs, Backend, BackendError, CacheShape, Cpu, ExpertHidden, HeadShape, LatentProjections,
    Norm, PackedMatrix, Router, SampleError, SampleRequest, Sampled, TokenLayout,
};

type Result<T> = std::result::Result<T, BackendError>;

/// The CPU, exact, with what every operation gives rounded to bf16. mlx-lm rounds more often: each norm twice, gate and up
/// before they are multiplied, the router's logits, what is in the cache. So this is no farther from f32 than mlx-lm is.
#[derive(Debug, Clone, Copy)]
pub struct Bf16(pub Cpu);

/// To the nearest of 8 bits, ties to even.
fn round(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

impl Bf16 {
    fn rounded(&self, x: &Tensor) -> Result<Tensor> {
        let values: Vec<f32> = x.data().iter().copied().map(round).collect();
        self.0.upload(x.rows(), x.cols(), &values)
    }

    /// Adds what `add` does to a residual, each rounded.
    fn added(&self, residual: &mut Tensor, add: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        let mut own = self.0.upload(residual.rows(), residual.cols(), &vec![0.0; residual.data().len()])?;
        add(&mut own)?;
        let sum: Vec<f32> =
            residual.data().iter().zip(own.data()).map(|(a, b)| round(a + round(*b))).collect();
        *residual = self.0.upload(residual.rows(), residual.cols(), &sum)?;
        Ok(())
    }
}

impl Backend for Bf16 {
    type Matrix = PackedMatrix;
    type Experts = Experts;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Normed = Tensor;
    type Hidden = ExpertHidden<Tensor>;
    type Routing = Routing;
    type Cache = Cache;
    type Attended = Tensor;
    type Chosen = <Cpu as Backend>::Chosen;

    fn name(&self) -> String {
        format!("{}, rounding to bf16", self.0.name())
    }

    fn enter<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        self.0.enter(step)
    }

    fn load_matrix(&self, matrix: PackedMatrix) -> Result<PackedMatrix> {
        self.0.load_matrix(matrix)
    }

    fn load_experts(&self, experts: Vec<PackedMatrix>) -> Result<Experts> {
        self.0.load_experts(experts)
    }

    fn load_vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        self.0.load_vector(values)
    }

    fn new_cache(&self, shape: CacheShape) -> Result<Cache> {
        self.0.new_cache(shape)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        self.0.upload(rows, cols, values)
    }

    fn wait_for(&self, tensor: &Tensor) -> Result<()> {
        self.0.wait_for(tensor)
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        self.0.download(tensor)
    }

    fn normalized(&self, x: &Tensor) -> Result<Tensor> {
        self.0.normalized(x)
    }

    fn expert_activations(&self, hidden: &ExpertHidden<Tensor>) -> Result<ExpertHidden<Tensor>> {
        self.0.expert_activations(hidden)
    }

    fn download_routing(&self, routing: &Routing) -> Result<(Vec<u32>, Vec<f32>)> {
        self.0.download_routing(routing)
    }

    fn download_cache(&self, cache: &Cache, layout: &TokenLayout) -> Result<Vec<f32>> {
        self.0.download_cache(cache, layout)
    }

    fn cache_form(&self, cache: &Cache) -> String {
        format!("{}, of bf16", self.0.cache_form(cache))
    }

    fn read_page(&self, caches: &[Cache], page: u32) -> Result<Vec<u8>> {
        self.0.read_page(caches, page)
    }

    fn write_page(&self, caches: &mut [Cache], page: u32, bytes: &[u8]) -> Result<()> {
        self.0.write_page(caches, page, bytes)
    }

    fn embed(&self, table: &PackedMatrix, ids: &[u32]) -> Result<Tensor> {
        self.rounded(&self.0.embed(table, ids)?)
    }

    fn embed_chosen(&self, table: &PackedMatrix, chosen: &Self::Chosen, requests: &[u32]) -> Result<Tensor> {
        self.rounded(&self.0.embed_chosen(table, chosen, requests)?)
    }

    fn norm_project<const N: usize>(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        projections: [&PackedMatrix; N],
    ) -> Result<[Tensor; N]> {
        let mut outs = self.0.norm_project(x, norm, projections)?;
        for out in &mut outs {
            *out = self.rounded(out)?;
        }
        Ok(outs)
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
        let inputs = AttentionInputs { q, kv, norm, rope };
        self.rounded(&self.0.latent_query(inputs, cache, projections, heads, layout)?)
    }

    fn attend_latent(
        &self,
        q: &Tensor,
        cache: &Cache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        self.rounded(&self.0.attend_latent(q, cache, heads, scale, layout)?)
    }

    fn project_values(
        &self,
        attended: &Tensor,
        projections: &LatentProjections<PackedMatrix>,
        heads: HeadShape,
    ) -> Result<Tensor> {
        self.rounded(&self.0.project_values(attended, projections, heads)?)
    }

    fn project_add(&self, x: &Tensor, w: &PackedMatrix, residual: &mut Tensor) -> Result<()> {
        self.added(residual, |own| self.0.project_add(x, w, own))
    }

    fn norm_swiglu(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        gate: &PackedMatrix,
        up: &PackedMatrix,
    ) -> Result<Tensor> {
        self.rounded(&self.0.norm_swiglu(x, norm, gate, up)?)
    }

    fn route(
        &self,
        x: &Tensor,
        norm: &Norm<Vec<f32>>,
        router: &Router<PackedMatrix, Vec<f32>>,
    ) -> Result<(Tensor, Routing)> {
        let (normed, routing) = self.0.route(x, norm, router)?;
        Ok((self.rounded(&normed)?, routing))
    }

    fn experts_swiglu(
        &self,
        x: &Tensor,
        routing: &Routing,
        gate: &Experts,
        up: &Experts,
        shared: Option<(&PackedMatrix, &PackedMatrix)>,
    ) -> Result<ExpertHidden<Tensor>> {
        let hidden = self.0.experts_swiglu(x, routing, gate, up, shared)?;
        let shared = hidden.shared.map(|shared| self.rounded(&shared)).transpose()?;
        Ok(ExpertHidden { routed: self.rounded(&hidden.routed)?, shared })
    }

    fn experts_down_add(
        &self,
        hidden: &ExpertHidden<Tensor>,
        routing: &Routing,
        down: &Experts,
        shared: Option<&PackedMatrix>,
        residual: &mut Tensor,
    ) -> Result<()> {
        self.added(residual, |own| self.0.experts_down_add(hidden, routing, down, shared, own))
    }

    fn head(
        &self,
        x: &Tensor,
        rows: &[u32],
        norm: &Norm<Vec<f32>>,
        lm_head: &PackedMatrix,
    ) -> Result<Tensor> {
        self.rounded(&self.0.head(x, rows, norm, lm_head)?)
    }

    fn start_sample(&self, logits: &Tensor, requests: &[SampleRequest<'_>]) -> Result<Self::Chosen> {
        self.0.start_sample(logits, requests)
    }

    fn finish_sample(&self, chosen: &Self::Chosen) -> Result<Vec<std::result::Result<Sampled, SampleError>>> {
        self.0.finish_sample(chosen)
    }
}
