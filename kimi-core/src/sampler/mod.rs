//! From a step's logits to the next token.
//!
//! Stateless: the tokens that penalties look at and the random number come from the caller, so that a stage
//! can sample for any sequence, and a GPU can do the same. Formulas and their order are mlx-lm's: logit bias,
//! repetition, presence and frequency penalties; log-softmax; top-p, min-p, top-k on the log-probabilities as
//! they are; then a draw at the temperature.

pub mod filters;
mod params;
mod rng;
mod stop;

use thiserror::Error;

pub use params::{MAX_TOP_LOGPROBS, ParamError, RawSamplingParams, SamplingParams};
pub use rng::uniform;
pub use stop::{StopError, StopOutput, StopStrings};

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token's id.
    pub token: u32,
    /// Its natural log-probability after penalties, at temperature 1.
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
        /// The token.
        token: usize,
        /// The logit.
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

/// What one draw needs besides the logits and the parameters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draw<'a> {
    /// The sequence's tokens, oldest first; the last [`SamplingParams::history_needed`] are looked at.
    pub history: &'a [u32],
    /// A number in `[0, 1)`, for instance from [`uniform`]; not used at temperature 0.
    pub uniform: f32,
    /// How many of the most likely tokens to report, at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: usize,
    /// The tokens that may be chosen; `None` for all.
    pub allowed: Option<TokenMask<'a>>,
}

/// Chooses the next token. `logits` (`[vocabulary]`) is used as working space.
///
/// At temperature 0 the likeliest token is taken, of equal ones the lowest id.
///
/// # Errors
/// When a logit is not finite, or when nothing may be chosen.
pub fn sample(logits: &mut [f32], params: &SamplingParams, draw: &Draw<'_>) -> Result<Sampled, SampleError> {
    if logits.is_empty() {
        return Err(SampleError::NoLogits);
    }
    if let Some(token) = logits.iter().position(|l| !l.is_finite()) {
        return Err(SampleError::NotFinite { token, found: logits[token].to_string() });
    }
    penalize(logits, params, draw.history);
    if let Some(mask) = draw.allowed {
        filters::allow(logits, mask);
    }
    filters::log_softmax(logits);
    let best = filters::argmax(logits).ok_or(SampleError::NothingAllowed { vocabulary: logits.len() })?;
    let top = filters::most_likely(logits, draw.top_logprobs.min(MAX_TOP_LOGPROBS));
    if params.is_greedy() {
        return Ok(Sampled { token: best as u32, logprob: logits[best], top });
    }
    filters::top_p(logits, params.top_p());
    filters::min_p(logits, params.min_p());
    filters::top_k(logits, params.top_k());
    let token = filters::categorical(logits, params.temperature(), draw.uniform);
    Ok(Sampled { token: token as u32, logprob: logits[token], top })
}

fn penalize(logits: &mut [f32], params: &SamplingParams, history: &[u32]) {
    filters::logit_bias(logits, params.logit_bias());
    let recent = &history[history.len().saturating_sub(params.history_needed())..];
    filters::repetition_penalty(logits, recent, params.repetition_penalty());
    filters::presence_penalty(logits, recent, params.presence_penalty());
    filters::frequency_penalty(logits, recent, params.frequency_penalty());
}
