//! Guesses tokens without a model: what came after the last few tokens when they came before.
//!
//! Answers repeat their prompts where they edit code, quote a document, fill in a form or call a tool again.

use crate::constraint::Drafter;

/// A [`Drafter`] that looks for the last tokens of a sequence earlier in it, in the prompt and in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLookup {
    /// Fewest tokens that must be the same; fewer are found by chance too often.
    pub min_match: usize,
    /// Most tokens that are compared: of places where so many are the same the last one counts.
    pub max_match: usize,
}

impl Default for PromptLookup {
    fn default() -> Self {
        Self { min_match: 3, max_match: 8 }
    }
}

impl PromptLookup {
    /// The end of the best earlier place: the one with the longest match, and the last of those.
    fn find(&self, tokens: &[u32]) -> Option<usize> {
        let last = *tokens.last()?;
        let (mut best, mut longest) = (None, self.min_match.max(1) - 1);
        for end in (1..tokens.len()).rev().filter(|&end| tokens[end - 1] == last) {
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            let same = pairs.take(self.max_match).take_while(|(a, b)| a == b).count();
            if same > longest {
                (best, longest) = (Some(end), same);
                if same >= self.max_match {
                    break;
                }
            }
        }
        best
    }
}

impl Drafter for PromptLookup {
    fn draft(&self, tokens: &[u32], max: usize) -> Vec<u32> {
        let Some(from) = self.find(tokens) else { return Vec::new() };
        // Where the place overlaps the end, the text repeats itself, and so do the guesses.
        let mut drafts: Vec<u32> = Vec::with_capacity(max);
        for i in from..from + max {
            let next = tokens.get(i).or_else(|| drafts.get(i - tokens.len())).copied();
            drafts.extend(next);
        }
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(tokens: &[u32], max: usize) -> Vec<u32> {
        PromptLookup::default().draft(tokens, max)
    }

    #[test]
    fn what_came_before_is_guessed_again() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 3), [4, 5, 6]);
        assert_eq!(draft(&[1, 2, 3, 4, 9, 1, 2, 3], 9), [4, 9, 1, 2, 3, 4, 9, 1, 2], "it goes round");
        assert_eq!(draft(&[7, 7, 7, 7], 3), [7, 7, 7]);
    }

    #[test]
    fn the_longest_match_counts_and_then_the_last() {
        assert_eq!(draft(&[5, 1, 2, 3, 8, 4, 1, 2, 3, 9, 5, 1, 2, 3], 1), [8]);
        assert_eq!(draft(&[1, 2, 3, 8, 1, 2, 3, 9, 0, 1, 2, 3], 1), [9]);
        let long: Vec<u32> = (0..20).chain([50]).chain(0..20).chain([60]).chain(0..20).collect();
        assert_eq!(draft(&long, 1), [60]);
    }

    #[test]
    fn too_little_is_no_match() {
        assert!(draft(&[2, 3, 4, 9, 2, 3], 4).is_empty());
        assert!(draft(&[], 4).is_empty() && draft(&[1], 4).is_empty());
        assert!(draft(&[1, 2, 3, 4, 1, 2, 3], 0).is_empty());
    }
}
