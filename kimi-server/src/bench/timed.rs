//! A backend that notes every call: what it computes, the bytes of the weights it reads, and where it began and ended.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use kimi_quant::{
    AttentionInputs, Backend, BackendError, CacheShape, ExpertHidden, HeadShape, LatentProjections, Norm,
    PackedMatrix, Router, SampleError, SampleRequest, Sampled, Stored, TokenLayout,
};

use super::device::Measured;

type Result<T> = std::result::Result<T, BackendError>;

/// One call of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The operation.
    pub operation: &'static str,
    /// The shapes of its weights; empty without weights.
    pub shapes: String,
    /// Stored bytes of the weights that it reads; of experts, only where calls are looked at.
    pub weight_bytes: u64,
    /// Experts chosen by at least one token, likewise.
    pub experts: Option<usize>,
    /// Marks of the device before and after ([`Measured::mark`]).
    pub marks: [u64; 2],
}

/// What is noted of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Notes {
    /// Nothing.
    Nothing,
    /// Marks.
    Marks,
    /// The experts chosen too, for which the device is waited for.
    Experts,
}

/// Passes every call on to another backend.
#[derive(Debug)]
pub struct Timed<B> {
    inner: B,
    notes: AtomicU8,
    calls: Mutex<Vec<Call>>,
}

impl<B: Measured> Timed<B> {
    /// Notes nothing at first.
    pub fn new(inner: B) -> Self {
        Self { inner, notes: AtomicU8::new(Notes::Nothing as u8), calls: Mutex::default() }
    }

    /// The backend that computes.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Starts with an empty list.
    pub fn begin(&self, notes: Notes) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.notes.store(notes as u8, Ordering::Relaxed);
    }

    /// The calls since [`Self::begin`]; nothing is noted from now on.
    pub fn end(&self) -> Vec<Call> {
        self.notes.store(Notes::Nothing as u8, Ordering::Relaxed);
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn looks(&self) -> bool {
        self.notes.load(Ordering::Relaxed) == Notes::Experts as u8
    }

    /// Distinct experts of a routing; 0 where they are not looked at.
    fn distinct(&self, routing: &B::Routing) -> Result<usize> {
        if !self.looks() {
            return Ok(0);
        }
        let (ids, _) = self.inner.download_routing(routing)?;
        Ok(ids.into_iter().collect::<HashSet<_>>().len())
    }

    fn call<R>(
        &self,
        operation: &'static str,
        weights: &[&dyn Stored],
        read: impl FnOnce() -> (u64, Option<usize>),
        run: impl FnOnce(&B) -> Result<R>,
    ) -> Result<R> {
        if self.notes.load(Ordering::Relaxed) == Notes::Nothing as u8 {
            return run(&self.inner);
        }
        let before = self.inner.mark();
        let result = run(&self.inner)?;
        let marks = [before, self.inner.mark()];
        let (weight_bytes, experts) = read();
        let call = Call { operation, shapes: shapes(weights), weight_bytes, experts, marks };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        Ok(result)
    }

    /// A call that reads all of its weights.
    fn dense<R>(
        &self,
        operation: &'static str,
        weights: &[&dyn Stored],
        run: impl FnOnce(&B) -> Result<R>,
    ) -> Result<R> {
        self.call(operation, weights, || (weights.iter().map(|w| w.stored_bytes()).sum(), None), run)
    }
}

/// `8x2048x7168+2048x7168`.
fn shapes(weights: &[&dyn Stored]) -> String {
    let shape = |w: &&dyn Stored| match w.shape() {
        [1, rows, cols] => format!("{rows}x{cols}"),
        [count, rows, cols] => format!("{count}x{rows}x{cols}"),
    };
    weights.iter().map(shape).collect::<Vec<_>>().join("+")
}

/// Bytes of `W_UK` and of `W_UV`.
fn latent_bytes<M: Stored>(projections: &LatentProjections<M>, heads: HeadShape) -> [u64; 2] {
    match projections {
        LatentProjections::Joint(both) => {
            let row = both.stored_bytes() / (heads.nope + heads.value).max(1) as u64;
            [row * heads.nope as u64, row * heads.value as u64]
        }
        LatentProjections::Split { embed_q, unembed_out } => {
            [embed_q.stored_bytes(), unembed_out.stored_bytes()]
        }
    }
}

fn latent_parts<M: Stored>(projections: &LatentProjections<M>) -> [&dyn Stored; 2] {
    match projections {
        LatentProjections::Joint(both) => [both, both],
        LatentProjections::Split { embed_q, unembed_out } => [embed_q, unembed_out],
    }
}

/// Bytes of a row.
fn row_bytes(table: &dyn Stored) -> u64 {
    let [_, rows, _] = table.shape();
    table.stored_bytes() / rows.max(1) as u64
}

/// Bytes of `experts` of a stack.
fn chosen_bytes(stack: &dyn Stored, experts: usize) -> u64 {
    stack.stored_bytes() / stack.shape()[0].max(1) as u64 * experts as u64
}

impl<B: Measured> Backend for Timed<B> {
    type Matrix = B::Matrix;
    type Experts = B::Experts;
    type Vector = B::Vector;
    type Tensor = B::Tensor;
    type Normed = B::Normed;
    type Hidden = B::Hidden;
    type Routing = B::Routing;
    type Cache = B::Cache;
    type Attended = B::Attended;
    type Chosen = B::Chosen;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn memory(&self) -> Option<u64> {
        self.inner.memory()
    }

    fn copies_weights(&self) -> bool {
        self.inner.copies_weights()
    }

    fn queues(&self) -> bool {
        self.inner.queues()
    }

    fn enter<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        self.inner.enter(step)
    }

    fn nudge(&self) -> Result<()> {
        self.inner.nudge()
    }

    fn load_matrix(&self, matrix: PackedMatrix) -> Result<B::Matrix> {
        self.inner.load_matrix(matrix)
    }

    fn load_experts(&self, experts: Vec<PackedMatrix>) -> Result<B::Experts> {
        self.inner.load_experts(experts)
    }

    fn load_vector(&self, values: Vec<f32>) -> Result<B::Vector> {
        self.inner.load_vector(values)
    }

    fn new_cache(&self, shape: CacheShape) -> Result<B::Cache> {
        self.inner.new_cache(shape)
    }

    fn cache_form(&self, cache: &B::Cache) -> String {
        self.inner.cache_form(cache)
    }

    fn read_page(&self, caches: &[B::Cache], page: u32) -> Result<Vec<u8>> {
        self.inner.read_page(caches, page)
    }

    fn write_page(&self, caches: &mut [B::Cache], page: u32, bytes: &[u8]) -> Result<()> {
        self.inner.write_page(caches, page, bytes)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<B::Tensor> {
        self.inner.upload(rows, cols, values)
    }

    fn wait_for(&self, tensor: &B::Tensor) -> Result<()> {
        self.inner.wait_for(tensor)
    }

    fn download(&self, tensor: &B::Tensor) -> Result<Vec<f32>> {
        self.inner.download(tensor)
    }

    fn normalized(&self, x: &B::Normed) -> Result<B::Tensor> {
        self.inner.normalized(x)
    }

    fn expert_activations(&self, hidden: &B::Hidden) -> Result<ExpertHidden<B::Tensor>> {
        self.inner.expert_activations(hidden)
    }

    fn download_routing(&self, routing: &B::Routing) -> Result<(Vec<u32>, Vec<f32>)> {
        self.inner.download_routing(routing)
    }

    fn download_cache(&self, cache: &B::Cache, layout: &TokenLayout) -> Result<Vec<f32>> {
        self.inner.download_cache(cache, layout)
    }

    fn embed(&self, table: &B::Matrix, ids: &[u32]) -> Result<B::Tensor> {
        let read = || (row_bytes(table) * ids.len() as u64, None);
        self.call("embed", &[table], read, |b| b.embed(table, ids))
    }

    fn embed_chosen(&self, table: &B::Matrix, chosen: &B::Chosen, requests: &[u32]) -> Result<B::Tensor> {
        let read = || (row_bytes(table) * requests.len() as u64, None);
        self.call("embed", &[table], read, |b| b.embed_chosen(table, chosen, requests))
    }

    fn norm_project<const N: usize>(
        &self,
        x: &B::Tensor,
        norm: &Norm<B::Vector>,
        projections: [&B::Matrix; N],
    ) -> Result<[B::Tensor; N]> {
        let weights = projections.map(|m| m as &dyn Stored);
        self.dense("norm_project", &weights, |b| b.norm_project(x, norm, projections))
    }

    fn latent_query(
        &self,
        inputs: AttentionInputs<'_, Self>,
        cache: &mut B::Cache,
        projections: &LatentProjections<B::Matrix>,
        heads: HeadShape,
        layout: &TokenLayout,
    ) -> Result<B::Tensor> {
        let AttentionInputs { q, kv, norm, rope } = inputs;
        let read = || (latent_bytes(projections, heads)[0], None);
        self.call("latent_query", &latent_parts(projections)[..1], read, |b| {
            b.latent_query(AttentionInputs { q, kv, norm, rope }, cache, projections, heads, layout)
        })
    }

    fn attend_latent(
        &self,
        q: &B::Tensor,
        cache: &B::Cache,
        heads: HeadShape,
        scale: f32,
        layout: &TokenLayout,
    ) -> Result<B::Attended> {
        self.dense("attend_latent", &[], |b| b.attend_latent(q, cache, heads, scale, layout))
    }

    fn project_values(
        &self,
        attended: &B::Attended,
        projections: &LatentProjections<B::Matrix>,
        heads: HeadShape,
    ) -> Result<B::Tensor> {
        let read = || (latent_bytes(projections, heads)[1], None);
        let run = |b: &B| b.project_values(attended, projections, heads);
        self.call("project_values", &latent_parts(projections)[1..], read, run)
    }

    fn project_add(&self, x: &B::Tensor, w: &B::Matrix, residual: &mut B::Tensor) -> Result<()> {
        self.dense("project_add", &[w], |b| b.project_add(x, w, residual))
    }

    fn norm_swiglu(
        &self,
        x: &B::Tensor,
        norm: &Norm<B::Vector>,
        gate: &B::Matrix,
        up: &B::Matrix,
    ) -> Result<B::Tensor> {
        self.dense("norm_swiglu", &[gate, up], |b| b.norm_swiglu(x, norm, gate, up))
    }

    fn route(
        &self,
        x: &B::Tensor,
        norm: &Norm<B::Vector>,
        router: &Router<B::Matrix, B::Vector>,
    ) -> Result<(B::Normed, B::Routing)> {
        self.dense("route", &[&router.gate], |b| b.route(x, norm, router))
    }

    fn experts_swiglu(
        &self,
        x: &B::Normed,
        routing: &B::Routing,
        gate: &B::Experts,
        up: &B::Experts,
        shared: Option<(&B::Matrix, &B::Matrix)>,
    ) -> Result<B::Hidden> {
        let experts = self.distinct(routing)?;
        let mut weights: Vec<&dyn Stored> = vec![gate, up];
        weights.extend(shared.iter().flat_map(|(g, u)| [*g as &dyn Stored, *u]));
        let read = || {
            let shared: u64 = weights.iter().skip(2).map(|w| w.stored_bytes()).sum();
            (chosen_bytes(gate, experts) + chosen_bytes(up, experts) + shared, Some(experts))
        };
        let run = |b: &B| b.experts_swiglu(x, routing, gate, up, shared);
        self.call("experts_swiglu", &weights, read, run)
    }

    fn experts_down_add(
        &self,
        hidden: &B::Hidden,
        routing: &B::Routing,
        down: &B::Experts,
        shared: Option<&B::Matrix>,
        residual: &mut B::Tensor,
    ) -> Result<()> {
        let experts = self.distinct(routing)?;
        let mut weights: Vec<&dyn Stored> = vec![down];
        weights.extend(shared.map(|m| m as &dyn Stored));
        let read = || {
            let shared = shared.map_or(0, Stored::stored_bytes);
            (chosen_bytes(down, experts) + shared, Some(experts))
        };
        let run = |b: &B| b.experts_down_add(hidden, routing, down, shared, residual);
        self.call("experts_down_add", &weights, read, run)
    }

    fn head(
        &self,
        x: &B::Tensor,
        rows: &[u32],
        norm: &Norm<B::Vector>,
        lm_head: &B::Matrix,
    ) -> Result<B::Tensor> {
        self.dense("head", &[lm_head], |b| b.head(x, rows, norm, lm_head))
    }

    fn start_sample(&self, logits: &B::Tensor, requests: &[SampleRequest<'_>]) -> Result<B::Chosen> {
        self.dense("sample", &[], |b| b.start_sample(logits, requests))
    }

    fn finish_sample(&self, chosen: &B::Chosen) -> Result<Vec<std::result::Result<Sampled, SampleError>>> {
        self.inner.finish_sample(chosen)
    }
}
