//! The choice of experts: DeepSeek-V3's noaux_tc with sigmoid scores.

use super::tensor::Routing;
use crate::RouterShape;

/// Chooses from the gate's `logits [T, E]`.
pub(crate) fn choose(logits: &[f32], experts: usize, bias: &[f32], shape: RouterShape) -> Routing {
    let tokens = logits.len().checked_div(experts).unwrap_or(0);
    let mut routing = Routing { tokens, chosen: shape.chosen, experts, ids: Vec::new(), weights: Vec::new() };
    for logits in logits.chunks_exact(experts.max(1)) {
        let scores: Vec<f32> = logits.iter().map(|&g| 1.0 / (1.0 + (-g).exp())).collect();
        let ids = choose_ids(&scores, bias, shape);
        routing.weights.extend(weights(&scores, &ids, shape));
        routing.ids.extend(ids.into_iter().map(|id| id as u32));
    }
    routing
}

fn choose_ids(scores: &[f32], bias: &[f32], shape: RouterShape) -> Vec<usize> {
    let mut choice: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    if shape.groups > 1 {
        let size = choice.len() / shape.groups;
        let group_scores: Vec<f32> = choice.chunks_exact(size).map(sum_of_best_two).collect();
        // Not minus infinity: a masked expert beats one whose score plus bias is negative.
        for &group in &best_first(&group_scores)[shape.kept_groups..] {
            choice[group * size..(group + 1) * size].fill(0.0);
        }
    }
    let mut ids = best_first(&choice);
    ids.truncate(shape.chosen);
    ids
}

fn sum_of_best_two(choice: &[f32]) -> f32 {
    best_first(choice).into_iter().take(2).map(|i| choice[i]).sum()
}

/// Indices by falling value, ties by rising index. A NaN has some fixed place.
fn best_first(values: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..values.len()).collect();
    // Adding 0.0 makes -0.0 tie with 0.0.
    ids.sort_by(|&a, &b| (values[b] + 0.0).total_cmp(&(values[a] + 0.0)).then(a.cmp(&b)));
    ids
}

fn weights(scores: &[f32], ids: &[usize], shape: RouterShape) -> Vec<f32> {
    let sum: f32 = ids.iter().map(|&id| scores[id]).sum();
    let divisor = if shape.normalize && shape.chosen > 1 { sum } else { 1.0 };
    ids.iter().map(|&id| scores[id] / divisor * shape.scale).collect()
}

/// One expert's share of a batch: its id, and its (token, choice) pairs as `token * chosen + choice`.
pub(crate) struct ExpertLoad {
    pub(crate) expert: usize,
    pub(crate) pairs: Vec<u32>,
}

/// Groups the batch by expert, lowest id first, so that each chosen expert is read once.
pub(crate) fn loads(routing: &Routing) -> Vec<ExpertLoad> {
    let mut order: Vec<u32> = (0..routing.ids.len() as u32).collect();
    order.sort_by_key(|&pair| (routing.ids[pair as usize], pair));
    order
        .chunk_by(|&a, &b| routing.ids[a as usize] == routing.ids[b as usize])
        .map(|pairs| ExpertLoad { expert: routing.ids[pairs[0] as usize] as usize, pairs: pairs.to_vec() })
        .collect()
}
