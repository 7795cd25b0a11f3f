//! Agreement with MLX's own numbers, on every instruction set of this machine.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::{Golden, bf16_bytes, f32_bytes, golden};
use kimi_quant::cpu::{Cpu, Isa, dequantize};
use kimi_quant::{
    Backend, BitWidth, CacheShape, FloatType, Format, Norm, PackedMatrix, Rope, Router, RouterShape,
    TokenLayout,
};
use safetensors::SafeTensors;

/// A norm that changes nothing but the last bits, so that an op with a norm can be fed raw activations:
/// each row of `x` must have a mean square of 1.
fn unit_norm(width: usize) -> Norm<Vec<f32>> {
    Norm { weight: vec![1.0; width], eps: 0.0 }
}

/// `x @ m^T` through the public ops.
fn product(cpu: Cpu, m: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let tokens = x.len() / m.cols();
    let x = cpu.upload(tokens, m.cols(), x).unwrap();
    let mut y = cpu.upload(tokens, m.rows(), &vec![0.0; tokens * m.rows()]).unwrap();
    cpu.project_add(&x, m, &mut y).unwrap();
    cpu.download(&y).unwrap()
}

fn cpus() -> Vec<Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::with_isa(isa).unwrap()).collect()
}

/// Largest difference in units of the reference's largest value, row of outputs by row of outputs: the goldens have
/// rows of very different size.
fn check_product(name: &str, m: &PackedMatrix, x: &[f32], expected: &[f32]) {
    let weights = dequantize(m);
    for cpu in cpus() {
        let y = product(cpu, m, x);
        assert_eq!(y.len(), expected.len());
        for (i, (y, e)) in y.iter().zip(expected).enumerate() {
            let (t, r) = (i / m.rows(), i % m.rows());
            let (x, w) = (&x[t * m.cols()..][..m.cols()], &weights[r * m.cols()..][..m.cols()]);
            let size: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
            // Both sides round at every step of a sum of `cols` terms, in different orders.
            let bound = size * f32::EPSILON * (m.cols() as f32).sqrt() + f32::MIN_POSITIVE;
            assert!((y - e).abs() <= bound, "{name} {}: [{t}][{r}] {y} vs {e}, bound {bound}", cpu.name());
        }
    }
}

#[test]
fn affine_values_and_products_are_mlx_s() {
    let Some(file) = golden("unit_affine.safetensors") else { return };
    let g = Golden(SafeTensors::deserialize(&file).unwrap());
    for (bits, group) in BitWidth::ALL.into_iter().flat_map(|b| [32, 64, 128].map(|g| (b, g))) {
        let key = format!("b{}g{group}", bits.bits());
        let matrix = |part: &str, rows: usize, scales: FloatType| {
            let bytes = |name: &str| {
                let values = g.f32s(&format!("{key}.{part}.{name}"));
                let bytes = if scales == FloatType::F32 { f32_bytes(&values) } else { bf16_bytes(&values) };
                common::misaligned(&bytes, 3)
            };
            let weight = common::misaligned(&g.bytes(&format!("{key}.{part}.packed")), 1);
            let format = Format::Affine { bits, group, scales };
            PackedMatrix::new(rows, 256, format, weight, bytes("scales"), bytes("biases")).unwrap()
        };
        let f32_matrix = matrix("f32", 24, FloatType::F32);
        assert_eq!(dequantize(&f32_matrix), g.f32s(&format!("{key}.f32.dequant")), "{key}");
        check_product(&key, &f32_matrix, &g.f32s("x_f32"), &g.f32s(&format!("{key}.f32.x_wT")));
        let bf16_matrix = matrix("bf16", 24, FloatType::Bf16);
        let expected = g.f32s(&format!("{key}.bf16.x_wT_f32acc"));
        check_product(&format!("{key} bf16"), &bf16_matrix, &g.f32s("x_bf16_as_f32"), &expected);
        check_dequantized_bf16(&key, &g, &bf16_matrix);

        let experts = matrix("exp", 4 * 8, FloatType::F32).split_rows(4);
        let (x, y) = (g.f32s("xe_f32"), g.f32s(&format!("{key}.exp.y")));
        for (pair, &expert) in g.i32s("e_idx").iter().enumerate() {
            let x = &x[pair / 2 * 256..][..256];
            check_product(
                &format!("{key} expert {expert}"),
                &experts[expert as usize],
                x,
                &y[pair * 8..][..8],
            );
        }
    }
}

/// MLX dequantizes bf16 scales in bf16; redo its two roundings from our exact codes.
fn check_dequantized_bf16(key: &str, g: &Golden<'_>, m: &PackedMatrix) {
    let round = |v: f32| half::bf16::from_f32(v).to_f32();
    let Format::Affine { group, .. } = m.format() else { unreachable!() };
    let (scales, biases) = (g.f32s(&format!("{key}.bf16.scales")), g.f32s(&format!("{key}.bf16.biases")));
    // bf16 scales times codes of up to 8 bits are exact in f32, so that only bf16's roundings matter.
    let codes = {
        let ones = bf16_bytes(&vec![1.0; scales.len()]);
        let zeros = bf16_bytes(&vec![0.0; scales.len()]);
        let bare = PackedMatrix::new(
            m.rows(),
            m.cols(),
            m.format(),
            m.weight().clone(),
            Bytes::from(ones),
            Bytes::from(zeros),
        );
        dequantize(&bare.unwrap())
    };
    let ours: Vec<f32> = codes
        .iter()
        .enumerate()
        .map(|(i, q)| round(round(q * scales[i / group]) + biases[i / group]))
        .collect();
    assert_eq!(ours, g.f32s(&format!("{key}.bf16.dequant")), "{key} bf16");
}

#[test]
fn fp_values_and_products_are_mlx_s() {
    let Some(file) = golden("unit_fp.safetensors") else { return };
    let g = Golden(SafeTensors::deserialize(&file).unwrap());
    for (name, format) in [("mxfp4", Format::Mxfp4), ("nvfp4", Format::Nvfp4), ("mxfp8", Format::Mxfp8)] {
        let weight = common::misaligned(&g.bytes(&format!("{name}.packed")), 1);
        let scales = common::misaligned(&g.bytes(&format!("{name}.scales_u8")), 7);
        let m = PackedMatrix::new(15, 256, format, weight, scales, Bytes::new()).unwrap();
        assert_eq!(dequantize(&m), g.f32s(&format!("{name}.dequant")), "{name}");
        check_product(name, &m, &g.f32s("x_f32"), &g.f32s(&format!("{name}.x_wT")));
    }
}

#[test]
fn routing_is_mlx_lm_s() {
    let Some(file) = golden("unit_misc.safetensors") else { return };
    let g = Golden(SafeTensors::deserialize(&file).unwrap());
    let logits = g.f32s("router.logits");
    for (name, groups, kept_groups) in [("k2", 1, 1), ("grp8of4", 8, 4)] {
        let shape = RouterShape { chosen: 8, groups, kept_groups, normalize: true, scale: 2.827 };
        // The logits reach the choice through a product with the identity.
        for (t, logits) in logits.chunks_exact(384).enumerate() {
            let size = (logits.iter().map(|v| v * v).sum::<f32>() / 384.0).sqrt();
            let identity: Vec<f32> = (0..384 * 384).map(|i| if i % 385 == 0 { size } else { 0.0 }).collect();
            let gate = PackedMatrix::new(
                384,
                384,
                Format::Float(FloatType::F32),
                Bytes::from(f32_bytes(&identity)),
                Bytes::new(),
                Bytes::new(),
            );
            let router = Router { gate: gate.unwrap(), bias: g.f32s("router.bias"), shape };
            let cpu = Cpu::new();
            let x = cpu.upload(1, 384, logits).unwrap();
            let (_, routing) = cpu.route(&x, &unit_norm(384), &router).unwrap();
            let (ids, weights) = cpu.download_routing(&routing).unwrap();
            let sorted = |ids: Vec<u32>, weights: &[f32]| {
                let mut pairs: Vec<(u32, f32)> = ids.into_iter().zip(weights.iter().copied()).collect();
                pairs.sort_by_key(|p| p.0);
                pairs
            };
            let all_ids = g.i32s(&format!("router.{name}.idx"));
            let expected_ids = all_ids[t * 8..][..8].iter().map(|&i| i as u32);
            let expected_weights = &g.f32s(&format!("router.{name}.w"))[t * 8..][..8];
            let expected = sorted(expected_ids.collect(), expected_weights);
            for (ours, expected) in sorted(ids, &weights).into_iter().zip(expected) {
                assert_eq!(ours.0, expected.0, "{name} token {t}");
                assert!((ours.1 - expected.1).abs() < 2e-6, "{name} token {t}: {} vs {}", ours.1, expected.1);
            }
        }
    }
}

#[test]
fn rotation_is_mlx_lm_s_at_every_offset() {
    let Some(file) = golden("unit_misc.safetensors") else { return };
    let g = Golden(SafeTensors::deserialize(&file).unwrap());
    for (name, mscale) in
        [("k2_f32", 1.0), ("k2_f64", 1.0), ("dsv3", 1.0), ("tiny", 1.0), ("stress", 0.921_042_4)]
    {
        let inv_freq: Vec<f32> = g.f32s(&format!("yarn.{name}.freqs")).iter().map(|f| 1.0 / f).collect();
        let (width, x) = (2 * inv_freq.len(), g.f32s(&format!("yarn.{name}.x")));
        let rope = Rope { inv_freq, mscale };
        for offset in [0, 5, 4093, 100_000] {
            let expected = g.f32s(&format!("yarn.{name}.rope_off{offset}"));
            // [1, 2 heads, 3 positions, width]
            for head in 0..2 {
                let range = head * 3 * width..(head + 1) * 3 * width;
                let ours = rotate(&rope, offset, &x[range.clone()]);
                for (i, (ours, expected)) in ours.iter().zip(&expected[range]).enumerate() {
                    assert!((ours - expected).abs() < 2e-6, "{name} {offset} [{i}]: {ours} vs {expected}");
                }
            }
        }
    }
}

/// Three tokens from `offset` on, through the cache.
fn rotate(rope: &Rope, offset: u32, x: &[f32]) -> Vec<f32> {
    let (cpu, width) = (Cpu::new(), x.len() / 3);
    let pages = (offset as usize + 3).div_ceil(64);
    let mut cache = cpu.new_cache(CacheShape { pages: 1, page_tokens: 64, latent: 1, rope: width }).unwrap();
    let mut layout = TokenLayout::new(64);
    // One page serves all positions; the three written last are the ones read back.
    layout.push(offset, 3, &vec![0; pages]).unwrap();
    let kv: Vec<f32> =
        x.chunks_exact(width).flat_map(|x| [1.0].into_iter().chain(x.iter().copied())).collect();
    let kv = cpu.upload(3, width + 1, &kv).unwrap();
    cpu.store_latent(&mut cache, &kv, &unit_norm(1), rope, &layout).unwrap();
    let stored = cpu.download_cache(&cache, &layout).unwrap();
    stored.chunks_exact(width + 1).flat_map(|slot| slot[1..].iter().copied()).collect()
}
