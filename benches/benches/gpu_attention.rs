//! How fast the GPU backend runs the attention between its projections, at the shapes of Kimi-K2 (64 heads, 4-bit
//! `kv_b_proj`): queries into the latent space with the keys stored, attention over the cache, values; and the choice of
//! experts.
//!
//! `cargo bench --features gpu --bench gpu_attention` prints the table; `-- --as-metal[=CHIP]` with the
//! kernels and sizes of one of Apple's; `--quick` shrinks everything for a software
//! adapter. Caches and weights rotate through more memory than the device's own caches hold, as they do in the model.
//! GB/s count what must be read once: weights, or the sequences' cached keys.

use std::time::Instant;

use bytes::Bytes;
use kimi_benches::gpu_options;
use kimi_quant::gpu::{GpuCache, GpuMatrix, GpuTensor, GpuVector};
use kimi_quant::{
    AttentionInputs, Backend, BackendError, BitWidth, CacheShape, FloatType, Format, Gpu, HeadShape,
    LatentProjections, Norm, PackedMatrix, Rope, Router, RouterShape, TokenLayout,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PAGE: usize = 64;
const FOUR_BITS: Format = Format::Affine { bits: BitWidth::B4, group: 64, scales: FloatType::Bf16 };

struct Bench {
    gpu: Gpu,
    heads: HeadShape,
    rope: Rope,
    norm: Norm<GpuVector>,
    kv_b: Vec<LatentProjections<GpuMatrix>>,
    quick: bool,
}

fn main() -> Outcome<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let gpu = Gpu::new(&gpu_options()?)?;
    println!("{}", gpu.name());
    println!("{:<52} {:>10} {:>9} {:>9}", "one layer's", "us", "GB/s", "TFLOP/s");
    let heads = HeadShape { heads: if quick { 8 } else { 64 }, nope: 128, rope: 64, value: 128, latent: 512 };
    let norm = Norm { weight: gpu.load_vector(vec![1.0; heads.latent])?, eps: 1e-6 };
    let rope = Rope { inv_freq: (0..32).map(|i| 50000f32.powf(-i as f32 / 32.0)).collect(), mscale: 1.0 };
    let copies = if quick { 1 } else { 40 };
    let kv_b = (0..copies).map(|i| {
        let rows = heads.heads * (heads.nope + heads.value);
        Ok(LatentProjections::Joint(gpu.load_matrix(matrix(rows, heads.latent, FOUR_BITS, i)?)?))
    });
    let kv_b = kv_b.collect::<Outcome<Vec<_>>>()?;
    let bench = Bench { gpu, heads, rope, norm, kv_b, quick };
    let size = |n: u32| if quick { n / 16 } else { n };
    for context in [size(1600), size(16000)] {
        for sequences in [1, 8] {
            bench.attention(&format!("{sequences} x 1 token"), sequences, context - 1, 1)?;
        }
    }
    let chunk = size(512);
    for context in [0, size(4096)] {
        bench.attention(&format!("{chunk} tokens of a prompt"), 1, context, chunk as usize)?;
    }
    bench.route()
}

/// Random codes, scales and biases of about 2^-6.
fn matrix(rows: usize, cols: usize, format: Format, seed: usize) -> Outcome<PackedMatrix> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed as u64;
    let mut words = |bytes: usize| -> Bytes {
        let words = (0..bytes.div_ceil(8)).map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state >> 16
        });
        let all: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        Bytes::from(all).slice(..bytes)
    };
    let small = |bytes: usize| -> Bytes { [0x80, 0x3c].repeat(bytes / 2).into() };
    let [weight, scales, biases] = format.bytes(rows, cols)?;
    Ok(PackedMatrix::new(
        rows,
        cols,
        format,
        if matches!(format, Format::Float(_)) { small(weight) } else { words(weight) },
        small(scales),
        small(biases),
    )?)
}

impl Bench {
    fn activations(&self, rows: usize, cols: usize) -> Outcome<GpuTensor> {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 251) as f32 / 125.0 - 1.0).collect();
        Ok(self.gpu.upload(rows, cols, &values)?)
    }

    /// The new tokens of some sequences after `context` positions, their pages in mixed order.
    fn layout(&self, sequences: usize, context: u32, tokens: usize) -> Outcome<TokenLayout> {
        let pages = (context as usize + tokens).div_ceil(PAGE);
        let mut layout = TokenLayout::new(PAGE);
        for sequence in 0..sequences {
            let table: Vec<u32> = (0..pages).map(|i| (i * sequences + sequence) as u32).collect();
            layout.push(context, tokens, &table)?;
        }
        Ok(layout)
    }

    /// A cache with a key at every position.
    fn cache(&self, sequences: usize, positions: usize) -> Outcome<GpuCache> {
        let pages = positions.div_ceil(PAGE);
        let HeadShape { latent, rope, .. } = self.heads;
        let mut cache =
            self.gpu.new_cache(CacheShape { pages: sequences * pages, page_tokens: PAGE, latent, rope })?;
        let all: Vec<u32> = (0..(sequences * pages) as u32).collect();
        for start in (0..all.len() * PAGE).step_by(512) {
            let count = 512.min(all.len() * PAGE - start);
            let mut layout = TokenLayout::new(PAGE);
            layout.push(start as u32, count, &all)?;
            self.query(&layout, &mut cache, 0)?;
        }
        self.gpu.wait()?;
        Ok(cache)
    }

    fn query(&self, layout: &TokenLayout, cache: &mut GpuCache, copy: usize) -> Outcome<GpuTensor> {
        let HeadShape { heads, nope, rope, latent, .. } = self.heads;
        let q = self.activations(layout.len(), heads * (nope + rope))?;
        let kv = self.activations(layout.len(), latent + rope)?;
        Ok(self.latent_query(layout, cache, copy, &q, &kv)?)
    }

    fn latent_query(
        &self,
        layout: &TokenLayout,
        cache: &mut GpuCache,
        copy: usize,
        q: &GpuTensor,
        kv: &GpuTensor,
    ) -> Result<GpuTensor, BackendError> {
        let inputs = AttentionInputs { q, kv, norm: &self.norm, rope: &self.rope };
        self.gpu.latent_query(inputs, cache, &self.kv_b[copy], self.heads, layout)
    }

    fn attention(&self, what: &str, sequences: usize, context: u32, tokens: usize) -> Outcome<()> {
        let HeadShape { heads, nope, rope, value, latent } = self.heads;
        let layout = self.layout(sequences, context, tokens)?;
        let (positions, total) = (context as usize + tokens, layout.len());
        let width = latent + rope;
        let cache_bytes = 4 * sequences * positions * width;
        let copies = if self.quick { 1 } else { ((200 << 20) / cache_bytes).clamp(1, self.kv_b.len()) };
        let mut caches =
            (0..copies).map(|_| self.cache(sequences, positions)).collect::<Outcome<Vec<_>>>()?;
        let q = self.activations(total, heads * (nope + rope))?;
        let kv = self.activations(total, width)?;
        let queries = self.latent_query(&layout, &mut caches[0], 0, &q, &kv)?;
        let scale = 1.0 / ((nope + rope) as f32).sqrt();
        let attended = self.gpu.attend_latent(&queries, &caches[0], self.heads, scale, &layout)?;

        let weights = matrix(heads * (nope + value), latent, FOUR_BITS, 0)?.bytes() as usize;
        let keys: usize = layout.positions().iter().map(|&p| p as usize + 1).sum();
        let flops = [
            2 * total * heads * nope * latent,
            2 * keys * heads * (width + latent),
            2 * total * heads * value * latent,
        ];
        let whole = weights + cache_bytes;
        let bytes = [weights * nope / (nope + value), cache_bytes, weights * value / (nope + value)];
        let what = |part: &str| format!("{part}, {what}, context {positions}");
        let line = |part: &str, bytes: usize, flops: usize, run: &mut dyn FnMut(usize) -> _| {
            self.line(&what(part), bytes, flops, run)
        };
        line("queries and keys", bytes[0], flops[0], &mut |i| {
            let copy = i % self.kv_b.len();
            self.latent_query(&layout, &mut caches[i % copies], copy, &q, &kv).map(drop)
        })?;
        line("attention", bytes[1], flops[1], &mut |i| {
            self.gpu.attend_latent(&queries, &caches[i % copies], self.heads, scale, &layout).map(drop)
        })?;
        line("values", bytes[2], flops[2], &mut |i| {
            self.gpu.project_values(&attended, &self.kv_b[i % self.kv_b.len()], self.heads).map(drop)
        })?;
        line("all three", whole, flops.iter().sum(), &mut |i| {
            let copy = i % self.kv_b.len();
            let queries = self.latent_query(&layout, &mut caches[i % copies], copy, &q, &kv)?;
            let attended =
                self.gpu.attend_latent(&queries, &caches[i % copies], self.heads, scale, &layout)?;
            self.gpu.project_values(&attended, &self.kv_b[copy], self.heads).map(drop)
        })
    }

    fn route(&self) -> Outcome<()> {
        let (experts, hidden) = (384, if self.quick { 512 } else { 7168 });
        let gate = matrix(experts, hidden, Format::Float(FloatType::Bf16), 0)?;
        let bytes = gate.bytes() as usize;
        let bias: Vec<f32> = (0..experts).map(|e| (e * 29 % 97) as f32 / 97.0).collect();
        let shape = RouterShape { chosen: 8, groups: 1, kept_groups: 1, normalize: true, scale: 2.827 };
        let (gate, bias) = (self.gpu.load_matrix(gate)?, self.gpu.load_vector(bias)?);
        let norm = Norm { weight: self.gpu.load_vector(vec![1.0; hidden])?, eps: 1e-6 };
        let router = Router { gate, bias, shape };
        for tokens in [1, 8] {
            let x = self.activations(tokens, hidden)?;
            let flops = 2 * tokens * experts * hidden;
            self.line(&format!("norm, router and choice, {tokens} tokens"), bytes, flops, &mut |_| {
                self.gpu.route(&x, &norm, &router).map(drop)
            })?;
        }
        Ok(())
    }

    /// One line: the best of three rounds.
    fn line(
        &self,
        what: &str,
        bytes: usize,
        flops: usize,
        run: &mut dyn FnMut(usize) -> Result<(), BackendError>,
    ) -> Outcome<()> {
        let mut time = |calls: usize| -> Outcome<f64> {
            let start = Instant::now();
            let on_device = self.gpu.timed(|| (0..calls).try_for_each(&mut *run))?;
            // Without a clock on the device its time can't be told from the host's.
            Ok(on_device.map_or(start.elapsed().as_secs_f64(), |ns| ns * 1e-9) / calls as f64)
        };
        time(1)?;
        // Enough that the submission's own time does not count.
        let calls = if self.quick { 2 } else { ((0.02 / time(8)?) as usize).clamp(4, 1000) };
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            best = best.min(time(calls)?);
        }
        println!(
            "{what:<52} {:>10.1} {:>9.1} {:>9.2}",
            best * 1e6,
            bytes as f64 / best / 1e9,
            flops as f64 / best / 1e12
        );
        Ok(())
    }
}
