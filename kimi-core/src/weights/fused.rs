//! Experts as transformers 5 stores them: those of a layer in one tensor, gate and up in one matrix; in floats, or in
//! FP8 with a tensor `.._scale_inv` of blocks.

use bytes::Bytes;
use kimi_quant::{Format, PackedMatrix};
use safetensors::Dtype;

use super::stored::{float_type, packed, shape};
use super::{WeightError, Weights};

impl Weights<'_> {
    /// A projection of every expert of a layer from `experts.gate_up_proj`, `[E, 2F, H]`, or `experts.down_proj`, `[E, H, F]`;
    /// `None` if they are stored otherwise.
    pub(super) fn fused_experts(
        &self,
        path: &str,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Option<Result<Vec<PackedMatrix>, WeightError>> {
        // Which of the matrices that stand above each other, of how many.
        let (part, index, parts) = match name {
            "gate_proj" => ("gate_up_proj", 0, 2),
            "up_proj" => ("gate_up_proj", 1, 2),
            _ => ("down_proj", 0, 1),
        };
        let module = format!("{path}.experts.{part}");
        let tensor = self.tensor(&module)?;
        let experts = self.config().n_routed_experts;
        let height = parts * rows;
        let matrices = || {
            if tensor.shape != [experts, height, cols] {
                let expected = format!("[{experts}, {height}, {cols}]");
                return Err(shape(&module, "all experts", tensor, expected));
            }
            let (format, scales) = match self.tensor(&format!("{module}_scale_inv")) {
                Some(scales) if tensor.dtype == Dtype::F8_E4M3 => {
                    let [down, across] = [height, cols].map(|n| n.div_ceil(Format::FP8_BLOCK));
                    let blocks = [experts, down, across];
                    (self.fp8_format(&module, "scale_inv", scales, &blocks)?, scales.data.clone())
                }
                _ => (Format::Float(float_type(&module, tensor.dtype)?), Bytes::new()),
            };
            let one = |e: usize| {
                let part = |all: &Bytes| {
                    let bytes = all.len() / experts;
                    all.slice(e * bytes..(e + 1) * bytes)
                };
                let both = [part(&tensor.data), part(&scales), Bytes::new()];
                let both = packed(&module, height, cols, format, both)?;
                Ok(both.slice_rows(index * rows..(index + 1) * rows))
            };
            (0..experts).map(one).collect()
        };
        Some(matrices())
    }
}
