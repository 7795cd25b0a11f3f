//! How fast the GPU backend multiplies many tokens: prefill, and batches of sequences, at the shapes of Kimi-K2.
//!
//! `cargo bench --features gpu --bench gpu_prefill` prints the table; `-- --kernels` times every kernel that could do a
//! line; `--dense-only`, `--experts-only`; `--precision=fast` multiplies halves once; `--bits N` takes other weights than 4 bits; `--tokens A,B` only those counts; `--experts N`; `--as-metal[=CHIP]`
//! takes the kernels and sizes of one of Apple's; `--quick` shrinks everything for a software adapter. TFLOP/s count 2 for every weight and token; GB/s are those of the weights, each
//! read once; "of read" is their share of the read bandwidth, measured right after the line. "of f16" is the rate of the same product with unpacked f16 weights.

use std::collections::HashSet;
use std::time::Instant;

use kimi_benches::{RandomWeights, gpu_options, read_bandwidth};
use kimi_quant::gpu::{GpuExperts, GpuMatrix, GpuTensor};
use kimi_quant::{Backend, BackendError, BitWidth, ExpertHidden, FloatType, Format, Gpu, PackedMatrix};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const CHOSEN: usize = 8;

struct Bench {
    gpu: Gpu,
    bandwidth: f64,
    random: RandomWeights,
    format: Format,
    experts: usize,
    kernels: bool,
    quick: bool,
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let quick = has("--quick") || !has("--bench");
    let gpu = match Gpu::new(&gpu_options()?) {
        Ok(gpu) => gpu,
        Err(e) => {
            println!("skipped: {e}");
            return Ok(());
        }
    };
    let bandwidth = read_bandwidth(&gpu, quick)?;
    println!("{}; reading memory: {:.0} GB/s", gpu.name(), bandwidth / 1e9);
    let bits = BitWidth::try_from(value("--bits").map_or(Ok(4), |b| b.parse())?)?;
    let bench = Bench {
        gpu,
        bandwidth,
        random: RandomWeights::new(if quick { 16 << 20 } else { 288 << 20 }),
        format: Format::Affine { bits, group: 64, scales: FloatType::Bf16 },
        experts: value("--experts").map_or(Ok(if quick { 16 } else { 384 }), |n| n.parse())?,
        kernels: has("--kernels"),
        quick,
    };
    let tokens = match value("--tokens") {
        Some(list) => list.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?,
        None if quick => vec![2, 32],
        None => vec![2, 4, 8, 32, 128, 512],
    };
    println!(
        "{:<30} {:>6} {:>9} {:>9} {:>7} {:>8} {:>7}  kernel",
        "product", "tokens", "ms", "TFLOP/s", "of f16", "GB/s", "of read"
    );
    if !has("--experts-only") {
        bench.dense(&tokens)?;
    }
    if has("--dense-only") {
        return Ok(());
    }
    bench.all_experts(&tokens)
}

/// What a line counts.
struct Work {
    what: String,
    tokens: usize,
    /// Weights times tokens.
    products: f64,
    bytes: usize,
}

impl Bench {
    fn small(&self, n: usize) -> usize {
        if self.quick { (n / 16).next_multiple_of(64) } else { n }
    }

    fn activations(&self, rows: usize, cols: usize) -> Outcome<GpuTensor> {
        Ok(self.gpu.upload(rows, cols, &self.random.activations(rows * cols))?)
    }

    /// More than the caches hold, if few tokens make the product a matter of reading.
    fn copies(&self, matrix: &PackedMatrix) -> usize {
        if self.quick { 1 } else { ((128 << 20) / matrix.bytes() as usize).clamp(1, 24) }
    }

    fn load(&self, rows: usize, cols: usize, format: Format) -> Outcome<(Vec<GpuMatrix>, usize)> {
        let first = self.random.matrix(rows, cols, format, 1)?;
        let (copies, bytes) = (self.copies(&first), first.bytes() as usize);
        let all =
            (0..copies).map(|i| Ok(self.gpu.load_matrix(self.random.matrix(rows, cols, format, i)?)?));
        Ok((all.collect::<Outcome<_>>()?, bytes))
    }

    fn dense(&self, tokens: &[usize]) -> Outcome<()> {
        let (hidden, up) = (self.small(7168), self.small(18432));
        for (what, rows, cols) in [
            ("q_a 1536x7168", self.small(1536), hidden),
            ("q_b 12288x1536", self.small(12288), self.small(1536)),
            ("o_proj 7168x8192", hidden, self.small(8192)),
            ("dense gate+up 18432x7168", up, hidden),
        ] {
            let pair = rows == up;
            let (packed, bytes) = self.load(rows, cols, self.format)?;
            let (plain, _) = self.load(rows, cols, Format::Float(FloatType::F16))?;
            for &tokens in tokens {
                let x = self.activations(tokens, cols)?;
                let matrices = 1 + usize::from(pair);
                let work = Work {
                    what: what.to_owned(),
                    tokens,
                    products: (matrices * tokens * rows * cols) as f64,
                    bytes: matrices * bytes,
                };
                let mut out = self.activations(tokens, rows)?;
                let norm = kimi_quant::Norm { weight: self.gpu.load_vector(vec![1.0; cols])?, eps: 1e-6 };
                let mut run = |all: &[GpuMatrix], i: usize| {
                    let (first, second) = (&all[i % all.len()], &all[(i + 1) % all.len()]);
                    if pair {
                        self.gpu.norm_swiglu(&x, &norm, first, second).map(drop)
                    } else {
                        self.gpu.project_add(&x, first, &mut out)
                    }
                };
                let unpacked = self.time(&work, &mut |i| run(&plain, i))?;
                self.line(&work, Some(unpacked), &mut |i| run(&packed, i))?;
            }
        }
        Ok(())
    }

    fn all_experts(&self, tokens: &[usize]) -> Outcome<()> {
        let (hidden, width) = (self.small(7168), self.small(2048));
        let load = |rows: usize, cols: usize, seed: usize| -> Outcome<GpuExperts> {
            let one = |e| self.random.matrix(rows, cols, self.format, seed + e);
            Ok(self.gpu.load_experts((0..self.experts).map(one).collect::<Result<_, _>>()?)?)
        };
        let one = self.random.matrix(width, hidden, self.format, 0)?.bytes() as usize;
        let (gate, up) = (load(width, hidden, 1)?, load(width, hidden, 1000)?);
        let down = load(hidden, width, 2000)?;
        for &tokens in tokens {
            let ids = self.random.choices(tokens, CHOSEN, self.experts);
            let distinct = ids.iter().collect::<HashSet<_>>().len();
            let routing = self.gpu.upload_routing(tokens, &ids, &vec![0.125; ids.len()])?;
            let pairs = tokens * CHOSEN;
            let work = |what: &str, matrices: usize| Work {
                what: format!("{what}, {distinct} of {}", self.experts),
                tokens,
                products: (matrices * pairs * width * hidden) as f64,
                bytes: matrices * distinct * one,
            };
            let x = self.activations(tokens, hidden)?.into();
            self.line(&work("experts gate+up", 2), None, &mut |_| {
                self.gpu.experts_swiglu(&x, &routing, &gate, &up, None).map(drop)
            })?;
            let h = ExpertHidden { routed: self.activations(pairs, width)?, shared: None }.into();
            let mut residual = self.activations(tokens, hidden)?;
            self.line(&work("experts down", 1), None, &mut |_| {
                self.gpu.experts_down_add(&h, &routing, &down, None, &mut residual)
            })?;
        }
        Ok(())
    }

    /// One line; with `--kernels` one for each kernel. `unpacked`: seconds with f16 weights.
    fn line(
        &self,
        work: &Work,
        unpacked: Option<f64>,
        run: &mut dyn FnMut(usize) -> Result<(), BackendError>,
    ) -> Outcome<()> {
        let mut kernels = vec![None];
        if self.kernels {
            kernels.extend(self.gpu.batch_kernels().into_iter().map(Some));
        }
        for kernel in kernels {
            self.gpu.set_batch_kernel(kernel);
            let seconds = self.time(work, run)?;
            let rate = work.bytes as f64 / seconds;
            println!(
                "{:<30} {:>6} {:>9.3} {:>9.2} {:>7} {:>8.0} {:>6.1}%  {}",
                work.what,
                work.tokens,
                seconds * 1e3,
                2e-12 * work.products / seconds,
                unpacked.map_or(String::new(), |f16| format!("{:.0}%", 100.0 * f16 / seconds)),
                rate / 1e9,
                100.0 * rate / read_bandwidth(&self.gpu, self.quick)?,
                kernel.map_or("as chosen".to_owned(), |k| format!("{k:?}")),
            );
        }
        self.gpu.set_batch_kernel(None);
        Ok(())
    }

    /// Seconds of one call, the best of three rounds.
    fn time(&self, work: &Work, run: &mut dyn FnMut(usize) -> Result<(), BackendError>) -> Outcome<f64> {
        // About 10 ms, as a guess: the time of a submission does not count then.
        let guess = (work.bytes as f64 / self.bandwidth).max(2.0 * work.products / 20e12);
        let calls = if self.quick { 1 } else { ((0.010 / guess) as usize).clamp(1, 500) };
        let mut best = f64::INFINITY;
        for round in 0..4 {
            let start = Instant::now();
            let on_device = self.gpu.timed(|| (0..calls).try_for_each(&mut *run))?;
            // Without a clock on the device its time can't be told from the host's.
            let seconds = on_device.map_or(start.elapsed().as_secs_f64(), |ns| ns * 1e-9);
            if round > 0 {
                best = best.min(seconds / calls as f64);
            }
        }
        Ok(best)
    }
}
