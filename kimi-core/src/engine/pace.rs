//! What steps take, and what follows from it: how many batches in flight are of use, and how many tokens of prompts a batch
//! may take without making others wait. Pure arithmetic on measured times.

use std::time::Duration;

use crate::stage::StageTime;

/// Most batches in flight. Beyond it even a slow link is full, and every batch has its share of one token each.
const MAX_DEPTH: usize = 32;
/// Fewest tokens of prompts in a batch, however slow they are: prompts must get on.
const MIN_PROMPT_TOKENS: usize = 16;
/// How fast the shortest time on the wire that was seen is forgotten, a step. Longer ones are mostly processes that wait for
/// a processor, which more batches in flight would only make worse.
const FORGET: f64 = 1.02;

/// Running averages over the steps of an engine.
#[derive(Debug)]
pub(super) struct Pace {
    stages: Vec<StagePace>,
    /// Seconds of a batch without prompts, from its submission to its result.
    plain: f64,
    /// Tokens of prompts a second that batches take longer for.
    prompt_rate: Option<f64>,
    /// Tokens of prompts in the last batch that had some.
    last_prompt: usize,
    /// How much longer a batch may take for its prompts while sequences decode.
    target: Duration,
}

/// Seconds of a stage's steps without prompts.
#[derive(Debug, Clone, Copy, Default)]
struct StagePace {
    compute: f64,
    wire: f64,
}

impl Pace {
    pub(super) fn new(stages: usize, target: Duration) -> Self {
        Self {
            stages: vec![StagePace::default(); stages],
            plain: 0.0,
            prompt_rate: None,
            last_prompt: 0,
            target,
        }
    }

    /// Takes in a step: its tokens of prompts, the time from its submission to its result, and where that went.
    pub(super) fn step(&mut self, prompt_tokens: usize, latency: Duration, times: &[StageTime]) {
        let seconds = latency.as_secs_f64();
        if prompt_tokens > 0 {
            // A batch that was no longer than one without prompts says little: at least a fifth of it was for them.
            let longer = (seconds - self.plain).max(seconds / 5.0);
            let rate = prompt_tokens as f64 / longer.max(1e-6);
            self.prompt_rate = Some(self.prompt_rate.map_or(rate, |before| (before + rate) / 2.0));
            self.last_prompt = prompt_tokens;
            return;
        }
        self.plain = if self.plain == 0.0 { seconds } else { self.plain * 0.75 + seconds * 0.25 };
        for (stage, time) in self.stages.iter_mut().zip(times) {
            let (compute, wire) = (time.busy().as_secs_f64(), time.wire.as_secs_f64());
            let first = stage.compute == 0.0;
            stage.compute = if first { compute } else { stage.compute * 0.875 + compute * 0.125 };
            stage.wire = if first { wire } else { wire.min(stage.wire * FORGET) };
        }
    }

    /// How many batches in flight keep the slowest stage busy: the time of one batch's way through all stages and links, in
    /// units of the slowest stage's time; at least the number of stages.
    pub(super) fn depth(&self) -> usize {
        let slowest = self.stages.iter().map(|stage| stage.compute).fold(0.0, f64::max);
        let way: f64 = self.stages.iter().map(|stage| stage.compute + stage.wire).sum();
        let depth = if slowest > 0.0 { (way / slowest).round() as usize } else { 0 };
        depth.clamp(self.stages.len(), MAX_DEPTH.max(self.stages.len()))
    }

    /// How many tokens of prompts a batch of at most `budget` may take while others decode.
    ///
    /// Each next batch takes longer than the last one, since the context grows: so a fifth less than the target is aimed at.
    /// Over several stages a decode token may have to wait in each for the rest of a batch before it. And what was
    /// measured says little of much larger batches.
    pub(super) fn prompt_tokens(&self, budget: usize) -> usize {
        let Some(rate) = self.prompt_rate else { return budget };
        let behind_others = 2.0 - 1.0 / self.stages.len().max(1) as f64;
        let tokens = (rate * self.target.as_secs_f64() * 0.8 / behind_others) as usize;
        tokens.min(2 * self.last_prompt).clamp(MIN_PROMPT_TOKENS.min(budget), budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(compute: u64, wire: u64) -> StageTime {
        let (compute, wire) = (Duration::from_millis(compute), Duration::from_millis(wire));
        StageTime { compute, wire, ..StageTime::default() }
    }

    fn depth(times: &[StageTime]) -> usize {
        let mut pace = Pace::new(times.len(), Duration::from_millis(100));
        (0..100).for_each(|_| pace.step(0, Duration::from_millis(1), times));
        pace.depth()
    }

    #[test]
    fn the_depth_follows_stages_and_links() {
        assert_eq!(depth(&[time(5, 0)]), 1);
        assert_eq!(depth(&[time(5, 0), time(5, 0)]), 2);
        assert_eq!(depth(&[time(9, 0), time(1, 0)]), 2, "never fewer than stages");
        assert_eq!(depth(&[time(1, 10), time(1, 0)]), 12);
        assert_eq!(depth(&[time(1, 500), time(1, 0)]), MAX_DEPTH);
        assert_eq!(Pace::new(3, Duration::ZERO).depth(), 3, "before anything is known");
    }

    #[test]
    fn a_delay_now_and_then_is_no_slow_link() {
        let mut pace = Pace::new(2, Duration::from_millis(100));
        for step in 0..200 {
            let wire = if step % 5 == 0 { 40 } else { 0 };
            pace.step(0, Duration::from_millis(1), &[time(5, wire), time(5, 0)]);
        }
        assert_eq!(pace.depth(), 2);
    }

    #[test]
    fn a_link_that_becomes_slower_is_noticed() {
        let mut pace = Pace::new(2, Duration::from_millis(100));
        (0..50).for_each(|_| pace.step(0, Duration::from_millis(1), &[time(2, 1), time(2, 0)]));
        (0..150).for_each(|_| pace.step(0, Duration::from_millis(1), &[time(2, 10), time(2, 0)]));
        assert_eq!(pace.depth(), 7);
    }

    #[test]
    fn what_decoding_takes_is_not_charged_to_prompts() {
        let mut pace = Pace::new(1, Duration::from_millis(100));
        for _ in 0..50 {
            pace.step(0, Duration::from_millis(90), &[time(90, 0)]);
            let tokens = pace.prompt_tokens(512);
            pace.step(tokens, Duration::from_millis(90 + tokens as u64), &[]); // a millisecond a token
        }
        assert!((75..=85).contains(&pace.prompt_tokens(512)), "{}", pace.prompt_tokens(512));
    }

    #[test]
    fn prompts_take_what_fits_the_target() {
        let mut pace = Pace::new(1, Duration::from_millis(100));
        assert_eq!(pace.prompt_tokens(512), 512, "before anything is known");
        (0..20).for_each(|_| pace.step(100, Duration::from_millis(50), &[]));
        assert!((158..=161).contains(&pace.prompt_tokens(512)), "{}", pace.prompt_tokens(512));
        (0..20).for_each(|_| pace.step(100, Duration::from_secs(50), &[]));
        assert_eq!(pace.prompt_tokens(512), 16);
        (0..20).for_each(|_| pace.step(100, Duration::from_millis(1), &[]));
        assert_eq!(pace.prompt_tokens(512), 200, "twice what was measured");
        let mut pace = Pace::new(3, Duration::from_millis(100));
        (0..20).for_each(|_| pace.step(100, Duration::from_millis(50), &[]));
        assert!((94..=97).contains(&pace.prompt_tokens(512)), "{}", pace.prompt_tokens(512));
    }
}
