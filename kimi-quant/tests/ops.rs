//! Every op of the backend against a plain twin in f64, and its complaints about operands that do not fit.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::{Random, bf16_bytes, f32_bytes};
use kimi_quant::cpu::{Cpu, Isa, Tensor, dequantize};
use kimi_quant::{
    Backend, BackendError, BitWidth, CacheShape, ExpertHidden, FloatType, Format, HeadShape,
    LatentProjections, Norm, PackedMatrix, Rope, Router, RouterShape, TokenLayout,
};

const AFFINE4: Format = Format::Affine { bits: BitWidth::B4, group: 32, scales: FloatType::Bf16 };
const AFFINE3: Format = Format::Affine { bits: BitWidth::B3, group: 64, scales: FloatType::Bf16 };

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::with_isa(isa).unwrap())
}

/// A matrix whose values are about one over the root of its width.
fn matrix(format: Format, rows: usize, cols: usize, random: &mut Random) -> PackedMatrix {
    let [weight, scales, biases] = format.bytes(rows, cols).unwrap();
    let step = 2.0 / (cols as f32).sqrt() / (1 << format.code_bits().min(8)) as f32;
    let weight = match format {
        Format::Float(FloatType::F32) => {
            f32_bytes(&random.f32s(rows * cols).iter().map(|v| v / (cols as f32).sqrt()).collect::<Vec<_>>())
        }
        _ => random.bytes(weight),
    };
    let scales = bf16_bytes(&vec![step; scales / 2]);
    let biases = bf16_bytes(&vec![-step * (1 << (format.code_bits().min(8) - 1)) as f32; biases / 2]);
    PackedMatrix::new(rows, cols, format, weight.into(), scales.into(), biases.into()).unwrap()
}

fn f32_matrix(rows: usize, cols: usize, random: &mut Random) -> PackedMatrix {
    matrix(Format::Float(FloatType::F32), rows, cols, random)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

/// `x [T, cols] @ m^T`.
fn product(x: &[f64], m: &PackedMatrix) -> Vec<f64> {
    let w = wide(&dequantize(m));
    let rows = |x: &[f64]| -> Vec<f64> {
        w.chunks_exact(m.cols()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    x.chunks_exact(m.cols()).flat_map(rows).collect()
}

fn normed(x: &[f64], norm: &Norm<Vec<f32>>) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        x.iter().zip(&norm.weight).map(|(v, &w)| v / (mean + norm.eps as f64).sqrt() * w as f64).collect()
    };
    x.chunks_exact(norm.weight.len()).flat_map(row).collect()
}

fn rotated(x: &[f64], rope: &Rope, position: u32) -> Vec<f64> {
    let pair = |(i, x): (usize, &[f64])| {
        // The angle itself is an f32 by definition.
        let angle = (position as f32 * rope.inv_freq[i]) as f64;
        let (a, b) = (x[0] * rope.mscale as f64, x[1] * rope.mscale as f64);
        [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    };
    x.chunks_exact(2).enumerate().flat_map(pair).collect()
}

fn silu(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

fn close(what: &str, ours: &Tensor, exact: &[f64]) {
    assert_eq!(ours.data().len(), exact.len(), "{what}");
    let size = exact.iter().fold(0f64, |a, b| a.max(b.abs())).max(1e-3);
    for (i, (&ours, &exact)) in ours.data().iter().zip(exact).enumerate() {
        assert!((ours as f64 - exact).abs() < 3e-6 * size, "{what} [{i}]: {ours} vs {exact}");
    }
}

fn norm(width: usize, random: &mut Random) -> Norm<Vec<f32>> {
    Norm { weight: (0..width).map(|_| 1.0 + 0.5 * random.f32()).collect(), eps: 1e-5 }
}

fn shape_error<T>(result: Result<T, BackendError>) {
    match result {
        Err(BackendError::Shape { found, expected, .. }) => assert_ne!(found, expected),
        Err(other) => panic!("not a shape error: {other}"),
        Ok(_) => panic!("operands that do not fit were taken"),
    }
}

fn range_error<T>(result: Result<T, BackendError>) {
    match result {
        Err(BackendError::Range { found, limit, .. }) => assert!(found >= limit),
        Err(other) => panic!("not a range error: {other}"),
        Ok(_) => panic!("an operand out of range was taken"),
    }
}

#[test]
fn embedding_and_transfers() {
    let mut random = Random(1);
    let table = matrix(AFFINE3, 10, 128, &mut random);
    let values = dequantize(&table);
    for cpu in cpus() {
        let x = cpu.embed(&table, &[7, 0, 7]).unwrap();
        let expected = [&values[7 * 128..8 * 128], &values[..128], &values[7 * 128..8 * 128]].concat();
        assert_eq!(cpu.download(&x).unwrap(), expected);
        assert!(cpu.download(&cpu.embed(&table, &[]).unwrap()).unwrap().is_empty());
        range_error(cpu.embed(&table, &[3, 10]));
        range_error(cpu.embed(&table, &[u32::MAX]));
        shape_error(cpu.upload(2, 3, &[0.0; 5]));
        shape_error(cpu.upload(usize::MAX, 2, &[0.0; 5]));
        assert!(cpu.name().starts_with("cpu ("));
    }
}

#[test]
fn norm_then_projections() {
    let mut random = Random(2);
    let (a, b) = (matrix(AFFINE4, 40, 96, &mut random), f32_matrix(17, 96, &mut random));
    let norm = norm(96, &mut random);
    for tokens in [0, 1, 3, 20] {
        let x = random.f32s(tokens * 96);
        let exact = normed(&wide(&x), &norm);
        for cpu in cpus() {
            let x = cpu.upload(tokens, 96, &x).unwrap();
            let [ya, yb] = cpu.norm_project(&x, &norm, [&a, &b]).unwrap();
            close("first", &ya, &product(&exact, &a));
            close("second", &yb, &product(&exact, &b));
        }
    }
    let cpu = Cpu::new();
    let x = cpu.upload(1, 64, &[1.0; 64]).unwrap();
    shape_error(cpu.norm_project(&x, &norm, [&a]));
    let x = cpu.upload(1, 96, &[1.0; 96]).unwrap();
    shape_error(cpu.norm_project(&x, &Norm { weight: vec![1.0; 95], eps: 0.0 }, [&a]));
}

#[test]
fn projection_onto_the_residual() {
    let mut random = Random(3);
    let w = matrix(AFFINE3, 50, 64, &mut random);
    for tokens in [0, 1, 2, 11] {
        let (x, residual) = (random.f32s(tokens * 64), random.f32s(tokens * 50));
        let exact: Vec<f64> =
            product(&wide(&x), &w).iter().zip(wide(&residual)).map(|(a, b)| a + b).collect();
        for cpu in cpus() {
            let x = cpu.upload(tokens, 64, &x).unwrap();
            let mut y = cpu.upload(tokens, 50, &residual).unwrap();
            cpu.project_add(&x, &w, &mut y).unwrap();
            close("residual", &y, &exact);
        }
    }
    let cpu = Cpu::new();
    let x = cpu.upload(2, 64, &[1.0; 128]).unwrap();
    shape_error(cpu.project_add(&x, &w, &mut cpu.upload(1, 50, &[0.0; 50]).unwrap()));
    shape_error(cpu.project_add(&x, &w, &mut cpu.upload(2, 49, &[0.0; 98]).unwrap()));
    let narrow = cpu.upload(2, 32, &[1.0; 64]).unwrap();
    shape_error(cpu.project_add(&narrow, &w, &mut cpu.upload(2, 50, &[0.0; 100]).unwrap()));
}

#[test]
fn dense_swiglu() {
    let mut random = Random(4);
    let (gate, up) = (matrix(AFFINE4, 48, 64, &mut random), matrix(AFFINE3, 48, 64, &mut random));
    let norm = norm(64, &mut random);
    for tokens in [0, 1, 9] {
        let x = random.f32s(tokens * 64);
        let n = normed(&wide(&x), &norm);
        let exact: Vec<f64> =
            product(&n, &gate).iter().zip(product(&n, &up)).map(|(g, u)| silu(*g) * u).collect();
        for cpu in cpus() {
            let x = cpu.upload(tokens, 64, &x).unwrap();
            close("swiglu", &cpu.norm_swiglu(&x, &norm, &gate, &up).unwrap(), &exact);
        }
    }
    let cpu = Cpu::new();
    let x = cpu.upload(1, 64, &[1.0; 64]).unwrap();
    let short = matrix(AFFINE4, 47, 64, &mut random);
    shape_error(cpu.norm_swiglu(&x, &norm, &gate, &short));
}

const HEADS: HeadShape = HeadShape { heads: 6, nope: 32, rope: 8, value: 48, latent: 64 };

fn rope(random: &mut Random) -> Rope {
    Rope { inv_freq: (0..4).map(|i| 0.7f32.powi(i) * (1.0 + 0.1 * random.f32())).collect(), mscale: 0.93 }
}

/// Two sequences whose pages are interleaved and out of order: 3 new tokens after 4, and 1 new token after `long`.
fn layout(long: u32) -> TokenLayout {
    let mut layout = TokenLayout::new(4);
    layout.push(4, 3, &[5, 1]).unwrap();
    let pages: Vec<u32> = (0..=long / 4).map(|p| 6 + (p ^ 1)).collect();
    layout.push(long, 1, &pages).unwrap();
    layout
}

#[test]
fn head_projections_joint_and_split() {
    let mut random = Random(5);
    let h = HEADS;
    let joint =
        LatentProjections::Joint(matrix(AFFINE4, h.heads * (h.nope + h.value), h.latent, &mut random));
    let split = LatentProjections::Split {
        embed_q: matrix(AFFINE4, h.heads * h.latent, h.nope, &mut random),
        unembed_out: matrix(AFFINE3, h.heads * h.value, h.latent, &mut random),
    };
    let (rope, layout) = (rope(&mut random), layout(9));
    let q = random.f32s(4 * h.heads * (h.nope + h.rope));
    let attended = random.f32s(4 * h.heads * h.latent);
    for projections in [&joint, &split] {
        let (mut exact_q, mut exact_v) = (Vec::new(), Vec::new());
        for t in 0..4 {
            for head in 0..h.heads {
                let q = wide(&q[(t * h.heads + head) * (h.nope + h.rope)..][..h.nope + h.rope]);
                let a = wide(&attended[(t * h.heads + head) * h.latent..][..h.latent]);
                let (latent, value) = match projections {
                    LatentProjections::Joint(m) => {
                        let rows = m.slice_rows(head * (h.nope + h.value)..(head + 1) * (h.nope + h.value));
                        let uk = wide(&dequantize(&rows.slice_rows(0..h.nope)));
                        let latent = (0..h.latent)
                            .map(|c| (0..h.nope).map(|r| q[r] * uk[r * h.latent + c]).sum())
                            .collect::<Vec<f64>>();
                        (latent, product(&a, &rows.slice_rows(h.nope..h.nope + h.value)))
                    }
                    LatentProjections::Split { embed_q, unembed_out } => (
                        product(&q[..h.nope], &embed_q.slice_rows(head * h.latent..(head + 1) * h.latent)),
                        product(&a, &unembed_out.slice_rows(head * h.value..(head + 1) * h.value)),
                    ),
                };
                exact_q.extend(latent);
                exact_q.extend(rotated(&q[h.nope..], &rope, layout.positions()[t]));
                exact_v.extend(value);
            }
        }
        for cpu in cpus() {
            let q = cpu.upload(4, h.heads * (h.nope + h.rope), &q).unwrap();
            let a = cpu.upload(4, h.heads * h.latent, &attended).unwrap();
            close("absorbed", &cpu.absorb_query(&q, projections, h, &rope, &layout).unwrap(), &exact_q);
            close("values", &cpu.project_values(&a, projections, h).unwrap(), &exact_v);
        }
    }
    let cpu = Cpu::new();
    let q = cpu.upload(4, h.heads * (h.nope + h.rope), &q).unwrap();
    let empty = TokenLayout::new(4);
    shape_error(cpu.absorb_query(&q, &joint, h, &rope, &empty));
    shape_error(cpu.absorb_query(&q, &joint, HeadShape { heads: 5, ..h }, &rope, &layout));
    shape_error(cpu.absorb_query(&q, &joint, h, &Rope { inv_freq: vec![1.0; 3], mscale: 1.0 }, &layout));
    shape_error(cpu.project_values(&q, &split, h));
    let none = cpu.upload(0, h.heads * (h.nope + h.rope), &[]).unwrap();
    assert!(cpu.absorb_query(&none, &joint, h, &rope, &empty).unwrap().data().is_empty());
}

#[test]
fn attention_over_a_paged_cache() {
    let mut random = Random(6);
    let (h, scale) = (HEADS, 0.19);
    let width = h.latent + h.rope;
    // 2500 positions are three segments, the last of them ragged.
    for long in [0, 5, 130, 2499] {
        let layout = layout(long);
        let shape =
            CacheShape { pages: 8 + long as usize / 4 + 2, page_tokens: 4, latent: h.latent, rope: h.rope };
        let norm = norm(h.latent, &mut random);
        let rope = rope(&mut random);
        // Everything up to the new tokens, then the new tokens.
        let mut all = TokenLayout::new(4);
        all.push(0, 7, &layout.tables()[0]).unwrap();
        all.push(0, long as usize + 1, &layout.tables()[1]).unwrap();
        let kv = random.f32s(all.len() * width);
        let q: Vec<f32> = random.f32s(4 * h.heads * width).iter().map(|v| v * 4.0).collect();
        let keys: Vec<Vec<f64>> = kv
            .chunks_exact(width)
            .zip(all.positions())
            .map(|(kv, &p)| {
                let kv = wide(kv);
                [normed(&kv[..h.latent], &norm), rotated(&kv[h.latent..], &rope, p)].concat()
            })
            .collect();
        let mut exact = Vec::new();
        for t in 0..4 {
            let keys = if t < 3 { &keys[..5 + t] } else { &keys[7..] };
            for head in 0..h.heads {
                let q = wide(&q[(t * h.heads + head) * width..][..width]);
                let scores: Vec<f64> =
                    keys.iter().map(|k| scale * k.iter().zip(&q).map(|(k, q)| k * q).sum::<f64>()).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                exact.extend((0..h.latent).map(|c| {
                    keys.iter().zip(&scores).map(|(k, s)| (s - max).exp() / total * k[c]).sum::<f64>()
                }));
            }
        }
        for cpu in cpus() {
            let mut cache = cpu.new_cache(shape).unwrap();
            let kv = cpu.upload(all.len(), width, &kv).unwrap();
            cpu.store_latent(&mut cache, &kv, &norm, &rope, &all).unwrap();
            let stored = cpu.upload(all.len(), width, &cpu.download_cache(&cache, &all).unwrap()).unwrap();
            close("stored", &stored, &keys.concat());
            let q = cpu.upload(4, h.heads * width, &q).unwrap();
            let ours = cpu.attend_latent(&q, &cache, h, scale as f32, &layout).unwrap();
            close("attended", &ours, &exact);
            alone_as_in_the_batch(cpu, &q, &cache, h, scale as f32, &layout, &ours);
        }
    }
}

fn alone_as_in_the_batch(
    cpu: Cpu,
    q: &Tensor,
    cache: &<Cpu as Backend>::Cache,
    h: HeadShape,
    scale: f32,
    layout: &TokenLayout,
    batch: &Tensor,
) {
    for t in 0..layout.len() {
        let mut one = TokenLayout::new(layout.page_tokens());
        one.push(layout.positions()[t], 1, &layout.tables()[layout.sequences()[t] as usize]).unwrap();
        let q = cpu.upload(1, q.cols(), &q.data()[t * q.cols()..][..q.cols()]).unwrap();
        let alone = cpu.attend_latent(&q, cache, h, scale, &one).unwrap();
        assert_eq!(alone.data(), &batch.data()[t * batch.cols()..][..batch.cols()]);
    }
}

#[test]
fn the_cache_refuses_what_does_not_fit() {
    let cpu = Cpu::new();
    let h = HEADS;
    let width = h.latent + h.rope;
    let shape = CacheShape { pages: 4, page_tokens: 4, latent: h.latent, rope: h.rope };
    let mut cache = cpu.new_cache(shape).unwrap();
    let norm = Norm { weight: vec![1.0; h.latent], eps: 0.0 };
    let rope = Rope { inv_freq: vec![1.0; 4], mscale: 1.0 };
    let kv = cpu.upload(1, width, &vec![1.0; width]).unwrap();
    let one = |pages: &[u32], page_tokens: usize| {
        let mut layout = TokenLayout::new(page_tokens);
        layout.push(0, 1, pages).unwrap();
        layout
    };
    cpu.store_latent(&mut cache, &kv, &norm, &rope, &one(&[3], 4)).unwrap();
    range_error(cpu.store_latent(&mut cache, &kv, &norm, &rope, &one(&[4], 4)));
    range_error(cpu.download_cache(&cache, &one(&[u32::MAX], 4)));
    shape_error(cpu.store_latent(&mut cache, &kv, &norm, &rope, &one(&[0], 8)));
    shape_error(cpu.store_latent(&mut cache, &kv, &norm, &rope, &TokenLayout::new(4)));
    let short = Norm { weight: vec![1.0; h.latent - 1], eps: 0.0 };
    shape_error(cpu.store_latent(&mut cache, &kv, &short, &rope, &one(&[0], 4)));
    let q = cpu.upload(1, h.heads * width, &vec![1.0; h.heads * width]).unwrap();
    range_error(cpu.attend_latent(&q, &cache, h, 1.0, &one(&[9], 4)));
    shape_error(cpu.attend_latent(&q, &cache, HeadShape { latent: 32, ..h }, 1.0, &one(&[0], 4)));
    shape_error(cpu.attend_latent(&kv, &cache, h, 1.0, &one(&[0], 4)));
    range_error(TokenLayout::new(4).push(3, 2, &[0]).map(|()| 0));
    range_error(TokenLayout::new(4).push(u32::MAX, usize::MAX, &[0]).map(|()| 0));
    let huge = CacheShape { pages: usize::MAX / 8, page_tokens: 64, latent: 512, rope: 64 };
    assert!(matches!(cpu.new_cache(huge), Err(BackendError::OutOfMemory { .. })));
}

struct Layer {
    gate: Vec<PackedMatrix>,
    up: Vec<PackedMatrix>,
    down: Vec<PackedMatrix>,
    shared: [PackedMatrix; 3],
    router: Router<PackedMatrix, Vec<f32>>,
    norm: Norm<Vec<f32>>,
}

const HIDDEN: usize = 64;

fn layer(random: &mut Random) -> Layer {
    let mut experts =
        |format, rows, cols| (0..8).map(|_| matrix(format, rows, cols, random)).collect::<Vec<_>>();
    let (gate, up, down) =
        (experts(AFFINE4, 96, HIDDEN), experts(AFFINE3, 96, HIDDEN), experts(AFFINE4, HIDDEN, 96));
    let shared = [(128, HIDDEN), (128, HIDDEN), (HIDDEN, 128)].map(|(r, c)| matrix(AFFINE3, r, c, random));
    let shape = RouterShape { chosen: 3, groups: 4, kept_groups: 2, normalize: true, scale: 2.5 };
    let router = Router {
        gate: f32_matrix(8, HIDDEN, random),
        bias: random.f32s(8).iter().map(|b| b * 0.2).collect(),
        shape,
    };
    Layer { gate, up, down, shared, router, norm: norm(HIDDEN, random) }
}

/// Ids and weights by the definition; the groups are pairs, so that a group's score is the sum of both.
fn routed(x: &[f64], layer: &Layer) -> Vec<(usize, f64)> {
    let scores: Vec<f64> = product(x, &layer.router.gate).iter().map(|g| 1.0 / (1.0 + (-g).exp())).collect();
    let mut choice: Vec<f64> = scores.iter().zip(&layer.router.bias).map(|(s, &b)| s + b as f64).collect();
    let mut groups = [0, 1, 2, 3];
    groups.sort_by(|&a, &b| {
        let score = |g: usize| choice[2 * g] + choice[2 * g + 1];
        score(b).total_cmp(&score(a))
    });
    for g in &groups[2..] {
        choice[2 * g] = 0.0;
        choice[2 * g + 1] = 0.0;
    }
    let mut ids: Vec<usize> = (0..8).collect();
    ids.sort_by(|&a, &b| choice[b].total_cmp(&choice[a]));
    let sum: f64 = ids[..3].iter().map(|&i| scores[i]).sum();
    ids[..3].iter().map(|&i| (i, scores[i] / sum * 2.5)).collect()
}

#[test]
fn routing_and_experts() {
    let mut random = Random(11);
    let layer = layer(&mut random);
    for tokens in [0, 1, 2, 40] {
        let (x, residual) = (random.f32s(tokens * HIDDEN), random.f32s(tokens * HIDDEN));
        let n = normed(&wide(&x), &layer.norm);
        let choices: Vec<Vec<(usize, f64)>> = n.chunks_exact(HIDDEN).map(|x| routed(x, &layer)).collect();
        let swiglu = |x: &[f64], gate: &PackedMatrix, up: &PackedMatrix| -> Vec<f64> {
            product(x, gate).iter().zip(product(x, up)).map(|(g, u)| silu(*g) * u).collect()
        };
        let (mut routed, mut shared, mut sums) = (Vec::new(), Vec::new(), wide(&residual));
        for (t, (x, choices)) in n.chunks_exact(HIDDEN).zip(&choices).enumerate() {
            let mut add = |y: Vec<f64>, weight: f64| {
                sums[t * HIDDEN..].iter_mut().zip(y).for_each(|(s, y)| *s += weight * y);
            };
            for &(id, weight) in choices {
                let h = swiglu(x, &layer.gate[id], &layer.up[id]);
                add(product(&h, &layer.down[id]), weight);
                routed.extend(h);
            }
            let h = swiglu(x, &layer.shared[0], &layer.shared[1]);
            add(product(&h, &layer.shared[2]), 1.0);
            shared.extend(h);
        }
        for cpu in cpus() {
            let x = cpu.upload(tokens, HIDDEN, &x).unwrap();
            let (x, routing) = cpu.route(&x, &layer.norm, &layer.router).unwrap();
            close("normed", &x, &n);
            let (ids, weights) = cpu.download_routing(&routing).unwrap();
            for ((id, weight), expected) in ids.iter().zip(weights).zip(choices.iter().flatten()) {
                assert_eq!(*id as usize, expected.0);
                assert!((weight as f64 - expected.1).abs() < 1e-6);
            }
            assert_eq!(ids.len(), tokens * 3);
            let [gate, up, down] =
                [&layer.gate, &layer.up, &layer.down].map(|e| cpu.load_experts(e.clone()).unwrap());
            let s = &layer.shared;
            let hidden = cpu.experts_swiglu(&x, &routing, &gate, &up, Some((&s[0], &s[1]))).unwrap();
            close("routed", &hidden.routed, &routed);
            close("shared", hidden.shared.as_ref().unwrap(), &shared);
            let mut y = cpu.upload(tokens, HIDDEN, &residual).unwrap();
            cpu.experts_down_add(&hidden, &routing, &down, Some(&s[2]), &mut y).unwrap();
            close("sum", &y, &sums);
            let bare = cpu.experts_swiglu(&x, &routing, &gate, &up, None).unwrap();
            assert!(bare.shared.is_none());
            assert_eq!(bare.routed, hidden.routed);
        }
    }
}

#[test]
fn experts_refuse_what_does_not_fit() {
    let mut random = Random(12);
    let (cpu, layer) = (Cpu::new(), layer(&mut random));
    let [gate, up, down] =
        [&layer.gate, &layer.up, &layer.down].map(|e| cpu.load_experts(e.clone()).unwrap());
    let x = cpu.upload(2, HIDDEN, &random.f32s(2 * HIDDEN)).unwrap();
    let (x, routing) = cpu.route(&x, &layer.norm, &layer.router).unwrap();
    let one = cpu.upload(1, HIDDEN, &[0.5; HIDDEN]).unwrap();
    shape_error(cpu.experts_swiglu(&one, &routing, &gate, &up, None));
    shape_error(cpu.experts_swiglu(&x, &routing, &gate, &down, None));
    let few = cpu.load_experts(layer.gate[..1].to_vec()).unwrap();
    range_error(cpu.experts_swiglu(&x, &routing, &few, &few, None));
    let hidden = cpu.experts_swiglu(&x, &routing, &gate, &up, None).unwrap();
    shape_error(cpu.experts_down_add(&hidden, &routing, &down, None, &mut one.clone()));
    shape_error(cpu.experts_down_add(&hidden, &routing, &gate, None, &mut x.clone()));
    shape_error(cpu.experts_down_add(&hidden, &routing, &down, Some(&layer.shared[2]), &mut x.clone()));
    let wrong = ExpertHidden { routed: x.clone(), shared: None };
    shape_error(cpu.experts_down_add(&wrong, &routing, &down, None, &mut x.clone()));
    shape_error(cpu.load_experts(vec![]));
    shape_error(cpu.load_experts(vec![layer.gate[0].clone(), layer.down[0].clone()]));
    assert!(cpu.load_experts(vec![layer.gate[0].clone(), layer.up[0].clone()]).is_err());
}

#[test]
fn routers_that_make_no_sense_are_refused() {
    let mut random = Random(13);
    let (cpu, layer) = (Cpu::new(), layer(&mut random));
    let x = cpu.upload(1, HIDDEN, &[0.5; HIDDEN]).unwrap();
    let good = layer.router.shape;
    let bad = [
        RouterShape { chosen: 9, ..good },
        RouterShape { groups: 3, ..good },
        RouterShape { groups: 0, kept_groups: 0, ..good },
        RouterShape { groups: 9, ..good },
        RouterShape { kept_groups: 5, ..good },
    ];
    for shape in bad {
        let router = Router { gate: layer.router.gate.clone(), bias: layer.router.bias.clone(), shape };
        assert!(cpu.route(&x, &layer.norm, &router).is_err(), "{shape:?}");
    }
    let router = Router { gate: layer.router.gate.clone(), bias: vec![0.0; 7], shape: good };
    shape_error(cpu.route(&x, &layer.norm, &router));
}

#[test]
fn ties_go_to_the_lower_id_and_masked_groups_count_as_zero() {
    let cpu = Cpu::new();
    let gate = PackedMatrix::new(
        8,
        4,
        Format::Float(FloatType::F32),
        Bytes::from(vec![0; 128]),
        Bytes::new(),
        Bytes::new(),
    )
    .unwrap();
    let x = cpu.upload(1, 4, &[1.0; 4]).unwrap();
    let norm = Norm { weight: vec![1.0; 4], eps: 0.0 };
    let choose = |bias: Vec<f32>, shape: RouterShape| {
        let router = Router { gate: gate.clone(), bias, shape };
        cpu.download_routing(&cpu.route(&x, &norm, &router).unwrap().1).unwrap()
    };
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 3.0 };
    assert_eq!(choose(vec![0.0; 8], shape), (vec![0, 1, 2], vec![1.0; 3]));
    // One choice is not normalised: its weight stays sigmoid(0) * scale.
    assert_eq!(choose(vec![0.0; 8], RouterShape { chosen: 1, ..shape }), (vec![0], vec![1.5]));
    // All choice scores of the kept group (0.5 - 2) are below the masked groups' 0.
    let grouped = RouterShape { groups: 2, kept_groups: 1, ..shape };
    let bias = vec![-3.0, -3.0, -3.0, -3.0, -2.0, -2.0, -2.0, -2.0];
    assert_eq!(choose(bias, grouped).0, [0, 1, 2]);
}

#[test]
fn the_head_takes_the_rows_asked_for() {
    let mut random = Random(14);
    let (m, norm) = (matrix(AFFINE4, 33, 64, &mut random), norm(64, &mut random));
    let x = random.f32s(3 * 64);
    let all = product(&normed(&wide(&x), &norm), &m);
    for cpu in cpus() {
        let x = cpu.upload(3, 64, &x).unwrap();
        let logits = cpu.head(&x, &[2, 0], &norm, &m).unwrap();
        close("logits", &logits, &[&all[66..], &all[..33]].concat());
        assert!(cpu.head(&x, &[], &norm, &m).unwrap().data().is_empty());
        range_error(cpu.head(&x, &[3], &norm, &m));
    }
}

#[test]
fn a_matrix_says_which_bytes_do_not_fit() {
    let bytes = |n: usize| Bytes::from(vec![0; n]);
    let new =
        |rows, cols, format, w, s, b| PackedMatrix::new(rows, cols, format, bytes(w), bytes(s), bytes(b));
    assert!(new(2, 64, AFFINE3, 48, 4, 4).is_ok());
    let message = |result: Result<PackedMatrix, kimi_quant::FormatError>| result.unwrap_err().to_string();
    assert!(message(new(2, 64, AFFINE3, 47, 4, 4)).contains("weight"));
    assert!(message(new(2, 64, AFFINE3, 48, 5, 4)).contains("scales of a 2x64 affine 3-bit g64"));
    assert!(message(new(2, 64, AFFINE3, 48, 4, 0)).contains("biases"));
    assert!(message(new(2, 96, AFFINE3, 72, 6, 6)).contains("multiple of 64"));
    assert!(new(2, 0, AFFINE3, 0, 0, 0).is_err());
    assert!(new(usize::MAX, 64, AFFINE3, 48, 4, 4).is_err());
    assert!(new(2, usize::MAX / 2, Format::Float(FloatType::F32), 8, 0, 0).is_err());
    let no_group = Format::Affine { bits: BitWidth::B4, group: 0, scales: FloatType::Bf16 };
    assert!(new(1, 64, no_group, 32, 2, 2).is_err());
    assert!(BitWidth::try_from(7).is_err());
    let m = new(4, 64, AFFINE3, 96, 8, 8).unwrap();
    assert_eq!((m.slice_rows(1..3).rows(), m.slice_rows(3..9).rows(), m.slice_rows(9..12).rows()), (2, 1, 0));
    let mut short = vec![0.0; 63];
    assert!(kimi_quant::cpu::dequantize_row(&m, 0, &mut short).is_err());
    assert!(kimi_quant::cpu::dequantize_row(&m, 4, &mut [0.0; 64]).is_err());
    assert!(dequantize(&m.slice_rows(2..2)).is_empty());
}
