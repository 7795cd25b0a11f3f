//! Bringing the model's parts onto a device, and their names and sizes in a checkpoint.

use kimi_quant::{Backend, BackendError, LatentProjections, Norm, PackedMatrix, Router};

use super::{
    Attention, DeviceHead, DeviceLayer, FeedForward, Head, HostHead, HostLayer, Layer, Mlp, Moe, Query,
    StoredVector,
};
use crate::weights::WeightError;

fn norm_to<B: Backend>(backend: &B, norm: Norm<StoredVector>) -> Result<Norm<B::Vector>, BackendError> {
    Ok(Norm { weight: backend.load_vector(norm.weight.to_vec())?, eps: norm.eps })
}

impl HostLayer {
    /// Brings the layer onto a device.
    ///
    /// # Errors
    /// [`BackendError`], as when the device has no room.
    pub fn load<B: Backend>(self, backend: &B) -> Result<DeviceLayer<B>, BackendError> {
        let matrix = |m| backend.load_matrix(m);
        let attention = self.attention;
        let attention = Attention {
            query: match attention.query {
                Query::Direct(w) => Query::Direct(matrix(w)?),
                Query::LowRank { a, norm, b } => {
                    Query::LowRank { a: matrix(a)?, norm: norm_to(backend, norm)?, b: matrix(b)? }
                }
            },
            kv_a: matrix(attention.kv_a)?,
            kv_a_norm: norm_to(backend, attention.kv_a_norm)?,
            latent: match attention.latent {
                LatentProjections::Joint(w) => LatentProjections::Joint(matrix(w)?),
                LatentProjections::Split { embed_q, unembed_out } => {
                    LatentProjections::Split { embed_q: matrix(embed_q)?, unembed_out: matrix(unembed_out)? }
                }
            },
            output: matrix(attention.output)?,
        };
        let mlp = |m: Mlp<PackedMatrix>| -> Result<Mlp<B::Matrix>, BackendError> {
            Ok(Mlp { gate: matrix(m.gate)?, up: matrix(m.up)?, down: matrix(m.down)? })
        };
        let feed_forward = match self.feed_forward {
            FeedForward::Dense(m) => FeedForward::Dense(mlp(m)?),
            FeedForward::Moe(moe) => FeedForward::Moe(Moe {
                router: Router {
                    gate: matrix(moe.router.gate)?,
                    bias: backend.load_vector(moe.router.bias.to_vec())?,
                    shape: moe.router.shape,
                },
                gate: backend.load_experts(moe.gate)?,
                up: backend.load_experts(moe.up)?,
                down: backend.load_experts(moe.down)?,
                shared: moe.shared.map(mlp).transpose()?,
            }),
        };
        Ok(Layer {
            input_norm: norm_to(backend, self.input_norm)?,
            attention,
            post_norm: norm_to(backend, self.post_norm)?,
            feed_forward,
        })
    }

    /// Looks for weights that are not numbers, in formats that have codes for them: reads all that may be one. `layer` is
    /// for the error.
    ///
    /// # Errors
    /// [`WeightError::NotANumber`] names the module and the row.
    pub fn check_numbers(&self, layer: usize) -> Result<(), WeightError> {
        let mut found = Ok(());
        self.visit(&mut |name, part| {
            let Part::Matrices(list) = part else { return };
            if found.is_err() {
                return;
            }
            let mut rows = list.iter().enumerate().filter_map(|(i, m)| Some((i, m.first_nan_row()?)));
            if let Some((expert, row)) = rows.next() {
                let expert = if list.len() > 1 { format!(" (expert {expert})") } else { String::new() };
                let module = format!("model.layers.{layer}.{name}{expert}");
                found = Err(WeightError::NotANumber { module, row });
            }
        });
        found
    }

    /// Stored bytes of the layer's weights.
    pub fn bytes(&self) -> u64 {
        let mut total = 0;
        self.visit(&mut |_, parts| total += parts.bytes());
        total
    }

    /// Stored bytes that one token reads: those of the experts that it chooses, and of everything else.
    pub fn token_bytes(&self) -> u64 {
        let FeedForward::Moe(moe) = &self.feed_forward else { return self.bytes() };
        let experts: u64 =
            [&moe.gate, &moe.up, &moe.down].map(|list| Part::Matrices(list).bytes()).iter().sum();
        let (chosen, all) = (moe.router.shape.chosen as u64, moe.gate.len().max(1) as u64);
        self.bytes() - experts + (experts / all).saturating_mul(chosen).min(experts)
    }

    /// Shows every module of the layer with its name below `model.layers.N`.
    pub fn visit(&self, f: &mut dyn FnMut(&str, Part<'_>)) {
        f("input_layernorm", Part::Vector(&self.input_norm.weight));
        f("post_attention_layernorm", Part::Vector(&self.post_norm.weight));
        let attention = &self.attention;
        match &attention.query {
            Query::Direct(w) => f("self_attn.q_proj", Part::matrix(w)),
            Query::LowRank { a, norm, b } => {
                f("self_attn.q_a_proj", Part::matrix(a));
                f("self_attn.q_a_layernorm", Part::Vector(&norm.weight));
                f("self_attn.q_b_proj", Part::matrix(b));
            }
        }
        f("self_attn.kv_a_proj_with_mqa", Part::matrix(&attention.kv_a));
        f("self_attn.kv_a_layernorm", Part::Vector(&attention.kv_a_norm.weight));
        match &attention.latent {
            LatentProjections::Joint(w) => f("self_attn.kv_b_proj", Part::matrix(w)),
            LatentProjections::Split { embed_q, unembed_out } => {
                f("self_attn.embed_q", Part::matrix(embed_q));
                f("self_attn.unembed_out", Part::matrix(unembed_out));
            }
        }
        f("self_attn.o_proj", Part::matrix(&attention.output));
        match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.visit("mlp", f),
            FeedForward::Moe(moe) => {
                f("mlp.gate", Part::matrix(&moe.router.gate));
                f("mlp.gate.e_score_correction_bias", Part::Vector(&moe.router.bias));
                f("mlp.switch_mlp.gate_proj", Part::Matrices(&moe.gate));
                f("mlp.switch_mlp.up_proj", Part::Matrices(&moe.up));
                f("mlp.switch_mlp.down_proj", Part::Matrices(&moe.down));
                if let Some(shared) = &moe.shared {
                    shared.visit("mlp.shared_experts", f);
                }
            }
        }
    }
}

impl Mlp<PackedMatrix> {
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(&str, Part<'_>)) {
        f(&format!("{prefix}.gate_proj"), Part::matrix(&self.gate));
        f(&format!("{prefix}.up_proj"), Part::matrix(&self.up));
        f(&format!("{prefix}.down_proj"), Part::matrix(&self.down));
    }
}

impl HostHead {
    /// Brings the head onto a device.
    ///
    /// # Errors
    /// [`BackendError`], as when the device has no room.
    pub fn load<B: Backend>(self, backend: &B) -> Result<DeviceHead<B>, BackendError> {
        Ok(Head { norm: norm_to(backend, self.norm)?, lm_head: backend.load_matrix(self.lm_head)? })
    }
}

/// A module's weights.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// One matrix, or one an expert.
    Matrices(&'a [PackedMatrix]),
    /// A vector.
    Vector(&'a StoredVector),
}

impl<'a> Part<'a> {
    fn matrix(m: &'a PackedMatrix) -> Self {
        Self::Matrices(std::slice::from_ref(m))
    }

    /// Stored bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Matrices(list) => list.iter().map(PackedMatrix::bytes).sum(),
            Self::Vector(v) => v.data.len() as u64,
        }
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        match self {
            Self::Matrices(list) => list.iter().map(|m| m.rows() as u64 * m.cols() as u64).sum(),
            Self::Vector(v) => (v.data.len() / v.float.bytes()) as u64,
        }
    }
}
