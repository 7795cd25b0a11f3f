//! FP8 in blocks of 128 by 128, as DeepSeek and Moonshot publish it, against its definition.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use bytes::Bytes;
use common::{Random, misaligned};
use kimi_quant::cpu::{Cpu, Isa, dequantize};
use kimi_quant::{Backend, FloatType, Format, FormatError, PackedMatrix};

/// The shapes of Kimi-K2's ragged matrix, in small, and all ways to end amid a block.
const SHAPES: [[usize; 2]; 8] =
    [[128, 128], [256, 384], [576, 200], [127, 129], [129, 127], [1, 1], [130, 5], [300, 260]];

/// The definition of e4m3 (OCP FP8, the variant without infinities).
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// A matrix, and its values: each a code times the scale of its block, rounded once.
struct Blocks {
    matrix: PackedMatrix,
    values: Vec<f32>,
}

impl Blocks {
    /// Codes that are numbers, in order and all of them where there is room; scales of many sizes and both signs.
    fn new(float: FloatType, [rows, cols]: [usize; 2], random: &mut Random) -> Self {
        let number = |code: u8| if code & 0x7f == 0x7f { 0x7e } else { code };
        let codes: Vec<u8> = (0..rows * cols).map(|i| number((i + i / cols) as u8)).collect();
        let across = cols.div_ceil(128);
        let mut scales: Vec<f32> = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..rows.div_ceil(128) * across {
            let scale = random.f32() * 2f32.powi(random.below(12) as i32 - 10);
            match float {
                FloatType::Bf16 => bytes.extend(half::bf16::from_f32(scale).to_le_bytes()),
                FloatType::F16 => bytes.extend(half::f16::from_f32(scale).to_le_bytes()),
                FloatType::F32 => bytes.extend(scale.to_le_bytes()),
            }
            scales.push(float.read(&bytes, scales.len()));
        }
        let value = |i: usize| {
            let (row, col) = (i / cols, i % cols);
            (e4m3(codes[i]) * f64::from(scales[row / 128 * across + col / 128])) as f32
        };
        let values = (0..codes.len()).map(value).collect();
        let (weight, scales) = (misaligned(&codes, 1), misaligned(&bytes, 3));
        let format = Format::Fp8 { scales: float };
        Self { matrix: PackedMatrix::new(rows, cols, format, weight, scales, Bytes::new()).unwrap(), values }
    }
}

fn floats() -> [FloatType; 3] {
    [FloatType::F32, FloatType::Bf16, FloatType::F16]
}

/// Every instruction set's products with `matrix`, whose values are these.
fn check_products(matrix: &PackedMatrix, values: &[f32], random: &mut Random) {
    let [rows, cols] = [matrix.rows(), matrix.cols()];
    for tokens in [1, 3, 9] {
        let x = random.f32s(tokens * cols);
        for cpu in Isa::available().into_iter().map(|isa| Cpu::with_isa(isa).unwrap()) {
            let input = cpu.upload(tokens, cols, &x).unwrap();
            let mut y = cpu.upload(tokens, rows, &vec![0.0; tokens * rows]).unwrap();
            cpu.project_add(&input, matrix, &mut y).unwrap();
            for (i, &found) in y.data().iter().enumerate() {
                let (t, r) = (i / rows, i % rows);
                let terms = x[t * cols..][..cols].iter().zip(&values[r * cols..][..cols]);
                let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
                let bound = size * f64::from(f32::EPSILON) * 16.0;
                let error = (f64::from(found) - exact).abs();
                assert!(error <= bound, "{} {rows}x{cols} [{t}][{r}]: {found}, exactly {exact}", cpu.name());
            }
        }
    }
}

#[test]
fn values_are_codes_times_the_scale_of_their_block() {
    let mut random = Random(21);
    for (float, shape) in floats().into_iter().flat_map(|float| SHAPES.map(|shape| (float, shape))) {
        let Blocks { matrix, values } = Blocks::new(float, shape, &mut random);
        assert_eq!(dequantize(&matrix), values, "{float:?} {shape:?}");
        let cpu = Cpu::new();
        let ids: Vec<u32> = (0..shape[0] as u32).rev().step_by(7).collect();
        let rows = cpu.embed(&matrix, &ids).unwrap();
        for (row, &id) in rows.data().chunks_exact(shape[1]).zip(&ids) {
            assert_eq!(row, &values[id as usize * shape[1]..][..shape[1]], "{float:?} {shape:?} row {id}");
        }
    }
}

#[test]
fn products_agree_with_f64_on_every_instruction_set() {
    let mut random = Random(22);
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let Blocks { matrix, values } = Blocks::new(floats()[i % 3], shape, &mut random);
        check_products(&matrix, &values, &mut random);
    }
}

/// A head of `kv_b_proj` may begin and end anywhere in a block.
#[test]
fn rows_cut_out_of_blocks_keep_their_scales() {
    let mut random = Random(23);
    let Blocks { matrix, values } = Blocks::new(FloatType::F32, [430, 140], &mut random);
    for range in [0..430, 5..6, 100..140, 127..257, 128..256, 256..430, 300..300, 429..430] {
        let part = matrix.slice_rows(range.clone());
        let expected = &values[range.start * 140..range.end * 140];
        assert_eq!(dequantize(&part), expected, "{range:?}");
        check_products(&part, expected, &mut random);
        // And of those a part again.
        let half = part.slice_rows(part.rows() / 2..part.rows());
        assert_eq!(dequantize(&half), &expected[part.rows() / 2 * 140..], "{range:?}");
    }
    // `W_UK` of a head, whose rows are weighted and summed.
    let (cpu, shape) = (Cpu::new(), [3 * 70, 64]);
    let Blocks { matrix, values } = Blocks::new(FloatType::F32, shape, &mut random);
    let heads = kimi_quant::HeadShape { heads: 3, nope: 40, rope: 2, value: 30, latent: 64 };
    let q = random.f32s(3 * 42);
    let rope = kimi_quant::Rope { inv_freq: vec![0.0], mscale: 1.0 };
    let mut layout = kimi_quant::TokenLayout::new(4);
    layout.push(0, 1, &[0]).unwrap();
    let queries = cpu.upload(1, q.len(), &q).unwrap();
    let projections = kimi_quant::LatentProjections::Joint(matrix);
    let found = cpu.absorb_query(&queries, &projections, heads, &rope, &layout).unwrap();
    for (h, c) in (0..3).flat_map(|h| (0..64).map(move |c| (h, c))) {
        let terms = (0..40).map(|r| f64::from(q[h * 42 + r]) * f64::from(values[(h * 70 + r) * 64 + c]));
        let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
        let error = (f64::from(found.data()[h * 66 + c]) - exact).abs();
        assert!(error <= size * 1e-6, "head {h} column {c}: off by {error:e}");
    }
}

#[test]
fn the_size_of_the_scales_is_checked() {
    let format = Format::Fp8 { scales: FloatType::F32 };
    assert_eq!(format.bytes(576, 7168), Ok([576 * 7168, 5 * 56 * 4, 0]));
    assert_eq!(format.bytes(1, 1), Ok([1, 4, 0]));
    assert_eq!(format.to_string(), "fp8 128x128");
    assert!((format.bits_per_weight() - 8.001_953_125).abs() < 1e-12);
    assert!(matches!(format.bytes(usize::MAX, 2), Err(FormatError::TooLarge { .. })));
    let new = |scales: usize| {
        let [weight, scales] = [vec![0; 129 * 130], vec![0; scales]].map(Bytes::from);
        PackedMatrix::new(129, 130, format, weight, scales, Bytes::new())
    };
    assert!(new(16).is_ok());
    let error = new(12).unwrap_err().to_string();
    assert_eq!(error, "scales of a 129x130 fp8 128x128 matrix has 12 bytes, expected 16");
}

#[test]
fn what_is_not_a_number_is_found() {
    let format = Format::Fp8 { scales: FloatType::F32 };
    let with = |codes: &[(usize, u8)], scale: f32| {
        let mut weight = vec![0x7e; 300 * 20];
        codes.iter().for_each(|&(i, code)| weight[i] = code);
        let scales: Vec<u8> = [1.0, 1.0, scale].into_iter().flat_map(f32::to_le_bytes).collect();
        PackedMatrix::new(300, 20, format, weight.into(), scales.into(), Bytes::new()).unwrap()
    };
    assert_eq!(with(&[], 1.0).first_nan_row(), None);
    for code in [0x7f, 0xff] {
        let matrix = with(&[(4119, code), (4120, code)], 1.0);
        assert_eq!(matrix.first_nan_row(), Some(205));
        let values = dequantize(&matrix);
        assert!(values[4118].is_finite() && values[4119].is_nan() && values[4121].is_finite());
    }
    assert_eq!(with(&[], f32::NAN).first_nan_row(), Some(256));
    assert_eq!(with(&[], f32::INFINITY).slice_rows(100..300).first_nan_row(), Some(156));

    let nvfp4 = |scale: u8| {
        let (weight, scales) = (vec![0xff; 32], vec![0x7e, 0x7e, 0x01, scale]);
        PackedMatrix::new(2, 32, Format::Nvfp4, weight.into(), scales.into(), Bytes::new()).unwrap()
    };
    assert_eq!(nvfp4(0xfe).first_nan_row(), None);
    assert_eq!(nvfp4(0xff).first_nan_row(), Some(1));
    assert_eq!(nvfp4(0).with_global_scale(f32::NAN).first_nan_row(), Some(0));
}
