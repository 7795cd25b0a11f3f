//! How fast the CPU backend reads weights: gigabytes of weights, scales and biases a second, for one token, at the
//! shapes of Kimi-K2, beside the machine's read bandwidth measured in the same run.
//!
//! `cargo bench --bench cpu_matvec` prints the whole table; `-- --quick` fewer formats and shorter measurements.
//! Weights rotate through more memory than the caches hold, as they do in the model.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kimi_quant::cpu::{Cpu, Routing, Team, Tensor, read_bandwidth};
use kimi_quant::{
    Backend, BackendError, BitWidth, ExpertHidden, FloatType, Format, FormatError, Norm, PackedMatrix,
    Router, RouterShape,
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
    let round = Duration::from_millis(if quick { 100 } else { 400 });
    let cpu = Cpu::new();
    let buffer = random_words(if quick { 32 << 20 } else { 128 << 20 });
    println!("{}", cpu.name());
    println!(
        "{:<34} {:<15} {:>6} {:>12} {:>6}",
        "one token through", "format", "GB/s", "reading GB/s", "share"
    );
    for format in formats(quick) {
        // Anew for each format: on a shared machine it changes by the minute.
        let bandwidth = read_bandwidth(&buffer, round) / 1e9;
        for (what, rate) in rates(cpu, format, quick, round)? {
            let (format, share) = (format.to_string(), 100.0 * rate / bandwidth);
            println!("{what:<34} {format:<15} {rate:>6.1} {bandwidth:>12.1} {share:>5.0}%");
        }
    }
    println!("\n{:<34} {:<15} {:>8}", format!("{PREFILL} tokens through"), "format", "GFLOP/s");
    for format in formats(quick) {
        let rate = prefill(cpu, format, round)?;
        println!("{:<34} {:<15} {rate:>8.0}", "o_proj 7168x8192", format.to_string());
    }
    Ok(())
}

fn rates(cpu: Cpu, format: Format, quick: bool, round: Duration) -> Outcome<Vec<(&'static str, f64)>> {
    let mut rates = vec![
        ("8 of 64 experts, gate+up 2048x7168", experts_up(cpu, format, round)?),
        ("8 of 64 experts, down 7168x2048", experts_down(cpu, format, round)?),
        ("o_proj 7168x8192", dense(cpu, format, 7168, 8192, round)?),
    ];
    if !quick {
        rates.push(("q_b 12288x1536", dense(cpu, format, 12288, 1536, round)?));
        rates.push(("head slice 32768x7168", dense(cpu, format, 32768, 7168, round)?));
    }
    Ok(rates)
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

/// The fastest of several rounds of `step`, which says how much it did: units a second.
fn best_rate(round: Duration, mut step: impl FnMut(usize) -> Outcome<f64>) -> Outcome<f64> {
    let (mut best, mut i) = (0.0f64, 0);
    step(0)?;
    for _ in 0..5 {
        let (start, mut done) = (Instant::now(), 0.0);
        while start.elapsed() < round {
            done += step(i)?;
            i += 1;
        }
        best = best.max(done / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn experts_up(cpu: Cpu, format: Format, round: Duration) -> Outcome<f64> {
    let pool = matrices(format, EXPERTS, EXPERT, HIDDEN)?;
    let bytes = 2.0 * CHOSEN as f64 * pool[0].bytes() as f64 / 1e9;
    // The same memory serves gate and up, half a turn apart: no matrix is read twice in a step.
    let mut turned = pool.clone();
    turned.rotate_left(EXPERTS / 2);
    let (gate, up) = (cpu.load_experts(pool)?, cpu.load_experts(turned)?);
    let routings = routings(cpu)?;
    let x = activations(cpu, 1, HIDDEN)?;
    best_rate(round, |i| {
        black_box(cpu.experts_swiglu(&x, &routings[i % routings.len()], &gate, &up, None)?);
        Ok(bytes)
    })
}

fn experts_down(cpu: Cpu, format: Format, round: Duration) -> Outcome<f64> {
    let pool = matrices(format, EXPERTS, HIDDEN, EXPERT)?;
    let bytes = CHOSEN as f64 * pool[0].bytes() as f64 / 1e9;
    let down = cpu.load_experts(pool)?;
    let routings = routings(cpu)?;
    let hidden = ExpertHidden { routed: activations(cpu, CHOSEN, EXPERT)?, shared: None };
    let mut residual = activations(cpu, 1, HIDDEN)?;
    best_rate(round, |i| {
        cpu.experts_down_add(&hidden, &routings[i % routings.len()], &down, None, &mut residual)?;
        Ok(bytes)
    })
}

fn dense(cpu: Cpu, format: Format, rows: usize, cols: usize, round: Duration) -> Outcome<f64> {
    let one = matrices(format, 1, rows, cols)?[0].bytes();
    let pool = matrices(format, ROTATED_BYTES.div_ceil(one) as usize, rows, cols)?;
    let (x, mut residual) = (activations(cpu, 1, cols)?, activations(cpu, 1, rows)?);
    best_rate(round, |i| {
        cpu.project_add(&x, &pool[i % pool.len()], &mut residual)?;
        Ok(one as f64 / 1e9)
    })
}

fn prefill(cpu: Cpu, format: Format, round: Duration) -> Outcome<f64> {
    let (tokens, rows, cols) = (PREFILL, 7168, 8192);
    let m = &matrices(format, 1, rows, cols)?[0];
    let (x, mut residual) = (activations(cpu, tokens, cols)?, activations(cpu, tokens, rows)?);
    best_rate(round, |_| {
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
