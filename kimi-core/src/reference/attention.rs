//! Multi-head latent attention (DeepSeek-V2, section 2.1), with keys and values of every head.

use burn::module::{Module, Param};
use burn::nn::{Linear, RmsNorm};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

use super::Rotary;

/// Multi-head latent attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// How queries are made: `H` to `nh * (nope + rope)`, a head after the other.
    pub query: QueryProjection,
    /// `H` to `kl + rope`: the latent, and the one rotated key that all heads share.
    pub kv_a_proj_with_mqa: Linear,
    /// `[kl]`: norm of the latent. The rotated key has none.
    pub kv_a_layernorm: RmsNorm,
    /// `[nh, kl, nope]`: the latent to each head's key (the transpose of `W_UK`).
    pub latent_to_key: Param<Tensor<3>>,
    /// `[nh, kl, vd]`: the latent to each head's value (the transpose of `W_UV`).
    pub latent_to_value: Param<Tensor<3>>,
    /// `nh * vd` to `H`.
    pub o_proj: Linear,
    /// Rotates the last `rope` values of queries and keys.
    pub rotary: Rotary,
    /// Factor on the scores.
    pub scale: f64,
}

/// The query projection.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum QueryProjection {
    /// One matrix.
    Direct(Linear),
    /// Two matrices with a narrow waist.
    LowRank(LowRankQuery),
}

/// `q_b(norm(q_a(x)))`.
#[derive(Module, Debug)]
pub struct LowRankQuery {
    /// `H` to `ql`.
    pub q_a_proj: Linear,
    /// `[ql]`.
    pub q_a_layernorm: RmsNorm,
    /// `ql` to `nh * (nope + rope)`.
    pub q_b_proj: Linear,
}

/// Keys `[nh, S, nope + rope]` and values `[nh, S, vd]` of a layer's earlier tokens.
#[derive(Debug, Clone, Default)]
pub struct KeyValues(Option<(Tensor<3>, Tensor<3>)>);

impl KeyValues {
    /// Tokens held, `S`.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |(keys, _)| keys.dims()[1])
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Appends new tokens and returns all of them.
    fn append(&mut self, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let all = match self.0.take() {
            None => (keys, values),
            Some((k, v)) => (Tensor::cat(vec![k, keys], 1), Tensor::cat(vec![v, values], 1)),
        };
        self.0.insert(all).clone()
    }
}

impl QueryProjection {
    /// `x [T, H]` to `[T, nh * (nope + rope)]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Direct(q_proj) => q_proj.forward(x),
            Self::LowRank(q) => q.q_b_proj.forward(q.q_a_layernorm.forward(q.q_a_proj.forward(x))),
        }
    }
}

impl Attention {
    /// `x [T, H]`, the tokens that follow those in `cache`, to `[T, H]`. Causal.
    pub fn forward(&self, x: Tensor<2>, cache: &mut KeyValues) -> Tensor<2> {
        let [tokens, _] = x.dims();
        let [heads, latent, nope] = self.latent_to_key.dims();
        let start = cache.len();

        let q = self.query.forward(x.clone()).reshape([tokens as i32, heads as i32, -1]).swap_dims(0, 1);
        let [_, _, width] = q.dims();
        let rope = width - nope;
        let q_rotated = self.rotary.forward(q.clone().narrow(2, nope, rope), start);
        let q = Tensor::cat(vec![q.narrow(2, 0, nope), q_rotated], 2); // [nh, T, nope + rope]

        let kv = self.kv_a_proj_with_mqa.forward(x); // [T, kl + rope]
        let c = self.kv_a_layernorm.forward(kv.clone().narrow(1, 0, latent)).unsqueeze_dim::<3>(0); // [1, T, kl]
        let k_rotated = self.rotary.forward(kv.narrow(1, latent, rope).unsqueeze_dim(0), start); // [1, T, rope]
        let k = c.clone().matmul(self.latent_to_key.val()); // [nh, T, nope]
        let k = Tensor::cat(vec![k, k_rotated.expand([heads, tokens, rope])], 2); // [nh, T, nope + rope]
        let v = c.matmul(self.latent_to_value.val()); // [nh, T, vd]
        let (k, v) = cache.append(k, v); // [nh, S, ..]

        let scores = q.matmul(k.swap_dims(1, 2)) * self.scale; // [nh, T, S]
        let future = Tensor::<2, Bool>::tril_mask([tokens, start + tokens], start as i64, &scores.device());
        let scores = scores.mask_fill(
            future.unsqueeze_dim::<3>(0).expand([heads, tokens, start + tokens]),
            f32::NEG_INFINITY,
        );
        let attended = softmax(scores, 2).matmul(v); // [nh, T, vd]
        self.o_proj.forward(attended.swap_dims(0, 1).reshape([tokens as i32, -1]))
    }
}
