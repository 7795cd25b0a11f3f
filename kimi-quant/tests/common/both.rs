//! The GPU's operations against the CPU's.

use bytes::Bytes;
use kimi_quant::{
    AttentionInputs, Backend, BitWidth, CacheShape, Cpu, FloatType, Format, Gpu, HeadShape,
    LatentProjections, Norm, PackedMatrix, Rope, Router, RouterShape, TokenLayout,
};

use super::device::spoil;
use super::{Random, misaligned};

/// Random weights: any codes, scales of about 1/16 of both signs. Where rows share scales and their number is odd, the
/// first one stands amid a block.
pub fn matrix(random: &mut Random, rows: usize, cols: usize, format: Format) -> PackedMatrix {
    if format.scale_rows() > 1 && rows % 2 == 1 {
        return matrix(random, rows + 37, cols, format).slice_rows(37..rows + 37);
    }
    let [weight, scales, biases] = format.bytes(rows, cols).unwrap();
    let floats = |random: &mut Random, float: FloatType, bytes: usize, size: f32| -> Vec<u8> {
        let values = (0..bytes / float.bytes()).map(|_| random.f32() * size);
        values
            .flat_map(|v| match float {
                FloatType::Bf16 => half::bf16::from_f32(v).to_le_bytes().to_vec(),
                FloatType::F16 => half::f16::from_f32(v).to_le_bytes().to_vec(),
                FloatType::F32 => v.to_le_bytes().to_vec(),
            })
            .collect()
    };
    let weight = match format {
        Format::Float(float) => floats(random, float, weight, 1.0),
        // 0x7f and 0xff have no value.
        Format::Fp8 { .. } => {
            random.bytes(weight).into_iter().map(|b| if b & 0x7f == 0x7f { 1 } else { b }).collect()
        }
        _ => random.bytes(weight),
    };
    let scales = match format {
        Format::Affine { scales: float, .. }
        | Format::Int4 { scales: float, .. }
        | Format::Fp8 { scales: float } => floats(random, float, scales, 0.0625),
        Format::Mxfp4 | Format::Mxfp8 => (0..scales).map(|_| 119 + random.below(8) as u8).collect(),
        _ => random.bytes(scales).into_iter().map(|b| b & 0xbf).collect(),
    };
    let biases = match format {
        Format::Affine { scales: float, .. } => floats(random, float, biases, 0.5),
        _ => Vec::new(),
    };
    let any = |bytes: Vec<u8>| if bytes.is_empty() { Bytes::new() } else { misaligned(&bytes, 1 + rows % 3) };
    let matrix = PackedMatrix::new(rows, cols, format, any(weight), any(scales), any(biases)).unwrap();
    if matches!(format, Format::Nvfp4) { matrix.with_global_scale(0.01) } else { matrix }
}

pub fn formats() -> Vec<Format> {
    let floats = [FloatType::Bf16, FloatType::F16, FloatType::F32];
    let mut all = vec![Format::Mxfp4, Format::Nvfp4, Format::Mxfp8];
    all.extend(floats.map(Format::Float));
    all.extend(floats.map(|scales| Format::Fp8 { scales }));
    all.extend([32, 64].map(|group| Format::Int4 { group, scales: FloatType::Bf16 }));
    for bits in BitWidth::ALL {
        for (i, group) in [8, 16, 32, 64, 128].into_iter().enumerate() {
            all.push(Format::Affine { bits, group, scales: floats[(i + bits.bits()) % 3] });
        }
    }
    all
}

pub const FOUR_BITS: Format = Format::Affine { bits: BitWidth::B4, group: 32, scales: FloatType::Bf16 };

/// Largest difference in units of the largest value: sums run in another order.
pub fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let size = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 2e-5 * size, "{what}: value {i} is {f}, expected {e} (largest {size})");
    }
}

/// A GPU and the CPU, whose results must be the same.
pub struct Both<'a> {
    pub gpu: &'a Gpu,
    pub cpu: Cpu,
    pub random: Random,
}

impl<'a> Both<'a> {
    pub fn new(gpu: &'a Gpu, seed: u64) -> Self {
        Self { gpu, cpu: Cpu::new(), random: Random(seed) }
    }

    pub fn norm(&mut self, width: usize) -> (Norm<Vec<f32>>, Norm<<Gpu as Backend>::Vector>) {
        let weight: Vec<f32> = (0..width).map(|_| 1.0 + 0.5 * self.random.f32()).collect();
        let on_gpu = self.gpu.load_vector(weight.clone()).unwrap();
        (Norm { weight, eps: 1e-5 }, Norm { weight: on_gpu, eps: 1e-5 })
    }

    pub fn matrix(
        &mut self,
        rows: usize,
        cols: usize,
        format: Format,
    ) -> (PackedMatrix, <Gpu as Backend>::Matrix) {
        let m = matrix(&mut self.random, rows, cols, format);
        let on_gpu = self.gpu.load_matrix(m.clone()).unwrap();
        (m, on_gpu)
    }

    /// Every op over one packed matrix.
    pub fn projections(&mut self, format: Format, tokens: usize, rows: usize, cols: usize) {
        let what = format!("{format} [{tokens}, {cols}] by {rows} rows");
        spoil(self.gpu, &[tokens * rows, rows * cols, tokens * cols]);
        let (cpu, gpu) = (self.cpu, self.gpu);
        let (m, gm) = self.matrix(rows, cols, format);
        let (up, gup) = self.matrix(rows, cols, format);
        let (norm, gnorm) = self.norm(cols);
        let x = self.random.f32s(tokens * cols);
        let (cx, gx) = (cpu.upload(tokens, cols, &x).unwrap(), gpu.upload(tokens, cols, &x).unwrap());

        let ids: Vec<u32> = (0..rows as u32).rev().collect();
        let (expected, found) = (cpu.embed(&m, &ids).unwrap(), gpu.embed(&gm, &ids).unwrap());
        close(&format!("{what}: embed"), &gpu.download(&found).unwrap(), expected.data());

        let [c1, c2] = cpu.norm_project(&cx, &norm, [&m, &up]).unwrap();
        let [g1, g2] = gpu.norm_project(&gx, &gnorm, [&gm, &gup]).unwrap();
        close(&format!("{what}: norm_project"), &gpu.download(&g1).unwrap(), c1.data());
        close(&format!("{what}: norm_project"), &gpu.download(&g2).unwrap(), c2.data());

        let before = self.random.f32s(tokens * rows);
        let mut c = cpu.upload(tokens, rows, &before).unwrap();
        let mut g = gpu.upload(tokens, rows, &before).unwrap();
        cpu.project_add(&cx, &m, &mut c).unwrap();
        gpu.project_add(&gx, &gm, &mut g).unwrap();
        close(&format!("{what}: project_add"), &gpu.download(&g).unwrap(), c.data());

        let c = cpu.norm_swiglu(&cx, &norm, &m, &up).unwrap();
        let g = gpu.norm_swiglu(&gx, &gnorm, &gm, &gup).unwrap();
        close(&format!("{what}: norm_swiglu"), &gpu.download(&g).unwrap(), c.data());

        let picked: Vec<u32> = (0..tokens as u32).rev().step_by(2).collect();
        let c = cpu.head(&cx, &picked, &norm, &m).unwrap();
        let g = gpu.head(&gx, &picked, &gnorm, &gm).unwrap();
        close(&format!("{what}: head"), &gpu.download(&g).unwrap(), c.data());
    }

    /// Router, experts and their sum; `up` may differ in format.
    pub fn experts(&mut self, formats: [Format; 3], tokens: usize, shape: RouterShape, count: usize) {
        self.experts_of([256, 128], formats, tokens, shape, count);
    }

    /// The same for another hidden size and width of an expert.
    pub fn experts_of(
        &mut self,
        [hidden, width]: [usize; 2],
        formats: [Format; 3],
        tokens: usize,
        shape: RouterShape,
        count: usize,
    ) {
        let what = format!("{} experts of {}, {tokens} tokens", count, formats[0]);
        spoil(
            self.gpu,
            &[tokens * shape.chosen * width, tokens * hidden, tokens * count, tokens * shape.chosen],
        );
        let (cpu, gpu) = (self.cpu, self.gpu);
        let load = |random: &mut Random, rows, cols, format| {
            let all: Vec<_> = (0..count).map(|_| matrix(random, rows, cols, format)).collect();
            (cpu.load_experts(all.clone()).unwrap(), gpu.load_experts(all).unwrap())
        };
        let (gate, ggate) = load(&mut self.random, width, hidden, formats[0]);
        let (up, gup) = load(&mut self.random, width, hidden, formats[1]);
        let (down, gdown) = load(&mut self.random, hidden, width, formats[2]);
        let (sgate, gsgate) = self.matrix(64, hidden, FOUR_BITS);
        let (sup, gsup) = self.matrix(64, hidden, formats[0]);
        let (sdown, gsdown) = self.matrix(hidden, 64, FOUR_BITS);
        let (norm, gnorm) = self.norm(hidden);
        let (gate_w, ggate_w) = self.matrix(count, hidden, Format::Float(FloatType::Bf16));
        let bias = self.random.f32s(count);
        let router = Router { gate: gate_w, bias: bias.clone(), shape };
        let grouter = Router { gate: ggate_w, bias: gpu.load_vector(bias).unwrap(), shape };

        let x = self.random.f32s(tokens * hidden);
        let (cx, gx) = (cpu.upload(tokens, hidden, &x).unwrap(), gpu.upload(tokens, hidden, &x).unwrap());
        let (cn, cr) = cpu.route(&cx, &norm, &router).unwrap();
        let (gn, gr) = gpu.route(&gx, &gnorm, &grouter).unwrap();
        close(
            &format!("{what}: normed"),
            &gpu.normalized(&gn).and_then(|x| gpu.download(&x)).unwrap(),
            cn.data(),
        );
        let (ids, weights) = gpu.download_routing(&gr).unwrap();
        let (cids, cweights) = cpu.download_routing(&cr).unwrap();
        assert_eq!(ids, cids, "{what}: chosen experts");
        close(&format!("{what}: expert weights"), &weights, &cweights);

        let ch = cpu.experts_swiglu(&cn, &cr, &gate, &up, Some((&sgate, &sup))).unwrap();
        let gh = gpu.experts_swiglu(&gn, &gr, &ggate, &gup, Some((&gsgate, &gsup))).unwrap();
        let found = gpu.expert_activations(&gh).unwrap();
        close(&format!("{what}: routed"), &gpu.download(&found.routed).unwrap(), ch.routed.data());
        let (cs, gs) = (ch.shared.as_ref().unwrap(), found.shared.as_ref().unwrap());
        close(&format!("{what}: shared"), &gpu.download(gs).unwrap(), cs.data());

        let before = self.random.f32s(tokens * hidden);
        let mut c = cpu.upload(tokens, hidden, &before).unwrap();
        let mut g = gpu.upload(tokens, hidden, &before).unwrap();
        cpu.experts_down_add(&ch, &cr, &down, Some(&sdown), &mut c).unwrap();
        gpu.experts_down_add(&gh, &gr, &gdown, Some(&gsdown), &mut g).unwrap();
        close(&format!("{what}: down"), &gpu.download(&g).unwrap(), c.data());
    }

    /// Cache, absorbed queries, attention, values; sequences are (start, count).
    pub fn attention(
        &mut self,
        heads: HeadShape,
        format: Format,
        split: bool,
        page_tokens: usize,
        sequences: &[(u32, usize)],
    ) {
        let what = format!("{heads:?} {format} {sequences:?}");
        let (cpu, gpu) = (self.cpu, self.gpu);
        let width = heads.latent + heads.rope;
        let mut layout = TokenLayout::new(page_tokens);
        let mut history = TokenLayout::new(page_tokens);
        let lengths = sequences.iter().map(|&(start, count)| (start as usize + count).div_ceil(page_tokens));
        let next = lengths.clone().sum::<usize>();
        let mut pages: Vec<u32> = (0..next as u32).collect();
        (1..next).for_each(|i| pages.swap(i, self.random.below(i + 1)));
        for (&(start, count), length) in sequences.iter().zip(lengths) {
            let table = pages.split_off(pages.len() - length);
            layout.push(start, count, &table).unwrap();
            history.push(0, start as usize, &table).unwrap();
        }
        let shape = CacheShape { pages: next, page_tokens, latent: heads.latent, rope: heads.rope };
        let (mut cache, mut gcache) = (cpu.new_cache(shape).unwrap(), gpu.new_cache(shape).unwrap());
        let (norm, gnorm) = self.norm(heads.latent);
        let rope =
            Rope { inv_freq: (0..heads.rope / 2).map(|i| 0.7f32.powi(i as i32)).collect(), mscale: 1.25 };
        let (projections, gprojections) = if split {
            let (q, gq) = self.matrix(heads.heads * heads.latent, heads.nope, format);
            let (v, gv) = self.matrix(heads.heads * heads.value, heads.latent, format);
            (
                LatentProjections::Split { embed_q: q, unembed_out: v },
                LatentProjections::Split { embed_q: gq, unembed_out: gv },
            )
        } else {
            let (m, gm) = self.matrix(heads.heads * (heads.nope + heads.value), heads.latent, format);
            (LatentProjections::Joint(m), LatentProjections::Joint(gm))
        };
        if next * page_tokens < 2000 {
            // Whatever is left in pages that nobody has, nothing of it may show.
            let mut all = TokenLayout::new(page_tokens);
            all.push(0, next * page_tokens, &(0..next as u32).collect::<Vec<_>>()).unwrap();
            let nothing =
                |cols: usize| gpu.upload(all.len(), cols, &vec![f32::NAN; all.len() * cols]).unwrap();
            let (kv, q) = (nothing(width), nothing(heads.heads * (heads.nope + heads.rope)));
            let inputs = AttentionInputs { q: &q, kv: &kv, norm: &gnorm, rope: &rope };
            gpu.latent_query(inputs, &mut gcache, &gprojections, heads, &all).unwrap();
        }
        // What is there before the batch is a batch too: a prompt.
        for layout in [&history, &layout] {
            let tokens = layout.len();
            let per_head = heads.nope + heads.rope;
            let partials = tokens * heads.heads;
            spoil(gpu, &[partials * width, partials * heads.latent, partials * heads.value]);
            let kv = self.random.f32s(tokens * width);
            let q = self.random.f32s(tokens * heads.heads * per_head);
            let [ckv, cq] = [(&kv, width), (&q, heads.heads * per_head)]
                .map(|(values, cols)| cpu.upload(tokens, cols, values).unwrap());
            let [gkv, gq] = [(&kv, width), (&q, heads.heads * per_head)]
                .map(|(values, cols)| gpu.upload(tokens, cols, values).unwrap());
            let inputs = AttentionInputs { q: &cq, kv: &ckv, norm: &norm, rope: &rope };
            let cq = cpu.latent_query(inputs, &mut cache, &projections, heads, layout).unwrap();
            let inputs = AttentionInputs { q: &gq, kv: &gkv, norm: &gnorm, rope: &rope };
            let gq = gpu.latent_query(inputs, &mut gcache, &gprojections, heads, layout).unwrap();
            close(&format!("{what}: absorbed"), &gpu.download(&gq).unwrap(), cq.data());
            close(
                &format!("{what}: cache"),
                &gpu.download_cache(&gcache, layout).unwrap(),
                &cpu.download_cache(&cache, layout).unwrap(),
            );
            if tokens > 1000 {
                continue; // the attention of so long a prompt takes minutes
            }
            let ca = cpu.attend_latent(&cq, &cache, heads, 0.11, layout).unwrap();
            let ga = gpu.attend_latent(&gq, &gcache, heads, 0.11, layout).unwrap();
            let cv = cpu.project_values(&ca, &projections, heads).unwrap();
            let gv = gpu.project_values(&ga, &gprojections, heads).unwrap();
            close(&format!("{what}: values"), &gpu.download(&gv).unwrap(), cv.data());
        }
        // Pages that were brought out and put into another cache hold the same.
        let (from, mut to) = ([gcache], [gpu.new_cache(shape).unwrap()]);
        for page in 0..next as u32 {
            gpu.write_page(&mut to, page, &gpu.read_page(&from, page).unwrap()).unwrap();
        }
        let [copied, stored] = [&to[0], &from[0]].map(|cache| gpu.download_cache(cache, &layout).unwrap());
        assert_eq!(copied, stored, "{what}");
    }
}
