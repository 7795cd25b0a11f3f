//! How long a step takes, kernel by kernel, from what a machine can do at most: an estimate that says how uncertain it is.
//!
//! ```text
//! kernel = dispatches * dispatch + waves * max(bytes / bandwidth, weights * instructions / (instruction rate * ISSUED))
//! waves  = whole steps of a thread / steps of a thread, of which one takes STEP weights
//! step   = sum of kernels, of links, and of what is recorded while no device computes (more than one stage)
//! prompt = max(stored bytes / bandwidth, sum of multiply-adds / their kernel's rate)
//! ```
//!
//! `kimi plan --predict` and `kimi bench --predict CHIP` print it. [`Plan::predict`](super::Plan::predict) is coarser, and is
//! what splits are compared by. Constants are fits to measurements of docs/performance.md and, for the kernels that Metal
//! takes, of an H100 made to take them; the tests compare both.

use std::fmt;
use std::ops::Range;

use kimi_quant::Chip;
use serde::Serialize;

use super::AverageBits;
use super::predict::{HOP, Link};
use crate::config::ModelConfig;

/// Share of its published bandwidth that a card with memory of its own reads: an H100 2,935 of 3,350 GB/s.
const READ_SHARE: f64 = 0.876;
/// The same of Apple's: others' products read 97 to 99 % on an M3 Max.
const APPLE_READ_SHARE: f64 = 0.95;
/// What is left of it at worst: MLX decodes K2.7-Code at 3.6 bits on an M3 Ultra with about half of the bandwidth.
const WORST_READ: f64 = 0.5;
/// Seconds of a dispatch before its first weights and after its last: activations that are brought in, the start, the end. Of a
/// whole decode step on an H100, 62 or 612 dispatches.
const DISPATCH: f64 = 8e-6;
/// Weights that a thread of a product of one token multiplies in a step: 32 of four rows.
const STEP: f64 = 128.0;
/// Threads of such products that a core runs at a time.
const THREADS: f64 = 768.0;
/// Seconds of a dispatch that the host takes to record where no step is under way meanwhile: every stage of several.
const RECORD: f64 = 4.2e-6;
/// Share of the peak instruction rate that products reach: an H100 with the kernels that Metal takes, one sequence and eight.
const ISSUED: f64 = 0.5;
/// The same at best: a core of Apple's with all the simdgroups that it needs.
const ISSUED_AT_BEST: f64 = 0.8;
/// Instructions that a weight takes more on a card of NVIDIA's that takes Metal's kernels: Apple's multiply a 16-bit float as it
/// is.
const CONVERSION: f64 = 1.0;
/// Shares of the peak f32 rate that prompts reach with cooperative matrices on an H100: 40, 25 and 31 of 67 TFLOP/s.
const COOPERATIVE: Shares = Shares { dense: 0.60, experts: 0.37, attention: 0.46 };
/// The same with f32 tiles: of an H100 made to take Metal's kernels, all alike.
const TILES: Shares = Shares { dense: 0.41, experts: 0.41, attention: 0.41 };
/// The same with 8x8 matrices, by counting (docs/metal.md): 512 tokens, of which an expert has ten on average.
const MATRICES_8X8: Shares = Shares { dense: 0.66, experts: 0.35, attention: 0.35 };
/// The same on a CPU, of its measured rate.
const CPU: Shares = Shares { dense: 1.0, experts: 1.0, attention: 1.0 };
/// Share of the read bandwidth that one token's products reach on a CPU.
const CPU_READ_SHARE: f64 = 0.80;
/// What is measured otherwise is within this share of what is predicted.
const MEASURED_SPREAD: f64 = 0.15;

/// Multiply-adds a second of prompts' kernels, as shares of the machine's peak.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shares {
    dense: f64,
    experts: f64,
    attention: f64,
}

/// Which kernels a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// Codes multiplied as integers, prompts by cooperative matrices: Vulkan on a card of NVIDIA's.
    Integer,
    /// Codes multiplied as floats, prompts by f32 tiles: what is made to take Metal's path.
    Tiles,
    /// Codes multiplied as floats, prompts by 8x8 matrices: Metal.
    Float,
    /// The CPU.
    Cpu,
}

impl Path {
    /// Instructions of a lane for a weight, in those of the main pipe. As integers: dot products, shifts and masks of 32
    /// codes at half the rate. As floats: by Mesa's compiler for Apple's GPUs (docs/metal-instructions.md).
    fn instructions(self, bits: u32) -> f64 {
        match (self, bits) {
            (Self::Cpu, _) => 0.0,
            (Self::Integer, 3) => 2.6,
            (Self::Integer, _) => 2.2,
            (Self::Tiles, _) => Self::Float.instructions(bits) + CONVERSION,
            (Self::Float, ..=2) => 2.26,
            (Self::Float, 3) => 2.45,
            (Self::Float, 4) => 2.27,
            (Self::Float, 5) => 2.69,
            (Self::Float, 6) => 2.58,
            (Self::Float, _) => 2.73,
        }
    }

    fn shares(self) -> Shares {
        match self {
            Self::Integer => COOPERATIVE,
            Self::Tiles => TILES,
            Self::Float => MATRICES_8X8,
            Self::Cpu => CPU,
        }
    }
}

/// What a machine does in a second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its kernels.
    pub path: Path,
    /// Bytes a second that it reads.
    pub bytes_per_second: f64,
    /// Peak f32 operations a second, two for a multiply-add.
    pub flops: Option<f64>,
    /// Cores of a GPU.
    pub cores: Option<u32>,
    /// Seconds of a dispatch: at best, expected, at worst.
    pub dispatch: [f64; 3],
    /// Whether nobody has measured such a machine with these kernels.
    pub extrapolated: bool,
}

impl Machine {
    /// A GPU by what is published of it. Apple's take Metal's kernels, and so does any with `as_metal`.
    pub fn of_chip(chip: &Chip, as_metal: bool) -> Self {
        let apple = chip.name.starts_with("Apple ");
        let share = if apple { APPLE_READ_SHARE } else { READ_SHARE };
        // Serial dispatches of Metal are said to take 1.3 us, and starting them 3 to 5.
        let dispatch = if apple { [3e-6, 6e-6, DISPATCH] } else { [DISPATCH; 3] };
        let path = match (apple, as_metal) {
            (true, _) => Path::Float,
            (false, true) => Path::Tiles,
            (false, false) => Path::Integer,
        };
        Self {
            name: chip.name.to_owned(),
            path,
            bytes_per_second: f64::from(chip.gigabytes) * 1e9 * share,
            flops: chip.gigaflops.map(|rate| f64::from(rate) * 1e9).or_else(|| {
                // Of those that are not published: 128 lanes a core and 1.4 GHz, as all that are.
                apple.then(|| f64::from(chip.cores) * 128.0 * 2.0 * 1.4e9)
            }),
            cores: Some(chip.cores),
            dispatch,
            extrapolated: apple,
        }
    }

    /// A CPU by what was measured of it: bytes that it reads, and operations of prompts, a second.
    pub fn cpu(bytes_per_second: f64, flops: f64) -> Self {
        Self {
            name: "cpu".to_owned(),
            path: Path::Cpu,
            bytes_per_second: bytes_per_second * CPU_READ_SHARE,
            flops: Some(flops),
            cores: None,
            dispatch: [0.0; 3],
            extrapolated: false,
        }
    }
}

/// Which rate a kernel's arithmetic has where there are many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Every token meets all rows.
    Dense,
    /// Tokens meet the rows of their experts.
    Experts,
    /// Over the cache: grows with the context.
    Attention,
    /// Little of everything: a dispatch.
    Other,
}

/// One kind of kernel in a step of one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    /// What it computes.
    pub name: &'static str,
    /// Which rate it has.
    pub class: Class,
    /// Dispatches of a step.
    pub dispatches: usize,
    /// Weights that a token meets in all of them: multiply-adds.
    pub weights: f64,
    /// Bytes that it reads for a token.
    pub bytes: f64,
    /// Those of them that it reads once for all tokens of a step: not of experts that they chose, nor of their contexts.
    pub shared_bytes: f64,
    /// Bits of a code.
    pub bits: u32,
}

/// The kernels of a range of layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernels {
    /// In the order of a layer.
    pub kernels: Vec<Kernel>,
    /// Stored bytes of all weights: what a long prompt reads.
    pub stored_bytes: f64,
    /// Experts of a layer, and how many of them a token chooses.
    experts: [f64; 2],
}

/// Bits of a code whose weights take so many with their scales and biases.
fn code_bits(bits: f64) -> u32 {
    (bits - 0.25).floor().clamp(2.0, 16.0) as u32
}

impl Kernels {
    /// Those of a token after `context` others; the last layers come with the head.
    pub fn new(config: &ModelConfig, bits: AverageBits, layers: &Range<usize>, context: usize) -> Self {
        let c = config;
        let (hidden, heads) = (c.hidden_size, c.num_attention_heads);
        let head = c.qk_nope_head_dim + c.qk_rope_head_dim;
        let latent = c.kv_lora_rank + c.qk_rope_head_dim;
        let moe = layers.clone().filter(|&layer| c.is_moe(layer)).count();
        let (all, dense) = (layers.len(), layers.len() - moe);
        let ends = usize::from(layers.end == c.num_hidden_layers);
        let mut kernels = Vec::new();
        let mut add = |name, class, dispatches: usize, weights: usize, bits: f64| {
            let weights = dispatches as f64 * weights as f64;
            let bytes = weights * bits / 8.0;
            if dispatches > 0 {
                let shared_bytes = if class == Class::Experts { 0.0 } else { bytes };
                let bits = code_bits(bits);
                kernels.push(Kernel { name, class, dispatches, weights, bytes, shared_bytes, bits });
            }
        };
        let other = bits.other;
        match c.q_lora_rank {
            Some(rank) => {
                add("q_a, kv_a", Class::Dense, all, hidden * (rank + latent), other);
                add("q_b", Class::Dense, all, heads * head * rank, other);
            }
            None => add("q, kv_a", Class::Dense, all, hidden * (heads * head + latent), other),
        }
        add("queries", Class::Dense, all, heads * c.qk_nope_head_dim * c.kv_lora_rank, other);
        add("attention", Class::Attention, all, 0, 32.0);
        add("values", Class::Dense, all, heads * c.v_head_dim * c.kv_lora_rank, other);
        add("o_proj", Class::Dense, all, hidden * heads * c.v_head_dim, other);
        add("router", Class::Dense, moe, hidden * c.n_routed_experts, 16.0);
        add("choice", Class::Other, moe, 0, 16.0);
        let expert = hidden * c.moe_intermediate_size;
        add("experts' gate and up", Class::Experts, moe, 2 * c.num_experts_per_tok * expert, bits.experts);
        add("experts' down", Class::Experts, moe, c.num_experts_per_tok * expert, bits.experts);
        add("dense gate and up", Class::Dense, dense, 2 * hidden * c.intermediate_size, other);
        add("dense down", Class::Dense, dense, hidden * c.intermediate_size, other);
        add("head", Class::Dense, ends, hidden * c.vocab_size, other);
        add("embedding, choice of a token", Class::Other, 3 * ends, 0, 16.0);
        // The shared expert is one more choice: no dispatch of its own.
        let shared = (moe * c.n_shared_experts * expert) as f64;
        for (name, factor) in [("experts' gate and up", 2.0), ("experts' down", 1.0)] {
            if let Some(kernel) = kernels.iter_mut().find(|kernel| kernel.name == name) {
                kernel.weights += factor * shared;
                kernel.shared_bytes = factor * shared * other / 8.0;
                kernel.bytes += kernel.shared_bytes;
            }
        }
        if let Some(attention) = kernels.iter_mut().find(|kernel| kernel.class == Class::Attention) {
            let values = heads * (latent + c.kv_lora_rank);
            attention.weights = (all * context * values) as f64;
            attention.bytes = (all * context * latent * 4) as f64;
        }
        let routed = (moe * 3 * c.n_routed_experts * expert) as f64 * bits.experts / 8.0;
        let chosen = (moe * 3 * c.num_experts_per_tok * expert) as f64 * bits.experts / 8.0;
        let stored_bytes = kernels.iter().map(|kernel| kernel.bytes).sum::<f64>() - chosen + routed;
        let experts = [c.n_routed_experts, c.num_experts_per_tok].map(|n| n as f64);
        Self { kernels, stored_bytes, experts }
    }

    /// What tokens of so many sequences read apart from each other, in what one of them does. Of experts those that
    /// different ones choose count once, if all are chosen equally often.
    fn apart(&self, class: Class, sequences: f64) -> f64 {
        let [experts, chosen] = self.experts;
        match class {
            Class::Experts if chosen > 0.0 => {
                experts / chosen * (1.0 - (1.0 - chosen / experts).powf(sequences))
            }
            _ => sequences,
        }
    }

    /// Bytes that a token reads.
    pub fn token_bytes(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.bytes).sum()
    }

    /// Dispatches of a token.
    pub fn dispatches(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.dispatches).sum()
    }
}

/// Seconds: at best, expected, at worst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// If what is not known goes well.
    pub best: f64,
    /// Most likely.
    pub expected: f64,
    /// If it does not.
    pub worst: f64,
}

impl std::ops::AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.best += other.best;
        self.expected += other.expected;
        self.worst += other.worst;
    }
}

impl Seconds {
    fn certain(seconds: f64) -> Self {
        Self { best: seconds, expected: seconds, worst: seconds }
    }

    /// Of what was measured elsewhere.
    fn spread(seconds: f64) -> Self {
        Self {
            best: seconds / (1.0 + MEASURED_SPREAD),
            expected: seconds,
            worst: seconds * (1.0 + MEASURED_SPREAD),
        }
    }
}

/// What bounds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Starting it.
    Dispatch,
    /// Reading.
    Memory,
    /// Instructions.
    Instructions,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dispatch => "dispatches",
            Self::Memory => "memory",
            Self::Instructions => "instructions",
        })
    }
}

/// Tokens of a step, one of each sequence, and what a kernel reads for all of them.
#[derive(Debug, Clone, Copy)]
struct Batch {
    sequences: f64,
    bytes: f64,
}

impl Kernel {
    /// Seconds in a step of one token, and what they are spent on.
    pub fn token_seconds(&self, machine: &Machine) -> (f64, Bound) {
        let [_, dispatch, _] = machine.dispatch;
        self.seconds(machine, Batch { sequences: 1.0, bytes: self.bytes }, dispatch, ISSUED, 1.0)
    }

    /// How much longer it takes than its work because a thread takes whole steps: the waves in which a chip's cores run them.
    pub fn waves(&self, machine: &Machine, sequences: usize) -> f64 {
        let Some(cores) = machine.cores.filter(|_| self.weights > 0.0 && self.class != Class::Attention)
        else {
            return 1.0;
        };
        let weights = self.weights * sequences as f64 / self.dispatches as f64;
        let steps = weights / (STEP * THREADS * f64::from(cores));
        steps.ceil() / steps
    }

    /// With so much of the instructions' rate and of the bandwidth.
    fn seconds(
        &self,
        machine: &Machine,
        batch: Batch,
        dispatch: f64,
        issued: f64,
        read: f64,
    ) -> (f64, Bound) {
        let starting = self.dispatches as f64 * dispatch;
        let reading = batch.bytes / (machine.bytes_per_second * read);
        let per_weight =
            if self.class == Class::Attention { 1.0 } else { machine.path.instructions(self.bits) };
        let rate = machine.flops.unwrap_or(f64::INFINITY) / 2.0 * issued;
        let computing = match machine.path {
            Path::Cpu => 0.0,
            _ => batch.sequences * self.weights * per_weight / rate,
        };
        let work = self.waves(machine, batch.sequences as usize) * reading.max(computing);
        let bound = match starting {
            starting if starting > work => Bound::Dispatch,
            _ if computing > reading => Bound::Instructions,
            _ => Bound::Memory,
        };
        (starting + work, bound)
    }
}

impl Kernels {
    /// A step of one token. `alone` if the model is in one stage: then it is recorded while the one before it is computed.
    pub fn token(&self, machine: &Machine, alone: bool) -> Seconds {
        self.step(machine, alone, 1)
    }

    /// A step of a token of each of so many sequences.
    pub fn step(&self, machine: &Machine, alone: bool, sequences: usize) -> Seconds {
        let record = if alone || machine.path == Path::Cpu { 0.0 } else { RECORD };
        let sequences = sequences as f64;
        let sum = |dispatch: f64, issued: f64, read: f64| -> f64 {
            let seconds = |kernel: &Kernel| {
                let own = kernel.bytes - kernel.shared_bytes;
                let bytes = kernel.shared_bytes + own * self.apart(kernel.class, sequences);
                kernel.seconds(machine, Batch { sequences, bytes }, dispatch + record, issued, read).0
            };
            self.kernels.iter().map(seconds).sum()
        };
        let [best, expected, worst] = machine.dispatch;
        if !machine.extrapolated {
            return Seconds::spread(sum(expected, ISSUED, 1.0));
        }
        // At worst arrays stay in memory as they may with Apple's compiler, and half of the instructions' rate is left.
        Seconds {
            best: sum(best, ISSUED_AT_BEST, 1.0),
            expected: sum(expected, ISSUED, 1.0),
            worst: sum(worst, ISSUED / 2.0, WORST_READ),
        }
    }

    /// A prompt of so many tokens, of whose attention `self` has that of one at the mean context. `None` where the machine's
    /// arithmetic is not known.
    pub fn prompt(&self, machine: &Machine, tokens: usize) -> Option<Seconds> {
        let shares = machine.path.shares();
        let computing: f64 = self
            .kernels
            .iter()
            .filter(|kernel| kernel.name != "head")
            .map(|kernel| {
                let share = match kernel.class {
                    Class::Dense | Class::Other => shares.dense,
                    Class::Experts => shares.experts,
                    Class::Attention => shares.attention,
                };
                2.0 * kernel.weights * tokens as f64 / share
            })
            .sum();
        let reading = self.stored_bytes / machine.bytes_per_second;
        let seconds = (computing / machine.flops?).max(reading);
        Some(match machine.extrapolated {
            true => Seconds { best: seconds / 1.6, expected: seconds, worst: seconds * 1.6 },
            false => Seconds::spread(seconds),
        })
    }
}

/// Seconds of a token over several stages and the links between them.
pub fn pipeline(stages: &[(&Kernels, &Machine)], hidden_bytes: u64, link: Link) -> Seconds {
    let mut sum = Seconds::default();
    for (kernels, machine) in stages {
        sum += kernels.token(machine, stages.len() == 1);
    }
    let hops = stages.len().saturating_sub(1) as f64;
    let hop = HOP + link.round_trip + link.bytes_per_second.map_or(0.0, |rate| hidden_bytes as f64 / rate);
    sum += Seconds::certain(hops * hop);
    sum
}

#[cfg(test)]
mod tests;
