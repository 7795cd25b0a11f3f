//! Activations on the device, and the two forms of them that only some kernels read as they are.

use std::fmt;
use std::sync::Arc;

use super::pool::Buffer;
use super::{Gpu, GpuVector, upload_words};
use crate::{BackendError, ExpertHidden, Norm};

/// Activations `[rows, cols]` on the device.
///
/// They begin where their buffer begins, and they are what they say. Activations that begin elsewhere, or whose norm is
/// pending, are a [`GpuHidden`] or a [`GpuNormed`].
#[derive(Clone)]
pub struct GpuTensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) buffer: Arc<Buffer>,
}

/// Activations that `route` has normalised, or whose norm is pending: one token's norm is folded into each kernel that
/// reads them. [`Normed`](crate::Backend::Normed) of the GPU.
#[derive(Clone)]
pub struct GpuNormed {
    x: GpuTensor,
    pending: Option<Arc<Norm<GpuVector>>>,
}

/// What the experts compute between gate and up and down. [`Hidden`](crate::Backend::Hidden) of the GPU.
pub struct GpuHidden {
    form: Form,
}

enum Form {
    /// `[k + 1, F]`: one token's routed experts, then its shared expert.
    Joined(GpuTensor),
    Apart(ExpertHidden<GpuTensor>),
}

/// Activations as `matvec.wgsl` reads them: they may begin anywhere in their buffer, and their norm may be pending.
///
/// The buffer is only reachable together with both, by [`Input::bindings`]; all other kernels take what [`Gpu::plain`]
/// makes of them.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    rows: usize,
    cols: usize,
    /// Rows before them in the buffer.
    first_row: usize,
    norm: Option<&'a Norm<GpuVector>>,
    buffer: &'a Arc<Buffer>,
}

impl GpuTensor {
    /// Tokens (or token-expert pairs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    pub(super) fn bytes(&self) -> u64 {
        4 * (self.rows * self.cols) as u64
    }
}

impl GpuNormed {
    /// Activations that whoever reads them is to normalise.
    pub(super) fn pending(x: &GpuTensor, norm: &Norm<GpuVector>) -> Self {
        let norm = Norm { weight: norm.weight.clone(), eps: norm.eps };
        Self { x: x.clone(), pending: Some(Arc::new(norm)) }
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input { norm: self.pending.as_deref(), ..Input::from(&self.x) }
    }
}

impl From<GpuTensor> for GpuNormed {
    fn from(x: GpuTensor) -> Self {
        Self { x, pending: None }
    }
}

impl GpuHidden {
    /// One token's routed experts, then its shared expert: `[k + 1, F]`.
    pub(super) fn joined(all: GpuTensor) -> Self {
        Self { form: Form::Joined(all) }
    }

    /// Whether the shared expert's activations follow the routed ones in their buffer.
    pub(super) fn is_joined(&self) -> bool {
        matches!(self.form, Form::Joined(_))
    }

    pub(super) fn routed(&self) -> GpuTensor {
        match &self.form {
            Form::Joined(all) => GpuTensor { rows: all.rows.saturating_sub(1), ..all.clone() },
            Form::Apart(hidden) => hidden.routed.clone(),
        }
    }

    pub(super) fn shared(&self) -> Option<Input<'_>> {
        match &self.form {
            Form::Joined(all) => {
                Some(Input { rows: 1, first_row: all.rows.saturating_sub(1), ..Input::from(all) })
            }
            Form::Apart(hidden) => hidden.shared.as_ref().map(Input::from),
        }
    }
}

impl From<ExpertHidden<GpuTensor>> for GpuHidden {
    fn from(hidden: ExpertHidden<GpuTensor>) -> Self {
        Self { form: Form::Apart(hidden) }
    }
}

impl<'a> From<&'a GpuTensor> for Input<'a> {
    fn from(x: &'a GpuTensor) -> Self {
        Self { rows: x.rows, cols: x.cols, first_row: 0, norm: None, buffer: &x.buffer }
    }
}

impl<'a> Input<'a> {
    /// `x`, to be normalised.
    pub(crate) fn normed(x: &'a GpuTensor, norm: &'a Norm<GpuVector>) -> Self {
        Self { norm: Some(norm), ..Self::from(x) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The buffer, the first value in it that counts, and the norm to apply.
    pub(crate) fn bindings(self) -> (&'a Buffer, usize, Option<&'a Norm<GpuVector>>) {
        (self.buffer, self.first_row * self.cols, self.norm)
    }
}

impl Gpu {
    /// The activations by themselves: at the beginning of a buffer and with their norm applied.
    pub(super) fn plain(&self, x: Input<'_>) -> Result<GpuTensor, BackendError> {
        let mut plain = GpuTensor { rows: x.rows, cols: x.cols, buffer: x.buffer.clone() };
        if x.first_row > 0 {
            let rows: Vec<u32> = (x.first_row..x.first_row + x.rows).map(|row| row as u32).collect();
            plain = self.gather_rows(x.buffer, x.cols, &*upload_words(self, &rows)?, x.rows)?;
        }
        match x.norm {
            Some(norm) => self.rms_norm(&plain, norm),
            None => Ok(plain),
        }
    }
}

impl fmt::Debug for GpuTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, cols, .. } = self;
        f.debug_struct("GpuTensor").field("rows", rows).field("cols", cols).finish_non_exhaustive()
    }
}
