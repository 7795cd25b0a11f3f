//! The steps of sampling, one function each, on logits or log-probabilities `[vocabulary]` in place: they differ by
//! a constant, which no step looks at. A token that is ruled out has the value minus infinity. The formulas are
//! those of mlx-lm's sample_utils.

use super::{TokenCount, TokenMask, vector};

/// Adds a bias to some logits; ids outside the vocabulary are passed over.
pub fn logit_bias(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(token, bias) in bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
}

/// Makes the counted tokens less likely: a negative logit is multiplied by the penalty, another by its inverse; each token
/// once, however often it occurs. 1 changes nothing.
pub fn repetition_penalty(logits: &mut [f32], counts: &[TokenCount], penalty: f32) {
    if penalty != 1.0 {
        // No division: a GPU's need not be exact.
        let inverse = 1.0 / penalty;
        for count in counts {
            if let Some(logit) = logits.get_mut(count.token as usize) {
                *logit *= if *logit < 0.0 { penalty } else { inverse };
            }
        }
    }
}

/// Subtracts from the logit of every token of the answer `presence` once and `frequency` for each time that it occurs.
pub fn answer_penalties(logits: &mut [f32], counts: &[TokenCount], presence: f32, frequency: f32) {
    for count in counts {
        if let Some(logit) = logits.get_mut(count.token as usize) {
            *logit -= count.penalty(presence, frequency);
        }
    }
}

/// Rules out every token that the mask does not allow.
pub fn allow(logits: &mut [f32], mask: TokenMask<'_>) {
    for (token, logit) in logits.iter_mut().enumerate() {
        if !mask.allows(token) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// `log(sum(exp(l)))`, summed in f64; minus infinity if all are ruled out.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = vector::survey(logits).max;
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(max) + vector::sum_of_exponentials(logits, max).ln()
}

/// `l - log(sum(exp(l)))`.
pub fn log_softmax(logits: &mut [f32]) {
    let shift = log_sum_exp(logits);
    if shift > f64::NEG_INFINITY {
        logits.iter_mut().for_each(|l| *l = (f64::from(*l) - shift) as f32);
    }
}

/// The index of the largest value, of equal ones the lowest; `None` if all are ruled out.
pub fn argmax(values: &[f32]) -> Option<usize> {
    let max = vector::survey(values).max;
    if max > f32::NEG_INFINITY { vector::position(values, max) } else { None }
}

/// The `n` largest values with their tokens, the largest first, of equal ones the lower id first.
/// Tokens that are ruled out are left out.
pub fn most_likely(values: &[f32], n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut all = candidates(values, f32::NEG_INFINITY);
    if all.len() > n {
        all.select_nth_unstable_by(n - 1, by_likelihood);
        all.truncate(n);
    }
    all.sort_unstable_by(by_likelihood);
    all
}

fn candidates(values: &[f32], above: f32) -> Vec<(u32, f32)> {
    (0..).zip(values.iter().copied()).filter(|&(_, p)| p > above).collect()
}

fn by_likelihood(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps a token if the tokens strictly likelier than it hold less than the share `p` of the probability;
/// tokens equally likely are kept or ruled out together. 1 changes nothing; at 0 only the likeliest remain.
pub fn top_p(values: &mut [f32], p: f32) {
    let Some(best) = argmax(values) else { return };
    if p >= 1.0 {
        return;
    }
    let max = values[best];
    let total: f64 = values.iter().map(|&v| weight(v, max)).sum();
    let wanted = f64::from(p) * total;
    // The threshold is nearly always among the few likely tokens; only if not is the whole vocabulary sorted.
    let threshold = nucleus_end(candidates(values, max - 12.0), max, wanted)
        .or_else(|| nucleus_end(candidates(values, f32::NEG_INFINITY), max, wanted));
    if let Some(threshold) = threshold {
        rule_out_below(values, threshold.min(max));
    }
}

/// The probability of a value as a share of the largest's.
fn weight(value: f32, max: f32) -> f64 {
    (f64::from(value) - f64::from(max)).exp()
}

/// The smallest value that is kept; `None` if these candidates do not hold the wanted mass.
fn nucleus_end(mut candidates: Vec<(u32, f32)>, max: f32, wanted: f64) -> Option<f32> {
    candidates.sort_unstable_by(by_likelihood);
    let mut mass = 0.0;
    let mut last = f32::INFINITY;
    for (_, value) in candidates {
        // The mass above is complete only when a smaller value begins.
        if value < last {
            if mass >= wanted {
                return Some(last);
            }
            last = value;
        }
        mass += weight(value, max);
    }
    (mass >= wanted).then_some(last)
}

/// Rules out what is less likely than `p` times the likeliest. 0 changes nothing.
pub fn min_p(values: &mut [f32], p: f32) {
    if p <= 0.0 {
        return;
    }
    if let Some(best) = argmax(values) {
        rule_out_below(values, values[best] + p.ln());
    }
}

fn rule_out_below(values: &mut [f32], threshold: f32) {
    for value in values {
        if *value < threshold {
            *value = f32::NEG_INFINITY;
        }
    }
}

/// Keeps the `k` likeliest tokens, of equal ones those with lower ids. 0 changes nothing.
pub fn top_k(values: &mut [f32], k: usize) {
    if k == 0 || k >= values.len() {
        return;
    }
    let mut kept = candidates(values, f32::NEG_INFINITY);
    if kept.len() <= k {
        return;
    }
    kept.select_nth_unstable_by(k - 1, by_likelihood);
    kept.truncate(k);
    values.fill(f32::NEG_INFINITY);
    for (token, value) in kept {
        values[token as usize] = value;
    }
}

/// Draws a token with probability proportional to `exp(value / temperature)`: the first at which the
/// running sum exceeds `uniform` times the total. The temperature is above 0 and at least one token is not
/// ruled out.
pub fn categorical(values: &[f32], temperature: f32, uniform: f32) -> usize {
    let best = argmax(values).unwrap_or(0);
    let max = values.get(best).copied().unwrap_or(0.0);
    let weight = |v: f32| (f64::from(v - max) / f64::from(temperature)).exp();
    let total: f64 = values.iter().map(|&v| weight(v)).sum();
    let target = f64::from(uniform) * total;
    let mut sum = 0.0;
    for (token, &value) in values.iter().enumerate() {
        sum += weight(value);
        if sum > target {
            return token;
        }
    }
    best
}
