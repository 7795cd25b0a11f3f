//! A request's sampling parameters, checked once.

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MAX_BIASES: usize = 1 << 16;

/// Parameters as a request gives them; [`SamplingParams::new`] checks them. The default is greedy and plain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawSamplingParams {
    /// 0 takes the likeliest token; above, larger is more random. At most 2.
    pub temperature: f32,
    /// Share of the probability that the candidates hold together, 0 to 1. 1 is off.
    pub top_p: f32,
    /// Number of candidates; 0 and -1 are off.
    pub top_k: i64,
    /// Least probability of a candidate as a share of the likeliest's, 0 to 1. 0 is off.
    pub min_p: f32,
    /// Above 1 makes the tokens of prompt and answer less likely; above 0, at most 10. 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of the answer's tokens, -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of the answer's tokens for each occurrence, -2 to 2.
    pub frequency_penalty: f32,
    /// Token ids and what to add to their logits, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes a sampled text reproducible.
    pub seed: Option<u64>,
}

impl Default for RawSamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A parameter outside its range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct ParamError {
    /// The request's field.
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// Sampling parameters that are in range. Deserializing them checks them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSamplingParams", into = "RawSamplingParams")]
pub struct SamplingParams(RawSamplingParams);

impl SamplingParams {
    /// Checks a request's parameters.
    ///
    /// # Errors
    /// When one is out of its range or not a number; the error has the field's name.
    pub fn new(raw: RawSamplingParams) -> Result<Self, ParamError> {
        in_range("temperature", raw.temperature, 0.0, 2.0)?;
        in_range("top_p", raw.top_p, 0.0, 1.0)?;
        in_range("min_p", raw.min_p, 0.0, 1.0)?;
        // Near 0 it would drive logits to infinity.
        in_range("repetition_penalty", raw.repetition_penalty, 0.01, 10.0)?;
        in_range("presence_penalty", raw.presence_penalty, -2.0, 2.0)?;
        in_range("frequency_penalty", raw.frequency_penalty, -2.0, 2.0)?;
        if !(-1..=i64::from(u32::MAX)).contains(&raw.top_k) {
            return fail("top_k", "a whole number from 0, or -1 for off", raw.top_k);
        }
        if raw.logit_bias.len() > MAX_BIASES {
            return fail("logit_bias", format!("at most {MAX_BIASES} entries"), raw.logit_bias.len());
        }
        for &(_, bias) in &raw.logit_bias {
            in_range("logit_bias", bias, -100.0, 100.0)?;
        }
        Ok(Self(raw))
    }

    /// Always the likeliest token, without penalties.
    pub fn greedy() -> Self {
        Self(RawSamplingParams::default())
    }

    /// Whether the likeliest token is taken.
    pub fn is_greedy(&self) -> bool {
        self.0.temperature == 0.0
    }

    /// The temperature, 0 to 2.
    pub fn temperature(&self) -> f32 {
        self.0.temperature
    }

    /// The share of the probability that candidates hold; 1 is off.
    pub fn top_p(&self) -> f32 {
        self.0.top_p
    }

    /// The number of candidates; 0 is off.
    pub fn top_k(&self) -> usize {
        usize::try_from(self.0.top_k).unwrap_or(0)
    }

    /// The least probability of a candidate relative to the likeliest; 0 is off.
    pub fn min_p(&self) -> f32 {
        self.0.min_p
    }

    /// The repetition penalty; 1 is off.
    pub fn repetition_penalty(&self) -> f32 {
        self.0.repetition_penalty
    }

    /// The presence penalty; 0 is off.
    pub fn presence_penalty(&self) -> f32 {
        self.0.presence_penalty
    }

    /// The frequency penalty; 0 is off.
    pub fn frequency_penalty(&self) -> f32 {
        self.0.frequency_penalty
    }

    /// Token ids and what is added to their logits.
    pub fn logit_bias(&self) -> &[(u32, f32)] {
        &self.0.logit_bias
    }

    /// The seed, if the request has one.
    pub fn seed(&self) -> Option<u64> {
        self.0.seed
    }

    /// The same for one of several answers to a request: with a seed, each has one of its own.
    #[must_use]
    pub fn for_choice(&self, choice: u64) -> Self {
        let mut raw = self.0.clone();
        raw.seed = raw.seed.map(|seed| seed.wrapping_add(choice));
        Self(raw)
    }

    /// Whether a penalty is set, so that the tokens chosen so far must be counted.
    pub fn has_penalties(&self) -> bool {
        let raw = &self.0;
        raw.repetition_penalty != 1.0 || raw.presence_penalty != 0.0 || raw.frequency_penalty != 0.0
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self::greedy()
    }
}

impl TryFrom<RawSamplingParams> for SamplingParams {
    type Error = ParamError;

    fn try_from(raw: RawSamplingParams) -> Result<Self, ParamError> {
        Self::new(raw)
    }
}

impl From<SamplingParams> for RawSamplingParams {
    fn from(params: SamplingParams) -> Self {
        params.0
    }
}

fn in_range(field: &'static str, value: f32, low: f32, high: f32) -> Result<(), ParamError> {
    // A value that is not a number is in no range.
    if (low..=high).contains(&value) {
        return Ok(());
    }
    fail(field, format!("a number from {low} to {high}"), value)
}

fn fail<T>(field: &'static str, expected: impl Into<String>, found: impl ToString) -> Result<T, ParamError> {
    Err(ParamError { field, expected: expected.into(), found: found.to_string() })
}
