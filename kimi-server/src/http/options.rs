//! The fields that all front doors of OpenAI's shape share: which model, how tokens are chosen, when the answer ends.

use std::collections::BTreeMap;

use kimi_core::ChatRequest;
use kimi_core::chat_model::SamplingDefaults;
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use serde::Deserialize;

use super::engine::ServedModel;
use super::error::ApiError;
use super::read::{Object, Strings, Whole};

/// Most answers of one request.
pub(super) const MAX_CHOICES: usize = 128;
/// Most tokens that may end an answer.
const MAX_STOP_TOKENS: usize = 1024;

/// The fields as they come.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    /// Which model, if the request says so.
    pub(super) model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
    n: Option<Whole>,
    best_of: Option<Whole>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<Whole>,
    min_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<String, f64>>,
    seed: Option<Whole>,
    max_completion_tokens: Option<Whole>,
    max_tokens: Option<Whole>,
    min_tokens: Option<Whole>,
    /// Also under the name that Anthropic has for it.
    #[serde(alias = "stop_sequences")]
    stop: Option<Strings>,
    stop_token_ids: Option<Vec<Whole>>,
    ignore_eos: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Options {
    /// Whether the answer comes as a stream of events.
    pub(super) fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether a stream ends with what it took.
    pub(super) fn include_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.0.include_usage).unwrap_or(false)
    }

    /// How many answers are wanted.
    ///
    /// # Errors
    /// 400 for none or too many.
    pub(super) fn choices(&self) -> Result<usize, ApiError> {
        let n = self.n.map_or(Ok(1), |n| n.within("n", 1..=MAX_CHOICES as i64))?;
        if let Some(best_of) = self.best_of
            && best_of.within("best_of", 1..=MAX_CHOICES as i64)? != n
        {
            let message = format!("only {n}, as many as n, is supported: no answers are thrown away");
            return Err(ApiError::field("best_of", "unsupported_parameter", message));
        }
        Ok(n as usize)
    }

    /// A request with what these fields say of it: how tokens are chosen and when the answer ends, after `max_tokens` where they
    /// don't say.
    ///
    /// # Errors
    /// 400 for a value out of its range.
    pub(super) fn request(
        &self,
        model: &ServedModel,
        thinking: Option<bool>,
        max_tokens: Option<u32>,
    ) -> Result<ChatRequest, ApiError> {
        Ok(ChatRequest {
            thinking,
            params: self.sampling(model.engine().defaults().mode(thinking))?,
            max_tokens: self.max_tokens()?.limit(max_tokens),
            min_tokens: self.min_tokens()?,
            stop: self.stop.clone().unwrap_or_default().0,
            stop_token_ids: self.stop_token_ids()?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            ..ChatRequest::default()
        })
    }

    /// How tokens are chosen; `defaults` where the request does not say.
    ///
    /// # Errors
    /// 400 for a value out of its range.
    fn sampling(&self, defaults: SamplingDefaults) -> Result<SamplingParams, ApiError> {
        let SamplingDefaults { temperature, top_p } = defaults;
        let mut raw = RawSamplingParams { temperature, top_p, ..RawSamplingParams::default() };
        let fields = [
            (self.temperature, &mut raw.temperature),
            (self.top_p, &mut raw.top_p),
            (self.min_p, &mut raw.min_p),
            (self.repetition_penalty, &mut raw.repetition_penalty),
            (self.presence_penalty, &mut raw.presence_penalty),
            (self.frequency_penalty, &mut raw.frequency_penalty),
        ];
        for (found, field) in fields {
            *field = found.map_or(*field, |value| value as f32);
        }
        if let Some(top_k) = self.top_k {
            raw.top_k = top_k.within("top_k", i64::MIN..=i64::MAX)?;
        }
        if let Some(seed) = self.seed {
            raw.seed = Some(seed.within("seed", i64::MIN..=i64::MAX)?.cast_unsigned());
        }
        raw.logit_bias = self.logit_bias.iter().flatten().map(token_bias).collect::<Result<_, _>>()?;
        Ok(SamplingParams::new(raw)?)
    }

    /// Most tokens of the answer: `max_completion_tokens`, or `max_tokens` as it was called before. -1 is no limit.
    ///
    /// # Errors
    /// 400 for a number out of range, or two that differ.
    fn max_tokens(&self) -> Result<MaxTokens, ApiError> {
        let new = limit("max_completion_tokens", self.max_completion_tokens)?;
        let old = limit("max_tokens", self.max_tokens)?;
        match (new, old) {
            (Some(new), Some(old)) if new != old => {
                let message = format!("is {old}, but max_completion_tokens is {new}; give one of them");
                Err(ApiError::field("max_tokens", "invalid_value", message))
            }
            (new, old) => Ok(match new.or(old) {
                None => MaxTokens::Unsaid,
                Some(limit) => u32::try_from(limit).map_or(MaxTokens::NoLimit, MaxTokens::Limit),
            }),
        }
    }

    /// Tokens of the answer before it may end by itself.
    ///
    /// # Errors
    /// 400 for a number out of range.
    fn min_tokens(&self) -> Result<u32, ApiError> {
        let max = i64::from(u32::MAX);
        Ok(self.min_tokens.map_or(Ok(0), |found| found.within("min_tokens", 0..=max))? as u32)
    }

    /// Tokens that end the answer; the model checks that it has them.
    ///
    /// # Errors
    /// 400 for too many, or what can't be a token's id.
    fn stop_token_ids(&self) -> Result<Vec<u32>, ApiError> {
        let ids = self.stop_token_ids.as_deref().unwrap_or_default();
        if ids.len() > MAX_STOP_TOKENS {
            let message = format!("expected at most {MAX_STOP_TOKENS} token ids, found {}", ids.len());
            return Err(ApiError::field("stop_token_ids", "array_above_max_length", message));
        }
        let id = |(i, id): (usize, &Whole)| {
            Ok(id.within(&format!("stop_token_ids[{i}]"), 0..=i64::from(u32::MAX))? as u32)
        };
        ids.iter().enumerate().map(id).collect()
    }
}

/// How long an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MaxTokens {
    Unsaid,
    /// As long as the context allows.
    NoLimit,
    Limit(u32),
}

impl MaxTokens {
    /// The limit; `default` where the request does not say.
    fn limit(self, default: Option<u32>) -> Option<u32> {
        match self {
            Self::Unsaid => default,
            Self::NoLimit => None,
            Self::Limit(limit) => Some(limit),
        }
    }
}

fn limit(name: &str, found: Option<Whole>) -> Result<Option<i64>, ApiError> {
    let Some(found) = found else { return Ok(None) };
    match found.within(name, -1..=i64::from(u32::MAX))? {
        0 => {
            let message = "expected a whole number from 1, or -1 for no limit; found 0";
            Err(ApiError::field(name, "integer_below_min_value", message))
        }
        limit => Ok(Some(limit)),
    }
}

fn token_bias((key, &bias): (&String, &f64)) -> Result<(u32, f32), ApiError> {
    let token = key.parse().map_err(|_| {
        let message = format!("expected a token id as the name, found {key:?}");
        ApiError::field(&format!("logit_bias.{key}"), "invalid_value", message)
    })?;
    Ok((token, bias as f32))
}
