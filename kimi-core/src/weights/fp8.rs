//! Matrices as NVIDIA's hardware has them: DeepSeek's FP8 in blocks, and modelopt's NVFP4.
//!
//! Both publish scales for activations too, or how to make them (`activation_scheme`, `input_scale`). They are not used:
//! activations are never rounded here.

use bytes::Bytes;
use kimi_quant::{Format, PackedMatrix};
use safetensors::Dtype;

use super::stored::{float, float_type, packed, shape, unsupported};
use super::{WeightError, Weights};
use crate::checkpoint::Tensor;

impl Weights<'_> {
    /// DeepSeek's FP8, with `weight_scale_inv` for blocks of 128 by 128. It is what values are multiplied by; compressed-tensors
    /// calls the same `weight_scale`.
    pub(super) fn fp8(
        &self,
        module: &str,
        weight: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, WeightError> {
        let part = |suffix: &'static str| Some((suffix, self.part(module, suffix)?));
        let scales = part("weight_scale_inv").or_else(|| part("weight_scale"));
        let Some((name, scales)) = scales else { return Err(self.refused(module)) };
        if weight.shape != [rows, cols] {
            return Err(shape(module, "weight", weight, format!("[{rows}, {cols}]")));
        }
        let blocks = [rows, cols].map(|n| n.div_ceil(Format::FP8_BLOCK));
        let count: usize = scales.shape.iter().product();
        if scales.shape != blocks && (count == 1 || count == rows) {
            return Err(self.refused(module)); // one scale for all, or one a row
        }
        let format = self.fp8_format(module, name, scales, &blocks)?;
        packed(module, rows, cols, format, [weight.data.clone(), scales.data.clone(), Bytes::new()])
    }

    /// FP8 with these scales, of which there have to be so many.
    pub(super) fn fp8_format(
        &self,
        module: &str,
        name: &'static str,
        scales: &Tensor,
        blocks: &[usize],
    ) -> Result<Format, WeightError> {
        const BLOCK: usize = Format::FP8_BLOCK;
        if let Some(block) = self.config.quantization.block_size().filter(|block| *block != [BLOCK; 2]) {
            let what = format!(
                "is FP8 in blocks of {block:?} by config.json; kimi reads blocks of {:?}. Convert the model's bf16 \
                 checkpoint with mlx_lm.convert",
                [BLOCK; 2]
            );
            return Err(unsupported(module, what));
        }
        let Some(float) = float(scales.dtype) else { return Err(self.refused(module)) };
        if scales.shape != blocks {
            let expected = format!("{blocks:?}, a scale for each block of {BLOCK}x{BLOCK}");
            return Err(shape(module, name, scales, expected));
        }
        Ok(Format::Fp8 { scales: float })
    }

    /// modelopt's NVFP4: two codes a byte, the first in its low bits; an e4m3 scale for 16 of them, and one scale for all.
    pub(super) fn modelopt_nvfp4(
        &self,
        module: &str,
        weight: &Tensor,
        scales: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, WeightError> {
        if self.part(module, "pre_quant_scale").is_some() {
            return Err(self.refused(module)); // the input has to be multiplied by it
        }
        for (name, tensor, codes) in [("weight", weight, 2), ("weight_scale", scales, 16)] {
            if tensor.shape != [rows, cols / codes] || !cols.is_multiple_of(codes) {
                return Err(shape(module, name, tensor, format!("[{rows}, {}]", cols / codes)));
            }
        }
        let name = format!("{module}.weight_scale_2");
        let global = self.tensor(&name).ok_or_else(|| self.missing(module, &name))?;
        if global.dtype != Dtype::F32 || global.data.len() != 4 {
            return Err(shape(module, "weight_scale_2", global, "one F32".to_owned()));
        }
        let scale = float_type(module, global.dtype)?.read(&global.data, 0);
        let parts = [weight.data.clone(), scales.data.clone(), Bytes::new()];
        Ok(packed(module, rows, cols, Format::Nvfp4, parts)?.with_global_scale(scale))
    }
}
