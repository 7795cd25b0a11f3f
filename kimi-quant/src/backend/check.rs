//! What operands have to be like, for every operation: both backends ask here before they compute or write anything.
//!
//! Sizes of activations are `[tokens, width]`. Sums and products of sizes saturate: a size that overflows is one that
//! nothing has.

use super::{CacheShape, HeadShape, LatentProjections, Rope, RouterShape, Stored};
use crate::{BackendError, PackedMatrix, SampleRequest, TokenLayout};

type Result<T = ()> = std::result::Result<T, BackendError>;
type Size = [usize; 2];

/// What is known of a routing on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoutingSize {
    pub(crate) tokens: usize,
    /// Experts chosen a token.
    pub(crate) chosen: usize,
    /// All expert ids are below this.
    pub(crate) experts: usize,
}

pub(crate) fn upload(rows: usize, cols: usize, values: &[f32]) -> Result {
    BackendError::check("upload", "number of values", values.len(), rows.saturating_mul(cols))
}

/// All are of one shape and format. Returns the first.
pub(crate) fn load_experts(experts: &[PackedMatrix]) -> Result<&PackedMatrix> {
    const OP: &str = "load_experts";
    let Some((first, rest)) = experts.split_first() else {
        return Err(BackendError::Shape { op: OP, what: "number of experts", found: 0, expected: 1 });
    };
    for expert in rest {
        BackendError::check(OP, "rows of an expert", expert.rows(), first.rows())?;
        BackendError::check(OP, "columns of an expert", expert.cols(), first.cols())?;
        if expert.format() != first.format() {
            let (found, expected) = (expert.format(), first.format());
            return Err(BackendError::Device(format!("experts are stored as {expected} and as {found}")));
        }
    }
    Ok(first)
}

pub(crate) fn embed(table: &impl Stored, ids: &[u32]) -> Result {
    let [rows, _] = size(table);
    below("embed", "token id", ids, rows)
}

/// `requests` are places among `count` chosen tokens.
pub(crate) fn embed_chosen(requests: &[u32], count: usize) -> Result {
    below("embed_chosen", "chosen token", requests, count)
}

pub(crate) fn norm_project<M: Stored>(x: Size, norm: usize, projections: &[&M]) -> Result {
    const OP: &str = "norm_project";
    norm_weight(OP, x, norm)?;
    projections.iter().try_for_each(|m| input(OP, "input width", x, *m))
}

/// The part of `latent_query` that writes the cache: `kv` is `[T, kl + rope]`.
pub(crate) fn store_latent(
    op: &'static str,
    kv: Size,
    norm: usize,
    rope: &Rope,
    cache: CacheShape,
    layout: &TokenLayout,
) -> Result {
    cache_layout(op, cache, layout)?;
    BackendError::check(op, "tokens", kv[0], layout.len())?;
    BackendError::check(op, "key width", kv[1], cache.latent.saturating_add(cache.rope))?;
    BackendError::check(op, "norm weight", norm, cache.latent)?;
    rotations(op, rope, cache.rope)
}

/// The part of `latent_query` that makes its result: `q` is `[T, nh * (nope + rope)]`.
pub(crate) fn absorb_query<M: Stored>(
    op: &'static str,
    q: Size,
    projections: &LatentProjections<M>,
    heads: HeadShape,
    rope: &Rope,
    layout: &TokenLayout,
) -> Result {
    head_projections(op, projections, heads)?;
    BackendError::check(op, "tokens", q[0], layout.len())?;
    BackendError::check(op, "query width", q[1], per_head(heads, heads.nope.saturating_add(heads.rope)))?;
    rotations(op, rope, heads.rope)
}

pub(crate) fn latent_query<M: Stored>(
    [q, kv]: [Size; 2],
    norm: usize,
    rope: &Rope,
    cache: CacheShape,
    projections: &LatentProjections<M>,
    heads: HeadShape,
    layout: &TokenLayout,
) -> Result {
    const OP: &str = "latent_query";
    store_latent(OP, kv, norm, rope, cache, layout)?;
    absorb_query(OP, q, projections, heads, rope, layout)?;
    cache_heads(OP, cache, heads)
}

pub(crate) fn attend_latent(q: Size, cache: CacheShape, heads: HeadShape, layout: &TokenLayout) -> Result {
    const OP: &str = "attend_latent";
    cache_layout(OP, cache, layout)?;
    BackendError::check(OP, "tokens", q[0], layout.len())?;
    let width = per_head(heads, heads.latent.saturating_add(heads.rope));
    BackendError::check(OP, "latent query width", q[1], width)?;
    cache_heads(OP, cache, heads)
}

/// `attended` is `[T, nh * kl]`.
pub(crate) fn project_values<M: Stored>(
    attended: Size,
    projections: &LatentProjections<M>,
    heads: HeadShape,
) -> Result {
    const OP: &str = "project_values";
    head_projections(OP, projections, heads)?;
    BackendError::check(OP, "attention width", attended[1], per_head(heads, heads.latent))
}

pub(crate) fn project_add(x: Size, w: &impl Stored, residual: Size) -> Result {
    const OP: &str = "project_add";
    input(OP, "input width", x, w)?;
    BackendError::check(OP, "tokens of the residual", residual[0], x[0])?;
    output(OP, w, residual)
}

pub(crate) fn norm_swiglu<M: Stored>(x: Size, norm: usize, gate: &M, up: &M) -> Result {
    const OP: &str = "norm_swiglu";
    norm_weight(OP, x, norm)?;
    gate_and_up(OP, x, gate, up)
}

pub(crate) fn route(x: Size, norm: usize, gate: &impl Stored, bias: usize, shape: RouterShape) -> Result {
    const OP: &str = "route";
    let [experts, _] = size(gate);
    norm_weight(OP, x, norm)?;
    input(OP, "input width", x, gate)?;
    BackendError::check(OP, "correction bias", bias, experts)?;
    BackendError::check_range(OP, "chosen experts", shape.chosen, experts + 1)?;
    BackendError::check_range(OP, "expert groups", shape.groups, experts + 1)?;
    BackendError::check_range(OP, "kept expert groups", shape.kept_groups, shape.groups + 1)?;
    let even = experts.checked_div(shape.groups).unwrap_or(0) * shape.groups;
    BackendError::check(OP, "experts in whole groups", experts, even)
}

pub(crate) fn experts_swiglu<E: Stored, M: Stored>(
    x: Size,
    routing: RoutingSize,
    gate: &E,
    up: &E,
    shared: Option<(&M, &M)>,
) -> Result {
    const OP: &str = "experts_swiglu";
    BackendError::check(OP, "tokens of the routing", routing.tokens, x[0])?;
    BackendError::check(OP, "experts of up", count(up), count(gate))?;
    expert_ids(OP, routing, gate)?;
    gate_and_up(OP, x, gate, up)?;
    shared.map_or(Ok(()), |(gate, up)| gate_and_up(OP, x, gate, up))
}

/// `routed` and `shared` are the experts' activations.
pub(crate) fn experts_down_add<E: Stored, M: Stored>(
    (routed, shared): (Size, Option<Size>),
    routing: RoutingSize,
    down: &E,
    shared_down: Option<&M>,
    residual: Size,
) -> Result {
    const OP: &str = "experts_down_add";
    expert_ids(OP, routing, down)?;
    BackendError::check(OP, "tokens of the residual", residual[0], routing.tokens)?;
    let pairs = routing.tokens.saturating_mul(routing.chosen);
    BackendError::check(OP, "expert activations", routed[0], pairs)?;
    BackendError::check(OP, "shared experts", shared_down.is_some().into(), shared.is_some().into())?;
    input(OP, "input width", routed, down)?;
    output(OP, down, residual)?;
    let Some((down, shared)) = shared_down.zip(shared) else { return Ok(()) };
    input(OP, "input width of the shared expert", shared, down)?;
    output(OP, down, residual)?;
    BackendError::check(OP, "shared expert activations", shared[0], routing.tokens)
}

pub(crate) fn head(x: Size, rows: &[u32], norm: usize, lm_head: &impl Stored) -> Result {
    const OP: &str = "head";
    input(OP, "input width", x, lm_head)?;
    norm_weight(OP, x, norm)?;
    below(OP, "row", rows, x[0])
}

pub(crate) fn sample(logits: Size, requests: &[SampleRequest<'_>]) -> Result {
    requests.iter().try_for_each(|r| BackendError::check_range("sample", "row", r.row as usize, logits[0]))
}

/// The layout's pages are pages of the cache.
pub(crate) fn cache_layout(op: &'static str, cache: CacheShape, layout: &TokenLayout) -> Result {
    BackendError::check(op, "tokens a page", layout.page_tokens(), cache.page_tokens)?;
    layout.check_pages(cache.pages)
}

/// A page of these caches, and its bytes.
pub(crate) fn page(
    op: &'static str,
    caches: impl Iterator<Item = CacheShape>,
    page: u32,
    bytes: Option<usize>,
) -> Result {
    let mut expected = 0_usize;
    for shape in caches {
        BackendError::check_range(op, "page", page as usize, shape.pages)?;
        expected = expected.saturating_add(shape.page_bytes());
    }
    bytes.map_or(Ok(()), |found| BackendError::check(op, "bytes of a page", found, expected))
}

fn cache_heads(op: &'static str, cache: CacheShape, heads: HeadShape) -> Result {
    BackendError::check(op, "cached latent width", cache.latent, heads.latent)?;
    BackendError::check(op, "cached key width", cache.rope, heads.rope)
}

fn head_projections<M: Stored>(
    op: &'static str,
    projections: &LatentProjections<M>,
    heads: HeadShape,
) -> Result {
    let matrix = |what, m: &M, per: usize, cols: usize| {
        let [found_rows, found_cols] = size(m);
        BackendError::check(op, what, found_rows, per_head(heads, per))?;
        BackendError::check(op, what, found_cols, cols)
    };
    match projections {
        LatentProjections::Joint(kv_b) => {
            matrix("kv_b_proj", kv_b, heads.nope.saturating_add(heads.value), heads.latent)
        }
        LatentProjections::Split { embed_q, unembed_out } => {
            matrix("embed_q", embed_q, heads.latent, heads.nope)?;
            matrix("unembed_out", unembed_out, heads.value, heads.latent)
        }
    }
}

/// Both matrices, or both stacks of experts, read `x` and have as many outputs.
fn gate_and_up<M: Stored>(op: &'static str, x: Size, gate: &M, up: &M) -> Result {
    input(op, "input width of gate", x, gate)?;
    input(op, "input width of up", x, up)?;
    BackendError::check(op, "outputs of up", size(up)[0], size(gate)[0])
}

fn expert_ids(op: &'static str, routing: RoutingSize, experts: &impl Stored) -> Result {
    let largest = if routing.tokens * routing.chosen > 0 { routing.experts.saturating_sub(1) } else { 0 };
    BackendError::check_range(op, "expert id", largest, count(experts))
}

fn norm_weight(op: &'static str, x: Size, weight: usize) -> Result {
    BackendError::check(op, "norm weight", weight, x[1])
}

fn rotations(op: &'static str, rope: &Rope, width: usize) -> Result {
    BackendError::check(op, "rotated width", 2 * rope.inv_freq.len(), width)
}

fn input(op: &'static str, what: &'static str, x: Size, m: &impl Stored) -> Result {
    BackendError::check(op, what, x[1], size(m)[1])
}

fn output(op: &'static str, m: &impl Stored, residual: Size) -> Result {
    BackendError::check(op, "width of the residual", residual[1], size(m)[0])
}

fn below(op: &'static str, what: &'static str, all: &[u32], limit: usize) -> Result {
    all.iter().try_for_each(|&n| BackendError::check_range(op, what, n as usize, limit))
}

/// Rows and columns of a matrix, or of each expert.
fn size(m: &impl Stored) -> Size {
    let [_, rows, cols] = m.shape();
    [rows, cols]
}

fn count(experts: &impl Stored) -> usize {
    experts.shape()[0]
}

fn per_head(heads: HeadShape, width: usize) -> usize {
    heads.heads.saturating_mul(width)
}
