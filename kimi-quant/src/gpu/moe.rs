//! The router, the experts, and the dense feed-forward part.

use std::sync::Mutex;

use super::attention::lines_grid;
use super::batched::{BatchKernel, Batched, Lines};
use super::matvec::{Choices, Matvec, Mode, Source};
use super::recorder::Dispatch;
use super::shader::{Packing, RMS_NORM, ROUTE, SWIGLU, Spec};
use super::tensor::Input;
use super::weights::{GpuExperts, GpuMatrix, Part};
use super::{Gpu, GpuHidden, GpuNormed, GpuRouting, GpuTensor, GpuVector};
use crate::{BackendError, ExpertHidden, Norm, Router};

type Result<T> = std::result::Result<T, BackendError>;

/// route.wgsl first finds the best of so many neighbouring experts.
const ROUTE_BLOCK: usize = 32;

/// Bytes for the results of (token, choice) pairs before they are summed.
const ROUTED_RESULTS: u64 = 256 << 20;

impl Gpu {
    pub(crate) fn rms_norm(&self, x: &GpuTensor, norm: &Norm<GpuVector>) -> Result<GpuTensor> {
        let out = self.tensor(x.rows, x.cols)?;
        let device = &self.recorder.device;
        let sizes = [
            ("WORKGROUP", device.workgroup_of(x.cols)),
            ("LANES", device.hardware.lanes),
            ("WIDTH", x.cols as u32),
        ];
        self.recorder.dispatch(Dispatch {
            op: &RMS_NORM,
            spec: Spec::new(&RMS_NORM, sizes.to_vec()),
            buffers: &[&x.buffer, &out.buffer, &norm.weight.buffer],
            params: &[norm.eps.to_bits()],
            grid: [x.rows, 1, 1],
        })?;
        Ok(out)
    }

    pub(crate) fn choose(
        &self,
        x: &GpuTensor,
        norm: &Norm<GpuVector>,
        router: &Router<GpuMatrix, GpuVector>,
    ) -> Result<(GpuNormed, GpuRouting)> {
        // For one token the norm is folded into each consumer: no dispatch for the norm alone.
        let normed = match x.rows {
            1 => GpuNormed::pending(x, norm),
            _ => self.rms_norm(x, norm)?.into(),
        };
        let logits = self.tensor(x.rows, router.gate.rows)?;
        self.project(normed.input(), &router.gate, &logits, false)?;
        let (experts, shape) = (router.gate.rows, router.shape);
        let room = self.recorder.device.limits.max_compute_workgroup_storage_size as usize;
        // Scores, keys, the best of each block of 32, and the chosen.
        let best = experts.div_ceil(ROUTE_BLOCK) * shape.chosen.min(ROUTE_BLOCK);
        let needed = 8 * (experts + 32) + 8 * best + 4 * (shape.chosen + shape.groups) + 64;
        BackendError::check_range("route", "shared memory for the experts", needed, room + 1)?;
        let pairs = x.rows * shape.chosen;
        let routing = GpuRouting {
            tokens: x.rows,
            chosen: shape.chosen,
            experts,
            ids: self.recorder.pool.take(4 * pairs as u64, false)?,
            weights: self.recorder.pool.take(4 * pairs as u64, false)?,
            groups: Mutex::default(),
        };
        if shape.chosen == 0 {
            return Ok((normed, routing));
        }
        let max_threads = self.recorder.device.limits.max_compute_invocations_per_workgroup;
        let constants = vec![
            ("WORKGROUP", (experts as u32).next_multiple_of(32).min(max_threads)),
            ("EXPERTS", experts as u32),
            ("GROUPS", shape.groups as u32),
            ("KEPT", shape.kept_groups as u32),
            ("CHOSEN", shape.chosen as u32),
            ("BLOCK", ROUTE_BLOCK as u32),
        ];
        self.recorder.dispatch(Dispatch {
            op: &ROUTE,
            spec: Spec::new(&ROUTE, constants),
            buffers: &[&logits.buffer, &routing.ids, &routing.weights, &router.bias.buffer],
            params: &[u32::from(shape.normalize), shape.scale.to_bits(), 1],
            grid: [x.rows, 1, 1],
        })?;
        Ok((normed, routing))
    }

    /// `out (+)= x @ w^T`.
    pub(crate) fn project(&self, x: Input<'_>, w: &GpuMatrix, out: &GpuTensor, add: bool) -> Result<()> {
        let sources = w.parts.iter().map(|part| Source { weights: part, up: None });
        self.rows(x, w.packing, sources, out, add)
    }

    pub(crate) fn swiglu_dense(&self, x: Input<'_>, gate: &GpuMatrix, up: &GpuMatrix) -> Result<GpuTensor> {
        let out = self.tensor(x.rows(), gate.rows)?;
        if gate.packing != up.packing {
            self.project(x, gate, &out, false)?;
            let other = self.tensor(x.rows(), up.rows)?;
            self.project(x, up, &other, false)?;
            self.swiglu(&out, &other)?;
            return Ok(out);
        }
        let sources = gate.parts.iter().zip(&up.parts).map(|(g, u)| Source { weights: g, up: Some(u) });
        self.rows(x, gate.packing, sources, &out, false)?;
        Ok(out)
    }

    /// Products with the rows of one matrix, or of gate and up, part by part.
    fn rows<'a>(
        &self,
        x: Input<'_>,
        packing: Packing,
        sources: impl Iterator<Item = Source<'a>>,
        out: &GpuTensor,
        add: bool,
    ) -> Result<()> {
        let mut plain = None;
        for source in sources {
            let rows = source.weights.range.len();
            let out_first = source.weights.range.start;
            let done = self.normalises(x.rows(), rows, packing)
                && self.matvec(&Matvec {
                    mode: Mode::Rows { second: None },
                    packing,
                    rows,
                    x,
                    out,
                    out_first,
                    sources: &[source],
                    add,
                })?;
            if done {
                continue;
            }
            let x = match plain {
                Some(ref plain) => plain,
                None => plain.insert(self.plain(x)?),
            };
            self.batched(&Batched {
                lines: Lines::Tokens,
                kernel: self.dense_kernel(x.rows, rows, packing),
                packing,
                rows,
                row_first: 0,
                x,
                out,
                out_first,
                weights: source.weights,
                up: source.up,
                add,
            })?;
        }
        Ok(())
    }

    /// Whether products of `tokens` tokens with `rows` rows read them as they are and normalise on the way, unless rows
    /// are too wide.
    pub(crate) fn normalises(&self, tokens: usize, rows: usize, packing: Packing) -> bool {
        tokens == 1 || self.dense_kernel(tokens, rows, packing) == BatchKernel::Matvec
    }

    /// Two projections of a token, or a few, in one dispatch; `false` if they are too different, or tokens too many.
    pub(crate) fn project_both(
        &self,
        x: Input<'_>,
        [first, second]: [&GpuMatrix; 2],
        [out, second_out]: [&GpuTensor; 2],
    ) -> Result<bool> {
        let ([a], [b]) = (first.parts.as_slice(), second.parts.as_slice()) else { return Ok(false) };
        let few = [first, second].iter().all(|m| self.normalises(x.rows(), m.rows, m.packing));
        if !few || first.packing != second.packing || self.max_sources(false) < 2 {
            return Ok(false);
        }
        self.matvec(&Matvec {
            mode: Mode::Rows { second: Some((second.rows, second_out)) },
            packing: first.packing,
            rows: first.rows,
            x,
            out,
            out_first: 0,
            sources: &[Source { weights: a, up: None }, Source { weights: b, up: None }],
            add: false,
        })
    }

    /// `gate = silu(gate) * up`.
    fn swiglu(&self, gate: &GpuTensor, up: &GpuTensor) -> Result<()> {
        let count = gate.rows * gate.cols;
        self.recorder.dispatch(Dispatch {
            op: &SWIGLU,
            spec: Spec::new(&SWIGLU, vec![("WORKGROUP", 64)]),
            buffers: &[&up.buffer, &gate.buffer],
            params: &[count as u32],
            grid: lines_grid(count.div_ceil(64)),
        })
    }

    pub(crate) fn experts_hidden(
        &self,
        x: &GpuNormed,
        routing: &GpuRouting,
        gate: &GpuExperts,
        up: &GpuExperts,
        shared: Option<(&GpuMatrix, &GpuMatrix)>,
    ) -> Result<GpuHidden> {
        let pairs = routing.tokens * routing.chosen;
        if gate.packing != up.packing {
            let (routed, other) = (self.tensor(pairs, gate.rows)?, self.tensor(pairs, up.rows)?);
            self.gathered(x, routing, (gate, None), None, &routed)?;
            self.gathered(x, routing, (up, None), None, &other)?;
            self.swiglu(&routed, &other)?;
            let shared = shared.map(|(gate, up)| self.swiglu_dense(x.input(), gate, up)).transpose()?;
            return Ok(ExpertHidden { routed, shared }.into());
        }
        // For one token, the shared expert is one more choice.
        let alike = |m: &GpuMatrix| m.packing == gate.packing && m.rows == gate.rows && m.parts.len() == 1;
        let joined = shared.filter(|(g, u)| routing.tokens == 1 && alike(g) && alike(u));
        let all = self.tensor(pairs + usize::from(joined.is_some()), gate.rows)?;
        let joined_parts = joined.and_then(|(g, u)| Some((g.parts.first()?, u.parts.first()?)));
        if self.gathered(x, routing, (gate, Some(up)), joined_parts, &all)? {
            return Ok(GpuHidden::joined(all));
        }
        let shared = shared.map(|(gate, up)| self.swiglu_dense(x.input(), gate, up)).transpose()?;
        Ok(ExpertHidden { routed: GpuTensor { rows: pairs, ..all }, shared }.into())
    }

    /// The chosen experts' outputs (with a second projection silu(first) * second), and whether those of the shared
    /// expert are after them.
    fn gathered(
        &self,
        x: &GpuNormed,
        routing: &GpuRouting,
        (experts, up): (&GpuExperts, Option<&GpuExperts>),
        shared: Option<(&Part, &Part)>,
        out: &GpuTensor,
    ) -> Result<bool> {
        let sources: Vec<_> = (0..experts.parts.len())
            .filter_map(|i| {
                Some(Source { weights: experts.parts.get(i)?, up: up.and_then(|u| u.parts.get(i)) })
            })
            .collect();
        if routing.tokens == 1 {
            let shared = shared.map(|(g, u)| Source { weights: g, up: Some(u) });
            let product = Matvec {
                mode: Mode::Rows { second: None },
                packing: experts.packing,
                rows: experts.rows,
                x: x.input(),
                out,
                out_first: 0,
                sources: &[],
                add: false,
            };
            if self.chosen(&product, routing, experts, &sources, shared, Mode::Gather)? {
                return Ok(shared.is_some());
            }
        }
        let (kernel, groups) = self.grouped(routing, experts)?;
        let x = &self.plain(x.input())?;
        for source in sources {
            self.batched(&Batched {
                lines: Lines::Experts { routing, groups: &groups, rows: experts.rows, down: false },
                kernel,
                packing: experts.packing,
                rows: experts.rows,
                row_first: 0,
                x,
                out,
                out_first: 0,
                weights: source.weights,
                up: source.up,
                add: false,
            })?;
        }
        Ok(false)
    }

    /// One token's product with its chosen experts, as many of their parts in a dispatch as there is room for; the shared
    /// expert is in the first one. `false` if rows are too wide.
    fn chosen<'a>(
        &self,
        product: &Matvec<'a>,
        routing: &'a GpuRouting,
        experts: &GpuExperts,
        sources: &[Source<'a>],
        shared: Option<Source<'a>>,
        mode: fn(Choices<'a>) -> Mode<'a>,
    ) -> Result<bool> {
        let max_sources = self.max_sources(sources.iter().any(|s| s.up.is_some()));
        let part_experts = experts.parts.first().map_or(1, |part| part.range.len());
        let mut part_first = 0;
        let mut shared = shared;
        while part_first < sources.len() || shared.is_some() {
            let now = shared.take();
            let end = (part_first + max_sources - usize::from(now.is_some())).min(sources.len());
            let list: Vec<_> = sources[part_first..end].iter().copied().chain(now).collect();
            let choices = Choices { routing, part_first, part_experts, shared: now.is_some() };
            if !self.matvec(&Matvec { mode: mode(choices), sources: &list, ..*product })? {
                return Ok(false);
            }
            part_first = end;
        }
        Ok(true)
    }

    pub(crate) fn experts_down(
        &self,
        hidden: &GpuHidden,
        routing: &GpuRouting,
        down: &GpuExperts,
        shared: Option<&GpuMatrix>,
        residual: &GpuTensor,
    ) -> Result<()> {
        let routed = &hidden.routed();
        let shared = shared.zip(hidden.shared());
        if routing.tokens == 1 {
            // Activations of the shared expert that follow the others can be read with them.
            let joined = shared.filter(|_| hidden.is_joined()).and_then(|(m, _)| {
                let alike = m.packing == down.packing && m.rows == down.rows && m.parts.len() == 1;
                m.parts.first().filter(|_| alike).map(|part| Source { weights: part, up: None })
            });
            let product = Matvec {
                mode: Mode::Rows { second: None },
                packing: down.packing,
                rows: down.rows,
                x: routed.into(),
                out: residual,
                out_first: 0,
                sources: &[],
                add: true,
            };
            let sources: Vec<_> = down.parts.iter().map(|part| Source { weights: part, up: None }).collect();
            if self.chosen(&product, routing, down, &sources, joined, Mode::Sum)? {
                return match shared.filter(|_| joined.is_none()) {
                    Some((matrix, h)) => self.project(h, matrix, residual, true),
                    None => Ok(()),
                };
            }
        }
        self.grouped_down(routed, routing, down, residual)?;
        match shared {
            Some((matrix, h)) => self.project(h, matrix, residual, true),
            None => Ok(()),
        }
    }

    /// Results of every (token, choice) pair, times its weight; then their sums. As many columns at a time as
    /// [`ROUTED_RESULTS`] bytes hold.
    fn grouped_down(
        &self,
        hidden: &GpuTensor,
        routing: &GpuRouting,
        down: &GpuExperts,
        residual: &GpuTensor,
    ) -> Result<()> {
        let pairs = routing.tokens * routing.chosen;
        if pairs == 0 {
            return Ok(());
        }
        let (kernel, groups) = self.grouped(routing, down)?;
        let max_columns = ROUTED_RESULTS.min(self.recorder.pool.largest()) as usize / (4 * pairs);
        let step = if max_columns < 128 { max_columns.max(1) } else { max_columns / 128 * 128 };
        for first in (0..down.rows).step_by(step) {
            let parts = self.tensor(pairs, step.min(down.rows - first))?;
            for part in &down.parts {
                self.batched(&Batched {
                    lines: Lines::Experts { routing, groups: &groups, rows: down.rows, down: true },
                    kernel,
                    packing: down.packing,
                    rows: parts.cols,
                    row_first: first,
                    x: hidden,
                    out: &parts,
                    out_first: 0,
                    weights: part,
                    up: None,
                    add: false,
                })?;
            }
            self.combine(&parts, routing.chosen, residual, first)?;
        }
        Ok(())
    }
}
