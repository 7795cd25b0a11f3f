//! kimi's CPU kernels at the shapes of Kimi-K2, timed on request.
//!
//! `cpu-compare FORMAT THREADS [exact|close|fast]` prints a line that begins with `ready`, then answers each line `OPERATION TOKENS SECONDS`
//! of its input with a number: operations a second. `ggml.cpp` answers the same for llama.cpp, and `compare.py` asks both in
//! turn. Weights rotate through more memory than the caches hold, as they do in the model.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use kimi_quant::cpu::{Cpu, Experts, Routing, Team, Tensor, read_bandwidth};
use kimi_quant::{
    Backend, BitWidth, ExpertHidden, FloatType, Format, HeadShape, LatentProjections, Norm, PackedMatrix,
    Precision, Router, RouterShape, SampleRequest,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const EXPERTS: usize = 64;
const CHOSEN: usize = 8;
const HIDDEN: usize = 7168;
const WIDTH: usize = 2048;
/// More than any cache.
const ROTATED: u64 = 256 << 20;
const HEADS: HeadShape = HeadShape { heads: 64, nope: 128, rope: 64, value: 128, latent: 512 };

/// What all operations work on.
struct Bench {
    cpu: Cpu,
    format: Format,
    gate: Experts,
    up: Experts,
    down: Experts,
    /// `[7168, 8192]` each.
    output: Vec<PackedMatrix>,
    /// `[16384, 7168]` each.
    head: Vec<PackedMatrix>,
    /// `kv_b`, `[64 * 256, 512]` each.
    latent: Vec<LatentProjections<PackedMatrix>>,
    buffer: Vec<u64>,
    /// Which of the weights come next.
    at: usize,
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let format = format(&arguments.next().ok_or("expected FORMAT: 2, 3, 4, 5, 6, 8, mxfp4 or bf16")?)?;
    let threads = arguments.next().ok_or("expected the number of threads")?.parse()?;
    Team::set_shared(threads);
    let precision = arguments.next().map_or(Ok(Precision::Exact), |word| word.parse())?;
    let mut bench = Bench::new(format, precision)?;
    println!("ready {} {format}", bench.cpu.name());
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [operation, tokens, seconds] = words[..] else {
            return Err("expected OPERATION TOKENS SECONDS".into());
        };
        let (tokens, time) = (tokens.parse()?, Duration::from_secs_f64(seconds.parse()?));
        // As in the model: with threads that are awake.
        let rate = Team::current().step(|| bench.rate(operation, tokens, time))?;
        println!("{rate}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn format(name: &str) -> Outcome<Format> {
    Ok(match name {
        "mxfp4" => Format::Mxfp4,
        "bf16" => Format::Float(FloatType::Bf16),
        bits => Format::Affine {
            bits: BitWidth::try_from(bits.parse::<u32>()?)?,
            group: 64,
            scales: FloatType::Bf16,
        },
    })
}

impl Bench {
    fn new(format: Format, precision: Precision) -> Outcome<Self> {
        let cpu = Cpu::new().with_precision(precision);
        let gate = matrices(format, EXPERTS, WIDTH, HIDDEN)?;
        // The same memory serves gate and up, half a turn apart: no matrix is read twice in a step.
        let mut up = gate.clone();
        up.rotate_left(EXPERTS / 2);
        let latent = rotated(format, HEADS.heads * (HEADS.nope + HEADS.value), HEADS.latent)?;
        Ok(Self {
            cpu,
            format,
            gate: cpu.load_experts(gate)?,
            up: cpu.load_experts(up)?,
            down: cpu.load_experts(matrices(format, EXPERTS, HIDDEN, WIDTH)?)?,
            output: rotated(format, 7168, 8192)?,
            head: rotated(format, 16384, HIDDEN)?,
            latent: latent.into_iter().map(LatentProjections::Joint).collect(),
            buffer: random_words(64 << 20),
            at: 0,
        })
    }

    /// Operations a second; `bandwidth` is bytes a second, and `bytes-NAME` what an operation reads.
    fn rate(&mut self, operation: &str, tokens: usize, time: Duration) -> Outcome<f64> {
        let cpu = self.cpu;
        match operation {
            "bandwidth" => Ok(read_bandwidth(&self.buffer, time)),
            "up" => {
                let (routings, x) = (routings(cpu, tokens)?, activations(cpu, tokens, HIDDEN)?);
                self.repeat(time, |bench, i| {
                    black_box(cpu.experts_swiglu(
                        &x,
                        &routings[i % routings.len()],
                        &bench.gate,
                        &bench.up,
                        None,
                    )?);
                    Ok(())
                })
            }
            "down" => {
                let routings = routings(cpu, tokens)?;
                let hidden = ExpertHidden { routed: activations(cpu, tokens * CHOSEN, WIDTH)?, shared: None };
                let mut residual = activations(cpu, tokens, HIDDEN)?;
                self.repeat(time, |bench, i| {
                    let routing = &routings[i % routings.len()];
                    Ok(cpu.experts_down_add(&hidden, routing, &bench.down, None, &mut residual)?)
                })
            }
            "output" => self.dense(tokens, time, |bench| &bench.output),
            "head" => self.dense(tokens, time, |bench| &bench.head),
            "values" => {
                let x = activations(cpu, tokens, HEADS.heads * HEADS.latent)?;
                self.repeat(time, |bench, i| {
                    black_box(cpu.project_values(&x, &bench.latent[i % bench.latent.len()], HEADS)?);
                    Ok(())
                })
            }
            "query" => {
                let q = activations(cpu, tokens, HEADS.heads * (HEADS.nope + HEADS.rope))?;
                let rope = kimi_quant::Rope { inv_freq: vec![0.01; HEADS.rope / 2], mscale: 1.0 };
                let layout = layout(tokens)?;
                self.repeat(time, |bench, i| {
                    let latent = &bench.latent[i % bench.latent.len()];
                    black_box(cpu.absorb_query(&q, latent, HEADS, &rope, &layout)?);
                    Ok(())
                })
            }
            "sample" => {
                let logits = activations(cpu, 1, 163_840)?;
                self.repeat(time, |_, _| {
                    black_box(cpu.start_sample(&logits, &[SampleRequest::greedy(0)])?);
                    Ok(())
                })
            }
            _ => Err(format!("no operation {operation:?} for {}", self.format).into()),
        }
    }

    fn dense(
        &mut self,
        tokens: usize,
        time: Duration,
        weights: impl Fn(&Self) -> &Vec<PackedMatrix>,
    ) -> Outcome<f64> {
        let [rows, cols] = [weights(self)[0].rows(), weights(self)[0].cols()];
        let (x, mut residual) = (activations(self.cpu, tokens, cols)?, activations(self.cpu, tokens, rows)?);
        self.repeat(time, |bench, i| {
            let weights = weights(bench);
            Ok(bench.cpu.project_add(&x, &weights[i % weights.len()], &mut residual)?)
        })
    }

    fn repeat(&mut self, time: Duration, mut step: impl FnMut(&Self, usize) -> Outcome<()>) -> Outcome<f64> {
        step(self, self.at)?; // warm
        let (start, first) = (Instant::now(), self.at);
        while self.at == first || start.elapsed() < time {
            self.at += 1;
            step(self, self.at)?;
        }
        Ok((self.at - first) as f64 / start.elapsed().as_secs_f64())
    }
}

/// New tokens of one sequence.
fn layout(tokens: usize) -> Outcome<kimi_quant::TokenLayout> {
    let pages = (0..tokens.div_ceil(64) as u32).collect::<Vec<_>>();
    let mut layout = kimi_quant::TokenLayout::new(64);
    layout.push(0, tokens, &pages)?;
    Ok(layout)
}

/// For one token each eight neighbouring experts in turn, for more a choice that is drawn.
fn routings(cpu: Cpu, tokens: usize) -> Outcome<Vec<Routing>> {
    let shape = RouterShape { chosen: CHOSEN, groups: 1, kept_groups: 1, normalize: true, scale: 1.0 };
    let norm = Norm { weight: vec![1.0; 8], eps: 1e-6 };
    let turns = if tokens == 1 { EXPERTS / CHOSEN } else { 1 };
    let drawn = |word: u64| (word >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let weights: Vec<f32> = match tokens {
        1 => vec![0.0; EXPERTS * 8],
        _ => random_words(EXPERTS * 8).into_iter().map(drawn).collect(),
    };
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let gate = PackedMatrix::new(
        EXPERTS,
        8,
        Format::Float(FloatType::F32),
        bytes.into(),
        Vec::new().into(),
        Vec::new().into(),
    )?;
    let x = activations(cpu, tokens, 8)?;
    (0..turns)
        .map(|turn| {
            let favoured = |e: usize| if tokens == 1 && e / CHOSEN == turn { 1.0 } else { 0.0 };
            let bias = (0..EXPERTS).map(favoured).collect();
            Ok(cpu.route(&x, &norm, &Router { gate: gate.clone(), bias, shape })?.1)
        })
        .collect()
}

fn activations(cpu: Cpu, tokens: usize, width: usize) -> Outcome<Tensor> {
    let words = random_words(tokens * width).into_iter();
    let values: Vec<f32> = words.map(|word| (word >> 40) as f32 / (1u64 << 24) as f32 - 0.5).collect();
    Ok(cpu.upload(tokens, width, &values)?)
}

fn rotated(format: Format, rows: usize, cols: usize) -> Outcome<Vec<PackedMatrix>> {
    let one = matrices(format, 1, rows, cols)?[0].bytes();
    matrices(format, ROTATED.div_ceil(one) as usize, rows, cols)
}

/// `count` matrices of random codes and sensible scales, each with memory of its own.
fn matrices(format: Format, count: usize, rows: usize, cols: usize) -> Outcome<Vec<PackedMatrix>> {
    let [weight, scales, biases] = format.bytes(rows * count, cols)?;
    let mut codes: Vec<u8> =
        random_words(weight.div_ceil(8)).into_iter().flat_map(u64::to_le_bytes).collect();
    codes.truncate(weight);
    if let Format::Float(_) = format {
        // Exponents of ones would be infinities.
        codes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0xbf);
    }
    // bf16 0.0078; e8m0 2^-7.
    let small = |n: usize| -> Vec<u8> {
        (0..n).map(|i| if format.scale_bytes() == 1 { 120 } else { [0, 0x3c][i % 2] }).collect()
    };
    let (scales, biases) = (small(scales), small(biases));
    let whole = PackedMatrix::new(rows * count, cols, format, codes.into(), scales.into(), biases.into())?;
    Ok(whole.split_rows(count))
}

fn random_words(n: usize) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n).map(|_| next()).collect()
}
