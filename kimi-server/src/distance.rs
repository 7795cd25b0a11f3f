//! How far logits are from others of the same tokens.

use serde::Serialize;

/// Logits compared with the truth, at some positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distance {
    /// Positions compared.
    pub positions: usize,
    /// Largest difference of any logit.
    pub max_abs_err: f64,
    /// Kullback-Leibler divergence of the tokens' probabilities from the true ones, in nats, on average over positions.
    pub mean_kl: f64,
    /// Positions whose likeliest token is the same.
    pub same_token: usize,
}

impl Distance {
    /// Of `found` from `truth`, both `[T, vocab]`. `None` where their sizes differ or are no whole number of positions, or a
    /// value is not a number.
    pub fn between(found: &[f32], truth: &[f32], vocab: usize) -> Option<Self> {
        if found.len() != truth.len() || truth.is_empty() || truth.len().checked_rem(vocab) != Some(0) {
            return None;
        }
        let mut sum = Self { positions: 0, max_abs_err: 0.0, mean_kl: 0.0, same_token: 0 };
        for (found, truth) in found.chunks_exact(vocab).zip(truth.chunks_exact(vocab)) {
            let (found_sum, true_sum) = (log_sum(found), log_sum(truth));
            for (f, t) in found.iter().zip(truth).map(|(f, t)| (f64::from(*f), f64::from(*t))) {
                sum.max_abs_err = sum.max_abs_err.max((f - t).abs());
                sum.mean_kl += (t - true_sum).exp() * ((t - true_sum) - (f - found_sum));
            }
            if !(found_sum - true_sum).is_finite() {
                return None;
            }
            sum.same_token += usize::from(likeliest(found) == likeliest(truth));
            sum.positions += 1;
        }
        Some(Self { mean_kl: sum.mean_kl / sum.positions as f64, ..sum })
    }

    /// Of all positions of both.
    pub fn and(self, other: Self) -> Self {
        let positions = self.positions + other.positions;
        let of = |d: &Self| d.mean_kl * d.positions as f64;
        Self {
            positions,
            max_abs_err: self.max_abs_err.max(other.max_abs_err),
            mean_kl: (of(&self) + of(&other)) / positions.max(1) as f64,
            same_token: self.same_token + other.same_token,
        }
    }

    /// Whether it is no farther than another of the same positions, in what all logits say together. The largest error does
    /// not count: where a router's choice is close, one expert that is chosen instead of another decides it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.mean_kl <= other.mean_kl && self.same_token >= other.same_token
    }
}

fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// The likeliest token; the first of equal ones, as `argmax` in mlx.
pub fn likeliest(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best });
    best.0 as u32
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_have_no_distance() {
        let logits = [1.0, 3.0, -2.0, 0.5, 0.25, 0.125];
        let found = Distance::between(&logits, &logits, 3).unwrap();
        assert_eq!(found, Distance { positions: 2, max_abs_err: 0.0, mean_kl: 0.0, same_token: 2 });
    }

    #[test]
    fn divergence_is_of_probabilities() {
        // 1/2 and 1/2 against 1/4 and 3/4; then the same again.
        let (truth, found) = ([0.0, 0.0, 1.0, 2.0], [0.0, 3f32.ln(), 1.0, 2.0]);
        let distance = Distance::between(&found, &truth, 2).unwrap();
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((distance.mean_kl - expected / 2.0).abs() < 1e-7, "{distance:?}");
        assert!((distance.max_abs_err - 3f64.ln()).abs() < 1e-6);
        assert_eq!(distance.same_token, 1);
        let whole = Distance::between(&found[..2], &truth[..2], 2).unwrap();
        let both = whole.and(Distance::between(&found[2..], &truth[2..], 2).unwrap());
        assert!((both.mean_kl - distance.mean_kl).abs() < 1e-12 && both.positions == 2);
        assert!(distance.is_within(&whole.and(whole)) && !whole.is_within(&distance));
    }

    #[test]
    fn what_can_not_be_compared_has_none() {
        assert_eq!(Distance::between(&[1.0], &[1.0, 2.0], 1), None);
        assert_eq!(Distance::between(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 2), None);
        assert_eq!(Distance::between(&[], &[], 0), None);
        assert_eq!(Distance::between(&[f32::NAN, 1.0], &[0.0, 1.0], 2), None);
    }
}
