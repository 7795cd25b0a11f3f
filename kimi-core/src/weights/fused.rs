//! Experts as transformers 5 stores them: those of a layer in one tensor, gate and up in one matrix.

use bytes::Bytes;
use kimi_quant::{Format, PackedMatrix};

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
        let matrices = || {
            if tensor.shape != [experts, parts * rows, cols] {
                return Err(shape(
                    &module,
                    "all experts",
                    tensor,
                    format!("[{experts}, {}, {cols}]", parts * rows),
                ));
            }
            let float = float_type(&module, tensor.dtype)?;
            let bytes = rows * cols * float.bytes();
            let one = |e: usize| {
                let start = (parts * e + index) * bytes;
                let data = tensor.data.slice(start..start + bytes);
                packed(&module, rows, cols, Format::Float(float), [data, Bytes::new(), Bytes::new()])
            };
            (0..experts).map(one).collect()
        };
        Some(matrices())
    }
}
