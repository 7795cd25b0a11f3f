//! The figures of a bench, for people and as JSON. Units are in the names; a GB is 1e9 bytes.

use std::fmt;
use std::time::Duration;

use kimi_core::plan::HumanBytes;
use serde::Serialize;

use super::device::Kernel;
use super::median::median;
use super::timed::Call;
use crate::table::Table;

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// `cpu` or `gpu`.
    pub backend: &'static str,
    /// The device's name.
    pub device: String,
    /// Layers.
    pub layers: usize,
    /// Tokens in the cache when a token is decoded.
    pub context_tokens: usize,
    /// What plain reading gets.
    pub read_gb_per_second: f64,
    /// Bringing the weights onto the device.
    pub load: Load,
    /// What the device's memory holds.
    pub memory: Memory,
    /// One token of one sequence.
    pub decode: Phase,
    /// A prompt.
    pub prefill: Phase,
    /// One token of each of several sequences.
    pub sequences: Option<Phase>,
    /// Tokens a second of several sequences, by those of one.
    pub sequences_speedup: Option<f64>,
}

/// Bringing the weights onto the device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Load {
    /// Time.
    pub seconds: f64,
    /// Weights a second; absent where they are read from where they lie.
    pub gb_per_second: Option<f64>,
}

impl Load {
    /// In `time`, of `copied` bytes if they were copied.
    pub fn new(copied: Option<u64>, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        Self { seconds, gb_per_second: copied.map(|bytes| bytes as f64 / 1e9 / seconds.max(1e-9)) }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loaded in {:.1} s", self.seconds)?;
        self.gb_per_second.map_or(Ok(()), |rate| write!(f, " ({rate:.1} GB/s)"))
    }
}

/// What the device's memory holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// Stored bytes of the weights.
    pub weight_bytes: u64,
    /// The latent cache.
    pub cache_bytes: u64,
    /// All that is allocated, activations and staging included; absent where it is not known.
    pub allocated_bytes: Option<u64>,
    /// What of that is more than weights and cache.
    pub overhead_percent: Option<f64>,
}

impl Memory {
    /// Compares them.
    pub fn new(weight_bytes: u64, cache_bytes: u64, allocated_bytes: Option<u64>) -> Self {
        let held = (weight_bytes + cache_bytes) as f64;
        let overhead_percent = allocated_bytes.map(|a| 100.0 * (a as f64 / held - 1.0));
        Self { weight_bytes, cache_bytes, allocated_bytes, overhead_percent }
    }
}

/// Some steps, and what plain reading got right after them.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Of each step; at least one.
    pub seconds: Vec<f64>,
    /// Bytes a second.
    pub read_bandwidth: f64,
}

/// A kind of step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// New tokens a step.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Steps that were timed.
    pub rounds: usize,
    /// The middle of the steps' times, from the host's call to the sampled tokens.
    pub median_ms: f64,
    /// The shortest.
    pub best_ms: f64,
    /// By the median.
    pub tokens_per_second: f64,
    /// Stored bytes of the weights that a step reads, each once.
    pub weight_bytes: u64,
    /// By the median.
    pub weight_gb_per_second: f64,
    /// What plain reading got meanwhile, the middle of its turns.
    pub read_gb_per_second: f64,
    /// Of weights as a share of that, the middle of the turns' shares.
    pub read_bandwidth_share: f64,
    /// Different experts that a layer's tokens chose, on average.
    pub experts_a_layer: Option<f64>,
    /// Time of the host until a step is recorded and submitted.
    pub host_ms: Option<f64>,
    /// Time of the device.
    pub device_ms: Option<f64>,
    /// Dispatches of a step.
    pub dispatches: Option<u64>,
    /// Dispatches of a layer, on average.
    pub dispatches_a_layer: Option<f64>,
    /// The sum of `operations`.
    pub operations_ms: Option<f64>,
    /// The same, less the time of the device, or of the step where there is none.
    pub operations_excess_ms: Option<f64>,
    /// Where the time goes.
    pub operations: Vec<OperationRow>,
}

/// Calls of one operation with weights of one shape, by one kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OperationRow {
    /// As `Backend` calls it.
    pub operation: String,
    /// Of its weights; empty without weights.
    pub shapes: String,
    /// The shader; empty on a CPU.
    pub kernel: String,
    /// How often a step has it.
    pub count: usize,
    /// All together; absent where the device has no clock.
    pub microseconds: Option<f64>,
    /// All together.
    pub weight_bytes: u64,
    /// Of weights.
    pub weight_gb_per_second: Option<f64>,
    /// The same as a share of what plain reading gets.
    pub read_bandwidth_share: Option<f64>,
}

/// A call and what ran for it.
pub struct Operation<'a> {
    /// The call with the bytes that it reads.
    pub call: &'a Call,
    /// Its kernels with their times.
    pub kernels: Vec<Kernel>,
}

/// Where the time of a step goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Operations {
    rows: Vec<OperationRow>,
    read_bandwidth: f64,
}

impl Operations {
    /// Adds calls up.
    pub fn new<'a>(parts: impl Iterator<Item = Operation<'a>>, read_bandwidth: f64) -> Self {
        let mut all = Self { rows: Vec::new(), read_bandwidth };
        for Operation { call, kernels } in parts {
            if kernels.is_empty() {
                all.add(call, "", None, call.weight_bytes);
            }
            // A call's weights are those of its kernels that read matrices.
            let matrices: u64 = kernels.iter().map(|k| u64::from(k.matrices)).sum();
            let (mut bytes_left, mut left) = (call.weight_bytes, matrices);
            for (i, kernel) in kernels.iter().enumerate() {
                let share = match u64::from(kernel.matrices) {
                    0 if matrices == 0 && i == 0 => bytes_left,
                    0 => 0,
                    own => (u128::from(bytes_left) * u128::from(own) / u128::from(left)) as u64,
                };
                bytes_left -= share;
                left -= u64::from(kernel.matrices);
                all.add(call, kernel.name, Some(kernel.nanoseconds), share);
            }
        }
        all.rates()
    }

    fn add(&mut self, call: &Call, kernel: &str, nanoseconds: Option<f64>, bytes: u64) {
        let same = |r: &&mut OperationRow| {
            (r.operation.as_str(), &r.shapes, r.kernel.as_str()) == (call.operation, &call.shapes, kernel)
        };
        let microseconds = nanoseconds.map(|ns| ns / 1e3);
        if let Some(row) = self.rows.iter_mut().find(same) {
            row.count += 1;
            row.weight_bytes += bytes;
            row.microseconds = row.microseconds.zip(microseconds).map(|(a, b)| a + b);
            return;
        }
        self.rows.push(OperationRow {
            operation: call.operation.to_owned(),
            shapes: call.shapes.clone(),
            kernel: kernel.to_owned(),
            count: 1,
            microseconds,
            weight_bytes: bytes,
            weight_gb_per_second: None,
            read_bandwidth_share: None,
        });
    }

    fn rates(mut self) -> Self {
        for row in &mut self.rows {
            let seconds = row.microseconds.filter(|us| *us > 0.0 && row.weight_bytes > 0).map(|us| us / 1e6);
            let rate = seconds.map(|s| row.weight_bytes as f64 / s);
            row.weight_gb_per_second = rate.map(|r| r / 1e9);
            row.read_bandwidth_share = rate.map(|r| r / self.read_bandwidth);
        }
        self
    }

    /// Of several looks at the same step, the middle time of each row.
    pub fn median(rounds: Vec<Self>) -> Self {
        let Some(mut all) = rounds.first().cloned() else { return Self::default() };
        for (i, row) in all.rows.iter_mut().enumerate() {
            let times = rounds.iter().filter_map(|r| r.rows.get(i)?.microseconds);
            row.microseconds = median(times.collect());
        }
        all.rates()
    }

    fn milliseconds(&self) -> Option<f64> {
        self.rows.iter().map(|r| r.microseconds.map(|us| us / 1e3)).sum()
    }
}

impl Phase {
    /// From a step's calls and the turns in which it was timed.
    pub fn new(calls: &[Call], turns: &[Turn], tokens: usize, sequences: usize) -> Self {
        let middle_of = |values: Vec<f64>| median(values).unwrap_or(f64::NAN);
        let seconds: Vec<f64> = turns.iter().flat_map(|turn| turn.seconds.iter().copied()).collect();
        let best = seconds.iter().copied().fold(f64::NAN, f64::min);
        let rounds = seconds.len();
        let middle = middle_of(seconds);
        let weight_bytes = calls.iter().map(|c| c.weight_bytes).sum::<u64>();
        let rate = weight_bytes as f64 / middle;
        let share = |turn: &Turn| weight_bytes as f64 / middle_of(turn.seconds.clone()) / turn.read_bandwidth;
        let read = middle_of(turns.iter().map(|turn| turn.read_bandwidth).collect());
        let experts: Vec<_> = calls.iter().filter_map(|c| c.experts).collect();
        let dispatches = calls.iter().map(|c| c.marks[1] - c.marks[0]).sum();
        let outside = |c: &&Call| matches!(c.operation, "embed" | "head" | "sample");
        let ends: u64 = calls.iter().filter(outside).map(|c| c.marks[1] - c.marks[0]).sum();
        Self {
            tokens,
            sequences,
            rounds,
            median_ms: middle * 1e3,
            best_ms: best * 1e3,
            tokens_per_second: tokens as f64 / middle,
            weight_bytes,
            weight_gb_per_second: rate / 1e9,
            read_gb_per_second: read / 1e9,
            read_bandwidth_share: middle_of(turns.iter().map(share).collect()),
            experts_a_layer: (!experts.is_empty())
                .then(|| experts.iter().sum::<usize>() as f64 / experts.len() as f64),
            host_ms: None,
            device_ms: None,
            dispatches: Some(dispatches),
            dispatches_a_layer: Some((dispatches - ends) as f64),
            operations_ms: None,
            operations_excess_ms: None,
            operations: Vec::new(),
        }
    }

    /// With seconds of the host and of the device; `layers` where marks count dispatches.
    #[must_use]
    pub fn with_device(mut self, host: Option<f64>, device: Option<f64>, layers: Option<usize>) -> Self {
        self.host_ms = host.map(|s| s * 1e3);
        self.device_ms = device.map(|s| s * 1e3);
        self.dispatches = self.dispatches.filter(|_| layers.is_some());
        self.dispatches_a_layer = self.dispatches_a_layer.zip(layers).map(|(all, n)| all / n as f64);
        self
    }

    /// With a look at each operation.
    #[must_use]
    pub fn with_operations(mut self, operations: Operations) -> Self {
        let total = self.device_ms.unwrap_or(self.median_ms);
        self.operations_ms = operations.milliseconds();
        self.operations_excess_ms = self.operations_ms.map(|ms| ms - total);
        self.operations = operations.rows;
        self
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
        writeln!(f, "\n{title}")?;
        let (rate, share) = (self.weight_gb_per_second, 100.0 * self.read_bandwidth_share);
        let (weights, experts) = (HumanBytes(self.weight_bytes), self.experts_a_layer);
        writeln!(
            f,
            "  {:.3} ms (best of {} {:.3}), {:.1} tokens/s",
            self.median_ms, self.rounds, self.best_ms, self.tokens_per_second
        )?;
        write!(
            f,
            "  {weights} of weights read, {rate:.1} GB/s, {share:.1} % of the read bandwidth ({:.1} GB/s)",
            self.read_gb_per_second
        )?;
        match experts {
            Some(n) => writeln!(f, "; {n:.1} experts a layer")?,
            None => writeln!(f)?,
        }
        if let (Some(host), Some(n), Some(each)) = (self.host_ms, self.dispatches, self.dispatches_a_layer) {
            let device = self.device_ms.map_or("unknown".to_owned(), |ms| format!("{ms:.3} ms"));
            writeln!(f, "  device {device}, host {host:.3} ms, {n} dispatches, {each:.1} a layer")?;
        }
        let mut table = Table::new(
            &["operation", "weights", "kernel", "count", "us", "MB", "GB/s", "of read"],
            &[3, 4, 5, 6, 7],
        );
        let number = |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
        for row in &self.operations {
            table.row([
                format!("  {}", row.operation),
                row.shapes.clone(),
                row.kernel.clone(),
                row.count.to_string(),
                number(row.microseconds, 1),
                number((row.weight_bytes > 0).then_some(row.weight_bytes as f64 / 1e6), 2),
                number(row.weight_gb_per_second, 0),
                row.read_bandwidth_share.map_or_else(String::new, |s| format!("{:.0} %", 100.0 * s)),
            ]);
        }
        write!(f, "{table}")?;
        if let (Some(sum), Some(excess)) = (self.operations_ms, self.operations_excess_ms) {
            let of = if self.device_ms.is_some() { "the device's time" } else { "the step's time" };
            writeln!(f, "  together {sum:.3} ms, {excess:+.3} ms from {of}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, device, layers, context_tokens, load, memory, .. } = self;
        let rate = self.read_gb_per_second;
        writeln!(f, "{model}, {layers} layers, on {device}; reading memory: {rate:.1} GB/s")?;
        let (weights, cache) = (HumanBytes(memory.weight_bytes), HumanBytes(memory.cache_bytes));
        write!(f, "{weights} of weights {load}, {cache} of cache")?;
        match (memory.allocated_bytes, memory.overhead_percent) {
            (Some(all), Some(more)) => writeln!(f, "; allocated {}, {more:+.1} %", HumanBytes(all))?,
            _ => writeln!(f)?,
        }
        self.decode.write(f, &format!("decode, 1 sequence at context {context_tokens}"))?;
        self.prefill.write(f, &format!("prefill of {} tokens", self.prefill.tokens))?;
        if let Some(phase) = &self.sequences {
            let title = format!("decode, {} sequences at context {context_tokens}", phase.sequences);
            phase.write(f, &title)?;
        }
        match self.sequences_speedup {
            Some(x) => writeln!(f, "  {x:.2} times the tokens/s of one sequence"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(operation: &'static str, weight_bytes: u64) -> Call {
        Call { operation, shapes: "2x2".to_owned(), weight_bytes, experts: None, marks: [0, 1] }
    }

    fn kernel(name: &'static str, matrices: u32, nanoseconds: f64) -> Kernel {
        Kernel { name, matrices, nanoseconds }
    }

    #[test]
    fn a_share_is_of_the_bandwidth_of_the_same_turn() {
        let turn = |seconds: &[f64], read_bandwidth| Turn { seconds: seconds.to_vec(), read_bandwidth };
        // The machine was twice as slow in the second turn, and a step was interrupted in the third.
        let turns = [turn(&[1.0, 1.0], 200.0), turn(&[2.0, 2.0], 100.0), turn(&[1.0, 1.0, 9.0], 200.0)];
        let phase = Phase::new(&[call("head", 100)], &turns, 1, 1);
        assert_eq!((phase.rounds, phase.median_ms, phase.best_ms), (7, 1e3, 1e3));
        assert_eq!((phase.read_bandwidth_share, phase.read_gb_per_second), (0.5, 200.0 / 1e9));
    }

    #[test]
    fn bytes_go_to_the_kernels_that_read_matrices_and_add_up() {
        let (route, add) = (call("route", 100), call("project_add", 7));
        let parts = [
            Operation { call: &route, kernels: vec![kernel("rms_norm", 0, 1e3), kernel("matvec", 1, 2e3)] },
            Operation { call: &add, kernels: vec![kernel("few", 1, 4e3), kernel("few", 2, 4e3)] },
            Operation { call: &add, kernels: vec![kernel("few", 1, 4e3)] },
        ];
        let all = Operations::new(parts.into_iter(), 1e9);
        let rows: Vec<_> =
            all.rows.iter().map(|r| (r.kernel.as_str(), r.count, r.weight_bytes, r.microseconds)).collect();
        assert_eq!(
            rows,
            [("rms_norm", 1, 0, Some(1.0)), ("matvec", 1, 100, Some(2.0)), ("few", 3, 14, Some(12.0))]
        );
        assert_eq!(all.milliseconds(), Some(0.015));
        assert_eq!(all.rows[1].read_bandwidth_share, Some(0.05));
    }
}
