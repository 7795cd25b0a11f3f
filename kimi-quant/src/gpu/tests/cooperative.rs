//! Kernels with cooperative matrices, which no software adapter has: executed on the CPU and compared with
//! [`Cpu`](crate::Cpu). Exact ones as all others; fast ones within what rounding to 16-bit floats can change.

use super::super::BatchKernel;
use super::common::Random;
use super::common::both::{Both, FOUR_BITS, close};
use super::execute::executed;
use super::fake::Looks;
use crate::cpu::dequantize_row;
use crate::{
    AttentionInputs, Backend, BitWidth, CacheShape, Cpu, FloatType, Format, Gpu, HeadShape,
    LatentProjections, PackedMatrix, Precision, Rope, RouterShape, TokenLayout,
};

fn device(precision: Precision, seed: u32) -> Option<Gpu> {
    let (gpu, _) = executed(Looks::cooperative(precision), seed, None)?;
    gpu.set_batch_kernel(Some(BatchKernel::Cooperative));
    Some(gpu)
}

const ROUTER: RouterShape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };

const FORMATS: [Format; 4] = [
    FOUR_BITS,
    Format::Affine { bits: BitWidth::B3, group: 64, scales: FloatType::Bf16 },
    Format::Mxfp4,
    Format::Float(FloatType::Bf16),
];

#[test]
fn exact_products() {
    for (tokens, rows, cols, format) in
        [(20, 150, 192, FOUR_BITS), (70, 40, 128, FORMATS[1]), (17, 33, 160, FORMATS[3])]
    {
        let Some(gpu) = device(Precision::Exact, 30) else { return };
        Both::new(&gpu, 31).projections(format, tokens, rows, cols);
    }
    let Some(gpu) = device(Precision::Exact, 32) else { return };
    Both::new(&gpu, 33).experts([FOUR_BITS; 3], 45, ROUTER, 5);
}

#[test]
fn exact_attention() {
    let heads = HeadShape { heads: 20, nope: 32, rope: 16, value: 24, latent: 64 };
    let Some(gpu) = device(Precision::Exact, 34) else { return };
    Both::new(&gpu, 35).attention(heads, FOUR_BITS, false, 16, &[(20, 9)]);
}

/// What a product of values rounded to 16-bit floats may be off by, in parts of the sum of its terms' sizes: 11 bits of the
/// activation and, since a conversion need not round to the nearest, 10 of the weight; what f32 sums lose is far below.
const ROUNDED: f64 = (1.0 / 2048.0 + 1.0 / 1024.0) * 1.01;

/// Each product `[T, rows]`, and how far it may be off.
fn products(m: &PackedMatrix, x: &[f32]) -> Vec<(f64, f64)> {
    let mut row = vec![0.0; m.cols()];
    let mut out = vec![(0.0, 0.0); x.len() / m.cols() * m.rows()];
    for r in 0..m.rows() {
        dequantize_row(m, r, &mut row).unwrap();
        for (t, x) in x.chunks_exact(m.cols()).enumerate() {
            let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            out[t * m.rows() + r] = terms.fold((0.0, 0.0), |(s, b), v| (s + v, b + ROUNDED * v.abs()));
        }
    }
    out
}

/// silu(gate) * up of both, and how far it may be off: silu's slope is below 1.1.
fn gated((gate, off): (f64, f64), (up, up_off): (f64, f64)) -> (f64, f64) {
    let silu = gate / (1.0 + (-gate).exp());
    (silu * up, 1.1 * off * up.abs() + (silu.abs() + 1.1 * off) * up_off)
}

fn within(what: &str, found: &[f32], expected: &[(f64, f64)]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |m, (e, _)| m.max(e.abs()));
    let mut differ = false;
    for (i, (f, (e, off))) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs();
        assert!(error <= off + 1e-6, "{what}: value {i} is {f}, expected {e} within {off}");
        differ |= error > 2e-5 * largest;
    }
    assert!(differ, "{what}: nothing was rounded");
}

#[test]
fn fast_products_are_off_by_no_more_than_halves_are() {
    for (seed, (tokens, rows, cols, format)) in
        (0..).zip([(20, 150, 192, FORMATS[0]), (70, 40, 128, FORMATS[1]), (17, 33, 160, FORMATS[2])])
    {
        let Some(gpu) = device(Precision::Fast, 40 + seed) else { return };
        let what = format!("{tokens} tokens, {format}");
        let mut both = Both::new(&gpu, 41);
        let (m, gm) = both.matrix(rows, cols, format);
        let (up, gup) = both.matrix(rows, cols, format);
        let (norm, gnorm) = both.norm(cols);
        let x = both.random.f32s(tokens * cols);
        let gx = gpu.upload(tokens, cols, &x).unwrap();
        let before = both.random.f32s(tokens * rows);
        let mut out = gpu.upload(tokens, rows, &before).unwrap();
        gpu.project_add(&gx, &gm, &mut out).unwrap();
        let expected: Vec<_> =
            products(&m, &x).iter().zip(&before).map(|((e, off), b)| (e + f64::from(*b), *off)).collect();
        within(&what, &gpu.download(&out).unwrap(), &expected);

        let normed = normed(&both.cpu, &norm, &x, tokens);
        let expected: Vec<_> = products(&m, &normed)
            .into_iter()
            .zip(products(&up, &normed))
            .map(|(gate, up)| gated(gate, up))
            .collect();
        let found = gpu.norm_swiglu(&gx, &gnorm, &gm, &gup).unwrap();
        within(&what, &gpu.download(&found).unwrap(), &expected);
    }
}

/// `x` normalised, by a matrix that changes nothing.
fn normed(cpu: &Cpu, norm: &crate::Norm<Vec<f32>>, x: &[f32], tokens: usize) -> Vec<f32> {
    let cols = norm.weight.len();
    let mut ones = vec![0f32; cols * cols];
    (0..cols).for_each(|i| ones[i * cols + i] = 1.0);
    let bytes: Vec<u8> = ones.iter().flat_map(|v| v.to_le_bytes()).collect();
    let float = Format::Float(FloatType::F32);
    let same = PackedMatrix::new(cols, cols, float, bytes.into(), Default::default(), Default::default());
    let x = cpu.upload(tokens, cols, x).unwrap();
    let [out] = cpu.norm_project(&x, norm, [&same.unwrap()]).unwrap();
    out.data().to_vec()
}

#[test]
fn fast_experts_are_off_by_no_more_than_halves_are() {
    let Some(gpu) = device(Precision::Fast, 50) else { return };
    let mut both = Both::new(&gpu, 51);
    let (tokens, hidden, width, count, chosen) = (45, 128, 72, 5, 3);
    let mut load = |rows: usize, cols: usize| {
        let all: Vec<_> = (0..count).map(|_| both.matrix(rows, cols, FOUR_BITS).0).collect();
        (gpu.load_experts(all.clone()).unwrap(), all)
    };
    let ((gate, gates), (up, ups), (down, downs)) =
        (load(width, hidden), load(width, hidden), load(hidden, 2 * width.next_multiple_of(64)));
    let mut random = Random(52);
    let ids: Vec<u32> = (0..tokens)
        .flat_map(|_| {
            let first = random.below(count);
            (0..chosen).map(move |j| ((first + j) % count) as u32)
        })
        .collect();
    let weights = random.f32s(ids.len());
    let routing = gpu.upload_routing(tokens, &ids, &weights).unwrap();
    let x = random.f32s(tokens * hidden);
    let gx = gpu.upload(tokens, hidden, &x).unwrap().into();
    let found = gpu.experts_swiglu(&gx, &routing, &gate, &up, None).unwrap();
    let found = gpu.expert_activations(&found).unwrap();
    let of = |pair: usize| (ids[pair] as usize, &x[pair / chosen * hidden..][..hidden]);
    let expected: Vec<_> = (0..ids.len())
        .flat_map(|pair| {
            let (expert, x) = of(pair);
            let (gate, up) = (products(&gates[expert], x), products(&ups[expert], x));
            gate.into_iter().zip(up).map(|(gate, up)| gated(gate, up)).collect::<Vec<_>>()
        })
        .collect();
    within("gate and up", &gpu.download(&found.routed).unwrap(), &expected);

    let inner = down_cols(&downs);
    let h = random.f32s(ids.len() * inner);
    let hidden_of_pairs =
        crate::ExpertHidden { routed: gpu.upload(ids.len(), inner, &h).unwrap(), shared: None }.into();
    let before = random.f32s(tokens * hidden);
    let mut residual = gpu.upload(tokens, hidden, &before).unwrap();
    gpu.experts_down_add(&hidden_of_pairs, &routing, &down, None, &mut residual).unwrap();
    let mut expected: Vec<_> = before.iter().map(|b| (f64::from(*b), 0.0)).collect();
    for (pair, expert) in ids.iter().enumerate() {
        let results = products(&downs[*expert as usize], &h[pair * inner..][..inner]);
        let weight = f64::from(weights[pair]);
        for (to, (value, off)) in expected[pair / chosen * hidden..][..hidden].iter_mut().zip(results) {
            *to = (to.0 + weight * value, to.1 + weight.abs() * off);
        }
    }
    within("down", &gpu.download(&residual).unwrap(), &expected);
}

fn down_cols(downs: &[PackedMatrix]) -> usize {
    downs.first().map_or(0, PackedMatrix::cols)
}

/// Scores are off by what rounding queries and keys can change, so weights by that factor, and values by that and their own.
#[test]
fn fast_attention_is_off_by_no_more_than_halves_are() {
    let heads = HeadShape { heads: 20, nope: 32, rope: 16, value: 24, latent: 64 };
    let Some(gpu) = device(Precision::Fast, 60) else { return };
    let mut both = Both::new(&gpu, 61);
    let (tokens, width, scale) = (29, heads.latent + heads.rope, 0.11f32);
    let mut layout = TokenLayout::new(16);
    layout.push(0, tokens, &[1, 0]).unwrap();
    let shape = CacheShape { pages: 2, page_tokens: 16, latent: heads.latent, rope: heads.rope };
    let (mut cache, mut gcache) = (both.cpu.new_cache(shape).unwrap(), gpu.new_cache(shape).unwrap());
    let (norm, gnorm) = both.norm(heads.latent);
    let rope = Rope { inv_freq: (0..heads.rope / 2).map(|i| 0.7f32.powi(i as i32)).collect(), mscale: 1.25 };
    let (m, gm) = both.matrix(heads.heads * (heads.nope + heads.value), heads.latent, FOUR_BITS);
    let (projections, gprojections) = (LatentProjections::Joint(m), LatentProjections::Joint(gm));
    let (kv, q) = (both.random.f32s(tokens * width), both.random.f32s(tokens * heads.heads * 48));
    let cpu = both.cpu;
    let (ckv, cq) =
        (cpu.upload(tokens, width, &kv).unwrap(), cpu.upload(tokens, heads.heads * 48, &q).unwrap());
    let (gkv, gq) =
        (gpu.upload(tokens, width, &kv).unwrap(), gpu.upload(tokens, heads.heads * 48, &q).unwrap());
    let inputs = AttentionInputs { q: &cq, kv: &ckv, norm: &norm, rope: &rope };
    let cq = cpu.latent_query(inputs, &mut cache, &projections, heads, &layout).unwrap();
    let inputs = AttentionInputs { q: &gq, kv: &gkv, norm: &gnorm, rope: &rope };
    let gq = gpu.latent_query(inputs, &mut gcache, &gprojections, heads, &layout).unwrap();
    close("queries", &gpu.download(&gq).unwrap(), cq.data());
    let ca = cpu.attend_latent(&cq, &cache, heads, scale, &layout).unwrap();
    let ga = gpu.attend_latent(&gq, &gcache, heads, scale, &layout).unwrap();
    let values = cpu.project_values(&ca, &projections, heads).unwrap();
    let found = gpu.project_values(&ga, &gprojections, heads).unwrap();
    // The largest |q| |k| of any term's size, and the size of all values.
    let keys = cpu.download_cache(&cache, &layout).unwrap();
    let largest = |x: &[f32]| x.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    let sizes = |q: &[f32], k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from((q * k).abs())).sum::<f64>();
    let score =
        cq.data().chunks_exact(width).flat_map(|q| keys.chunks_exact(width).map(move |k| sizes(q, k)));
    let off = score.fold(0.0, f64::max) * f64::from(scale) / 1024.0;
    let latents = keys.chunks_exact(width).map(|k| largest(&k[..heads.latent])).fold(0.0, f64::max);
    let LatentProjections::Joint(m) = &projections else { return };
    let mut row = vec![0.0; m.cols()];
    let mut weight = 0f64;
    for r in 0..m.rows() {
        dequantize_row(m, r, &mut row).unwrap();
        weight = weight.max(row.iter().map(|w| f64::from(w.abs())).sum());
    }
    let bound = ((2.0 * off).exp() - 1.0 + 1.0 / 1024.0) * latents * weight;
    let expected: Vec<_> = values.data().iter().map(|v| (f64::from(*v), bound)).collect();
    within("values", &gpu.download(&found).unwrap(), &expected);
}
