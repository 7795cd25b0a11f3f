//! How fast the GPU backend reads weights: gigabytes of weights, scales and biases a second, for one token, at the shapes
//! of Kimi-K2, each beside the read bandwidth measured right after it.
//!
//! `cargo bench --features gpu --bench gpu_matvec` prints the table; `-- --search` tries many kernel sizes for each line
//! and prints the best ones; `--bits 2,3` has those widths only; `--experts N` has so many to choose from (64); `--quick`
//! shrinks everything for a software adapter; `--seconds N` stops after that time; `--as-metal[=CHIP]` takes the kernels and
//! sizes of one of Apple's.
//! Weights rotate through more memory than the caches hold, as they do in the model.

use std::time::{Duration, Instant};

use kimi_benches::{RandomWeights, gpu_options, read_bandwidth};
use kimi_quant::gpu::{GpuRouting, GpuTensor, GpuVector, Tuning};
use kimi_quant::{Backend, BackendError, BitWidth, ExpertHidden, FloatType, Format, Gpu, Norm, PackedMatrix};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Bench {
    gpu: Gpu,
    bandwidth: f64,
    search: bool,
    quick: bool,
    deadline: Instant,
    experts: usize,
    random: RandomWeights,
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let seconds = value("--seconds").map_or(Ok(3600), |s| s.parse())?;
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let quick = has("--quick");
    let gpu = Gpu::new(&gpu_options()?)?;
    let bandwidth = read_bandwidth(&gpu, quick)?;
    println!("{}; reading memory: {:.0} GB/s", gpu.name(), bandwidth / 1e9);
    // Room for the head of 8 bits.
    let random = RandomWeights::new(if quick { 8 << 20 } else { 1200 << 20 });
    let experts = value("--experts").map_or(Ok(64), |n| n.parse())?;
    let bench = Bench { gpu, bandwidth, search: has("--search"), quick, deadline, experts, random };
    println!(
        "{:<26} {:>4} {:>9} {:>9} {:>8} {:>7}",
        "one token through", "bits", "MB", "us", "GB/s", "of read"
    );
    let wanted = value("--bits");
    for bits in [BitWidth::B4, BitWidth::B3, BitWidth::B2, BitWidth::B6, BitWidth::B8, BitWidth::B5] {
        if wanted.is_some_and(|list| !list.split(',').any(|b| b == bits.bits().to_string())) {
            continue;
        }
        bench.width(Format::Affine { bits, group: 64, scales: FloatType::Bf16 })?;
    }
    Ok(())
}

impl Bench {
    fn matrix(&self, rows: usize, cols: usize, format: Format, seed: usize) -> Outcome<PackedMatrix> {
        Ok(self.random.matrix(rows, cols, format, seed)?)
    }

    fn norm(&self, width: usize) -> Outcome<Norm<GpuVector>> {
        Ok(Norm { weight: self.gpu.load_vector(vec![1.0; width])?, eps: 1e-6 })
    }

    fn activations(&self, rows: usize, cols: usize) -> Outcome<GpuTensor> {
        Ok(self.gpu.upload(rows, cols, &self.random.activations(rows * cols))?)
    }

    fn width(&self, format: Format) -> Outcome<()> {
        let small = |n: usize| if self.quick { n / 16 } else { n };
        let (experts, hidden, width) = (self.experts, small(7168).next_multiple_of(64), small(2048));
        self.experts(format, experts, hidden, width)?;
        self.both(format, [1536, 576], hidden)?;
        for (what, rows, cols) in [
            ("q_b 12288x1536", small(12288), 1536),
            ("o_proj 7168x8192", hidden, small(8192)),
            ("head 163840x7168", small(163840), hidden),
        ] {
            self.dense(what, format, rows, cols)?;
        }
        self.in_turn(format, hidden, small(8192))
    }

    /// The chosen experts and the shared one, as in the model.
    fn experts(&self, format: Format, experts: usize, hidden: usize, width: usize) -> Outcome<()> {
        const CHOSEN: usize = 8;
        let load = |rows, cols, seed| -> Outcome<_> {
            let all = (0..experts).map(|e| self.matrix(rows, cols, format, seed + e));
            let all = self.gpu.load_experts(all.collect::<Outcome<Vec<_>>>()?)?;
            Ok((all, self.gpu.load_matrix(self.matrix(rows, cols, format, seed + experts)?)?))
        };
        let (gate, up, down) =
            (load(width, hidden, 1)?, load(width, hidden, 1000)?, load(hidden, width, 2000)?);
        let choices = self.random.choices(experts / CHOSEN, CHOSEN, experts);
        let routings =
            choices.chunks_exact(CHOSEN).map(|ids| self.gpu.upload_routing(1, ids, &[0.125; CHOSEN]));
        let routings: Vec<GpuRouting> = routings.collect::<Result<_, _>>()?;
        let x = self.activations(1, hidden)?.into();
        let bytes = (CHOSEN + 1) * self.matrix(width, hidden, format, 0)?.bytes() as usize;
        self.line("8 + 1 experts, gate+up", format, 2 * bytes, routings.len(), &mut |i| {
            let shared = Some((&gate.1, &up.1));
            self.gpu.experts_swiglu(&x, &routings[i], &gate.0, &up.0, shared).map(drop)
        })?;
        let shared = Some(self.activations(1, width)?);
        let h = ExpertHidden { routed: self.activations(CHOSEN, width)?, shared }.into();
        let mut residual = self.activations(1, hidden)?;
        self.line("8 + 1 experts, down", format, bytes, routings.len(), &mut |i| {
            self.gpu.experts_down_add(&h, &routings[i], &down.0, Some(&down.1), &mut residual)
        })
    }

    /// The two projections of a layer's input, one dispatch as in the model.
    fn both(&self, format: Format, rows: [usize; 2], cols: usize) -> Outcome<()> {
        let bytes: u64 =
            rows.iter().map(|&n| Ok(self.matrix(n, cols, format, 0)?.bytes())).sum::<Outcome<u64>>()?;
        let copies = if self.quick { 2 } else { 24 };
        let load = |n, seed| -> Outcome<_> { Ok(self.gpu.load_matrix(self.matrix(n, cols, format, seed)?)?) };
        let pairs = (0..copies).map(|seed| Ok((load(rows[0], seed)?, load(rows[1], seed + 100)?)));
        let pairs = pairs.collect::<Outcome<Vec<_>>>()?;
        let (x, norm) = (self.activations(1, cols)?, self.norm(cols)?);
        self.line("q_a and kv_a 2112x7168", format, bytes as usize, copies, &mut |i| {
            self.gpu.norm_project(&x, &norm, [&pairs[i].0, &pairs[i].1]).map(drop)
        })
    }

    /// A layer's projections, each of what the one before it gives.
    fn in_turn(&self, format: Format, hidden: usize, values: usize) -> Outcome<()> {
        let shapes = [(1536, hidden), (576, hidden), (values, 1536), (hidden, values)];
        let copies = if self.quick { 2 } else { 12 };
        let load = |i: usize, seed| -> Outcome<_> {
            let (rows, cols) = shapes[i];
            Ok(self.gpu.load_matrix(self.matrix(rows, cols, format, seed)?)?)
        };
        let layers =
            (0..copies).map(|c| Ok([load(0, c)?, load(1, c + 50)?, load(2, c + 100)?, load(3, c + 150)?]));
        let layers = layers.collect::<Outcome<Vec<_>>>()?;
        let bytes: u64 = layers.first().into_iter().flatten().map(kimi_quant::Stored::stored_bytes).sum();
        let (mut x, norm, q_norm) = (self.activations(1, hidden)?, self.norm(hidden)?, self.norm(1536)?);
        self.line("in turn: q_a+kv_a, q, o", format, bytes as usize, copies, &mut |i| {
            let [q_a, kv_a, q_b, o] = &layers[i];
            let [q, _] = self.gpu.norm_project(&x, &norm, [q_a, kv_a])?;
            let [values] = self.gpu.norm_project(&q, &q_norm, [q_b])?;
            self.gpu.project_add(&values, o, &mut x)
        })
    }

    fn dense(&self, what: &str, format: Format, rows: usize, cols: usize) -> Outcome<()> {
        let bytes = self.matrix(rows, cols, format, 0)?.bytes() as usize;
        let copies = ((200 << 20) / bytes).clamp(1, 96);
        let copies = if self.quick { copies.min(2) } else { copies };
        let load = |seed| -> Outcome<_> { Ok(self.gpu.load_matrix(self.matrix(rows, cols, format, seed)?)?) };
        let matrices = (0..copies).map(load).collect::<Outcome<Vec<_>>>()?;
        let (x, norm) = (self.activations(1, cols)?, self.norm(cols)?);
        self.line(what, format, bytes, copies, &mut |i| {
            self.gpu.norm_project(&x, &norm, [&matrices[i]]).map(drop)
        })
    }

    /// One line, or with `--search` the best of many kernel sizes.
    fn line(
        &self,
        what: &str,
        format: Format,
        bytes: usize,
        copies: usize,
        run: &mut dyn FnMut(usize) -> Result<(), BackendError>,
    ) -> Outcome<()> {
        let mut results = Vec::new();
        let mut tunings = vec![None];
        if self.search {
            for (unit, values) in [(32, 8), (64, 4), (64, 8), (64, 16)] {
                tunings.push(Some(Tuning { unit, values, steps: None, integer: true }));
            }
        }
        for tuning in tunings {
            if Instant::now() > self.deadline {
                break;
            }
            self.gpu.set_tuning(tuning);
            results.push((self.time(bytes, copies, run)?, tuning));
        }
        self.gpu.set_tuning(None);
        // Measured beside each line: a machine that others use too changes by the second.
        let bandwidth = read_bandwidth(&self.gpu, self.quick)?;
        let mut show = |(seconds, tuning): &(f64, Option<Tuning>)| {
            let rate = bytes as f64 / seconds;
            let sizes = tuning.map_or("as chosen".to_owned(), |t| {
                format!(
                    "{} columns, {} values, {}, {}",
                    t.unit,
                    t.values,
                    t.steps.map_or("steps as chosen".to_owned(), |s| format!("{s} steps")),
                    if t.integer { "integer" } else { "float" }
                )
            });
            println!(
                "{what:<26} {:>4} {:>9.1} {:>9.1} {:>8.0} {:>6.1}%  {sizes}",
                format.code_bits(),
                bytes as f64 / 1e6,
                seconds * 1e6,
                rate / 1e9,
                100.0 * rate / bandwidth,
            );
        };
        results.iter().take(1).for_each(&mut show);
        let mut rest: Vec<_> = results.into_iter().skip(1).collect();
        rest.sort_by(|a, b| a.0.total_cmp(&b.0));
        rest.iter().take(6).for_each(&mut show);
        Ok(())
    }

    /// Seconds of one call on a warm device, the best of three rounds.
    fn time(
        &self,
        bytes: usize,
        copies: usize,
        run: &mut dyn FnMut(usize) -> Result<(), BackendError>,
    ) -> Outcome<f64> {
        // Enough for about 10 ms at the measured bandwidth: the submission's own time does not count then.
        let calls = ((0.010 * self.bandwidth / bytes as f64) as usize).clamp(copies.min(8), 2000);
        let calls = if self.quick { 2 } else { calls };
        let mut best = f64::INFINITY;
        // Idle devices slow their clocks down, so work goes on for a while before its time counts.
        let (wait, wanted) = if self.search { (60, 2) } else { (150, 3) };
        let warm = Instant::now() + Duration::from_millis(if self.quick { 0 } else { wait });
        let mut rounds = 0;
        while rounds < wanted {
            let start = Instant::now();
            let on_device = self.gpu.timed(|| (0..calls).try_for_each(|i| run(i % copies)))?;
            // Without a clock on the device its time can't be told from the host's.
            let seconds = on_device.map_or(start.elapsed().as_secs_f64(), |ns| ns * 1e-9);
            if Instant::now() > warm {
                best = best.min(seconds / calls as f64);
                rounds += 1;
            }
        }
        Ok(best)
    }
}
