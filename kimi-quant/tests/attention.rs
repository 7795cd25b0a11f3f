//! Attention of a prompt's tokens: many at once, each as if it were alone.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::num::NonZeroUsize;

use common::Random;
use kimi_quant::cpu::{Cpu, Isa, Team};
use kimi_quant::{Backend, CacheShape, HeadShape, Norm, Rope, TokenLayout};

/// `(first position, new tokens, pages)` of each sequence.
type Sequences<'a> = &'a [(u32, usize, Vec<u32>)];

fn layout(sequences: Sequences<'_>) -> TokenLayout {
    let mut layout = TokenLayout::new(16);
    sequences.iter().for_each(|(first, count, pages)| layout.push(*first, *count, pages).unwrap());
    layout
}

/// Prompts that begin, end and go on within chunks of 128 positions and segments of 1024.
#[test]
fn tokens_of_prompts_together_and_alone_have_the_same_bits() {
    let mut random = Random(21);
    for heads in [1, 4, 18] {
        let h = HeadShape { heads, nope: 8, rope: 8, value: 8, latent: 40 };
        let (width, pages) = (h.latent + h.rope, 80);
        let pages_of = |from: u32, count: u32| (0..count).map(|i| from + (i ^ 1)).collect::<Vec<_>>();
        let sequences = [(100, 60, pages_of(0, 10)), (0, 3, pages_of(10, 2)), (1000, 40, pages_of(12, 66))];
        let whole: Vec<_> = sequences
            .iter()
            .map(|(first, count, pages)| (0, *first as usize + count, pages.clone()))
            .collect();
        let (all, stored) = (layout(&sequences), layout(&whole));
        let kv = random.f32s(stored.len() * width);
        let q = random.f32s(all.len() * heads * width);
        let norm = Norm { weight: vec![1.0; h.latent], eps: 1e-6 };
        let rope = Rope { inv_freq: vec![0.3, 0.2, 0.1, 0.05], mscale: 1.0 };
        for cpu in Isa::available().into_iter().map(|isa| Cpu::with_isa(isa).unwrap()) {
            let shape = CacheShape { pages, page_tokens: 16, latent: h.latent, rope: h.rope };
            let mut cache = cpu.new_cache(shape).unwrap();
            let kv = cpu.upload(stored.len(), width, &kv).unwrap();
            cpu.store_latent(&mut cache, &kv, &norm, &rope, &stored).unwrap();
            let attend = |layout: &TokenLayout, q: &[f32]| {
                let q = cpu.upload(layout.len(), heads * width, q).unwrap();
                cpu.attend_latent(&q, &cache, h, 0.3, layout).unwrap().data().to_vec()
            };
            let mut alone = Vec::new();
            for (first, count, pages) in &sequences {
                for i in 0..*count {
                    let t = alone.len() / (heads * h.latent);
                    let one = layout(&[(*first + i as u32, 1, pages.clone())]);
                    alone.extend(attend(&one, &q[t * heads * width..][..heads * width]));
                }
            }
            for threads in [1, 2, 5] {
                let team = Team::new(NonZeroUsize::new(threads).unwrap());
                let together = team.install(|| attend(&all, &q));
                assert!(together == alone, "{}, {heads} heads, {threads} threads", cpu.name());
            }
        }
    }
}
