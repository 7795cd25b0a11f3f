//! The latent cache and causal attention over it.

use rayon::prelude::*;

use super::{Cache, Tensor, norm, rope};
use crate::{HeadShape, Norm, Rope, TokenLayout};

/// Stores each token's normalised latent and rotated key; operands are checked.
pub(crate) fn store_latent(
    cache: &mut Cache,
    kv: &Tensor,
    norm: &Norm<Vec<f32>>,
    rope: &Rope,
    layout: &TokenLayout,
) {
    let latent = cache.shape().latent;
    for (t, &position) in layout.positions().iter().enumerate() {
        let (page, offset) = layout.slot(t, position as usize);
        let (c, k_pe) = cache.slot_mut(page, offset).split_at_mut(latent);
        norm::rms_norm_row(&kv.row(t)[..latent], &norm.weight, norm.eps, c);
        k_pe.copy_from_slice(&kv.row(t)[latent..]);
        rope::rotate(k_pe, rope, position);
    }
}

/// `softmax(scale * q . [c | k_pe]) @ c` for every token and head: `[T, nh * kl]`; operands are checked.
pub(crate) fn attend(
    q: &Tensor,
    cache: &Cache,
    heads: HeadShape,
    scale: f32,
    layout: &TokenLayout,
) -> Tensor {
    let width = heads.latent + heads.rope;
    let mut out = vec![0.0; q.rows() * heads.heads * heads.latent];
    out.par_chunks_mut(heads.latent.max(1)).enumerate().for_each(|(i, out)| {
        let (t, h) = (i / heads.heads, i % heads.heads);
        attend_head(&q.row(t)[h * width..(h + 1) * width], t, cache, scale, layout, out);
    });
    Tensor::from_parts(q.rows(), heads.heads * heads.latent, out)
}

fn attend_head(q: &[f32], t: usize, cache: &Cache, scale: f32, layout: &TokenLayout, out: &mut [f32]) {
    let slot = |position| {
        let (page, offset) = layout.slot(t, position);
        cache.slot(page, offset)
    };
    let end = layout.positions()[t] as usize + 1;
    let mut scores: Vec<f32> =
        (0..end).map(|p| scale * q.iter().zip(slot(p)).map(|(a, b)| a * b).sum::<f32>()).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let total: f32 = scores.iter().sum();
    for (p, s) in scores.into_iter().enumerate() {
        let weight = s / total;
        out.iter_mut().zip(slot(p)).for_each(|(o, c)| *o += weight * c);
    }
}
