//! What only measurements and a first start need.

use std::sync::Arc;

use kimi_quant::{AttentionInputs, Backend};

use super::local::floats_to_bytes;
use super::{CacheConfig, Hidden, Stage, StageError};
use crate::batch::{Batch, Output, PageId, Sampling, SequenceId, SequenceSlice};
use crate::model::Geometry;

impl<B: Backend> Stage<B> {
    /// Computes a token and a short prompt whose results nobody sees, so that what a device does once (it compiles its
    /// kernels and brings the weights into reach) does not delay the first request. Before any request: it writes to the
    /// cache's first pages.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn warm_up(&mut self) -> Result<(), StageError> {
        const PROMPT: usize = 128;
        self.backend.nudge()?;
        let CacheConfig { pages, page_tokens } = self.cache;
        for tokens in [1, PROMPT.min(pages.saturating_mul(page_tokens))] {
            self.compute_anything(tokens)?;
        }
        Ok(())
    }

    /// Computes a prompt of so many tokens, no matter which.
    pub(super) fn compute_anything(&mut self, tokens: usize) -> Result<(), StageError> {
        let sampling = Sampling {
            params: Arc::default(),
            counts: Arc::default(),
            uniform: 0.0,
            top_logprobs: 0,
            allowed: None,
        };
        let sequence = SequenceSlice {
            id: SequenceId(0),
            start: 0,
            tokens: vec![0; tokens],
            pages: (0..tokens.div_ceil(self.cache.page_tokens.max(1)) as PageId).collect(),
            output: Output::Sample(vec![sampling]),
        };
        let cols = self.config.hidden_size;
        let zeros = || Hidden { rows: tokens, cols, data: floats_to_bytes(vec![0.0; tokens * cols]) };
        let input = (!self.span.first).then(zeros);
        let batch = Batch { sequences: vec![sequence], ..Batch::default() };
        self.forward(&batch, input, None).map(drop)
    }

    /// Fills the cache of the batch's tokens with arbitrary latents, without computing the layers: for measurements of
    /// long contexts.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn fill_cache(&mut self, batch: &Batch) -> Result<(), StageError> {
        let layout = batch.layout(self.cache.page_tokens)?;
        let Geometry { heads, rope, .. } = &self.geometry;
        let random = |count: usize| -> Vec<f32> {
            // Steps through a turn of a circle that never meet: as good as random here.
            (0..count).map(|i| (i as f32 * 2.399_963).sin()).collect()
        };
        let (q_width, kv_width) = (heads.heads * (heads.nope + heads.rope), heads.latent + heads.rope);
        let q = self.backend.upload(layout.len(), q_width, &vec![0.0; layout.len() * q_width])?;
        let kv = self.backend.upload(layout.len(), kv_width, &random(layout.len() * kv_width))?;
        for (layer, cache) in self.layers.iter().zip(&mut self.caches) {
            let attention = &layer.attention;
            let inputs = AttentionInputs { q: &q, kv: &kv, norm: &attention.kv_a_norm, rope };
            self.backend.latent_query(inputs, cache, &attention.latent, *heads, &layout)?;
        }
        Ok(())
    }
}
