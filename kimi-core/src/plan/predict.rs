//! How fast a split would be, before anything is loaded. An estimate: a token reads certain bytes of weights and cache in
//! every stage, at a share of the node's memory bandwidth that was measured elsewhere.
//!
//! ```text
//! stage        = token bytes / (bandwidth * EFFICIENCY)
//! hop          = HOP + round trip + hidden state / link rate          (nodes - 1 of them)
//! token        = sum of stages and hops
//! prompt stage = max(stored bytes / (bandwidth * EFFICIENCY), prompt * token bytes * FLOPS_PER_BYTE / flops)
//! first token  = sum of prompt stages and of hops with the whole prompt's hidden states
//! ```

use serde::Serialize;

/// Share of the read bandwidth that a whole step of one token reached: 57 % on one H100, 6 layers of Kimi-K2 in 4 bits
/// (docs/performance.md). Machines that read slower lose less to the start of small products.
pub const EFFICIENCY: f64 = 0.57;
/// Seconds that a link costs a token beside its own delay, in the threads at its ends: 0.3 to 0.5 ms over loopback TCP on a
/// host with H200s (docs/performance.md).
pub const HOP: f64 = 0.4e-3;
/// Peak f32 operations for each byte of weights that a token of a prompt reads: of an H100's 67e12 a second and its 116 ms for
/// 512 tokens in 6 layers of Kimi-K2, which read 1.74 GB without the head, in 4 bits (docs/performance.md).
pub const FLOPS_PER_BYTE: f64 = 8.7;
/// Tokens of the prompt that first tokens are predicted for.
pub const PROMPT: usize = 512;

/// Where a rate comes from. None is measured by the plan itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RateSource {
    /// The user said it, with a flag.
    Flag,
    /// The file that lists the machines.
    File,
    /// What is published of a chip.
    Chip(String),
    /// Earlier answers of the same model on this node. The bandwidth is the one that would explain them.
    Measured,
}

/// How fast a node is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// Bytes of memory that it reads in a second.
    pub bytes_per_second: f64,
    /// Peak f32 operations a second, where known.
    pub flops: Option<f64>,
    /// Who says so.
    pub source: RateSource,
}

/// The link between two nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Link {
    /// Seconds of a round trip.
    pub round_trip: f64,
    /// Bytes a second; `None` for so many that they cost nothing.
    pub bytes_per_second: Option<f64>,
}

/// What a stage reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageReads<'a> {
    /// Bytes of weights and cache for a token.
    pub token_bytes: u64,
    /// Bytes of all its weights, which a long prompt reads.
    pub weight_bytes: u64,
    /// Its node.
    pub rate: &'a Rate,
}

/// What a split is estimated to do, for one conversation at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Seconds of a token in each stage.
    pub stage_seconds: Vec<f64>,
    /// Seconds of a token on all links.
    pub link_seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Seconds to the first token of an answer.
    pub first_token_seconds: f64,
    /// Tokens of the prompt before it.
    pub prompt_tokens: usize,
    /// A node's arithmetic is not known, and only its reading was counted: the first token takes longer.
    pub first_token_at_least: bool,
}

/// Seconds that a node takes to read so many bytes in a step.
pub fn read_seconds(bytes: u64, rate: &Rate) -> f64 {
    bytes as f64 / (rate.bytes_per_second * EFFICIENCY)
}

impl Prediction {
    /// By the formula of this module. A token's hidden state has `hidden` bytes.
    pub fn new(stages: &[StageReads<'_>], hidden: u64, link: Link) -> Self {
        let hops = stages.len().saturating_sub(1) as f64;
        let hop = |bytes: f64| HOP + link.round_trip + link.bytes_per_second.map_or(0.0, |rate| bytes / rate);
        let stage_seconds: Vec<_> = stages.iter().map(|s| read_seconds(s.token_bytes, s.rate)).collect();
        let link_seconds = hops * hop(hidden as f64);
        let prompt_stage = |s: &StageReads<'_>| {
            let operations = PROMPT as f64 * s.token_bytes as f64 * FLOPS_PER_BYTE;
            let computing = s.rate.flops.map_or(0.0, |flops| operations / flops);
            read_seconds(s.weight_bytes, s.rate).max(computing)
        };
        let prompt_hops = hops * hop(hidden as f64 * PROMPT as f64);
        Self {
            tokens_per_second: 1.0 / (stage_seconds.iter().sum::<f64>() + link_seconds),
            first_token_seconds: stages.iter().map(prompt_stage).sum::<f64>() + prompt_hops,
            stage_seconds,
            link_seconds,
            prompt_tokens: PROMPT,
            first_token_at_least: stages.iter().any(|s| s.rate.flops.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes_per_second: f64, flops: Option<f64>) -> Rate {
        Rate { bytes_per_second, flops, source: RateSource::Flag }
    }

    fn close(found: f64, expected: f64, share: f64) {
        assert!((found - expected).abs() <= share * expected, "{found}, expected {expected}");
    }

    #[test]
    fn what_was_measured_is_predicted() {
        // docs/performance.md: 2.4 GB a token in 1.40 ms, and 512 tokens in 116 ms, at 2935 GB/s.
        let h100 = rate(2935e9, Some(67e12));
        let stage = StageReads { token_bytes: 2_400_000_000, weight_bytes: 50_000_000_000, rate: &h100 };
        close(Prediction::new(&[stage], 28_672, Link::default()).tokens_per_second, 713.0, 0.03);
        let prompt = StageReads { token_bytes: 1_740_000_000, ..stage };
        close(Prediction::new(&[prompt], 28_672, Link::default()).first_token_seconds, 0.116, 0.03);
    }

    #[test]
    fn links_and_slow_nodes_cost_time() {
        let (quick, slow) = (rate(1000e9, None), rate(500e9, None));
        let stage = |rate| StageReads { token_bytes: 5_700_000_000, weight_bytes: 57_000_000_000, rate };
        let link = Link { round_trip: 1e-3, bytes_per_second: Some(28_672e3) };
        let found = Prediction::new(&[stage(&quick), stage(&slow)], 28_672, link);
        close(found.stage_seconds[0], 0.010, 1e-9);
        close(found.stage_seconds[1], 0.020, 1e-9);
        close(found.link_seconds, HOP + 2e-3, 1e-9);
        close(found.tokens_per_second, 1.0 / (0.032 + HOP), 1e-9);
        // All weights are read once, and the prompt's hidden states go over the link.
        close(found.first_token_seconds, 0.3 + HOP + 1e-3 + 0.512, 1e-9);
        assert!(found.first_token_at_least);
    }
}
