//! Tensors with random contents, in every storage format, and the files that hold them.

use std::path::Path;

use half::{bf16, f16};
use serde_json::{Value, json};

/// A small random number generator (splitmix64): the same values on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// From `low` to `high`.
    pub(crate) fn float(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

/// A tensor as a safetensors file holds it.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// How a random matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Storage {
    Affine {
        bits: usize,
        group: usize,
        scales: &'static str,
    },
    Int4 {
        group: usize,
        scales: &'static str,
    },
    Mxfp4,
    /// With `global`, one more scale: for each of the experts where they are stacked.
    Nvfp4 {
        global: bool,
    },
    Mxfp8,
    /// DeepSeek's, in blocks of 128 by 128.
    Fp8 {
        scales: &'static str,
    },
    /// modelopt's NVFP4.
    Modelopt,
    Float(&'static str),
}

pub(crate) const FLOATS: [&str; 3] = ["BF16", "F16", "F32"];

impl Storage {
    /// A random one of those that a row of `cols` fits.
    pub(crate) fn random(rng: &mut Rng, cols: usize) -> Self {
        if !cols.is_multiple_of(32) {
            let any = [Self::Float(rng.pick(&FLOATS)), Self::Fp8 { scales: rng.pick(&FLOATS) }];
            return rng.pick(&any);
        }
        let groups: Vec<usize> = [32, 64, 128].into_iter().filter(|g| cols.is_multiple_of(*g)).collect();
        let (group, scales) = (rng.pick(&groups), rng.pick(&FLOATS));
        match rng.below(15) {
            0 => Self::Float(rng.pick(&FLOATS)),
            1 => Self::Mxfp4,
            2 => Self::Nvfp4 { global: rng.below(2) == 0 },
            3 => Self::Mxfp8,
            4 | 5 => Self::Int4 { group: 32, scales },
            6 | 7 => Self::Fp8 { scales },
            8 => Self::Modelopt,
            _ => Self::Affine { bits: rng.pick(&[2, 3, 4, 5, 6, 8]), group, scales },
        }
    }

    /// What is most like it of what several matrices of `cols` columns are stored as in one tensor.
    pub(crate) fn stacked(self, cols: usize) -> Self {
        match self {
            Self::Fp8 { .. } if cols.is_multiple_of(32) => Self::Mxfp8,
            Self::Fp8 { scales } => Self::Float(scales),
            Self::Modelopt => Self::Nvfp4 { global: false },
            other => other,
        }
    }

    /// The module's entry in `quantization` of config.json; `None` for storage that MLX does not list.
    pub(crate) fn entry(self) -> Option<Value> {
        let entry = |mode: &str, bits: usize, group: usize| {
            Some(json!({"mode": mode, "bits": bits, "group_size": group}))
        };
        match self {
            Self::Affine { bits, group, .. } => entry("affine", bits, group),
            Self::Mxfp4 => entry("mxfp4", 4, 32),
            Self::Nvfp4 { .. } => entry("nvfp4", 4, 16),
            Self::Mxfp8 => entry("mxfp8", 8, 32),
            Self::Float(_) => Some(json!(false)),
            Self::Int4 { .. } | Self::Fp8 { .. } | Self::Modelopt => None,
        }
    }

    /// The tensors of a random matrix: weights around zero, of variance about `1 / cols`.
    pub(crate) fn matrix(self, rng: &mut Rng, module: &str, leading: &[usize], cols: usize) -> Vec<Stored> {
        let rows: usize = leading.iter().product();
        let shape = |last: usize| [leading, &[last]].concat();
        let tensor = |suffix: &str, dtype, last, data| Stored {
            name: format!("{module}.{suffix}"),
            dtype,
            shape: shape(last),
            data,
        };
        let deviation = (cols as f32).powf(-0.5);
        match self {
            Self::Float(dtype) => {
                let data = floats(dtype, rows * cols, || 1.7 * deviation * rng.float(-1.0, 1.0));
                vec![tensor("weight", dtype, cols, data)]
            }
            Self::Affine { bits, group, scales } => {
                let groups = cols / group;
                let levels = (1 << bits) as f32;
                let (mut scale, mut bias) = (Vec::new(), Vec::new());
                for _ in 0..rows * groups {
                    let s = deviation * 3.46 / levels * rng.float(0.5, 1.5) * rng.pick(&[-1.0, 1.0]);
                    scale.push(s);
                    bias.push(-s * (levels - 1.0) / 2.0 + deviation * rng.float(-0.1, 0.1));
                }
                let words = cols * bits / 32;
                vec![
                    tensor("weight", "U32", words, codes(rng, rows * words * 4)),
                    tensor("scales", scales, groups, floats_of(scales, &scale)),
                    tensor("biases", scales, groups, floats_of(scales, &bias)),
                ]
            }
            Self::Int4 { group, scales } => {
                let groups = cols / group;
                let scale = floats(scales, rows * groups, || deviation / 4.6 * rng.float(-1.5, 1.5));
                vec![
                    tensor("weight_packed", "I32", cols / 8, codes(rng, rows * cols / 2)),
                    tensor("weight_scale", scales, groups, scale),
                ]
            }
            Self::Mxfp4 | Self::Mxfp8 => {
                // Random codes have a root mean square of 2.9 (e2m1) or about 110 (e4m3).
                let (bits, size) = if self == Self::Mxfp4 { (4, 2.9) } else { (8, 110.0) };
                let exponent = 127 + (deviation / size).log2().round() as i32;
                let scales =
                    (0..rows * cols / 32).map(|_| (exponent + rng.below(3) as i32 - 1) as u8).collect();
                vec![
                    tensor("weight", "U32", cols * bits / 32, codes(rng, rows * cols * bits / 8)),
                    tensor("scales", "U8", cols / 32, scales),
                ]
            }
            Self::Fp8 { scales } => {
                let blocks = [rows.div_ceil(128), cols.div_ceil(128)];
                let number = |code: u8| if code & 0x7f == 0x7f { code ^ 1 } else { code };
                let weight = codes(rng, rows * cols).into_iter().map(number).collect();
                let name = format!("{module}.weight_scale_inv");
                let scale = || deviation / 110.0 * rng.float(0.5, 1.5);
                let data = floats(scales, blocks[0] * blocks[1], scale);
                vec![
                    tensor("weight", "F8_E4M3", cols, weight),
                    Stored { name, dtype: scales, shape: blocks.to_vec(), data },
                ]
            }
            Self::Modelopt => {
                // About 1, in e4m3.
                let scales = (0..rows * cols / 16).map(|_| 0x34 + rng.below(8) as u8).collect();
                let number = |suffix: &str, value: f32| Stored {
                    name: format!("{module}.{suffix}"),
                    dtype: "F32",
                    shape: Vec::new(),
                    data: value.to_le_bytes().to_vec(),
                };
                vec![
                    tensor("weight", "U8", cols / 2, codes(rng, rows * cols / 2)),
                    tensor("weight_scale", "F8_E4M3", cols / 16, scales),
                    number("weight_scale_2", deviation / 2.9 * rng.float(0.7, 1.3)),
                    number("input_scale", 0.02),
                ]
            }
            Self::Nvfp4 { global } => {
                // e4m3: 4 exponent bits biased by 7, 3 mantissa bits; these lie between half of `size` and twice it.
                let size: f32 = if global { 1.0 } else { deviation / 2.9 };
                let exponent = 7 + size.log2().round() as i32;
                let scales = (0..rows * cols / 16)
                    .map(|_| {
                        ((exponent - rng.below(2) as i32) << 3) as u8
                            | rng.below(8) as u8
                            | rng.pick(&[0, 0x80])
                    })
                    .collect();
                let mut tensors = vec![
                    tensor("weight", "U32", cols / 8, codes(rng, rows * cols / 2)),
                    tensor("scales", "U8", cols / 16, scales),
                ];
                if global {
                    // Stored is the largest magnitude of an expert; e4m3 * e2m1 reach 448 * 6.
                    let largest = 448.0 * 6.0 * deviation / 2.9;
                    let stack = &leading[..leading.len() - 1];
                    let data = floats("F32", stack.iter().product(), || largest * rng.float(0.5, 1.5));
                    let name = format!("{module}.global_scale");
                    tensors.push(Stored { name, dtype: "F32", shape: stack.to_vec(), data });
                }
                tensors
            }
        }
    }
}

/// A vector of `n` values from `low` to `high`.
pub(crate) fn vector(rng: &mut Rng, name: String, n: usize, low: f32, high: f32) -> Stored {
    let dtype = rng.pick(&FLOATS);
    Stored { name, dtype, shape: vec![n], data: floats(dtype, n, || rng.float(low, high)) }
}

fn codes(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| rng.bits() as u8).collect()
}

fn floats(dtype: &str, n: usize, mut value: impl FnMut() -> f32) -> Vec<u8> {
    floats_of(dtype, &(0..n).map(|_| value()).collect::<Vec<_>>())
}

fn floats_of(dtype: &str, values: &[f32]) -> Vec<u8> {
    let values = values.iter();
    match dtype {
        "BF16" => values.flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        "F16" => values.flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Writes a safetensors file as MLX does: tensors back to back, the data area at any byte. `padding` spaces move it.
pub(crate) fn write_shard(path: &Path, tensors: &[&Stored], padding: usize) {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
    let mut end = 0;
    for t in tensors {
        let start = end;
        end += t.data.len();
        header.insert(
            t.name.clone(),
            json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len() + padding, b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|t| file.extend(&t.data));
    std::fs::write(path, file).unwrap();
}
