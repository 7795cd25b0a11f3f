//! What penalties count, kept up as a sequence grows.

use super::{SamplingParams, TokenCount};

/// The tokens of a sequence that the penalties of its parameters count, ascending: those of the answer for all of them,
/// those of the prompt for the repetition penalty alone. Empty if no penalty is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts(Vec<TokenCount>);

impl TokenCounts {
    /// What is counted before anything is generated.
    pub fn new(prompt: &[u32], params: &SamplingParams) -> Self {
        if params.repetition_penalty() == 1.0 {
            return Self::default();
        }
        let mut tokens = prompt.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        Self(tokens.into_iter().map(|token| TokenCount { token, in_answer: 0 }).collect())
    }

    /// Counts a token of the answer.
    pub fn add(&mut self, token: u32) {
        match self.0.binary_search_by_key(&token, |count| count.token) {
            Ok(at) => self.0[at].in_answer += 1,
            Err(at) => self.0.insert(at, TokenCount { token, in_answer: 1 }),
        }
    }

    /// All counts.
    pub fn as_slice(&self) -> &[TokenCount] {
        &self.0
    }
}
