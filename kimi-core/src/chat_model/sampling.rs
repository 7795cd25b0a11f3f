//! How tokens are chosen where a request does not say: as the model's card recommends.

use serde::{Deserialize, Serialize};

use crate::chat::Thinking;

/// How tokens are chosen where a request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplingDefaults {
    /// The temperature.
    pub temperature: f32,
    /// The share of the probability that candidates hold; 1 is off.
    pub top_p: f32,
}

/// [`SamplingDefaults`] of a model, by whether it thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelDefaults {
    /// Whether the model can think, and who decides.
    pub thinking: Thinking,
    /// While it thinks.
    pub when_thinking: SamplingDefaults,
    /// While it does not (Moonshot's "instant").
    pub when_instant: SamplingDefaults,
}

/// Kimi-K2-Instruct.
const INSTRUCT: SamplingDefaults = SamplingDefaults { temperature: 0.6, top_p: 1.0 };
/// Kimi-K2-Thinking, and K2.5 and later while they think.
const THINKING: SamplingDefaults = SamplingDefaults { temperature: 1.0, top_p: 0.95 };
/// Kimi-K2.5 and later while they don't.
const INSTANT: SamplingDefaults = SamplingDefaults { temperature: 0.6, top_p: 0.95 };

impl ModelDefaults {
    /// What Moonshot's cards recommend, told by what the chat template knows of thinking. `own` are temperature and top_p of
    /// the checkpoint's `generation_config.json`, which win in both modes where they are in range.
    pub fn of(thinking: Thinking, own: &[Option<f64>; 2]) -> Self {
        let when_instant = if thinking == Thinking::Never { INSTRUCT } else { INSTANT };
        let [temperature, top_p] = own.map(|value| value.map(|value| value as f32));
        Self { thinking, when_thinking: THINKING, when_instant }.with(
            temperature.filter(|value| (0.0..=2.0).contains(value)),
            top_p.filter(|value| (0.0..=1.0).contains(value)),
        )
    }

    /// With another temperature and top_p in both modes.
    #[must_use]
    pub fn with(mut self, temperature: Option<f32>, top_p: Option<f32>) -> Self {
        for defaults in [&mut self.when_thinking, &mut self.when_instant] {
            defaults.temperature = temperature.unwrap_or(defaults.temperature);
            defaults.top_p = top_p.unwrap_or(defaults.top_p);
        }
        self
    }

    /// Those of a request that says whether the model is to think, or does not.
    pub fn mode(&self, thinking: Option<bool>) -> SamplingDefaults {
        match (self.thinking, thinking) {
            (Thinking::Never, _) | (_, Some(false)) => self.when_instant,
            _ => self.when_thinking,
        }
    }
}

impl Default for ModelDefaults {
    fn default() -> Self {
        Self::of(Thinking::Never, &[None, None])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_followed_by_model_and_mode() {
        let of = |thinking, mode| {
            let SamplingDefaults { temperature, top_p } =
                ModelDefaults::of(thinking, &[None, None]).mode(mode);
            (temperature, top_p)
        };
        let switched = Thinking::Switched { by: "thinking" };
        assert_eq!(of(Thinking::Never, None), (0.6, 1.0));
        assert_eq!(of(Thinking::Never, Some(true)), (0.6, 1.0));
        assert_eq!(of(Thinking::Always, None), (1.0, 0.95));
        assert_eq!(of(switched, None), (1.0, 0.95));
        assert_eq!(of(switched, Some(true)), (1.0, 0.95));
        assert_eq!(of(switched, Some(false)), (0.6, 0.95));
    }

    #[test]
    fn the_checkpoint_and_the_user_win() {
        let own = ModelDefaults::of(Thinking::Always, &[Some(0.7), Some(7.0)]);
        assert_eq!(own.mode(None), SamplingDefaults { temperature: 0.7, top_p: 0.95 });
        let user = own.with(Some(0.2), None);
        assert_eq!(user.mode(Some(false)), SamplingDefaults { temperature: 0.2, top_p: 0.95 });
    }
}
