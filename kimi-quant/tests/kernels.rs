//! Every format on every instruction set of this machine, against products in f64.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::{Random, misaligned};
use kimi_quant::cpu::{Cpu, Isa, Team, Tensor, dequantize};
use kimi_quant::{
    Backend, BitWidth, FloatType, Format, HeadShape, LatentProjections, PackedMatrix, Precision, Rope,
    TokenLayout,
};
use proptest::prelude::*;

const FLOATS: [FloatType; 3] = [FloatType::Bf16, FloatType::F16, FloatType::F32];

/// Every kind of format, with every group that checkpoints have and some that they do not.
fn formats() -> Vec<Format> {
    let mut all: Vec<Format> = FLOATS.map(Format::Float).to_vec();
    all.extend([Format::Mxfp4, Format::Nvfp4, Format::Mxfp8]);
    all.extend(FLOATS.map(|scales| Format::Fp8 { scales }));
    for scales in FLOATS {
        for group in [8, 16, 24, 32, 64, 96, 128] {
            all.extend(BitWidth::ALL.map(|bits| Format::Affine { bits, group, scales }));
            all.push(Format::Int4 { group, scales });
        }
    }
    all
}

/// Floats of either sign between about 2^-8 and 4.
fn float_bytes(t: FloatType, count: usize, random: &mut Random) -> Vec<u8> {
    let value = |random: &mut Random| {
        let (sign, power) = (random.f32().signum(), random.below(10) as i32 - 8);
        sign * (1.0 + random.f32().abs()) * 2f32.powi(power)
    };
    (0..count)
        .flat_map(|_| match (t, value(random)) {
            (FloatType::Bf16, v) => half::bf16::from_f32(v).to_le_bytes().to_vec(),
            (FloatType::F16, v) => half::f16::from_f32(v).to_le_bytes().to_vec(),
            (FloatType::F32, v) => v.to_le_bytes().to_vec(),
        })
        .collect()
}

/// A random matrix at odd addresses.
fn matrix(format: Format, rows: usize, cols: usize, random: &mut Random) -> PackedMatrix {
    let [weight, scales, biases] = format.bytes(rows, cols).unwrap();
    let weight = match format {
        Format::Float(t) => float_bytes(t, rows * cols, random),
        // 0x7f and 0xff have no value in e4m3.
        Format::Mxfp8 | Format::Fp8 { .. } => {
            random.bytes(weight).into_iter().map(|b| if b & 0x7f == 0x7f { 1 } else { b }).collect()
        }
        _ => random.bytes(weight),
    };
    let (scales, biases) = match format {
        Format::Affine { scales: t, .. } => {
            (float_bytes(t, scales / t.bytes(), random), float_bytes(t, biases / t.bytes(), random))
        }
        Format::Int4 { scales: t, .. } | Format::Fp8 { scales: t } => {
            (float_bytes(t, scales / t.bytes(), random), vec![])
        }
        Format::Nvfp4 => (random.bytes(scales).into_iter().map(|b| b & 0x7e).collect(), vec![]),
        // 2^-9 to 2^6.
        _ => (random.bytes(scales).into_iter().map(|b| 118 + b % 16).collect(), vec![]),
    };
    let mut cut = |bytes: Vec<u8>| misaligned(&bytes, random.below(8));
    let (weight, scales, biases) = (cut(weight), cut(scales), cut(biases));
    let m = PackedMatrix::new(rows, cols, format, weight, scales, biases).unwrap();
    if format == Format::Nvfp4 { m.with_global_scale(0.37) } else { m }
}

fn product(cpu: Cpu, m: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let tokens = x.len() / m.cols();
    let x: Tensor = cpu.upload(tokens, m.cols(), x).unwrap();
    let mut y = cpu.upload(tokens, m.rows(), &vec![0.0; tokens * m.rows()]).unwrap();
    cpu.project_add(&x, m, &mut y).unwrap();
    cpu.download(&y).unwrap()
}

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::with_isa(isa).unwrap())
}

/// Each output within the bound for a sum of `cols` products in f32: every term is rounded at most four times (the
/// scaled code, its bias, the product, and once a level of the sum), and every rounding is of a value no larger than
/// the sum of all magnitudes.
fn check(m: &PackedMatrix, x: &[f32]) {
    for cpu in cpus() {
        check_one(cpu, m, x, x);
    }
}

/// The same for one backend, whose products with `given` are those of f64 with `x`.
fn check_one(cpu: Cpu, m: &PackedMatrix, given: &[f32], x: &[f32]) {
    let weights = dequantize(m);
    let y = product(cpu, m, given);
    for (i, &y) in y.iter().enumerate() {
        let (t, r) = (i / m.rows(), i % m.rows());
        let terms = x[t * m.cols()..][..m.cols()].iter().zip(&weights[r * m.cols()..][..m.cols()]);
        let (mut exact, mut size) = (0f64, 0f64);
        for (c, (&x, &w)) in terms.enumerate() {
            exact += x as f64 * w as f64;
            let group = (r * m.cols() + c) / m.format().group();
            size += (x as f64).abs() * (w as f64).abs().max(magnitude(m, group));
        }
        let bound = size * f64::from(f32::EPSILON) * (4.0 + (m.cols() as f64 / 4.0).log2().max(0.0) * 2.0);
        let error = (y as f64 - exact).abs();
        assert!(
            error <= bound,
            "{} {} {}x{} [{t}][{r}]: {y}, exactly {exact}, error {error:e} over {bound:e}",
            cpu.name(),
            m.format(),
            m.rows(),
            m.cols()
        );
    }
}

/// The largest value that is rounded on the way to a group's weights: a weight near zero is the difference of a scaled
/// code and a bias.
fn magnitude(m: &PackedMatrix, group: usize) -> f64 {
    let largest = f64::from((1u32 << m.format().code_bits().min(8)) - 1);
    match m.format() {
        Format::Affine { scales: t, .. } => {
            let (scale, bias) = (t.read(m.scales(), group), t.read(m.biases(), group));
            (scale as f64).abs() * largest + (bias as f64).abs()
        }
        Format::Int4 { scales: t, .. } => (t.read(m.scales(), group) as f64).abs() * largest,
        _ => 0.0,
    }
}

#[test]
fn every_format_group_and_set_agrees_with_f64() {
    let mut random = Random(7);
    for format in formats() {
        let cols = format.group().max(16) * (1 + random.below(5));
        let rows = 1 + random.below(7);
        let m = matrix(format, rows, cols, &mut random);
        for tokens in [1, 2, 3, 5, 9] {
            let x = random.f32s(tokens * cols);
            check(&m, &x);
        }
    }
}

#[test]
fn a_token_alone_and_in_any_batch_has_the_same_bits() {
    let mut random = Random(8);
    for format in formats() {
        let cols = format.group().max(16) * (1 + random.below(4));
        let m = matrix(format, 5, cols, &mut random);
        let x = random.f32s(19 * cols);
        for cpu in cpus().flat_map(|cpu| Precision::ALL.map(|precision| cpu.with_precision(precision))) {
            let all = product(cpu, &m, &x);
            for count in [1, 2, 3, 4, 5, 8] {
                let first = random.below(20 - count);
                let some = product(cpu, &m, &x[first * cols..(first + count) * cols]);
                assert_eq!(some, all[first * 5..(first + count) * 5], "{} {format} {count}", cpu.name());
            }
        }
    }
}

/// One token's query is summed while weights are read, those of a batch from weights that were read before.
#[test]
fn a_query_alone_and_in_a_batch_has_the_same_bits() {
    let mut random = Random(9);
    // Rows of whole blocks for every set; heads of more rows than are read at once, and not a multiple of them.
    let heads = HeadShape { heads: 2, nope: 40, rope: 8, value: 24, latent: 768 };
    let rope = Rope { inv_freq: vec![0.5, 0.25, 0.125, 0.0625], mscale: 1.0 };
    let (tokens, width) = (3, heads.heads * (heads.nope + heads.rope));
    let layout = |first: u32, count: usize| {
        let mut layout = TokenLayout::new(4);
        layout.push(first, count, &[0]).unwrap();
        layout
    };
    for format in formats() {
        let m = matrix(format, heads.heads * (heads.nope + heads.value), heads.latent, &mut random);
        let (projections, q) = (LatentProjections::Joint(m), random.f32s(tokens * width));
        for cpu in cpus() {
            let absorb = |q: &[f32], layout: &TokenLayout| {
                let q = cpu.upload(layout.len(), width, q).unwrap();
                cpu.absorb_query(&q, &projections, heads, &rope, layout).unwrap().data().to_vec()
            };
            let batch = absorb(&q, &layout(0, tokens));
            let each = |t: usize| absorb(&q[t * width..][..width], &layout(t as u32, 1));
            let alone = (0..tokens).flat_map(each).collect::<Vec<_>>();
            assert!(batch.iter().all(|v| v.is_finite()), "{} {format}", cpu.name());
            assert_eq!(alone, batch, "{} {format}", cpu.name());
        }
    }
}

#[test]
fn parameters_of_one_row_do_not_reach_its_neighbours() {
    let mut random = Random(10);
    for cols in [128, 512, 1024] {
        let format = Format::Affine { bits: BitWidth::B4, group: 64, scales: FloatType::Bf16 };
        let good = matrix(format, 9, cols, &mut random);
        let (x, mut biases) = (random.f32s(cols), good.biases().to_vec());
        let row = cols / 64 * 2;
        biases[4 * row..5 * row].copy_from_slice(&[0x80, 0x7f].repeat(row / 2)); // infinity
        let parts = (good.weight().clone(), good.scales().clone(), biases.into());
        let bad = PackedMatrix::new(9, cols, format, parts.0, parts.1, parts.2).unwrap();
        for cpu in cpus() {
            let (mut expected, mut found) = (product(cpu, &good, &x), product(cpu, &bad, &x));
            assert!(!found.remove(4).is_finite(), "{} {cols}", cpu.name());
            expected.remove(4);
            assert_eq!(found, expected, "{} {cols}", cpu.name());
        }
    }
}

#[test]
fn a_token_of_long_rows_has_the_same_bits_alone_and_in_any_batch() {
    let mut random = Random(12);
    let grouped = |format: &Format| format.group().is_power_of_two() && format.group() >= 32;
    for format in formats().into_iter().filter(grouped) {
        let (rows, cols) = (37, 2304); // more than whole tiles and whole chunks
        let m = matrix(format, rows, cols, &mut random);
        let x = random.f32s(13 * cols);
        let rounding = [Precision::Close, Precision::Fast];
        for cpu in cpus().flat_map(|cpu| rounding.map(|precision| cpu.with_precision(precision))) {
            let all = product(cpu, &m, &x);
            for count in [1, 2, 3, 4, 6, 7] {
                let first = random.below(14 - count);
                let some = product(cpu, &m, &x[first * cols..(first + count) * cols]);
                assert_eq!(
                    some,
                    all[first * rows..(first + count) * rows],
                    "{} {format} {count}",
                    cpu.name()
                );
            }
        }
    }
}

#[test]
fn a_product_does_not_depend_on_the_number_of_threads() {
    let mut random = Random(9);
    let format = Format::Affine { bits: BitWidth::B3, group: 64, scales: FloatType::Bf16 };
    let m = matrix(format, 999, 448, &mut random);
    let x = random.f32s(3 * 448);
    for precision in Precision::ALL {
        let with = |threads: usize| {
            let team = Team::new(threads.try_into().unwrap());
            team.install(|| product(Cpu::new().with_precision(precision), &m, &x))
        };
        let one = with(1);
        assert_eq!(one, with(2));
        assert_eq!(one, with(7));
    }
}

/// Rounded as fast products round activations, for groups of some weights: in units of 64 columns, or 32, to integers up
/// to 127 times a step.
fn rounded(x: &[f32], group: usize) -> Vec<f32> {
    let round = |unit: &[f32]| {
        let size = unit.iter().fold(0f32, |size, x| size.max(x.abs()));
        let step = size / 127.0;
        unit.iter().map(|x| (x * (127.0 / size)).round_ties_even() * step).collect::<Vec<_>>()
    };
    x.chunks(group.min(64)).flat_map(round).collect()
}

#[test]
fn fast_products_are_those_of_rounded_activations_on_every_set() {
    let mut random = Random(13);
    let mut sets = 0;
    for format in formats() {
        let group = format.group();
        let coded = matches!(format, Format::Affine { .. } | Format::Int4 { .. } | Format::Mxfp4);
        let shared = group >= if format.code_bits() == 4 { 32 } else { 64 };
        if !coded || !shared || !group.is_power_of_two() {
            continue;
        }
        let m = matrix(format, 35, group * (1 + random.below(40)), &mut random);
        let x = random.f32s(4 * m.cols());
        for isa in Isa::available() {
            let all = ["AVX-VNNI", "AVX-512 VNNI"].contains(&isa.name());
            let narrow = ["AVX2", "NEON, dot products"].contains(&isa.name()) && format.code_bits() < 8;
            if all || narrow {
                let cpu = Cpu::with_isa(isa).unwrap();
                let (fast, close) =
                    (cpu.with_precision(Precision::Fast), cpu.with_precision(Precision::Close));
                for tokens in [1, 2, 4] {
                    let x = &x[..tokens * m.cols()];
                    let once = rounded(x, group);
                    check_one(fast, &m, x, &once);
                    // What was rounded off is rounded too, and added.
                    let rest: Vec<f32> = x.iter().zip(&once).map(|(x, once)| x - once).collect();
                    let twice: Vec<f32> =
                        rounded(&rest, group).iter().zip(&once).map(|(a, b)| a + b).collect();
                    // Short rows are multiplied exactly.
                    check_one(close, &m, x, if m.cols() < 1024 { x } else { &twice });
                }
                sets += 1;
            }
        }
    }
    println!("{sets} formats on sets with fast kernels");
}

#[test]
fn fast_products_differ_by_the_rounding_of_activations_alone() {
    let mut random = Random(11);
    for format in formats() {
        let cols = format.group().max(16) * (1 + random.below(5));
        let m = matrix(format, 7, cols, &mut random);
        let x = random.f32s(5 * cols);
        let weights = dequantize(&m);
        for cpu in cpus() {
            let [exact, close, fast] = Precision::ALL.map(|p| product(cpu.with_precision(p), &m, &x));
            for (i, ((exact, close), fast)) in exact.into_iter().zip(close).zip(fast).enumerate() {
                // No activation is rounded by more than half of a 127th of the largest, which is below one; what a
                // group's bias adds is rounded so too.
                let (row, column) = (i % 7, |c: usize| f64::from(weights[i % 7 * cols + c].abs()));
                let group = |c| magnitude(&m, (row * cols + c) / format.group());
                let size: f64 = (0..cols).map(|c| column(c).max(group(c))).sum();
                let error = f64::from((exact - fast).abs());
                assert!(error <= size * 0.51 / 127.0, "{} {format} {i}: {exact} {fast}", cpu.name());
                // That half is rounded in the same way.
                let error = f64::from((exact - close).abs());
                let bound = size * (0.51f64 / 127.0).powi(2);
                assert!(error <= bound, "{} {format} {i}: {exact} {close}", cpu.name());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn ragged_shapes_agree_with_f64(
        seed in 1u64..,
        which in 0usize..1000,
        rows in prop_oneof![4 => 1usize..20, 1 => 120usize..300],
        groups in 1usize..12,
        tokens in 1usize..12,
    ) {
        let formats = formats();
        let format = formats[which % formats.len()];
        let mut random = Random(seed);
        let cols = match format {
            Format::Float(_) | Format::Fp8 { .. } => 1 + random.below(300),
            _ => format.group() * groups,
        };
        let m = matrix(format, rows, cols, &mut random);
        check(&m, &random.f32s(tokens * cols));
    }
}

#[test]
fn what_lies_behind_the_matrix_is_never_used() {
    // The same matrix before NaN bytes and before zeros: a kernel that read on would show it.
    let mut random = Random(10);
    for format in formats() {
        let cols = format.group().max(8);
        let m = matrix(format, 3, cols, &mut random);
        let x = random.f32s(cols);
        let followed_by = |byte: u8| {
            let tail = |bytes: &Bytes| {
                let mut longer = bytes.to_vec();
                longer.extend_from_slice(&[byte; 256]);
                Bytes::from(longer).slice(..bytes.len())
            };
            let parts = (tail(m.weight()), tail(m.scales()), tail(m.biases()));
            PackedMatrix::new(3, cols, format, parts.0, parts.1, parts.2).unwrap()
        };
        for cpu in cpus() {
            let zeros = product(cpu, &followed_by(0), &x);
            assert!(zeros.iter().all(|v| v.is_finite()), "{format}");
            assert_eq!(zeros, product(cpu, &followed_by(0xff), &x), "{} {format}", cpu.name());
        }
    }
}

#[test]
fn e4m3_nan_patterns_and_subnormal_scales_have_the_documented_values() {
    let scales = Bytes::from(vec![0u8]);
    let m = |codes: Vec<u8>| {
        PackedMatrix::new(1, 32, Format::Mxfp8, Bytes::from(codes), scales.clone(), Bytes::new()).unwrap()
    };
    assert_eq!(dequantize(&m(vec![0x38; 32]))[0], 2f32.powi(-127));
    assert_eq!(dequantize(&m(vec![0x7f; 32]))[0], 480.0 * 2f32.powi(-127));
    for cpu in cpus() {
        let x = vec![2f32.powi(100); 32];
        assert_eq!(product(cpu, &m(vec![0x38; 32]), &x), [2f32.powi(-22)], "{}", cpu.name());
    }
}
