//! From a step's logits to the next token: what is asked for and what comes out, and the truth of how.
//!
//! Formulas and their order are mlx-lm's, what penalties count is as in OpenAI's API and in vLLM: logit bias, repetition
//! penalty (prompt and answer), presence and frequency penalties (the answer), the token mask;
//! top-p, min-p, top-k on the distribution as it is; then a draw at the temperature. Filters compare logits, which
//! order as log-probabilities do and are not rounded a second time, so that devices agree on ties.

pub mod filters;
mod vector;

use thiserror::Error;

/// Most tokens whose log-probabilities are reported beside a chosen one.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// A token that penalties count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// The token's id.
    pub token: u32,
    /// How often the answer has it; 0 if only the prompt does.
    pub in_answer: u32,
}

impl TokenCount {
    /// What the presence and the frequency penalty take off the token's logit together.
    pub fn penalty(&self, presence: f32, frequency: f32) -> f32 {
        // One number, so that devices which round a product and a difference as one agree with others.
        if self.in_answer == 0 { 0.0 } else { presence + frequency * self.in_answer as f32 }
    }
}

/// How to choose one token. Numbers outside the ranges given have no meaning, but do no harm.
#[derive(Debug, Clone, Copy)]
pub struct SampleRequest<'a> {
    /// Row of the logits.
    pub row: u32,
    /// 0 takes the likeliest token, of equal ones the lowest id; above, larger is more random.
    pub temperature: f32,
    /// Share of the probability that the candidates hold together, 0 to 1. 1 is off.
    pub top_p: f32,
    /// Number of candidates, of equal ones those with lower ids; 0 is off.
    pub top_k: usize,
    /// Least probability of a candidate as a share of the likeliest's, 0 to 1. 0 is off.
    pub min_p: f32,
    /// See [`filters::repetition_penalty`]. 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens of the answer. 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens of the answer for each occurrence. 0 is off.
    pub frequency_penalty: f32,
    /// Token ids and what is added to their logits.
    pub logit_bias: &'a [(u32, f32)],
    /// The tokens that the three penalties count, each once.
    pub counts: &'a [TokenCount],
    /// A random number in `[0, 1)`; not used at temperature 0.
    pub uniform: f32,
    /// How many of the most likely tokens to report, at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: usize,
    /// The tokens that may be chosen; `None` for all.
    pub allowed: Option<TokenMask<'a>>,
}

impl SampleRequest<'_> {
    /// Always the likeliest token of `row`.
    pub fn greedy(row: u32) -> Self {
        Self {
            row,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: &[],
            counts: &[],
            uniform: 0.0,
            top_logprobs: 0,
            allowed: None,
        }
    }

    /// Whether the likeliest of the logits as they are is the answer, and nothing else is asked for.
    fn takes_the_likeliest(&self) -> bool {
        let no_penalty =
            self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        let untouched =
            self.logit_bias.is_empty() && self.allowed.is_none() && (no_penalty || self.counts.is_empty());
        self.temperature == 0.0 && self.top_logprobs == 0 && untouched
    }
}

/// A set of allowed tokens for constrained decoding: bit `id % 32` of word `id / 32`. Tokens past its end are
/// not allowed.
#[derive(Debug, Clone, Copy)]
pub struct TokenMask<'a>(pub &'a [u32]);

impl TokenMask<'_> {
    /// Whether a token may be chosen.
    pub fn allows(&self, token: usize) -> bool {
        self.0.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token's id.
    pub token: u32,
    /// Its natural log-probability after penalties and mask, at temperature 1.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, the likeliest first; of equal ones the lower id
    /// first.
    pub top: Vec<(u32, f32)>,
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A logit is infinite or not a number: the model's arithmetic went wrong.
    #[error(
        "logit {token} is {found}; expected a finite number (the model's arithmetic or its weights are damaged)"
    )]
    NotFinite {
        /// The token, the first of several.
        token: usize,
        /// The logit, after penalties.
        found: String,
    },
    /// There are no logits.
    #[error("there are no logits to sample from")]
    NoLogits,
    /// The mask allows no token.
    #[error("the token mask allows none of the {vocabulary} tokens")]
    NothingAllowed {
        /// The number of tokens.
        vocabulary: usize,
    },
}

/// Chooses a token from `logits` (`[vocabulary]`); the request's row is not looked at.
///
/// # Errors
/// When a logit is not finite, or when nothing may be chosen.
pub fn sample_row(logits: &[f32], request: &SampleRequest<'_>) -> Result<Sampled, SampleError> {
    if logits.is_empty() || !request.takes_the_likeliest() {
        return sample(&mut logits.to_vec(), request);
    }
    // As below, but nothing is written: a copy of all logits would take as long as the rest.
    check_finite(logits)?;
    let best = filters::argmax(logits).ok_or(SampleError::NothingAllowed { vocabulary: logits.len() })?;
    let logprob = (f64::from(logits[best]) - filters::log_sum_exp(logits)) as f32;
    Ok(Sampled { token: best as u32, logprob, top: Vec::new() })
}

fn check_finite(logits: &[f32]) -> Result<(), SampleError> {
    if vector::survey(logits).finite {
        return Ok(());
    }
    let token = logits.iter().position(|l| !l.is_finite()).unwrap_or_default();
    Err(SampleError::NotFinite { token, found: logits[token].to_string() })
}

/// Chooses a token. `logits` (`[vocabulary]`) is used as working space; the request's row is not looked at.
///
/// # Errors
/// When a logit is not finite, or when nothing may be chosen.
pub fn sample(logits: &mut [f32], request: &SampleRequest<'_>) -> Result<Sampled, SampleError> {
    if logits.is_empty() {
        return Err(SampleError::NoLogits);
    }
    penalize(logits, request);
    check_finite(logits)?;
    // -0 becomes 0, its equal.
    logits.iter_mut().for_each(|l| *l += 0.0);
    if let Some(mask) = request.allowed {
        filters::allow(logits, mask);
    }
    let best = filters::argmax(logits).ok_or(SampleError::NothingAllowed { vocabulary: logits.len() })?;
    let shift = filters::log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - shift) as f32;
    let mut top = filters::most_likely(logits, request.top_logprobs.min(MAX_TOP_LOGPROBS));
    top.iter_mut().for_each(|(_, value)| *value = logprob(*value));
    if request.temperature == 0.0 {
        return Ok(Sampled { token: best as u32, logprob: logprob(logits[best]), top });
    }
    filters::top_p(logits, request.top_p);
    filters::min_p(logits, request.min_p);
    filters::top_k(logits, request.top_k);
    let token = filters::categorical(logits, request.temperature, request.uniform);
    Ok(Sampled { token: token as u32, logprob: logprob(logits[token]), top })
}

fn penalize(logits: &mut [f32], request: &SampleRequest<'_>) {
    filters::logit_bias(logits, request.logit_bias);
    filters::repetition_penalty(logits, request.counts, request.repetition_penalty);
    filters::answer_penalties(logits, request.counts, request.presence_penalty, request.frequency_penalty);
}
