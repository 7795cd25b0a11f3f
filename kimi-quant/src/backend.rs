//! The seam between the model and the devices that run it.

pub(crate) mod check;

use crate::{BackendError, PackedMatrix, SampleError, SampleRequest, Sampled, TokenLayout};

type Result<T> = std::result::Result<T, BackendError>;

/// RMS norm: `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Debug)]
pub struct Norm<V> {
    /// `[N]`.
    pub weight: V,
    /// Added to the mean square.
    pub eps: f32,
}

/// Rotary embedding of interleaved pairs `(2i, 2i+1)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians a position for each pair, `[rope / 2]`.
    pub inv_freq: Vec<f32>,
    /// Factor on the input before it is rotated (YaRN's mscale ratio; 1 for Kimi-K2).
    pub mscale: f32,
}

/// Sizes of the attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Number of heads, `nh`.
    pub heads: usize,
    /// Query and key width without position, `nope`.
    pub nope: usize,
    /// Query and key width that is rotated, `rope`.
    pub rope: usize,
    /// Value width, `vd`.
    pub value: usize,
    /// Width of the shared latent, `kl` (kv_lora_rank).
    pub latent: usize,
}

/// The two per-head projections between heads and the latent: `W_UK` and `W_UV` of DeepSeek-V2.
#[derive(Debug)]
pub enum LatentProjections<M> {
    /// `kv_b_proj` as trained: `[nh * (nope + vd), kl]`; a head's rows are its `W_UK [nope, kl]`, then its
    /// `W_UV [vd, kl]`. Used as it is: splitting and re-quantizing it costs over a third of the logits.
    Joint(M),
    /// Split by newer converters.
    Split {
        /// `W_UK` transposed per head: `[nh * kl, nope]`.
        embed_q: M,
        /// `W_UV`: `[nh * vd, kl]`.
        unembed_out: M,
    },
}

/// Sizes of a layer's latent cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of pages.
    pub pages: usize,
    /// Tokens in a page.
    pub page_tokens: usize,
    /// Latent values a token, `kl`.
    pub latent: usize,
    /// Rotated key values a token, `rope`.
    pub rope: usize,
}

impl CacheShape {
    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.latent.saturating_add(self.rope).saturating_mul(self.page_tokens).saturating_mul(4)
    }
}

/// How the router chooses (DeepSeek-V3's noaux_tc with sigmoid scores).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterShape {
    /// Experts chosen a token, `k`.
    pub chosen: usize,
    /// Groups of experts; 1 for Kimi-K2.
    pub groups: usize,
    /// Groups that stay eligible.
    pub kept_groups: usize,
    /// Whether the chosen scores are divided by their sum (done only if `chosen > 1`).
    pub normalize: bool,
    /// routed_scaling_factor.
    pub scale: f32,
}

/// A router's weights.
#[derive(Debug)]
pub struct Router<M, V> {
    /// `[E, H]`.
    pub gate: M,
    /// e_score_correction_bias, `[E]`: added for the choice only.
    pub bias: V,
    /// How to choose.
    pub shape: RouterShape,
}

/// What the experts compute between gate and up and down.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertHidden<T> {
    /// `[T * k, F]`: row `t * k + j` belongs to token `t`'s `j`-th choice.
    pub routed: T,
    /// `[T, F_shared]`, if the layer has a shared expert.
    pub shared: Option<T>,
}

/// What a layer's attention begins with.
pub struct AttentionInputs<'a, B: Backend + ?Sized> {
    /// Queries before any position, `[T, nh * (nope + rope)]`.
    pub q: &'a B::Tensor,
    /// Latents and shared keys before norm and position, `[T, kl + rope]`.
    pub kv: &'a B::Tensor,
    /// Norm of the latent, `[kl]`.
    pub norm: &'a Norm<B::Vector>,
    /// Rotary embedding of the positional parts.
    pub rope: &'a Rope,
}

/// What is known of weights wherever they are.
pub trait Stored {
    /// How many matrices of one shape they are, their rows, and their columns.
    fn shape(&self) -> [usize; 3];

    /// Bytes of all of them as a checkpoint stores them, scales and biases included.
    fn stored_bytes(&self) -> u64;
}

/// A device that runs the model.
///
/// Activations are f32 and row-major, `[T, width]` with a row a token. An implementation may queue work: only
/// `wait_for`, `download`, the `download_*` functions, `finish_sample` and `sample` wait. Every function checks its
/// operands first (backend/check.rs) and returns [`BackendError::Shape`] or [`BackendError::Range`] where they do not fit;
/// nothing is computed or written then.
pub trait Backend: Send + Sync + 'static {
    /// A packed matrix on the device.
    type Matrix: Stored + Send + Sync;
    /// The same projection of all experts of a layer.
    type Experts: Stored + Send + Sync;
    /// An f32 vector on the device.
    type Vector: Send + Sync;
    /// Activations `[T, width]`.
    type Tensor: Send;
    /// Activations after a norm, which the device may leave pending until they are read.
    type Normed: From<Self::Tensor> + Send;
    /// What the experts compute between gate and up and down, in whatever form `experts_down_add` takes.
    type Hidden: From<ExpertHidden<Self::Tensor>> + Send;
    /// Chosen experts and their weights, `[T, k]` each.
    type Routing: Send;
    /// The latent cache of one layer.
    type Cache: Send;
    /// Results of attention `[T, nh * kl]`, in whatever form `project_values` takes.
    type Attended: Send;
    /// Chosen tokens, which may not be known to the host yet.
    type Chosen: Send + Sync;

    /// A name for people: device and instruction set.
    fn name(&self) -> String;

    /// Bytes that weights and caches may take; `None` where it is unknown, and for the CPU, whose memory is the
    /// process's.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// Whether loaded weights are copies, so that the pages that they were read from can be given back.
    fn copies_weights(&self) -> bool {
        false
    }

    /// Whether operations are queued, so that a step can be handed over while the device computes the one before it.
    fn queues(&self) -> bool {
        false
    }

    /// Runs a step of many operations where they are cheapest to start. `Cpu` goes onto a thread of its pool once, instead
    /// of handing every operation over to it.
    fn enter<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        step()
    }

    /// A twin that computes nothing: its operations, on this device's matrices and caches, note which kernels they need. `None`
    /// where nothing has to be compiled.
    fn rehearsal(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// A number for what a twin has noted since the last call: other kernels, or another order, have another number.
    fn rehearsed(&self) -> u64 {
        0
    }

    /// Makes the kernels that a twin has noted, so that no step waits for them. `progress` is told how many of how many are
    /// made.
    ///
    /// # Errors
    /// [`BackendError::Device`] if the device has failed.
    fn make_kernels(&self, _twin: &Self, _progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        Ok(())
    }

    /// Gives the device a moment of work, so that its clock stays up; does not wait. Operations and their results are as
    /// without it.
    ///
    /// # Errors
    /// [`BackendError::Device`] if the device has failed.
    fn nudge(&self) -> Result<()> {
        Ok(())
    }

    /// Makes a matrix usable on the device.
    fn load_matrix(&self, matrix: PackedMatrix) -> Result<Self::Matrix>;
    /// Makes a layer's experts usable; all have one shape and format.
    fn load_experts(&self, experts: Vec<PackedMatrix>) -> Result<Self::Experts>;
    /// Makes a vector usable.
    fn load_vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// Allocates a layer's cache.
    fn new_cache(&self, shape: CacheShape) -> Result<Self::Cache>;
    /// Brings activations `[rows, cols]` in.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Tensor>;
    /// Waits until activations are computed.
    fn wait_for(&self, tensor: &Self::Tensor) -> Result<()>;
    /// Waits, and brings activations out, `[rows * cols]`.
    fn download(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;
    /// Activations with their norm applied. The model has no need of it: `experts_swiglu` reads them as they are.
    fn normalized(&self, x: &Self::Normed) -> Result<Self::Tensor>;
    /// The experts' activations, each by themselves. The model has no need of it: `experts_down_add` reads them as they
    /// are.
    fn expert_activations(&self, hidden: &Self::Hidden) -> Result<ExpertHidden<Self::Tensor>>;
    /// Waits, and brings a routing out: expert ids and weights, `[T * k]` each, in the order of choice.
    fn download_routing(&self, routing: &Self::Routing) -> Result<(Vec<u32>, Vec<f32>)>;
    /// Waits, and brings the cache entries of the layout's own tokens out, `[T * (kl + rope)]`.
    fn download_cache(&self, cache: &Self::Cache, layout: &TokenLayout) -> Result<Vec<f32>>;
    /// How a cache stores its values, and what computes them: instruction set or device, and precision where there are several. A
    /// page of one cache can be put into another of the same shape and form only.
    fn cache_form(&self, cache: &Self::Cache) -> String;
    /// Waits, and brings a page of some caches out as it is stored: [`CacheShape::page_bytes`] of each, one after another.
    fn read_page(&self, caches: &[Self::Cache], page: u32) -> Result<Vec<u8>>;
    /// Puts a page in that [`Self::read_page`] has brought out.
    fn write_page(&self, caches: &mut [Self::Cache], page: u32, bytes: &[u8]) -> Result<()>;

    /// Rows `ids` of the embedding: `[T, H]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32]) -> Result<Self::Tensor>;

    /// The same for tokens that the host need not know: those chosen for `requests`, by their place in that
    /// [`Self::start_sample`]. Where none could be chosen the row is that of any token.
    fn embed_chosen(
        &self,
        table: &Self::Matrix,
        chosen: &Self::Chosen,
        requests: &[u32],
    ) -> Result<Self::Tensor>;

    /// Norm, then each of the projections: `[T, out]` each.
    fn norm_project<const N: usize>(
        &self,
        x: &Self::Tensor,
        norm: &Norm<Self::Vector>,
        projections: [&Self::Matrix; N],
    ) -> Result<[Self::Tensor; N]>;

    /// Stores each token's key, its latent part normalised and its positional part rotated, and turns the queries into
    /// latent queries `[T, nh * (kl + rope)]`: the first part through `W_UK`, the second rotated.
    fn latent_query(
        &self,
        inputs: AttentionInputs<'_, Self>,
        cache: &mut Self::Cache,
        projections: &LatentProjections<Self::Matrix>,
        heads: HeadShape,
        layout: &TokenLayout,
    ) -> Result<Self::Tensor>;

    /// Causal attention of latent queries over the cache: `softmax(scale * q . [c | k_pe]) @ c`, `[T, nh * kl]`.
    fn attend_latent(
        &self,
        q: &Self::Tensor,
        cache: &Self::Cache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<Self::Attended>;

    /// Attention results `[T, nh * kl]` through `W_UV`: `[T, nh * vd]`.
    fn project_values(
        &self,
        attended: &Self::Attended,
        projections: &LatentProjections<Self::Matrix>,
        heads: HeadShape,
    ) -> Result<Self::Tensor>;

    /// `residual += x @ w^T`.
    fn project_add(&self, x: &Self::Tensor, w: &Self::Matrix, residual: &mut Self::Tensor) -> Result<()>;

    /// Norm, then `silu(x @ gate^T) * (x @ up^T)`: `[T, F]`.
    fn norm_swiglu(
        &self,
        x: &Self::Tensor,
        norm: &Norm<Self::Vector>,
        gate: &Self::Matrix,
        up: &Self::Matrix,
    ) -> Result<Self::Tensor>;

    /// Norm, and the choice of experts for each token. Returns the normalised activations too.
    ///
    /// Scores are sigmoids; groups and experts are chosen by score plus bias (masked groups count as 0, ties go to
    /// the lower id), weights are the scores without bias.
    fn route(
        &self,
        x: &Self::Tensor,
        norm: &Norm<Self::Vector>,
        router: &Router<Self::Matrix, Self::Vector>,
    ) -> Result<(Self::Normed, Self::Routing)>;

    /// `silu(gate) * up` of each token's chosen experts and of the shared expert. `x` is after the norm.
    fn experts_swiglu(
        &self,
        x: &Self::Normed,
        routing: &Self::Routing,
        gate: &Self::Experts,
        up: &Self::Experts,
        shared: Option<(&Self::Matrix, &Self::Matrix)>,
    ) -> Result<Self::Hidden>;

    /// `residual += sum_j weight_j * down_j(h_j) + shared_down(h_shared)`.
    fn experts_down_add(
        &self,
        hidden: &Self::Hidden,
        routing: &Self::Routing,
        down: &Self::Experts,
        shared: Option<&Self::Matrix>,
        residual: &mut Self::Tensor,
    ) -> Result<()>;

    /// Final norm and language-model head for the rows asked for: logits `[rows.len(), V]`.
    fn head(
        &self,
        x: &Self::Tensor,
        rows: &[u32],
        norm: &Norm<Self::Vector>,
        lm_head: &Self::Matrix,
    ) -> Result<Self::Tensor>;

    /// Starts to choose a token for each request from its row of the logits `[S, V]`, which stay as they are.
    fn start_sample(&self, logits: &Self::Tensor, requests: &[SampleRequest<'_>]) -> Result<Self::Chosen>;

    /// Waits for chosen tokens and brings them out, once. A request that fails, fails alone. Work that was queued later is
    /// not waited for.
    fn finish_sample(&self, chosen: &Self::Chosen) -> Result<Vec<std::result::Result<Sampled, SampleError>>>;

    /// Chooses tokens and waits for them.
    fn sample(
        &self,
        logits: &Self::Tensor,
        requests: &[SampleRequest<'_>],
    ) -> Result<Vec<std::result::Result<Sampled, SampleError>>> {
        self.finish_sample(&self.start_sample(logits, requests)?)
    }
}
