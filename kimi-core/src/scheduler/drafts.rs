//! Whether a sequence's guesses pay, and how many to verify in a step.
//!
//! A step that verifies guesses takes longer than one that does not, for every sequence of its batch; in return it may
//! choose several tokens. Which of the two is more is measured: the time by the engine ([`DraftCosts`]), how often there is a guess
//! and how often it is right for each sequence. While a sequence verifies none, its guesses are compared with the tokens that it
//! gets anyway, which costs no step.

/// What guesses cost, in units of the time that the same step takes without them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DraftCosts {
    /// Of each guess in a step that verifies 1, 2, up to 4, up to 8, or more.
    pub per_draft: [f32; Self::SIZES],
    /// Of waiting for a step's tokens before the next is made, where it need not be waited for otherwise.
    pub waiting: f32,
}

impl DraftCosts {
    /// How many sizes of steps are told apart.
    pub const SIZES: usize = 5;

    /// The size of a step that verifies so many guesses, at least 1.
    pub fn size(drafts: usize) -> usize {
        (drafts.max(1).next_power_of_two().ilog2() as usize).min(Self::SIZES - 1)
    }

    /// What `drafts` guesses of one step cost.
    fn of(&self, drafts: usize) -> f32 {
        drafts as f32 * self.per_draft[Self::size(drafts)].max(MIN_COST)
    }
}

/// Counts of the guesses of all sequences since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftStats {
    /// Guesses that steps verified.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted: u64,
}

/// What is known of a sequence's guesses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guesses {
    /// In what part of its steps there is a guess.
    found: f32,
    /// How likely a guess is right if those before it are.
    right: f32,
    /// Most guesses that a step verifies; 0 while they do not pay.
    pub(super) max: usize,
}

/// How much a step counts in [`Guesses::found`].
const FOUND_WEIGHT: f32 = 1.0 / 16.0;
/// How much a guess counts in [`Guesses::right`].
const RIGHT_WEIGHT: f32 = 1.0 / 8.0;
/// How much more than its cost the gain has to be before a sequence begins to verify guesses. Then what it costs is enough.
const MARGIN: f32 = 1.25;
/// A guess costs no less than this, whatever is measured: a GPU's step may take no longer for it, but it is not free.
const MIN_COST: f32 = 0.02;

impl Guesses {
    /// Nothing is known yet, and nothing is expected. `max` guesses are verified until [`Self::choose`] says otherwise.
    pub(super) fn new(max: usize) -> Self {
        Self { found: 0.0, right: 0.0, max }
    }

    /// Takes in a step with `drafted` guesses, of which the first `accepted` were right.
    pub(super) fn note(&mut self, drafted: usize, accepted: usize) {
        let found = if drafted > 0 { 1.0 } else { 0.0 };
        self.found += (found - self.found) * FOUND_WEIGHT;
        (0..accepted).for_each(|_| self.right += (1.0 - self.right) * RIGHT_WEIGHT);
        if accepted < drafted {
            self.right -= self.right * RIGHT_WEIGHT;
        }
    }

    /// Chooses how many guesses to verify, at most `max`, in batches of `sequences`: each of them waits for the step.
    pub(super) fn choose(&mut self, costs: &DraftCosts, sequences: usize, max: usize) {
        let margin = if self.max > 0 { 1.0 } else { MARGIN };
        let waiting = (1.0 - self.found) * costs.waiting;
        let (mut best, mut most) = (0, 0.0);
        let (mut gain, mut likely) = (0.0, 1.0);
        for count in 1..=max {
            likely *= self.right;
            gain += likely;
            let cost = sequences as f32 * (self.found * costs.of(count) + waiting);
            let profit = self.found * gain - margin * cost;
            if profit > most {
                (best, most) = (count, profit);
            }
        }
        self.max = best;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(per_draft: f32) -> DraftCosts {
        DraftCosts { per_draft: [per_draft; DraftCosts::SIZES], waiting: 0.0 }
    }

    /// Guesses that were there in each of many steps, with so many of four right.
    fn seen(right: usize) -> Guesses {
        let mut guesses = Guesses::new(0);
        (0..100).for_each(|_| guesses.note(4, right));
        guesses
    }

    fn chosen(mut guesses: Guesses, costs: &DraftCosts, sequences: usize) -> usize {
        guesses.choose(costs, sequences, 8);
        guesses.max
    }

    #[test]
    fn sizes_of_steps() {
        let sizes = [1, 2, 3, 4, 5, 8, 9, 1000].map(DraftCosts::size);
        assert_eq!(sizes, [0, 1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn guesses_pay_where_they_are_right_more_often_than_they_cost() {
        assert_eq!(chosen(Guesses::new(8), &costs(0.01), 1), 0, "nothing is known yet");
        assert_eq!(chosen(seen(4), &costs(0.1), 1), 8);
        assert_eq!(chosen(seen(0), &costs(0.1), 1), 0);
        assert!((1..6).contains(&chosen(seen(2), &costs(0.2), 1)), "the later ones do not");
        // A large mixture of experts: each guess reads others.
        assert_eq!(chosen(seen(2), &costs(0.8), 1), 0);
        assert_eq!(chosen(seen(4), &costs(0.7), 1), 8, "a copy pays even so");
    }

    #[test]
    fn others_in_the_batch_wait_too() {
        assert!(chosen(seen(3), &costs(0.1), 1) > 0);
        assert_eq!(chosen(seen(3), &costs(0.1), 16), 0);
    }

    #[test]
    fn rare_guesses_do_not_pay_for_waiting() {
        let mut guesses = Guesses::new(0);
        (0..400).for_each(|step| guesses.note(usize::from(step % 20 == 0), usize::from(step % 20 == 0)));
        let waiting = DraftCosts { waiting: 0.3, ..costs(0.1) };
        assert!(chosen(guesses, &costs(0.1), 1) > 0);
        assert_eq!(chosen(guesses, &waiting, 1), 0);
    }

    #[test]
    fn a_text_that_changes_is_followed() {
        let mut guesses = seen(4);
        let mut steps = 0;
        guesses.choose(&costs(0.3), 1, 8);
        while guesses.max > 0 {
            guesses.note(guesses.max, 0);
            guesses.choose(&costs(0.3), 1, 8);
            steps += 1;
        }
        assert!((2..12).contains(&steps), "{steps}");
        while guesses.max == 0 {
            guesses.note(1, 1);
            guesses.choose(&costs(0.3), 1, 8);
            steps += 1;
        }
        assert!(steps < 30, "{steps}");
    }
}
