//! Finds the model's matrices in a checkpoint, whatever its layout, and their format from the config or the shapes.
//!
//! Layouts: MLX with `kv_b_proj` (all of 2025) or with `embed_q`/`unembed_out`; experts stacked in `switch_mlp` or one
//! by one, or as transformers 5 fuses them; Hugging Face's bf16; DeepSeek's FP8 in blocks; compressed-tensors INT4;
//! modelopt NVFP4; all of these below `language_model.` and the like too. What else there is, is named
//! (`weights/other.rs`).

mod error;
mod fp8;
mod fused;
mod names;
mod other;
mod stored;
mod unread;

use std::borrow::Cow;
use std::ops::Range;

use kimi_quant::{Format, LatentProjections, Norm, PackedMatrix, Router};

pub use error::WeightError;
use names::Names;
use stored::{float_type, shape, unsupported};
pub use unread::Unread;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::ModelConfig;
use crate::model::{Attention, FeedForward, Head, HostHead, HostLayer, Layer, Mlp, Moe, Query, StoredVector};

/// Reads the modules of one checkpoint.
#[derive(Debug, Clone)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    names: Names,
}

impl<'a> Weights<'a> {
    /// Looks how the model's tensors are named.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, config: checkpoint.config(), names: Names::of(checkpoint) }
    }

    /// The checkpoint's config.
    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// The embedding, `[V, H]`.
    ///
    /// # Errors
    /// [`WeightError`] names the module, what was found and what would fit.
    pub fn embedding(&self) -> Result<PackedMatrix, WeightError> {
        self.matrix("model.embed_tokens", self.config.vocab_size, self.config.hidden_size)
    }

    /// Final norm and head.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn head(&self) -> Result<HostHead, WeightError> {
        let c = self.config;
        let lm_head = self.lm_head()?;
        Ok(Head { norm: self.norm("model.norm", c.hidden_size, c.rms_norm_eps)?, lm_head })
    }

    /// The head's matrix, `[V, H]`.
    pub(crate) fn lm_head(&self) -> Result<PackedMatrix, WeightError> {
        match self.is_head_tied() {
            true => self.embedding(),
            false => self.matrix("lm_head", self.config.vocab_size, self.config.hidden_size),
        }
    }

    /// Whether the head is the embedding. A head that is stored counts, whatever the config says; so does mlx-lm.
    pub fn is_head_tied(&self) -> bool {
        self.config.tie_word_embeddings && !self.has_module("lm_head")
    }

    /// What stands in the names of the model's tensors in place of `model.`.
    pub fn body_name(&self) -> &str {
        self.names.body()
    }

    /// The name in Kimi-K2's own files of a tensor of the checkpoint; `None` for what is no part of the model.
    pub(crate) fn own_name<'n>(&self, tensor: &'n str) -> Option<Cow<'n, str>> {
        self.names.own(tensor)
    }

    /// What the checkpoint holds beside the model, such as a vision tower; `None` if that is nothing.
    pub fn unread(&self) -> Option<Unread> {
        Unread::of(self.checkpoint, &self.names)
    }

    /// Layer `index`.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn layer(&self, index: usize) -> Result<HostLayer, WeightError> {
        let c = self.config;
        let path = format!("model.layers.{index}");
        let norm = |name: &str| self.norm(&format!("{path}.{name}"), c.hidden_size, c.rms_norm_eps);
        Ok(Layer {
            input_norm: norm("input_layernorm")?,
            attention: self.attention(&format!("{path}.self_attn"))?,
            post_norm: norm("post_attention_layernorm")?,
            feed_forward: match c.is_moe(index) {
                true => FeedForward::Moe(self.moe(&format!("{path}.mlp"))?),
                false => FeedForward::Dense(self.mlp(&format!("{path}.mlp"), c.intermediate_size)?),
            },
        })
    }

    /// Makes sure that the values of a stage of these layers are here: a partial checkpoint has the shapes of all.
    ///
    /// # Errors
    /// [`WeightError::NotHere`] names what is missing, and the command that gets it.
    pub fn check_here(&self, layers: &Range<usize>) -> Result<(), WeightError> {
        self.checkpoint.check_here(layers)
    }

    /// Gives the memory that tensors were read from back to the system, all those whose names begin so, such as
    /// `lm_head.`: for when a device has them.
    pub fn give_back(&self, tensors: &str) {
        self.checkpoint.give_back(&self.names.stored(tensors));
    }

    fn attention(&self, path: &str) -> Result<Attention<PackedMatrix, StoredVector>, WeightError> {
        let c = self.config;
        let (h, nh, kl) = (c.hidden_size, c.num_attention_heads, c.kv_lora_rank);
        let matrix = |name: &str, rows, cols| self.matrix(&format!("{path}.{name}"), rows, cols);
        let inner = |name: &str, n| self.norm(&format!("{path}.{name}"), n, ModelConfig::INNER_NORM_EPS);
        let query = match c.q_lora_rank {
            None => Query::Direct(matrix("q_proj", nh * c.qk_head_dim(), h)?),
            Some(ql) => Query::LowRank {
                a: matrix("q_a_proj", ql, h)?,
                norm: inner("q_a_layernorm", ql)?,
                b: matrix("q_b_proj", nh * c.qk_head_dim(), ql)?,
            },
        };
        let latent = if self.has_module(&format!("{path}.kv_b_proj")) {
            let rows = nh * (c.qk_nope_head_dim + c.v_head_dim);
            LatentProjections::Joint(matrix("kv_b_proj", rows, kl)?)
        } else {
            LatentProjections::Split {
                embed_q: matrix("embed_q", nh * kl, c.qk_nope_head_dim)?,
                unembed_out: matrix("unembed_out", nh * c.v_head_dim, kl)?,
            }
        };
        Ok(Attention {
            query,
            kv_a: matrix("kv_a_proj_with_mqa", kl + c.qk_rope_head_dim, h)?,
            kv_a_norm: inner("kv_a_layernorm", kl)?,
            latent,
            output: matrix("o_proj", h, nh * c.v_head_dim)?,
        })
    }

    fn mlp(&self, path: &str, width: usize) -> Result<Mlp<PackedMatrix>, WeightError> {
        let h = self.config.hidden_size;
        Ok(Mlp {
            gate: self.matrix(&format!("{path}.gate_proj"), width, h)?,
            up: self.matrix(&format!("{path}.up_proj"), width, h)?,
            down: self.matrix(&format!("{path}.down_proj"), h, width)?,
        })
    }

    fn moe(&self, path: &str) -> Result<Moe<PackedMatrix, Vec<PackedMatrix>, StoredVector>, WeightError> {
        let c = self.config;
        let (h, f) = (c.hidden_size, c.moe_intermediate_size);
        let gate = format!("{path}.gate");
        let router = Router {
            gate: self.matrix(&gate, c.n_routed_experts, h)?,
            bias: self.vector(&gate, "e_score_correction_bias", c.n_routed_experts)?,
            shape: c.router_shape(),
        };
        let shared = match c.n_shared_experts {
            0 => None,
            n => Some(self.mlp(&format!("{path}.shared_experts"), n * f)?),
        };
        Ok(Moe {
            router,
            gate: self.experts(path, "gate_proj", f, h)?,
            up: self.experts(path, "up_proj", f, h)?,
            down: self.experts(path, "down_proj", h, f)?,
            shared,
        })
    }

    /// A projection of every expert: stacked, or one by one.
    fn experts(
        &self,
        path: &str,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<PackedMatrix>, WeightError> {
        let n = self.config.n_routed_experts;
        let stacked = format!("{path}.switch_mlp.{name}");
        if self.has_module(&stacked) {
            return self.global_scales(&stacked, self.stored(&stacked, n * rows, cols)?.split_rows(n));
        }
        if let Some(experts) = self.fused_experts(path, name, rows, cols) {
            return experts;
        }
        let module = |e| format!("{path}.experts.{e}.{name}");
        let experts: Vec<_> =
            (0..n).map(|e| self.matrix(&module(e), rows, cols)).collect::<Result<_, _>>()?;
        match experts.iter().position(|m| m.format() != experts[0].format()) {
            None => Ok(experts),
            Some(e) => Err(unsupported(
                &module(e),
                format!(
                    "is stored as {}, but expert 0 of this layer as {}; all experts of a layer must be alike",
                    experts[e].format(),
                    experts[0].format()
                ),
            )),
        }
    }

    fn norm(&self, module: &str, width: usize, eps: f32) -> Result<Norm<StoredVector>, WeightError> {
        Ok(Norm { weight: self.vector(module, "weight", width)?, eps })
    }

    fn vector(&self, module: &str, part: &'static str, width: usize) -> Result<StoredVector, WeightError> {
        let name = format!("{module}.{part}");
        let tensor = self.tensor(&name).ok_or_else(|| self.missing(module, &name))?;
        if tensor.shape != [width] {
            return Err(shape(module, part, tensor, format!("[{width}]")));
        }
        Ok(StoredVector { data: tensor.data.clone(), float: float_type(module, tensor.dtype)? })
    }

    /// A matrix of `rows` outputs and `cols` inputs.
    fn matrix(&self, module: &str, rows: usize, cols: usize) -> Result<PackedMatrix, WeightError> {
        let matrix = self.stored(module, rows, cols)?;
        let Some(scale) = self.part(module, "global_scale") else { return Ok(matrix) };
        Self::global_scale(module, scale, (0, 1), matrix)
    }

    /// MLX's `global_scale` of stacked experts, if they have one.
    fn global_scales(
        &self,
        module: &str,
        experts: Vec<PackedMatrix>,
    ) -> Result<Vec<PackedMatrix>, WeightError> {
        let Some(scales) = self.part(module, "global_scale") else { return Ok(experts) };
        let count = experts.len();
        let scaled = experts.into_iter().enumerate();
        scaled.map(|(e, matrix)| Self::global_scale(module, scales, (e, count), matrix)).collect()
    }

    /// A matrix with its `global_scale`, the `index`-th of `count`: the largest magnitude. mlx scales so that it falls on the
    /// product of the largest e4m3 and e2m1, 448 and 6.
    fn global_scale(
        module: &str,
        scales: &Tensor,
        (index, count): (usize, usize),
        matrix: PackedMatrix,
    ) -> Result<PackedMatrix, WeightError> {
        const LARGEST: f32 = 448.0 * 6.0;
        if matrix.format() != Format::Nvfp4 {
            let what = format!("is {}, and has a global_scale, which belongs to nvfp4", matrix.format());
            return Err(unsupported(module, what));
        }
        if scales.shape.iter().product::<usize>() != count || scales.shape.len() > 1 {
            return Err(shape(module, "global_scale", scales, format!("[{count}]")));
        }
        let float = float_type(module, scales.dtype)?;
        Ok(matrix.with_global_scale(float.read(&scales.data, index) / LARGEST))
    }

    /// A tensor of a module.
    fn part(&self, module: &str, suffix: &str) -> Option<&'a Tensor> {
        self.tensor(&format!("{module}.{suffix}"))
    }

    fn tensor(&self, name: &str) -> Option<&'a Tensor> {
        self.checkpoint.tensor(&self.names.stored(name))
    }

    fn has_module(&self, module: &str) -> bool {
        let suffixes = ["weight", "weight_packed"].into_iter().chain(other::WEIGHTS);
        suffixes.into_iter().any(|suffix| self.part(module, suffix).is_some())
    }

    fn missing(&self, module: &str, tensor: &str) -> WeightError {
        let there = Names::there(self.checkpoint, tensor);
        WeightError::Missing {
            module: module.to_owned(),
            tensor: self.names.stored(tensor).into_owned(),
            there,
        }
    }
}
