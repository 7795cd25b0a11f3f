//! Kernels of every batch that serving can bring, made before the first one: on devices that compile.

use kimi_quant::{Backend, SampleRequest};

use super::{Stage, StageError};
use crate::batch::{Batch, Output, SequenceId, SequenceSlice};
use crate::model::forward_layer;

/// Sizes of batches by which layers are compared: those with the same kernels for all of them are rehearsed once.
const TELLING: [usize; 7] = [1, 2, 9, 33, 65, 200, 512];

/// Contexts that a batch's tokens are rehearsed with, besides none and the longest: each 1.4 times the one before.
const CONTEXT_STEP: f64 = 1.4;

impl<B: Backend> Stage<B> {
    /// Makes the kernels of all batches of up to `max_tokens` tokens, so that no step waits for a compiler. `progress` is
    /// told how many of how many are made. Nothing is computed, and the cache stays as it is.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn make_kernels(
        &mut self,
        max_tokens: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), StageError> {
        let Some(twin) = self.backend.rehearsal() else { return Ok(()) };
        let max_tokens = max_tokens.min(self.cache.tokens()).max(1);
        let inputs = vec![0.0; (max_tokens + 1) * self.config.hidden_size];
        let kinds = self.kinds(&twin, max_tokens, &inputs)?;
        // What is common first: a token, then ever more of them.
        for tokens in 1..=max_tokens {
            for context in self.contexts(tokens) {
                let batch = self.chunk(tokens, context);
                self.rehearse_layers(&twin, &kinds, &batch, &inputs)?;
            }
            self.rehearse_ends(&twin, tokens, &inputs)?;
        }
        Ok(self.backend.make_kernels(&twin, progress)?)
    }

    /// Has a twin of the device ([`Backend::rehearsal`]) note the kernels of one batch, without choices of tokens.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn rehearse(&mut self, twin: &B, batch: &Batch) -> Result<(), StageError> {
        let inputs = vec![0.0; (batch.tokens() + 1) * self.config.hidden_size];
        let layers: Vec<_> = (0..self.layers.len()).collect();
        self.rehearse_layers(twin, &layers, batch, &inputs)?;
        match batch.output_rows().len() {
            0 => Ok(()),
            rows => self.rehearse_ends(twin, rows, &inputs),
        }
    }

    /// The first layer of each kind: those of a kind have the same kernels.
    fn kinds(&mut self, twin: &B, max_tokens: usize, inputs: &[f32]) -> Result<Vec<usize>, StageError> {
        let mut seen: Vec<Vec<u64>> = Vec::new();
        let mut kinds = Vec::new();
        for layer in 0..self.layers.len() {
            let mut traces = Vec::with_capacity(TELLING.len());
            for tokens in TELLING.into_iter().filter(|tokens| *tokens <= max_tokens) {
                let batch = self.chunk(tokens, 0);
                self.rehearse_layers(twin, &[layer], &batch, inputs)?;
                traces.push(twin.rehearsed());
            }
            if !seen.contains(&traces) {
                seen.push(traces);
                kinds.push(layer);
            }
        }
        Ok(kinds)
    }

    /// Tokens before those of a batch: how attention is cut depends on their number. For some batches all contexts are gone
    /// through, for the others the ends are enough.
    fn contexts(&self, tokens: usize) -> Vec<usize> {
        let last = self.cache.tokens().saturating_sub(tokens);
        let mut contexts = vec![0, last / 16, last];
        if tokens.is_power_of_two() {
            let mut context = 8.0;
            while context < last as f64 {
                contexts.push(context as usize);
                context *= CONTEXT_STEP;
            }
        }
        contexts.sort_unstable();
        contexts.dedup();
        contexts
    }

    /// A chunk of a sequence, whose pages may all be one: nothing is written.
    fn chunk(&self, tokens: usize, context: usize) -> Batch {
        let pages = (context + tokens).div_ceil(self.cache.page_tokens.max(1));
        let slice = SequenceSlice {
            id: SequenceId(0),
            start: context as u32,
            tokens: vec![0; tokens],
            pages: vec![0; pages],
            output: Output::None,
        };
        Batch { sequences: vec![slice], ..Batch::default() }
    }

    fn rehearse_layers(
        &mut self,
        twin: &B,
        layers: &[usize],
        batch: &Batch,
        inputs: &[f32],
    ) -> Result<(), StageError> {
        let (tokens, cols) = (batch.tokens(), self.config.hidden_size);
        let layout = batch.layout(self.cache.page_tokens)?;
        let mut x = twin.upload(tokens, cols, &inputs[..tokens * cols])?;
        for &i in layers {
            let (layer, cache) = (&self.layers[i], &mut self.caches[i]);
            let index = self.span.layers.start + i;
            forward_layer(twin, index, layer, &self.geometry, cache, &layout, &mut x, &mut None)?;
        }
        Ok(())
    }

    /// The embedding, and the head with the choice of tokens, for as many rows.
    fn rehearse_ends(&self, twin: &B, rows: usize, inputs: &[f32]) -> Result<(), StageError> {
        let cols = self.config.hidden_size;
        if let Some(table) = &self.embedding {
            twin.embed(table, &vec![0; rows])?;
        }
        let Some(head) = &self.head else { return Ok(()) };
        let wanted: Vec<u32> = (0..rows as u32).collect();
        // All rows of a batch, and as many of a larger one.
        for tokens in [rows, rows + 1] {
            let x = twin.upload(tokens, cols, &inputs[..tokens * cols])?;
            let logits = twin.head(&x, &wanted, &head.norm, &head.lm_head)?;
            if rows == 1 {
                // Tokens are chosen by the same kernels, however many.
                choices()
                    .into_iter()
                    .try_for_each(|choice| twin.start_sample(&logits, &[choice]).map(drop))?;
            }
        }
        Ok(())
    }
}

/// One request of each kind that has kernels of its own: greedy, by temperature, and among some candidates.
fn choices() -> [SampleRequest<'static>; 3] {
    let greedy = SampleRequest::greedy(0);
    let sampled = SampleRequest { temperature: 1.0, ..greedy };
    [greedy, sampled, SampleRequest { top_p: 0.9, ..sampled }]
}
