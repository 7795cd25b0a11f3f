//! How fast the CPU backend reads weights: gigabytes of weights, scales and biases a second, for one token, at the
//! shapes of Kimi-K2, beside the machine's read bandwidth. The two are measured in turn and shares are medians over the
//! turns: a machine that others use too changes by the second.
//!
//! `cargo bench --bench cpu_matvec` prints the whole table; `-- --quick` fewer formats and shorter measurements.
//! Weights rotate through more memory than the caches hold, as they do in the model.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kimi_quant::cpu::{Cpu, Routing, Team, Tensor, read_bandwidth};
use kimi_quant::{
    Backend, BackendError, BitWidth, ExpertHidden, FloatType, Format, FormatError, HeadShape,
    LatentProjections, Norm, PackedMatrix, Rope, Router, RouterShape, TokenLayout,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// More than any cache, so that every read is one of memory.
const ROTATED_BYTES: u64 = 256 << 20;

/// Tokens of the products whose limit is arithmetic.
const PREFILL: usize = 64;

const EXPERTS: usize = 64;
const CHOSEN: usize = 8;
const HIDDEN: usize = 7168;
const EXPERT: usize = 2048;

fn main() -> Outcome<()> {
    Team::current().step(measure) // as the model runs: with threads that are awake
}

fn measure() -> Outcome<()> {
    // `cargo bench` says --bench; whoever else starts this (cargo test --all-targets) wants to see it run, no more.
    let asked = |flag: &str| std::env::args().any(|a| a == flag);
    let quick = asked("--quick") || !asked("--bench") || std::env::var_os("KIMI_BENCH_QUICK").is_some();
    let cpu = Cpu::new();
    let meter = Meter {
        round: Duration::from_millis(if quick { 100 } else { 400 }),
        buffer: random_words(if quick { 32 << 20 } else { 128 << 20 }),
    };
    println!("{}", cpu.name());
    println!(
        "{:<34} {:<15} {:>6} {:>12} {:>6}",
        "one token through", "format", "GB/s", "reading GB/s", "share"
    );
    for format in formats(quick) {
        for (what, Reading { rate, bandwidth, share }) in readings(cpu, format, quick, &meter)? {
            let (format, share) = (format.to_string(), 100.0 * share);
            println!("{what:<34} {format:<15} {rate:>6.1} {bandwidth:>12.1} {share:>5.0}%");
        }
    }
    println!("\n{:<34} {:<15} {:>8}", format!("{PREFILL} tokens through"), "format", "GFLOP/s");
    for format in formats(quick) {
        let rate = prefill(cpu, format, &meter)?;
        println!("{:<34} {:<15} {rate:>8.0}", "o_proj 7168x8192", format.to_string());
    }
    Ok(())
}

/// Gigabytes a second, medians over turns.
struct Reading {
    rate: f64,
    bandwidth: f64,
    /// Of the bandwidth of the same turn.
    share: f64,
}

fn readings(cpu: Cpu, format: Format, quick: bool, meter: &Meter) -> Outcome<Vec<(&'static str, Reading)>> {
    let mut readings = vec![
        ("8 of 64 experts, gate+up 2048x7168", experts_up(cpu, format, meter)?),
        ("8 of 64 experts, down 7168x2048", experts_down(cpu, format, meter)?),
        ("o_proj 7168x8192", dense(cpu, format, 7168, 8192, meter)?),
    ];
    if !quick {
        readings.push(("q_b 12288x1536", dense(cpu, format, 12288, 1536, meter)?));
        readings.push(("head slice 32768x7168", dense(cpu, format, 32768, 7168, meter)?));
        readings.push(("W_UK, 64 heads of 128x512", absorb(cpu, format, meter)?));
        readings.push(("W_UV, 64 heads of 128x512", values(cpu, format, meter)?));
    }
    Ok(readings)
}

fn formats(quick: bool) -> Vec<Format> {
    let affine = |bits| Format::Affine { bits, group: 64, scales: FloatType::Bf16 };
    if quick {
        return vec![affine(BitWidth::B4)];
    }
    let mut all: Vec<Format> = BitWidth::ALL.into_iter().map(affine).collect();
    all.extend([Format::Mxfp4, Format::Mxfp8, Format::Fp8 { scales: FloatType::F32 }]);
    all.push(Format::Float(FloatType::Bf16));
    all
}

/// Turns of one measurement.
const TURNS: usize = 5;

/// Measures steps, and the read bandwidth between them.
struct Meter {
    round: Duration,
    buffer: Vec<u64>,
}

impl Meter {
    /// `step` says how many gigabytes it read.
    fn reading(&self, step: impl FnMut(usize) -> Outcome<f64>) -> Outcome<Reading> {
        let bandwidth = || read_bandwidth(&self.buffer, self.round / 4) / 1e9;
        let turns = self.turns(bandwidth, step)?;
        let of = |value: fn(&(f64, f64)) -> f64| median(turns.iter().map(value).collect());
        Ok(Reading { rate: of(|t| t.0), bandwidth: of(|t| t.1), share: of(|t| t.0 / t.1) })
    }

    /// `step` says how much it did: units a second.
    fn rate(&self, step: impl FnMut(usize) -> Outcome<f64>) -> Outcome<f64> {
        Ok(median(self.turns(|| 0.0, step)?.into_iter().map(|turn| turn.0).collect()))
    }

    /// Rates of a step, each with what was measured after it.
    fn turns(
        &self,
        between: impl Fn() -> f64,
        mut step: impl FnMut(usize) -> Outcome<f64>,
    ) -> Outcome<Vec<(f64, f64)>> {
        let mut i = 0;
        step(0)?;
        let mut turn = || {
            let (start, mut done) = (Instant::now(), 0.0);
            while start.elapsed() < self.round {
                done += step(i)?;
                i += 1;
            }
            let rate = done / start.elapsed().as_secs_f64();
            Ok((rate, between()))
        };
        (0..TURNS).map(|_| turn()).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn experts_up(cpu: Cpu, format: Format, meter: &Meter) -> Outcome<Reading> {
    let pool = matrices(format, EXPERTS, EXPERT, HIDDEN)?;
    let bytes = 2.0 * CHOSEN as f64 * pool[0].bytes() as f64 / 1e9;
    // The same memory serves gate and up, half a turn apart: no matrix is read twice in a step.
    let mut turned = pool.clone();
    turned.rotate_left(EXPERTS / 2);
    let (gate, up) = (cpu.load_experts(pool)?, cpu.load_experts(turned)?);
    let routings = routings(cpu)?;
    let x = activations(cpu, 1, HIDDEN)?;
    meter.reading(|i| {
        black_box(cpu.experts_swiglu(&x, &routings[i % routings.len()], &gate, &up, None)?);
        Ok(bytes)
    })
}

fn experts_down(cpu: Cpu, format: Format, meter: &Meter) -> Outcome<Reading> {
    let pool = matrices(format, EXPERTS, HIDDEN, EXPERT)?;
    let bytes = CHOSEN as f64 * pool[0].bytes() as f64 / 1e9;
    let down = cpu.load_experts(pool)?;
    let routings = routings(cpu)?;
    let hidden = ExpertHidden { routed: activations(cpu, CHOSEN, EXPERT)?, shared: None };
    let mut residual = activations(cpu, 1, HIDDEN)?;
    meter.reading(|i| {
        cpu.experts_down_add(&hidden, &routings[i % routings.len()], &down, None, &mut residual)?;
        Ok(bytes)
    })
}

fn dense(cpu: Cpu, format: Format, rows: usize, cols: usize, meter: &Meter) -> Outcome<Reading> {
    let one = matrices(format, 1, rows, cols)?[0].bytes();
    let pool = matrices(format, ROTATED_BYTES.div_ceil(one) as usize, rows, cols)?;
    let (x, mut residual) = (activations(cpu, 1, cols)?, activations(cpu, 1, rows)?);
    meter.reading(|i| {
        cpu.project_add(&x, &pool[i % pool.len()], &mut residual)?;
        Ok(one as f64 / 1e9)
    })
}

const HEADS: HeadShape = HeadShape { heads: 64, nope: 128, rope: 64, value: 128, latent: 512 };

/// `kv_b` matrices in more memory than the caches hold, and the gigabytes that one half of one has.
fn latent(format: Format) -> Outcome<(Vec<LatentProjections<PackedMatrix>>, f64)> {
    let rows = HEADS.heads * (HEADS.nope + HEADS.value);
    let one = matrices(format, 1, rows, HEADS.latent)?[0].bytes();
    let pool = matrices(format, ROTATED_BYTES.div_ceil(one) as usize, rows, HEADS.latent)?;
    Ok((pool.into_iter().map(LatentProjections::Joint).collect(), one as f64 / 2e9))
}

fn absorb(cpu: Cpu, format: Format, meter: &Meter) -> Outcome<Reading> {
    let (pool, bytes) = latent(format)?;
    let q = activations(cpu, 1, HEADS.heads * (HEADS.nope + HEADS.rope))?;
    let rope = Rope { inv_freq: vec![0.01; HEADS.rope / 2], mscale: 1.0 };
    let mut layout = TokenLayout::new(64);
    layout.push(40, 1, &[0])?;
    meter.reading(|i| {
        black_box(cpu.absorb_query(&q, &pool[i % pool.len()], HEADS, &rope, &layout)?);
        Ok(bytes)
    })
}

fn values(cpu: Cpu, format: Format, meter: &Meter) -> Outcome<Reading> {
    let (pool, bytes) = latent(format)?;
    let attended = activations(cpu, 1, HEADS.heads * HEADS.latent)?;
    meter.reading(|i| {
        black_box(cpu.project_values(&attended, &pool[i % pool.len()], HEADS)?);
        Ok(bytes)
    })
}

fn prefill(cpu: Cpu, format: Format, meter: &Meter) -> Outcome<f64> {
    let (tokens, rows, cols) = (PREFILL, 7168, 8192);
    let m = &matrices(format, 1, rows, cols)?[0];
    let (x, mut residual) = (activations(cpu, tokens, cols)?, activations(cpu, tokens, rows)?);
    meter.rate(|_| {
        cpu.project_add(&x, m, &mut residual)?;
        Ok(2.0 * (tokens * rows * cols) as f64 / 1e9)
    })
}

/// One token's routing to each eight neighbouring experts in turn.
fn routings(cpu: Cpu) -> Result<Vec<Routing>, BackendError> {
    let shape = RouterShape { chosen: CHOSEN, groups: 1, kept_groups: 1, normalize: true, scale: 1.0 };
    let gate = PackedMatrix::new(
        EXPERTS,
        8,
        Format::Float(FloatType::F32),
        vec![0; EXPERTS * 8 * 4].into(),
        Vec::new().into(),
        Vec::new().into(),
    )
    .map_err(|e| BackendError::Device(e.to_string()))?;
    let norm = Norm { weight: vec![1.0; 8], eps: 1e-6 };
    let x = activations(cpu, 1, 8)?;
    (0..EXPERTS / CHOSEN)
        .map(|i| {
            let bias = (0..EXPERTS).map(|e| if e / CHOSEN == i { 1.0 } else { 0.0 }).collect();
            Ok(cpu.route(&x, &norm, &Router { gate: gate.clone(), bias, shape })?.1)
        })
        .collect()
}

fn activations(cpu: Cpu, tokens: usize, width: usize) -> Result<Tensor, BackendError> {
    let values: Vec<f32> = (0..tokens * width).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
    cpu.upload(tokens, width, &values)
}

/// `count` matrices of random codes and sensible scales, each with memory of its own.
fn matrices(
    format: Format,
    count: usize,
    rows: usize,
    cols: usize,
) -> Result<Vec<PackedMatrix>, FormatError> {
    let [weight, scales, biases] = format.bytes(rows * count, cols)?;
    let mut codes = to_bytes(random_words(weight.div_ceil(8)));
    codes.truncate(weight);
    if let Format::Float(_) = format {
        // Exponents of ones would be infinities.
        codes.iter_mut().skip(1).step_by(2).for_each(|b| *b &= 0xbf);
    }
    // bf16 0.0078; e8m0 2^-7.
    let small =
        |n: usize| (0..n).map(|i| if format.scale_bytes() == 1 { 120 } else { [0, 0x3c][i % 2] }).collect();
    let scales: Vec<u8> = small(scales);
    let biases: Vec<u8> = small(biases);
    let whole = PackedMatrix::new(rows * count, cols, format, codes.into(), scales.into(), biases.into())?;
    Ok(whole.split_rows(count))
}

fn to_bytes(words: Vec<u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn random_words(n: usize) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect()
}
