//! Both backends refuse the same wrong operands with the same errors, before they write anything.
//!
//! Without an adapter only the CPU's are looked at, unless `KIMI_REQUIRE_GPU` is set.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[cfg(feature = "gpu")]
mod common;

use bytes::Bytes;
use kimi_quant::{
    AttentionInputs, Backend, BackendError, CacheShape, Cpu, ExpertHidden, FloatType, Format, HeadShape,
    LatentProjections, Norm, PackedMatrix, Rope, Router, RouterShape, SampleRequest, TokenLayout,
};

const H: usize = 64; // hidden size
const F: usize = 32; // an expert's width
const EXPERTS: usize = 5;
const ROUTER: RouterShape = RouterShape { chosen: 2, groups: 1, kept_groups: 1, normalize: true, scale: 1.0 };
const HEADS: HeadShape = HeadShape { heads: 2, nope: 8, rope: 4, value: 6, latent: 16 };
const CACHE: CacheShape = CacheShape { pages: 2, page_tokens: 4, latent: 16, rope: 4 };

type Refusals = Vec<(&'static str, Option<BackendError>)>;

/// Makes operands of any shape.
struct Maker<'a, B>(&'a B);

impl<B: Backend> Maker<'_, B> {
    fn packed(rows: usize, cols: usize) -> PackedMatrix {
        let zeros = vec![0; 4 * rows * cols].into();
        PackedMatrix::new(rows, cols, Format::Float(FloatType::F32), zeros, Bytes::new(), Bytes::new())
            .unwrap()
    }

    fn matrix(&self, rows: usize, cols: usize) -> B::Matrix {
        self.0.load_matrix(Self::packed(rows, cols)).unwrap()
    }

    fn experts(&self, count: usize, rows: usize, cols: usize) -> B::Experts {
        self.0.load_experts(vec![Self::packed(rows, cols); count]).unwrap()
    }

    fn tensor(&self, rows: usize, cols: usize) -> B::Tensor {
        self.0.upload(rows, cols, &vec![1.0; rows * cols]).unwrap()
    }

    fn vector(&self, len: usize) -> B::Vector {
        self.0.load_vector(vec![1.0; len]).unwrap()
    }

    fn norm(&self, len: usize) -> Norm<B::Vector> {
        Norm { weight: self.vector(len), eps: 1e-6 }
    }

    fn router(
        &self,
        experts: usize,
        width: usize,
        bias: usize,
        shape: RouterShape,
    ) -> Router<B::Matrix, B::Vector> {
        Router { gate: self.matrix(experts, width), bias: self.vector(bias), shape }
    }

    fn joint(&self, heads: HeadShape) -> LatentProjections<B::Matrix> {
        LatentProjections::Joint(self.matrix(heads.heads * (heads.nope + heads.value), heads.latent))
    }

    fn hidden(&self, routed: [usize; 2], shared: Option<[usize; 2]>) -> B::Hidden {
        let [routed, shared] = [Some(routed), shared].map(|size| size.map(|[r, c]| self.tensor(r, c)));
        ExpertHidden { routed: routed.unwrap(), shared }.into()
    }
}

fn layout(positions: std::ops::Range<u32>, pages: &[u32], page_tokens: usize) -> TokenLayout {
    let mut layout = TokenLayout::new(page_tokens);
    layout.push(positions.start, positions.len(), pages).unwrap();
    layout
}

fn rope(pairs: usize) -> Rope {
    Rope { inv_freq: vec![1.0; pairs], mscale: 1.0 }
}

/// Loading, embedding, dense products and sampling.
fn dense<B: Backend>(b: &B) -> Refusals {
    let m = Maker(b);
    let (x, norm, w) = (m.tensor(2, H), m.norm(H), m.matrix(F, H));
    let logits = m.tensor(2, 10);
    let chosen = b.start_sample(&logits, &[SampleRequest::greedy(0)]).unwrap();
    vec![
        ("upload", b.upload(2, 3, &[0.0; 5]).err()),
        ("upload of a size that overflows", b.upload(usize::MAX, 2, &[0.0; 5]).err()),
        ("no experts", b.load_experts(Vec::new()).err()),
        (
            "experts of two shapes",
            b.load_experts(vec![Maker::<B>::packed(4, 8), Maker::<B>::packed(8, 4)]).err(),
        ),
        ("embed", b.embed(&w, &[0, F as u32]).err()),
        ("embed_chosen", b.embed_chosen(&w, &chosen, &[0, 1]).err()),
        ("norm_project: width", b.norm_project(&x, &norm, [&w, &m.matrix(F, H + 1)]).err()),
        ("norm_project: norm", b.norm_project(&x, &m.norm(H - 1), [&w]).err()),
        ("project_add: width", b.project_add(&m.tensor(2, F), &w, &mut m.tensor(2, F)).err()),
        ("project_add: tokens", b.project_add(&x, &w, &mut m.tensor(1, F)).err()),
        ("project_add: residual", b.project_add(&x, &w, &mut m.tensor(2, H)).err()),
        ("norm_swiglu: norm", b.norm_swiglu(&x, &m.norm(1), &w, &w).err()),
        ("norm_swiglu: gate", b.norm_swiglu(&x, &norm, &m.matrix(F, F), &w).err()),
        ("norm_swiglu: up", b.norm_swiglu(&x, &norm, &w, &m.matrix(F, F)).err()),
        ("norm_swiglu: outputs", b.norm_swiglu(&x, &norm, &w, &m.matrix(F + 1, H)).err()),
        ("head: row", b.head(&x, &[1, 2], &norm, &w).err()),
        ("head: width", b.head(&x, &[0], &norm, &m.matrix(F, F)).err()),
        ("head: norm", b.head(&x, &[0], &m.norm(F), &w).err()),
        ("sample", b.start_sample(&logits, &[SampleRequest::greedy(2)]).err()),
    ]
}

/// The router and the experts.
fn experts<B: Backend>(b: &B) -> Refusals {
    let m = Maker(b);
    let (x, norm) = (m.tensor(2, H), m.norm(H));
    let (up, down) = (m.experts(EXPERTS, F, H), m.experts(EXPERTS, H, F));
    let (shared, shared_down) = (m.matrix(F, H), m.matrix(H, F));
    let route = |router| b.route(&x, &norm, &router).err();
    let shape = |shape| route(m.router(EXPERTS, H, EXPERTS, shape));
    let (normed, routing) = b.route(&x, &norm, &m.router(EXPERTS, H, EXPERTS, ROUTER)).unwrap();
    let swiglu = |x: &B::Normed, gate, up, shared| b.experts_swiglu(x, &routing, gate, up, shared).err();
    let both = Some([2, F]);
    let add = |hidden: B::Hidden, down, shared, residual: &mut B::Tensor| {
        b.experts_down_add(&hidden, &routing, down, shared, residual).err()
    };
    let mut residual = m.tensor(2, H);
    vec![
        ("route: norm", b.route(&x, &m.norm(F), &m.router(EXPERTS, H, EXPERTS, ROUTER)).err()),
        ("route: width", route(m.router(EXPERTS, F, EXPERTS, ROUTER))),
        ("route: bias", route(m.router(EXPERTS, H, 4, ROUTER))),
        ("route: chosen", shape(RouterShape { chosen: 6, ..ROUTER })),
        ("route: groups", shape(RouterShape { groups: 6, ..ROUTER })),
        ("route: no groups", shape(RouterShape { groups: 0, kept_groups: 0, ..ROUTER })),
        ("route: kept groups", shape(RouterShape { kept_groups: 2, ..ROUTER })),
        ("route: uneven groups", shape(RouterShape { groups: 2, ..ROUTER })),
        ("experts_swiglu: tokens", swiglu(&m.tensor(1, H).into(), &up, &up, None)),
        ("experts_swiglu: gate", swiglu(&normed, &down, &up, None)),
        ("experts_swiglu: up", swiglu(&normed, &up, &m.experts(EXPERTS, F, F), None)),
        ("experts_swiglu: outputs", swiglu(&normed, &up, &m.experts(EXPERTS, H, H), None)),
        ("experts_swiglu: count", swiglu(&normed, &up, &m.experts(4, F, H), None)),
        ("experts_swiglu: ids", swiglu(&normed, &m.experts(4, F, H), &m.experts(4, F, H), None)),
        ("experts_swiglu: shared", swiglu(&normed, &up, &up, Some((&shared, &shared_down)))),
        ("experts_down_add: ids", add(m.hidden([4, F], None), &m.experts(4, H, F), None, &mut residual)),
        ("experts_down_add: tokens", add(m.hidden([4, F], None), &down, None, &mut m.tensor(1, H))),
        ("experts_down_add: pairs", add(m.hidden([3, F], None), &down, None, &mut residual)),
        ("experts_down_add: width", add(m.hidden([4, H], None), &down, None, &mut residual)),
        ("experts_down_add: residual", add(m.hidden([4, F], None), &down, None, &mut m.tensor(2, F))),
        (
            "experts_down_add: no shared",
            add(m.hidden([4, F], None), &down, Some(&shared_down), &mut residual),
        ),
        ("experts_down_add: shared only", add(m.hidden([4, F], both), &down, None, &mut residual)),
        ("experts_down_add: shared width", add(m.hidden([4, F], both), &down, Some(&shared), &mut residual)),
        (
            "experts_down_add: shared outputs",
            add(m.hidden([4, F], both), &down, Some(&m.matrix(F, F)), &mut residual),
        ),
        (
            "experts_down_add: shared tokens",
            add(m.hidden([4, F], Some([1, F])), &down, Some(&shared_down), &mut residual),
        ),
    ]
}

/// Attention and its cache.
fn attention<B: Backend>(b: &B) -> Refusals {
    let m = Maker(b);
    let (width, per_head) = (HEADS.latent + HEADS.rope, HEADS.nope + HEADS.rope);
    let (q, kv, norm) = (m.tensor(2, HEADS.heads * per_head), m.tensor(2, width), m.norm(HEADS.latent));
    let (good, positions) = (m.joint(HEADS), layout(0..2, &[1], 4));
    let mut cache = b.new_cache(CACHE).unwrap();
    let mut refusals = Vec::new();
    {
        let mut query = |what,
                         q: &B::Tensor,
                         kv: &B::Tensor,
                         norm: &Norm<B::Vector>,
                         rope: &Rope,
                         projections: &LatentProjections<B::Matrix>,
                         heads,
                         layout: &TokenLayout| {
            let inputs = AttentionInputs { q, kv, norm, rope };
            let error = b.latent_query(inputs, &mut cache, projections, heads, layout).err();
            refusals.push((what, error));
        };
        let (turn, p) = (rope(2), &positions);
        query("latent_query: page", &q, &kv, &norm, &turn, &good, HEADS, &layout(0..2, &[2], 4));
        query("latent_query: page size", &q, &kv, &norm, &turn, &good, HEADS, &layout(0..2, &[1], 8));
        query("latent_query: tokens", &q, &kv, &norm, &turn, &good, HEADS, &layout(0..3, &[1], 4));
        query("latent_query: tokens of q", &m.tensor(1, 24), &kv, &norm, &turn, &good, HEADS, p);
        query("latent_query: width of q", &m.tensor(2, 23), &kv, &norm, &turn, &good, HEADS, p);
        query("latent_query: tokens of kv", &q, &m.tensor(1, width), &norm, &turn, &good, HEADS, p);
        query("latent_query: width of kv", &q, &m.tensor(2, 3), &norm, &turn, &good, HEADS, p);
        query("latent_query: norm", &q, &kv, &m.norm(width), &turn, &good, HEADS, p);
        query("latent_query: rope", &q, &kv, &norm, &rope(3), &good, HEADS, p);
        query(
            "latent_query: kv_b_proj",
            &q,
            &kv,
            &norm,
            &turn,
            &LatentProjections::Joint(m.matrix(4, 16)),
            HEADS,
            p,
        );
        let split = |a: [usize; 2], b: [usize; 2]| LatentProjections::Split {
            embed_q: m.matrix(a[0], a[1]),
            unembed_out: m.matrix(b[0], b[1]),
        };
        query("latent_query: embed_q", &q, &kv, &norm, &turn, &split([32, 9], [12, 16]), HEADS, p);
        query("latent_query: unembed_out", &q, &kv, &norm, &turn, &split([32, 8], [13, 16]), HEADS, p);
        let other = HeadShape { heads: 1, nope: 8, rope: 16, ..HEADS };
        query("latent_query: heads", &q, &kv, &norm, &rope(8), &m.joint(other), other, p);
        let endless = HeadShape { heads: usize::MAX, ..HEADS };
        query("latent_query: heads that overflow", &q, &kv, &norm, &turn, &good, endless, p);
    }
    let stored = b.download_cache(&cache, &layout(0..4, &[1], 4)).unwrap();
    assert!(stored.iter().all(|v| *v == 0.0), "a refused call has written the cache");

    let wide = m.tensor(2, HEADS.heads * width);
    let attend = |q, heads, layout: &TokenLayout| b.attend_latent(q, &cache, heads, 1.0, layout).err();
    refusals.extend([
        ("attend_latent: page", attend(&wide, HEADS, &layout(0..2, &[9], 4))),
        ("attend_latent: page size", attend(&wide, HEADS, &layout(0..2, &[1], 2))),
        ("attend_latent: tokens", attend(&wide, HEADS, &layout(0..1, &[1], 4))),
        ("attend_latent: width", attend(&kv, HEADS, &positions)),
        ("attend_latent: latent", attend(&wide, HeadShape { latent: 15, rope: 5, ..HEADS }, &positions)),
        ("attend_latent: heads", attend(&wide, HeadShape { heads: 1, ..HEADS }, &positions)),
        ("download_cache: page", b.download_cache(&cache, &layout(0..2, &[2], 4)).err()),
        ("download_cache: page size", b.download_cache(&cache, &layout(0..2, &[1], 2)).err()),
    ]);
    let caches = std::slice::from_mut(&mut cache);
    let page = b.read_page(caches, 1).unwrap();
    refusals.extend([
        ("read_page: page", b.read_page(caches, 2).err()),
        ("write_page: page", b.write_page(caches, 2, &page).err()),
        ("write_page: bytes", b.write_page(caches, 1, &page[4..]).err()),
    ]);
    let mut inputs = b.new_cache(CACHE).unwrap();
    let whole = AttentionInputs { q: &q, kv: &kv, norm: &norm, rope: &rope(2) };
    let query = b.latent_query(whole, &mut inputs, &good, HEADS, &positions).unwrap();
    let attended = b.attend_latent(&query, &inputs, HEADS, 1.0, &positions).unwrap();
    let more = HeadShape { heads: 3, ..HEADS };
    refusals.extend([
        ("project_values: matrix", b.project_values(&attended, &good, more).err()),
        ("project_values: heads", b.project_values(&attended, &m.joint(more), more).err()),
    ]);
    refusals
}

fn all<B: Backend>(b: &B) -> Refusals {
    [dense(b), experts(b), attention(b)].concat()
}

#[test]
fn wrong_operands_are_refused_alike() {
    let on_cpu = all(&Cpu::new());
    for (call, error) in &on_cpu {
        assert!(
            matches!(error, Some(BackendError::Shape { .. } | BackendError::Range { .. })),
            "{call}: {error:?}"
        );
    }
    #[cfg(feature = "gpu")]
    if let Some(gpu) = common::device::gpu() {
        for (found, expected) in all(gpu).iter().zip(&on_cpu) {
            assert_eq!(found, expected);
        }
    }
}
