//! The router, the experts, and the dense feed-forward part.

use std::sync::Mutex;

use super::attention::lines_grid;
use super::batched::{Batched, Lines};
use super::product::{Heads, Mode, Product};
use super::recorder::Dispatch;
use super::shader::{RMS_NORM, ROUTE, SWIGLU, Spec};
use super::weights::{GpuExperts, GpuMatrix, Part};
use super::{Gpu, GpuRouting, GpuTensor, GpuVector};
use crate::{BackendError, ExpertHidden, Norm, Router};

type Result<T> = std::result::Result<T, BackendError>;

/// Bytes for the results of (token, choice) pairs before they are summed.
const PAIR_RESULTS: u64 = 256 << 20;

impl Gpu {
    pub(crate) fn rms_norm(&self, x: &GpuTensor, norm: &Norm<GpuVector>) -> Result<GpuTensor> {
        let out = self.tensor(x.rows, x.cols)?;
        let lanes = self.recorder.device.lanes;
        self.recorder.dispatch(Dispatch {
            op: &RMS_NORM,
            spec: Spec::new(&RMS_NORM, vec![("WORKGROUP", 256), ("LANES", lanes)]),
            buffers: &[&x.buffer, &out.buffer, &norm.weight.buffer],
            params: &[x.cols as u32, norm.eps.to_bits()],
            grid: [x.rows, 1, 1],
        })?;
        Ok(out)
    }

    pub(crate) fn choose(
        &self,
        x: &GpuTensor,
        norm: &Norm<GpuVector>,
        router: &Router<GpuMatrix, GpuVector>,
    ) -> Result<(GpuTensor, GpuRouting)> {
        let normed = self.rms_norm(x, norm)?;
        let logits = self.tensor(x.rows, router.gate.rows)?;
        self.project(&normed, None, &router.gate, &logits, false)?;
        let (experts, shape) = (router.gate.rows, router.shape);
        let room = self.recorder.device.limits.max_compute_workgroup_storage_size as usize;
        // Scores, keys, the best of each block of 32, and the chosen.
        let best = experts.div_ceil(32) * shape.chosen.min(32);
        let needed = 8 * (experts + 32) + 8 * best + 4 * (shape.chosen + shape.groups) + 64;
        BackendError::check_range("route", "shared memory for the experts", needed, room + 1)?;
        let pairs = x.rows * shape.chosen;
        let routing = GpuRouting {
            tokens: x.rows,
            chosen: shape.chosen,
            ids: self.recorder.pool.take(4 * pairs as u64, false)?,
            weights: self.recorder.pool.take(4 * pairs as u64, false)?,
            groups: Mutex::default(),
        };
        if shape.chosen == 0 {
            return Ok((normed, routing));
        }
        let most = self.recorder.device.limits.max_compute_invocations_per_workgroup;
        let constants = vec![
            ("WORKGROUP", (experts as u32).next_multiple_of(32).min(most)),
            ("EXPERTS", experts as u32),
            ("GROUPS", shape.groups as u32),
            ("KEPT", shape.kept_groups as u32),
            ("CHOSEN", shape.chosen as u32),
        ];
        self.recorder.dispatch(Dispatch {
            op: &ROUTE,
            spec: Spec::new(&ROUTE, constants),
            buffers: &[&logits.buffer, &routing.ids, &routing.weights, &router.bias.buffer],
            params: &[u32::from(shape.normalize), shape.scale.to_bits()],
            grid: [x.rows, 1, 1],
        })?;
        Ok((normed, routing))
    }

    /// `out (+)= x @ w^T`, with a norm before it.
    pub(crate) fn project(
        &self,
        x: &GpuTensor,
        norm: Option<&Norm<GpuVector>>,
        w: &GpuMatrix,
        out: &GpuTensor,
        add: bool,
    ) -> Result<()> {
        w.parts.iter().try_for_each(|part| {
            self.product(&Product {
                mode: Mode::Heads(Heads::ONE),
                packing: w.packing,
                rows: part.range.len(),
                x,
                out,
                out_first: part.range.start,
                norm,
                weights: part,
                up: None,
                add,
            })
        })
    }

    pub(crate) fn swiglu_dense(
        &self,
        x: &GpuTensor,
        norm: Option<&Norm<GpuVector>>,
        gate: &GpuMatrix,
        up: &GpuMatrix,
    ) -> Result<GpuTensor> {
        let out = self.tensor(x.rows, gate.rows)?;
        if gate.packing != up.packing {
            self.project(x, norm, gate, &out, false)?;
            let other = self.tensor(x.rows, up.rows)?;
            self.project(x, norm, up, &other, false)?;
            self.swiglu(&out, &other)?;
            return Ok(out);
        }
        let packing = gate.packing;
        for (gate, up) in gate.parts.iter().zip(&up.parts) {
            self.product(&Product {
                mode: Mode::Heads(Heads::ONE),
                packing,
                rows: gate.range.len(),
                x,
                out: &out,
                out_first: gate.range.start,
                norm,
                weights: gate,
                up: Some(up),
                add: false,
            })?;
        }
        Ok(out)
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
        x: &GpuTensor,
        routing: &GpuRouting,
        gate: &GpuExperts,
        up: &GpuExperts,
        shared: Option<(&GpuMatrix, &GpuMatrix)>,
    ) -> Result<ExpertHidden<GpuTensor>> {
        let pairs = routing.tokens * routing.chosen;
        let routed = self.tensor(pairs, gate.rows)?;
        if gate.packing == up.packing {
            for (g, u) in gate.parts.iter().zip(&up.parts) {
                self.gathered(x, routing, gate, g, Some(u), &routed)?;
            }
        } else {
            let other = self.tensor(pairs, up.rows)?;
            gate.parts.iter().try_for_each(|part| self.gathered(x, routing, gate, part, None, &routed))?;
            up.parts.iter().try_for_each(|part| self.gathered(x, routing, up, part, None, &other))?;
            self.swiglu(&routed, &other)?;
        }
        let shared = shared.map(|(gate, up)| self.swiglu_dense(x, None, gate, up)).transpose()?;
        Ok(ExpertHidden { routed, shared })
    }

    /// A part of the experts' rows: each token's (for `up`, silu(gate) * up).
    fn gathered(
        &self,
        x: &GpuTensor,
        routing: &GpuRouting,
        experts: &GpuExperts,
        part: &Part,
        up: Option<&Part>,
        out: &GpuTensor,
    ) -> Result<()> {
        if routing.tokens > 1 {
            let (kernel, groups) = self.grouped(routing, experts.count)?;
            return self.batched(&Batched {
                lines: Lines::Experts { routing, groups: &groups, rows: experts.rows, down: false },
                kernel,
                packing: experts.packing,
                rows: experts.rows,
                row_first: 0,
                x,
                out,
                out_first: 0,
                weights: part,
                up,
                add: false,
            });
        }
        self.product(&Product {
            mode: Mode::Gather(routing, experts.rows),
            packing: experts.packing,
            rows: experts.rows,
            x,
            out,
            out_first: 0,
            norm: None,
            weights: part,
            up,
            add: false,
        })
    }

    pub(crate) fn experts_down(
        &self,
        hidden: &ExpertHidden<GpuTensor>,
        routing: &GpuRouting,
        down: &GpuExperts,
        shared: Option<&GpuMatrix>,
        residual: &GpuTensor,
    ) -> Result<()> {
        if routing.tokens > 1 {
            self.grouped_down(&hidden.routed, routing, down, residual)?;
        } else {
            down.parts.iter().try_for_each(|part| {
                self.product(&Product {
                    mode: Mode::Sum(routing, down.rows),
                    packing: down.packing,
                    rows: down.rows,
                    x: &hidden.routed,
                    out: residual,
                    out_first: 0,
                    norm: None,
                    weights: part,
                    up: None,
                    add: true,
                })
            })?;
        }
        match shared.zip(hidden.shared.as_ref()) {
            Some((matrix, h)) => self.project(h, None, matrix, residual, true),
            None => Ok(()),
        }
    }

    /// Results of every (token, choice) pair, times its weight; then their sums. As many columns at a time as
    /// [`PAIR_RESULTS`] bytes hold.
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
        let (kernel, groups) = self.grouped(routing, down.count)?;
        let most = PAIR_RESULTS.min(self.recorder.pool.largest()) as usize / (4 * pairs);
        let step = if most < 128 { most.max(1) } else { most / 128 * 128 };
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
