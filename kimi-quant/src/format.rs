//! How a weight is stored.

use std::fmt;

use crate::FormatError;

/// Bits of one affine code. Every width is one little-endian, LSB-first bit stream per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BitWidth {
    /// 2 bits: 16 codes in 4 bytes.
    B2,
    /// 3 bits: 8 codes in 3 bytes.
    B3,
    /// 4 bits: 2 codes in a byte.
    B4,
    /// 5 bits: 8 codes in 5 bytes.
    B5,
    /// 6 bits: 4 codes in 3 bytes.
    B6,
    /// 8 bits: a code is a byte.
    B8,
}

impl BitWidth {
    /// Every width, narrowest first.
    pub const ALL: [Self; 6] = [Self::B2, Self::B3, Self::B4, Self::B5, Self::B6, Self::B8];

    /// The number of bits.
    pub const fn bits(self) -> usize {
        match self {
            Self::B2 => 2,
            Self::B3 => 3,
            Self::B4 => 4,
            Self::B5 => 5,
            Self::B6 => 6,
            Self::B8 => 8,
        }
    }
}

impl TryFrom<u32> for BitWidth {
    type Error = FormatError;

    fn try_from(bits: u32) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|w| w.bits() == bits as usize).ok_or(FormatError::Bits(bits))
    }
}

/// A floating-point storage type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl FloatType {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Reads value `i` of little-endian `data` at any alignment. The caller keeps `i` in range.
    #[inline]
    pub fn read(self, data: &[u8], i: usize) -> f32 {
        match self {
            Self::Bf16 => half::bf16::from_le_bytes([data[2 * i], data[2 * i + 1]]).to_f32(),
            Self::F16 => half::f16::from_le_bytes([data[2 * i], data[2 * i + 1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([data[4 * i], data[4 * i + 1], data[4 * i + 2], data[4 * i + 3]]),
        }
    }
}

/// The storage format of a matrix.
///
/// | format | weight | scale | value |
/// |---|---|---|---|
/// | `Affine` | `bits`-bit unsigned codes | float per group, and a bias | `scale * q + bias` |
/// | `Int4` | 4-bit codes (compressed-tensors) | float per group | `scale * (q - 8)` |
/// | `Mxfp4` | e2m1 | e8m0 byte per 32 | `2^(s-127) * e2m1` |
/// | `Nvfp4` | e2m1 | e4m3 byte per 16, one f32 a tensor | `global * e4m3 * e2m1` |
/// | `Mxfp8` | e4m3 | e8m0 byte per 32 | `2^(s-127) * e4m3` |
/// | `Fp8` | e4m3 | float per block of 128 rows by 128 columns | `scale * e4m3` |
/// | `Float` | the value | none | itself |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// MLX affine quantization.
    Affine {
        /// Width of a code.
        bits: BitWidth,
        /// Weights that share a scale and a bias, along the row.
        group: usize,
        /// Storage type of scales and biases.
        scales: FloatType,
    },
    /// Symmetric INT4 of compressed-tensors (`pack-quantized`): affine with `bias = -8 * scale`.
    Int4 {
        /// Weights that share a scale, along the row.
        group: usize,
        /// Storage type of the scales.
        scales: FloatType,
    },
    /// OCP microscaling FP4, groups of 32.
    Mxfp4,
    /// NVIDIA FP4, groups of 16.
    Nvfp4,
    /// OCP microscaling FP8 (e4m3), groups of 32.
    Mxfp8,
    /// FP8 as DeepSeek and Moonshot publish it: e4m3 in blocks of [`Format::FP8_BLOCK`] rows and columns that share a
    /// scale. The last blocks may be partial.
    Fp8 {
        /// Storage type of the scales (`weight_scale_inv`).
        scales: FloatType,
    },
    /// Not quantized.
    Float(FloatType),
}

impl Format {
    /// Rows and columns of a block of [`Format::Fp8`].
    pub const FP8_BLOCK: usize = 128;

    /// Bits of one stored code, without scales.
    pub const fn code_bits(self) -> usize {
        match self {
            Self::Affine { bits, .. } => bits.bits(),
            Self::Int4 { .. } | Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 | Self::Fp8 { .. } => 8,
            Self::Float(t) => 8 * t.bytes(),
        }
    }

    /// Weights of a row that share a scale; 1 where there are no scales.
    pub const fn group(self) -> usize {
        match self {
            Self::Affine { group, .. } | Self::Int4 { group, .. } => group,
            Self::Mxfp4 | Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
            Self::Fp8 { .. } => Self::FP8_BLOCK,
            Self::Float(_) => 1,
        }
    }

    /// Groups of a row of `cols` weights; the last one may be partial.
    pub const fn groups(self, cols: usize) -> usize {
        match self.group() {
            0 => 0,
            group => cols.div_ceil(group),
        }
    }

    /// Rows that share their scales.
    pub const fn scale_rows(self) -> usize {
        match self {
            Self::Fp8 { .. } => Self::FP8_BLOCK,
            _ => 1,
        }
    }

    /// Bytes of one group's scale (not counting its bias).
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::Affine { scales, .. } | Self::Int4 { scales, .. } | Self::Fp8 { scales } => scales.bytes(),
            Self::Mxfp4 | Self::Nvfp4 | Self::Mxfp8 => 1,
            Self::Float(_) => 0,
        }
    }

    /// Bytes of one group's bias.
    pub const fn bias_bytes(self) -> usize {
        match self {
            Self::Affine { scales, .. } => scales.bytes(),
            _ => 0,
        }
    }

    /// Bytes of the codes of `rows` rows of `cols` weights, of their scales, and of their biases.
    ///
    /// # Errors
    /// [`FormatError::Columns`] where `cols` is no whole number of groups or of packed words; [`FormatError::TooLarge`].
    pub fn bytes(self, rows: usize, cols: usize) -> Result<[usize; 3], FormatError> {
        let multiple = match self {
            Self::Float(_) | Self::Fp8 { .. } => 1,
            // MLX packs into u32 words, and a word pattern repeats after 32 codes.
            Self::Affine { .. } | Self::Int4 { .. } | Self::Mxfp4 | Self::Nvfp4 | Self::Mxfp8 => {
                self.group().max(1)
            }
        };
        let too_large = || FormatError::TooLarge { rows, cols };
        let bits = cols.checked_mul(self.code_bits()).ok_or_else(too_large)?;
        if cols == 0 || self.group() == 0 || !cols.is_multiple_of(multiple) || !bits.is_multiple_of(8) {
            return Err(FormatError::Columns { cols, format: self, multiple });
        }
        let parameters = |bytes: usize| match bytes {
            0 => Some(0),
            _ => rows.div_ceil(self.scale_rows()).checked_mul(self.groups(cols))?.checked_mul(bytes),
        };
        Ok([
            rows.checked_mul(bits / 8).ok_or_else(too_large)?,
            parameters(self.scale_bytes()).ok_or_else(too_large)?,
            parameters(self.bias_bytes()).ok_or_else(too_large)?,
        ])
    }

    /// Stored bits a weight, scales and biases included.
    pub fn bits_per_weight(self) -> f64 {
        self.code_bits() as f64
            + 8.0 * (self.scale_bytes() + self.bias_bytes()) as f64
                / (self.group() * self.scale_rows()) as f64
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affine { bits, group, .. } => write!(f, "affine {}-bit g{group}", bits.bits()),
            Self::Int4 { group, .. } => write!(f, "int4 g{group}"),
            Self::Mxfp4 => write!(f, "mxfp4"),
            Self::Nvfp4 => write!(f, "nvfp4"),
            Self::Mxfp8 => write!(f, "mxfp8"),
            Self::Fp8 { .. } => write!(f, "fp8 {0}x{0}", Self::FP8_BLOCK),
            Self::Float(FloatType::Bf16) => write!(f, "bf16"),
            Self::Float(FloatType::F16) => write!(f, "f16"),
            Self::Float(FloatType::F32) => write!(f, "f32"),
        }
    }
}
