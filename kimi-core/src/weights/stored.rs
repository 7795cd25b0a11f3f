//! One module's tensors as a matrix: plain floats, MLX's formats, compressed-tensors INT4. See also `fp8.rs`.

use bytes::Bytes;
use kimi_quant::{BitWidth, FloatType, Format, PackedMatrix};
use safetensors::Dtype;

use super::{WeightError, Weights, other};
use crate::checkpoint::Tensor;
use crate::config::QuantEntry;

impl Weights<'_> {
    /// A matrix of `rows` outputs and `cols` inputs, without MLX's global scale. Leading dimensions of the stored tensor are
    /// rows too.
    pub(super) fn stored(&self, module: &str, rows: usize, cols: usize) -> Result<PackedMatrix, WeightError> {
        let part = |suffix: &str| self.part(module, suffix);
        if let Some(packed) = part("weight_packed") {
            return self.compressed(module, packed, rows, cols);
        }
        let Some(weight) = part("weight") else { return Err(self.refused(module)) };
        if weight.dtype == Dtype::F8_E4M3 {
            return self.fp8(module, weight, rows, cols);
        }
        if weight.dtype == Dtype::U8
            && let Some(scales) = part("weight_scale").filter(|scales| scales.dtype == Dtype::F8_E4M3)
        {
            return self.modelopt_nvfp4(module, weight, scales, rows, cols);
        }
        let Some(scales) = part("scales") else {
            let Some(float) = float(weight.dtype) else { return Err(self.refused(module)) };
            if part("weight_scale_inv").is_some() {
                let what = format!(
                    "has weight_scale_inv, so its weight should be F8_E4M3, but it is {:?}",
                    weight.dtype
                );
                return Err(unsupported(module, what));
            }
            if leading(weight) != rows || weight.shape.last() != Some(&cols) {
                return Err(shape(module, "weight", weight, format!("[{rows}, {cols}]")));
            }
            let parts = [weight.data.clone(), Bytes::new(), Bytes::new()];
            return packed(module, rows, cols, Format::Float(float), parts);
        };
        if weight.dtype != Dtype::U32 {
            let what =
                format!("has scales, so its weight should be packed in U32, but it is {:?}", weight.dtype);
            return Err(unsupported(module, what));
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

    /// What is there instead of a matrix that kimi reads, if there is anything.
    pub(super) fn refused(&self, module: &str) -> WeightError {
        let nothing = || self.missing(module, &format!("{module}.weight"));
        other::refusal(self, module).unwrap_or_else(nothing)
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
        if !GROUPS.contains(&group) {
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
        let has = |suffix: &str| self.part(module, suffix).is_some();
        let words = weight.shape.last().copied().unwrap_or(0);
        if leading(weight) != rows {
            return Err(shape(module, "weight_packed", weight, format!("[{rows}, {}] for 4 bits", cols / 8)));
        }
        let integers = matches!(weight.dtype, Dtype::I32 | Dtype::U32);
        if !integers || words * 8 != cols || has("weight_zero_point") || has("weight_g_idx") {
            return Err(self.refused(module));
        }
        let name = format!("{module}.weight_scale");
        let scales = self.tensor(&name).ok_or_else(|| self.missing(module, &name))?;
        let groups = scales.shape.last().copied().unwrap_or(0);
        if leading(scales) != rows || groups == 0 || !cols.is_multiple_of(groups) {
            let expected = format!("[{rows}, {}] for groups of 32", cols / 32);
            return Err(shape(module, "weight_scale", scales, expected));
        }
        let group = cols / groups;
        if !GROUPS.contains(&group) {
            return Err(self.refused(module));
        }
        let format = Format::Int4 { group, scales: float_type(module, scales.dtype)? };
        packed(module, rows, cols, format, [weight.data.clone(), scales.data.clone(), Bytes::new()])
    }
}

/// Weights that may share a scale where it is a float.
pub(super) const GROUPS: [usize; 5] = [8, 16, 32, 64, 128];

/// Product of all dimensions but the last.
pub(super) fn leading(tensor: &Tensor) -> usize {
    tensor.shape.split_last().map_or(0, |(_, rest)| rest.iter().product())
}

pub(super) fn packed(
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

/// The type of floats that kimi computes with.
pub(super) fn float(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::BF16 => Some(FloatType::Bf16),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::F32 => Some(FloatType::F32),
        _ => None,
    }
}

pub(super) fn float_type(module: &str, dtype: Dtype) -> Result<FloatType, WeightError> {
    float(dtype).ok_or_else(|| {
        unsupported(module, format!("is stored as {dtype:?}; BF16, F16 and F32 are read here"))
    })
}

pub(super) fn unsupported(module: &str, what: String) -> WeightError {
    WeightError::Unsupported { module: module.to_owned(), what }
}

pub(super) fn shape(module: &str, tensor: &'static str, found: &Tensor, expected: String) -> WeightError {
    WeightError::Shape { module: module.to_owned(), tensor, found: found.shape.clone(), expected }
}
