//! Dense MLPs, the router and the experts (DeepSeekMoE; the choice is DeepSeek-V3's noaux_tc).

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::{Tensor, TensorReadError};

/// The second half of a layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum FeedForward {
    /// One MLP.
    Dense(Mlp),
    /// Routed experts and a shared one.
    Moe(Moe),
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `H` to `F`.
    pub gate_proj: Linear,
    /// `H` to `F`.
    pub up_proj: Linear,
    /// `F` to `H`.
    pub down_proj: Linear,
}

/// Routed experts: each token goes through the `k` that its router chooses, and through the shared one.
#[derive(Module, Debug)]
pub struct Moe {
    /// Chooses.
    pub gate: Router,
    /// `E` of them.
    pub experts: Vec<Mlp>,
    /// Sees every token; its weight is 1.
    pub shared_experts: Option<Mlp>,
}

/// The router.
#[derive(Module, Debug)]
pub struct Router {
    /// `H` to `E`.
    pub gate: Linear,
    /// `[E]`: added to the scores for the choice only.
    pub e_score_correction_bias: Param<Tensor<1>>,
    /// Experts chosen a token, `k`.
    pub num_experts_per_tok: usize,
    /// Groups of experts.
    pub n_group: usize,
    /// Groups that stay eligible.
    pub topk_group: usize,
    /// Whether the weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub routed_scaling_factor: f64,
}

/// One token's experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Their ids, the best first, `[k]`.
    pub experts: Vec<usize>,
    /// Their weights, `[k]`.
    pub weights: Vec<f32>,
    /// How far the worst chosen expert (or group) was ahead of the best one left out; infinite if none was. Below
    /// the rounding noise of the scores another machine may rightly choose otherwise.
    pub margin: f32,
}

impl FeedForward {
    /// `x [T, H]` to `[T, H]`, and the choice of experts of each token if there are any.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: Tensor<2>) -> Result<(Tensor<2>, Vec<Choice>), TensorReadError> {
        match self {
            Self::Dense(mlp) => Ok((mlp.forward(x), Vec::new())),
            Self::Moe(moe) => moe.forward(x),
        }
    }
}

impl Mlp {
    /// `x [T, H]` to `[T, H]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down_proj.forward(silu(self.gate_proj.forward(x.clone())) * self.up_proj.forward(x))
    }
}

impl Moe {
    /// `x [T, H]` to `[T, H]`, and the choice of experts of each token.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: Tensor<2>) -> Result<(Tensor<2>, Vec<Choice>), TensorReadError> {
        let choices = self.gate.forward(x.clone())?;
        let mut rows = Vec::with_capacity(choices.len());
        for (t, choice) in choices.iter().enumerate() {
            let x = x.clone().narrow(0, t, 1); // [1, H]
            let mut y = x.zeros_like();
            for (&expert, &weight) in choice.experts.iter().zip(&choice.weights) {
                y = y + self.experts[expert].forward(x.clone()) * weight;
            }
            rows.push(y);
        }
        let routed = Tensor::cat(rows, 0); // [T, H]
        let y = match &self.shared_experts {
            Some(shared) => routed + shared.forward(x),
            None => routed,
        };
        Ok((y, choices))
    }
}

impl Router {
    /// Chooses for each token of `x [T, H]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: Tensor<2>) -> Result<Vec<Choice>, TensorReadError> {
        let scores = sigmoid(self.gate.forward(x)); // [T, E]
        let [_, experts] = scores.dims();
        let biased = scores.clone() + self.e_score_correction_bias.val().unsqueeze();
        let (scores, biased) = (scores.try_into_vec_as::<f32>()?, biased.try_into_vec_as::<f32>()?);
        let tokens = scores.chunks(experts).zip(biased.chunks(experts));
        Ok(tokens.map(|(scores, biased)| self.choose(scores, biased.to_vec())).collect())
    }

    /// `scores [E]` give the weights, `biased [E]` the choice.
    fn choose(&self, scores: &[f32], mut biased: Vec<f32>) -> Choice {
        let mut masked = vec![false; biased.len()];
        let mut margin = f32::INFINITY;
        if self.n_group > 1 {
            let size = biased.len() / self.n_group;
            let best_two = |group: &[f32]| best(group, 2).into_iter().map(|i| group[i]).sum();
            let groups: Vec<f32> = biased.chunks(size).map(best_two).collect();
            let kept = best(&groups, self.topk_group);
            margin = lead(&groups, &kept, &vec![false; groups.len()]);
            for e in (0..biased.len()).filter(|e| !kept.contains(&(e / size))) {
                biased[e] = 0.0; // so that a masked expert is ahead of one that scores below zero
                masked[e] = true;
            }
        }
        let experts = best(&biased, self.num_experts_per_tok);
        margin = margin.min(lead(&biased, &experts, &masked));
        let mut weights: Vec<f32> = experts.iter().map(|&e| scores[e]).collect();
        if self.norm_topk_prob && weights.len() > 1 {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        weights.iter_mut().for_each(|w| *w *= self.routed_scaling_factor as f32);
        Choice { experts, weights, margin }
    }
}

/// Indices of the `n` largest values, largest first, the lower index first among equals.
fn best(values: &[f32], n: usize) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(n);
    while chosen.len() < n.min(values.len()) {
        let left = (0..values.len()).filter(|i| !chosen.contains(i));
        let next = left.reduce(|best, i| if values[i] > values[best] { i } else { best });
        chosen.extend(next);
    }
    chosen
}

/// By how much every chosen value is at least ahead of every other one. Two that are masked tie by design: the lower
/// index wins, whatever the rounding.
fn lead(values: &[f32], chosen: &[usize], masked: &[bool]) -> f32 {
    let others = (0..values.len()).filter(|i| !chosen.contains(i));
    let ahead = |other: usize| {
        let rivals = chosen.iter().filter(move |&&c| !(masked[c] && masked[other]));
        rivals.map(move |&c| values[c] - values[other])
    };
    others.flat_map(ahead).fold(f32::INFINITY, f32::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_prefers_the_lower_index() {
        assert_eq!(best(&[1.0, 3.0, 3.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(best(&[1.0, f32::NAN], 5).len(), 2);
    }

    #[test]
    fn lead_is_the_smallest_gap_but_for_masked_ties() {
        assert_eq!(lead(&[5.0, 1.0, 3.0], &[0, 2], &[false; 3]), 2.0);
        assert_eq!(lead(&[0.0, 0.0, -1.0], &[0], &[true, true, false]), 1.0);
        assert_eq!(lead(&[5.0], &[0], &[false]), f32::INFINITY);
    }
}
