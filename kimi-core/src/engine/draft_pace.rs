//! What guesses cost, from the times of steps. Pure arithmetic.

use std::time::Duration;

use crate::scheduler::DraftCosts;

/// What a guess costs before any was measured: enough that a text has to repeat itself before it is tried.
const PER_DRAFT: f32 = 0.25;
/// What waiting costs before it was measured, where the stage need not be waited for.
const WAITING: f32 = 0.1;
/// How much a measured step counts.
const WEIGHT: f32 = 0.25;
/// How much of what was measured is forgotten with each step that verifies nothing. A cost that was measured too high, or
/// has changed, is measured again after some hundred steps; one of those steps in vain is under a hundredth of the time.
const FORGET: f32 = 1.0 / 1024.0;
/// Steps of more sequences are not told apart.
const SEQUENCES: usize = 64;

/// A step without tokens of prompts.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeStep {
    /// Sequences in it.
    pub(super) sequences: usize,
    /// Guesses that it verified.
    pub(super) drafts: usize,
    /// Whether it was made before the tokens of the one before it were known.
    pub(super) follows: bool,
    /// Between its result and the result before it, or its submission if that was later.
    pub(super) time: Duration,
}

/// Running averages over the steps of an engine.
#[derive(Debug)]
pub(super) struct DraftPace {
    /// Seconds of a step without guesses, by its sequences; 0 for not known.
    plain: [f32; SEQUENCES],
    costs: DraftCosts,
    /// Whether steps follow each other before their tokens are known.
    chains: bool,
}

impl DraftPace {
    pub(super) fn new(chains: bool) -> Self {
        let waiting = if chains { WAITING } else { 0.0 };
        let costs = DraftCosts { per_draft: [PER_DRAFT; DraftCosts::SIZES], waiting };
        Self { plain: [0.0; SEQUENCES], costs, chains }
    }

    /// Takes in a step.
    pub(super) fn step(&mut self, step: DecodeStep) {
        let seconds = step.time.as_secs_f32();
        let plain = &mut self.plain[step.sequences.clamp(1, SEQUENCES) - 1];
        if step.drafts == 0 && step.follows == self.chains {
            *plain = if *plain == 0.0 { seconds } else { *plain + (seconds - *plain) * WEIGHT };
            let forget = |cost: &mut f32, prior: f32| *cost += (prior - *cost) * FORGET;
            self.costs.per_draft.iter_mut().for_each(|cost| forget(cost, PER_DRAFT));
            return;
        }
        if *plain == 0.0 {
            return;
        }
        // A step that was held up by something else says nothing of guesses.
        let longer = (seconds / *plain - 1.0).clamp(0.0, 2.0 + 2.0 * step.drafts as f32);
        let (cost, measured) = match step.drafts {
            0 => (&mut self.costs.waiting, longer),
            drafts => (&mut self.costs.per_draft[DraftCosts::size(drafts)], longer / drafts as f32),
        };
        *cost += (measured - *cost) * WEIGHT;
    }

    pub(super) fn costs(&self) -> DraftCosts {
        self.costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(sequences: usize, drafts: usize, follows: bool, micros: u64) -> DecodeStep {
        DecodeStep { sequences, drafts, follows, time: Duration::from_micros(micros) }
    }

    #[test]
    fn a_guess_costs_what_its_step_takes_longer() {
        let mut pace = DraftPace::new(false);
        for _ in 0..50 {
            pace.step(step(1, 0, false, 1000));
            pace.step(step(1, 4, false, 1400));
            pace.step(step(1, 8, false, 9000));
            pace.step(step(2, 0, false, 2000));
            pace.step(step(2, 2, false, 2100));
        }
        let costs = pace.costs();
        assert!((costs.per_draft[2] - 0.1).abs() < 0.01, "{costs:?}");
        assert!((costs.per_draft[3] - 1.0).abs() < 0.01, "{costs:?}");
        assert!((costs.per_draft[1] - 0.025).abs() < 0.01, "{costs:?}");
        assert_eq!(costs.waiting, 0.0);
    }

    #[test]
    fn waiting_costs_what_steps_save_that_do_not_wait() {
        let mut pace = DraftPace::new(true);
        for _ in 0..50 {
            pace.step(step(1, 0, true, 1000));
            pace.step(step(1, 0, false, 1500));
            pace.step(step(1, 1, false, 1700));
        }
        let costs = pace.costs();
        assert!((costs.waiting - 0.5).abs() < 0.02 && (costs.per_draft[0] - 0.7).abs() < 0.02, "{costs:?}");
    }

    #[test]
    fn what_was_measured_is_forgotten_slowly() {
        let mut pace = DraftPace::new(false);
        pace.step(step(1, 0, false, 1000));
        (0..50).for_each(|_| pace.step(step(1, 1, false, 2000)));
        (0..100).for_each(|_| pace.step(step(1, 0, false, 1000)));
        assert!(pace.costs().per_draft[0] > 0.9);
        (0..5000).for_each(|_| pace.step(step(1, 0, false, 1000)));
        assert!(pace.costs().per_draft[0] < 0.3);
    }

    #[test]
    fn nothing_is_concluded_before_a_plain_step() {
        let mut pace = DraftPace::new(false);
        pace.step(step(1, 4, false, 9000));
        assert_eq!(pace.costs(), DraftPace::new(false).costs());
    }
}
