//! The model: DeepSeek-V3's architecture as Kimi-K2 uses it, written once over [`Backend`].
//!
//! Notation: `T` tokens, `H` hidden size, `nh` heads, `nope`/`rope` the parts of a head's query and key, `vd` its value
//! width, `ql`/`kl` the widths of the compressed query and of the latent, `E` experts, `k` chosen, `F` their width.

mod load;

use bytes::Bytes;
use kimi_quant::{
    AttentionInputs, Backend, BackendError, CacheShape, FloatType, HeadShape, LatentProjections, Norm,
    PackedMatrix, Rope, Router, TokenLayout,
};

use crate::config::ModelConfig;
use crate::rope::{rope, softmax_scale};

pub use load::Part;

/// One layer. `M` holds a matrix, `X` a stack of experts, `V` a vector: packed bytes of the checkpoint
/// ([`HostLayer`]) or what a backend made of them ([`DeviceLayer`]).
#[derive(Debug)]
pub struct Layer<M, X, V> {
    /// `[H]`.
    pub input_norm: Norm<V>,
    /// Multi-head latent attention.
    pub attention: Attention<M, V>,
    /// `[H]`.
    pub post_norm: Norm<V>,
    /// Dense in the first layers, routed experts after them.
    pub feed_forward: FeedForward<M, X, V>,
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1).
#[derive(Debug)]
pub struct Attention<M, V> {
    /// How queries are made.
    pub query: Query<M, V>,
    /// `[kl + rope, H]`: the latent and the shared rotated key.
    pub kv_a: M,
    /// `[kl]`, over the latent only.
    pub kv_a_norm: Norm<V>,
    /// `W_UK` and `W_UV` of every head.
    pub latent: LatentProjections<M>,
    /// `[H, nh * vd]`.
    pub output: M,
}

/// The query projection.
#[derive(Debug)]
pub enum Query<M, V> {
    /// `[nh * (nope + rope), H]`.
    Direct(M),
    /// Through a narrow waist.
    LowRank {
        /// `[ql, H]`.
        a: M,
        /// `[ql]`.
        norm: Norm<V>,
        /// `[nh * (nope + rope), ql]`.
        b: M,
    },
}

/// The second half of a layer.
#[derive(Debug)]
pub enum FeedForward<M, X, V> {
    /// One MLP.
    Dense(Mlp<M>),
    /// Routed experts and a shared one.
    Moe(Moe<M, X, V>),
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug)]
pub struct Mlp<M> {
    /// `[F, H]`.
    pub gate: M,
    /// `[F, H]`.
    pub up: M,
    /// `[H, F]`.
    pub down: M,
}

/// Routed experts (DeepSeekMoE).
#[derive(Debug)]
pub struct Moe<M, X, V> {
    /// Chooses.
    pub router: Router<M, V>,
    /// `E` times `[F, H]`.
    pub gate: X,
    /// `E` times `[F, H]`.
    pub up: X,
    /// `E` times `[H, F]`.
    pub down: X,
    /// Sees every token; its weight is 1.
    pub shared: Option<Mlp<M>>,
}

/// Final norm and head.
#[derive(Debug)]
pub struct Head<M, V> {
    /// `[H]`.
    pub norm: Norm<V>,
    /// `[V, H]`.
    pub lm_head: M,
}

/// A layer as the checkpoint stores it.
pub type HostLayer = Layer<PackedMatrix, Vec<PackedMatrix>, StoredVector>;
/// A layer on a device.
pub type DeviceLayer<B> = Layer<<B as Backend>::Matrix, <B as Backend>::Experts, <B as Backend>::Vector>;
/// The head as the checkpoint stores it.
pub type HostHead = Head<PackedMatrix, StoredVector>;
/// The head on a device.
pub type DeviceHead<B> = Head<<B as Backend>::Matrix, <B as Backend>::Vector>;

/// A vector of floats as the checkpoint stores it; read only when it is loaded.
#[derive(Debug, Clone)]
pub struct StoredVector {
    /// Little-endian values, at any alignment.
    pub data: Bytes,
    /// Their type.
    pub float: FloatType,
}

impl StoredVector {
    /// The values.
    pub fn to_vec(&self) -> Vec<f32> {
        (0..self.data.len() / self.float.bytes()).map(|i| self.float.read(&self.data, i)).collect()
    }
}

/// What all layers share.
#[derive(Debug, Clone)]
pub struct Geometry {
    /// Sizes of the heads.
    pub heads: HeadShape,
    /// Rotary frequencies.
    pub rope: Rope,
    /// Factor on the attention scores.
    pub softmax_scale: f32,
}

impl Geometry {
    /// Derives it from the config.
    pub fn new(config: &ModelConfig) -> Self {
        let heads = HeadShape {
            heads: config.num_attention_heads,
            nope: config.qk_nope_head_dim,
            rope: config.qk_rope_head_dim,
            value: config.v_head_dim,
            latent: config.kv_lora_rank,
        };
        Self { heads, rope: rope(config), softmax_scale: softmax_scale(config) }
    }

    /// A layer's cache of `pages` pages.
    pub fn cache_shape(&self, pages: usize, page_tokens: usize) -> CacheShape {
        CacheShape { pages, page_tokens, latent: self.heads.latent, rope: self.heads.rope }
    }
}

/// An intermediate value of a layer, shown to a [`Trace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The residual stream after the attention.
    AfterAttention,
    /// The residual stream after the feed-forward part.
    AfterFeedForward,
}

/// Looks at intermediate values while a layer runs; for tests and for finding a wrong layer.
pub trait Trace<B: Backend>: Send {
    /// The residual stream `[T, H]` of a layer at a point.
    fn hidden(&mut self, layer: usize, point: Point, x: &B::Tensor);
    /// The choice of experts `[T, k]` of a layer.
    fn routing(&mut self, layer: usize, routing: &B::Routing);
}

/// Runs one layer: `x [T, H]` is updated in place.
///
/// # Errors
/// [`BackendError`] of the first operation that fails.
#[allow(clippy::too_many_arguments)]
pub fn forward_layer<B: Backend>(
    backend: &B,
    index: usize,
    layer: &DeviceLayer<B>,
    geometry: &Geometry,
    cache: &mut B::Cache,
    layout: &TokenLayout,
    x: &mut B::Tensor,
    trace: &mut Option<&mut dyn Trace<B>>,
) -> Result<(), BackendError> {
    attend(backend, &layer.input_norm, &layer.attention, geometry, cache, layout, x)?;
    if let Some(trace) = trace {
        trace.hidden(index, Point::AfterAttention, x);
    }
    match &layer.feed_forward {
        FeedForward::Dense(mlp) => {
            let h = backend.norm_swiglu(x, &layer.post_norm, &mlp.gate, &mlp.up)?; // [T, F]
            backend.project_add(&h, &mlp.down, x)?;
        }
        FeedForward::Moe(moe) => {
            let (normed, routing) = backend.route(x, &layer.post_norm, &moe.router)?; // [T, H], [T, k]
            if let Some(trace) = trace {
                trace.routing(index, &routing);
            }
            let shared = moe.shared.as_ref();
            let h = backend.experts_swiglu(
                &normed,
                &routing,
                &moe.gate,
                &moe.up,
                shared.map(|s| (&s.gate, &s.up)),
            )?; // [T * k, F], [T, F_shared]
            backend.experts_down_add(&h, &routing, &moe.down, shared.map(|s| &s.down), x)?;
        }
    }
    if let Some(trace) = trace {
        trace.hidden(index, Point::AfterFeedForward, x);
    }
    Ok(())
}

/// `x += attention(norm(x))`, with `W_UK` absorbed into the query and `W_UV` into the output, so that the cache
/// holds one latent a token instead of keys and values of every head.
fn attend<B: Backend>(
    backend: &B,
    norm: &Norm<B::Vector>,
    attention: &Attention<B::Matrix, B::Vector>,
    geometry: &Geometry,
    cache: &mut B::Cache,
    layout: &TokenLayout,
    x: &mut B::Tensor,
) -> Result<(), BackendError> {
    let Geometry { heads, rope, softmax_scale } = geometry;
    let (q, kv) = match &attention.query {
        Query::Direct(w) => {
            let [q, kv] = backend.norm_project(x, norm, [w, &attention.kv_a])?;
            (q, kv)
        }
        Query::LowRank { a, norm: q_norm, b } => {
            let [q_a, kv] = backend.norm_project(x, norm, [a, &attention.kv_a])?; // [T, ql], [T, kl + rope]
            let [q] = backend.norm_project(&q_a, q_norm, [b])?; // [T, nh * (nope + rope)]
            (q, kv)
        }
    };
    let inputs = AttentionInputs { q: &q, kv: &kv, norm: &attention.kv_a_norm, rope };
    let q = backend.latent_query(inputs, cache, &attention.latent, *heads, layout)?; // [T, nh * (kl + rope)]
    let attended = backend.attend_latent(&q, cache, *heads, *softmax_scale, layout)?; // [T, nh * kl]
    let values = backend.project_values(&attended, &attention.latent, *heads)?; // [T, nh * vd]
    backend.project_add(&values, &attention.output, x)
}
