//! From a step's logits to the next token.
//!
//! Stateless: the tokens that penalties look at and the random number come from the caller, so that a stage
//! can sample for any sequence. The arithmetic is [`kimi_quant::sample`], on the CPU and on the GPU alike; here are a
//! request's parameters with their checks, random numbers, and stop strings.

mod counts;
mod params;
mod rng;
mod stop;

pub use counts::TokenCounts;
pub use kimi_quant::sample::{
    MAX_TOP_LOGPROBS, SampleError, SampleRequest, Sampled, TokenCount, TokenMask, filters,
};
pub use params::{ParamError, RawSamplingParams, SamplingParams};
pub use rng::uniform;
pub use stop::{StopError, StopOutput, StopStrings};

/// What one draw needs besides the logits and the parameters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draw<'a> {
    /// The tokens that penalties count, each once.
    pub counts: &'a [TokenCount],
    /// A number in `[0, 1)`, for instance from [`uniform`]; not used at temperature 0.
    pub uniform: f32,
    /// How many of the most likely tokens to report, at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: usize,
    /// The tokens that may be chosen; `None` for all.
    pub allowed: Option<TokenMask<'a>>,
}

impl SamplingParams {
    /// What to ask a backend for, on row `row` of the logits.
    pub fn request<'a>(&'a self, row: u32, draw: &Draw<'a>) -> SampleRequest<'a> {
        SampleRequest {
            row,
            temperature: self.temperature(),
            top_p: self.top_p(),
            top_k: self.top_k(),
            min_p: self.min_p(),
            repetition_penalty: self.repetition_penalty(),
            presence_penalty: self.presence_penalty(),
            frequency_penalty: self.frequency_penalty(),
            logit_bias: self.logit_bias(),
            counts: draw.counts,
            uniform: draw.uniform,
            top_logprobs: draw.top_logprobs,
            allowed: draw.allowed,
        }
    }
}

/// Chooses the next token on the CPU. `logits` (`[vocabulary]`) is used as working space.
///
/// At temperature 0 the likeliest token is taken, of equal ones the lowest id.
///
/// # Errors
/// When a logit is not finite, or when nothing may be chosen.
pub fn sample(logits: &mut [f32], params: &SamplingParams, draw: &Draw<'_>) -> Result<Sampled, SampleError> {
    kimi_quant::sample::sample(logits, &params.request(0, draw))
}
