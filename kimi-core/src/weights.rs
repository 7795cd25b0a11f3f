//! Finds the model's matrices in a checkpoint, whatever its layout, and their format from the config or the shapes.
//!
//! Layouts: MLX with `kv_b_proj` (all of 2025) or with `embed_q`/`unembed_out`; experts stacked in `switch_mlp` or one
//! by one, or as transformers 5 fuses them; Hugging Face's bf16; compressed-tensors INT4; all of these below
//! `language_model.` and the like too.

mod fused;
mod names;

use std::borrow::Cow;

use bytes::Bytes;
use kimi_quant::{BitWidth, FloatType, Format, FormatError, LatentProjections, Norm, PackedMatrix, Router};
use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::{ModelConfig, QuantEntry};
use crate::model::{Attention, FeedForward, Head, HostHead, HostLayer, Layer, Mlp, Moe, Query, StoredVector};
use names::Names;

/// A checkpoint whose tensors do not make the model that its config describes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// A tensor is not there.
    #[error(
        "{module}: the checkpoint has no tensor {tensor}. It has {there}. Is it whole, and a Kimi-K2 or DeepSeek-V3?"
    )]
    Missing {
        /// The module.
        module: String,
        /// The tensor looked for.
        tensor: String,
        /// How many tensors there are, and some of their names.
        there: String,
    },
    /// A tensor has another shape than the config asks for.
    #[error("{module}: {tensor} has shape {found:?}, expected {expected}")]
    Shape {
        /// The module.
        module: String,
        /// Which of its tensors.
        tensor: &'static str,
        /// Shape found.
        found: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// The stored row fits no width.
    #[error(
        "{module}: a row of {words} packed words and {groups} groups fits no bit width for {cols} inputs; \
         these would fit: {fits}"
    )]
    NoWidth {
        /// The module.
        module: String,
        /// u32 words a row.
        words: usize,
        /// Groups a row.
        groups: usize,
        /// Inputs by the architecture.
        cols: usize,
        /// Widths and their words a row.
        fits: String,
    },
    /// The config's entry contradicts the tensors.
    #[error(
        "{module}: config.json says {said}, but the tensors are stored as {stored}. Remove or correct the entry"
    )]
    Entry {
        /// The module.
        module: String,
        /// The config's entry.
        said: String,
        /// What the shapes say.
        stored: String,
    },
    /// A type or method that kimi does not read.
    #[error("{module}: {what}")]
    Unsupported {
        /// The module.
        module: String,
        /// What was found, and what to do.
        what: String,
    },
    /// The bytes do not fit.
    #[error("{module}: {cause}")]
    Format {
        /// The module.
        module: String,
        /// Why.
        cause: FormatError,
    },
}

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
            Some(e) => Err(WeightError::Unsupported {
                module: module(e),
                what: format!(
                    "is stored as {}, but expert 0 of this layer as {}; all experts of a layer must be alike",
                    experts[e].format(),
                    experts[0].format()
                ),
            }),
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
        if self.tensor(&format!("{module}.global_scale")).is_some() {
            let what = "has a global_scale, which kimi knows on stacked experts only";
            return Err(WeightError::Unsupported { module: module.to_owned(), what: what.to_owned() });
        }
        self.stored(module, rows, cols)
    }

    /// [`Self::matrix`] without its global scale; leading dimensions of the stored tensor are rows too.
    fn stored(&self, module: &str, rows: usize, cols: usize) -> Result<PackedMatrix, WeightError> {
        let part = |suffix: &str| self.tensor(&format!("{module}.{suffix}"));
        if let Some(packed) = part("weight_packed") {
            return self.compressed(module, packed, rows, cols);
        }
        let weight = part("weight").ok_or_else(|| self.missing(module, &format!("{module}.weight")))?;
        if part("weight_scale_inv").is_some() {
            let what = "is FP8 in 128x128 blocks, which kimi does not read; convert the checkpoint with mlx_lm.convert";
            return Err(WeightError::Unsupported { module: module.to_owned(), what: what.to_owned() });
        }
        let Some(scales) = part("scales") else {
            let float = Format::Float(float_type(module, weight.dtype)?);
            if leading(weight) != rows || weight.shape.last() != Some(&cols) {
                return Err(shape(module, "weight", weight, format!("[{rows}, {cols}]")));
            }
            return packed(module, rows, cols, float, [weight.data.clone(), Bytes::new(), Bytes::new()]);
        };
        if weight.dtype != Dtype::U32 {
            let what =
                format!("has scales, so its weight should be packed in U32, but it is {:?}", weight.dtype);
            return Err(WeightError::Unsupported { module: module.to_owned(), what });
        }
        for (name, tensor) in [("weight", weight), ("scales", scales)] {
            if leading(tensor) != rows {
                return Err(shape(module, name, tensor, format!("{rows} rows, as the config's sizes say")));
            }
        }
        let format = self.stored_format(module, weight, scales, cols)?;
        self.check_entry(module, format)?;
        let biases = match (part("biases"), format) {
            (Some(biases), Format::Affine { .. })
                if biases.shape == scales.shape && biases.dtype == scales.dtype =>
            {
                biases.data.clone()
            }
            (Some(biases), Format::Affine { .. }) => {
                let expected = format!("{:?} in {:?}, as the scales are", scales.shape, scales.dtype);
                return Err(shape(module, "biases", biases, expected));
            }
            (None, Format::Affine { .. }) => return Err(self.missing(module, &format!("{module}.biases"))),
            _ => Bytes::new(),
        };
        packed(module, rows, cols, format, [weight.data.clone(), scales.data.clone(), biases])
    }

    /// nvfp4's `global_scale`, one f32 an expert: the largest magnitude of the expert. mlx scales so that it falls on the
    /// product of the largest e4m3 and e2m1, 448 and 6.
    fn global_scales(
        &self,
        module: &str,
        experts: Vec<PackedMatrix>,
    ) -> Result<Vec<PackedMatrix>, WeightError> {
        const LARGEST: f32 = 448.0 * 6.0;
        let Some(scales) = self.tensor(&format!("{module}.global_scale")) else { return Ok(experts) };
        let float = float_type(module, scales.dtype)?;
        if scales.shape != [experts.len()] {
            return Err(shape(module, "global_scale", scales, format!("[{}]", experts.len())));
        }
        let scaled = experts.into_iter().enumerate();
        Ok(scaled.map(|(e, m)| m.with_global_scale(float.read(&scales.data, e) / LARGEST)).collect())
    }

    /// Format from the shapes, with the architecture's input width: `bits = 32 words / in`, `group = in / groups`.
    fn stored_format(
        &self,
        module: &str,
        weight: &Tensor,
        scales: &Tensor,
        cols: usize,
    ) -> Result<Format, WeightError> {
        let words = weight.shape.last().copied().unwrap_or(0);
        let groups = scales.shape.last().copied().unwrap_or(0);
        let no_width = || {
            let fits = BitWidth::ALL
                .map(|b| format!("{} bits = {} words", b.bits(), (cols * b.bits()).div_ceil(32)));
            let (module, fits) = (module.to_owned(), fits.join(", "));
            WeightError::NoWidth { module, words, groups, cols, fits }
        };
        let bits = (words * 32).checked_div(cols).unwrap_or(0);
        if bits * cols != words * 32 || groups == 0 || !cols.is_multiple_of(groups) {
            return Err(no_width());
        }
        let group = cols / groups;
        if scales.dtype == Dtype::U8 {
            return match (bits, group) {
                (4, 16) => Ok(Format::Nvfp4),
                (4, 32) => Ok(Format::Mxfp4),
                (8, 32) => Ok(Format::Mxfp8),
                _ => Err(no_width()),
            };
        }
        let bits = BitWidth::try_from(bits as u32).map_err(|_| no_width())?;
        if !matches!(group, 8 | 16 | 32 | 64 | 128) {
            return Err(no_width());
        }
        Ok(Format::Affine { bits, group, scales: float_type(module, scales.dtype)? })
    }

    /// The config's entry for this very module, with or without the prefix.
    pub(crate) fn entry(&self, module: &str) -> Option<QuantEntry> {
        let quantization = &self.config.quantization;
        quantization.entry(module).or_else(|| quantization.entry(&self.names.stored(module)))
    }

    /// An entry of the config for this very module must agree with the tensors; the global values need not.
    fn check_entry(&self, module: &str, stored: Format) -> Result<(), WeightError> {
        let Some(QuantEntry { bits, group_size, mode }) = self.entry(module) else { return Ok(()) };
        let stored_mode = match stored {
            Format::Mxfp4 => "mxfp4",
            Format::Nvfp4 => "nvfp4",
            Format::Mxfp8 => "mxfp8",
            _ => "affine",
        };
        if bits as usize == stored.code_bits() && group_size == stored.group() && mode == stored_mode {
            return Ok(());
        }
        let said = format!("{mode} {bits}-bit g{group_size}");
        Err(WeightError::Entry { module: module.to_owned(), said, stored: stored.to_string() })
    }

    /// compressed-tensors `pack-quantized`: symmetric INT4, offset 8.
    fn compressed(
        &self,
        module: &str,
        weight: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, WeightError> {
        let name = format!("{module}.weight_scale");
        let scales = self.tensor(&name).ok_or_else(|| self.missing(module, &name))?;
        let words = weight.shape.last().copied().unwrap_or(0);
        if leading(weight) != rows || words * 8 != cols {
            return Err(shape(module, "weight_packed", weight, format!("[{rows}, {}] for 4 bits", cols / 8)));
        }
        let groups = scales.shape.last().copied().unwrap_or(0);
        if leading(scales) != rows || groups == 0 || !cols.is_multiple_of(groups) {
            return Err(shape(
                module,
                "weight_scale",
                scales,
                format!("[{rows}, {}] for groups of 32", cols / 32),
            ));
        }
        let odd = ["weight_zero_point", "weight_g_idx"];
        if let Some(odd) = odd.iter().find(|s| self.tensor(&format!("{module}.{s}")).is_some()) {
            let what = format!(
                "has {odd}; kimi reads symmetric INT4 in plain order only. Convert it with mlx_lm.convert"
            );
            return Err(WeightError::Unsupported { module: module.to_owned(), what });
        }
        let format = Format::Int4 { group: cols / groups, scales: float_type(module, scales.dtype)? };
        packed(module, rows, cols, format, [weight.data.clone(), scales.data.clone(), Bytes::new()])
    }

    fn tensor(&self, name: &str) -> Option<&'a Tensor> {
        self.checkpoint.tensor(&self.names.stored(name))
    }

    fn has_module(&self, module: &str) -> bool {
        ["weight", "weight_packed"].iter().any(|s| self.tensor(&format!("{module}.{s}")).is_some())
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

/// Product of all dimensions but the last.
fn leading(tensor: &Tensor) -> usize {
    tensor.shape.split_last().map_or(0, |(_, rest)| rest.iter().product())
}

fn packed(
    module: &str,
    rows: usize,
    cols: usize,
    format: Format,
    parts: [Bytes; 3],
) -> Result<PackedMatrix, WeightError> {
    let [weight, scales, biases] = parts;
    PackedMatrix::new(rows, cols, format, weight, scales, biases)
        .map_err(|cause| WeightError::Format { module: module.to_owned(), cause })
}

fn float_type(module: &str, dtype: Dtype) -> Result<FloatType, WeightError> {
    match dtype {
        Dtype::BF16 => Ok(FloatType::Bf16),
        Dtype::F16 => Ok(FloatType::F16),
        Dtype::F32 => Ok(FloatType::F32),
        other => Err(WeightError::Unsupported {
            module: module.to_owned(),
            what: format!("is stored as {other:?}; BF16, F16 and F32 are read here"),
        }),
    }
}

fn shape(module: &str, tensor: &'static str, found: &Tensor, expected: String) -> WeightError {
    WeightError::Shape { module: module.to_owned(), tensor, found: found.shape.clone(), expected }
}
