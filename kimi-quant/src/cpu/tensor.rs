//! What the CPU backend keeps in memory.

use crate::backend::check::RoutingSize;
use crate::{BackendError, CacheShape, Stored};

/// Activations `[rows, cols]`, row-major f32, a row a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Tensor {
    /// Takes over `data`, whose length is `rows * cols`.
    pub(crate) fn from_parts(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { rows, cols, data }
    }

    /// Tokens (or token-expert pairs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// All values, row after row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    pub(crate) fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }
}

/// The experts chosen for each token: ids and weights, `[T, chosen]` each, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    pub(crate) tokens: usize,
    pub(crate) chosen: usize,
    /// All ids are below this.
    pub(crate) experts: usize,
    pub(crate) ids: Vec<u32>,
    pub(crate) weights: Vec<f32>,
}

impl Routing {
    pub(crate) fn size(&self) -> RoutingSize {
        RoutingSize { tokens: self.tokens, chosen: self.chosen, experts: self.experts }
    }
}

/// The same projection of every expert of a layer: equal shapes, equal formats.
#[derive(Debug, Clone)]
pub struct Experts {
    pub(crate) matrices: Vec<crate::PackedMatrix>,
}

impl Stored for Experts {
    fn shape(&self) -> [usize; 3] {
        let [_, rows, cols] = self.matrices.first().map_or([0; 3], Stored::shape);
        [self.matrices.len(), rows, cols]
    }

    fn stored_bytes(&self) -> u64 {
        self.matrices.iter().map(Stored::stored_bytes).sum()
    }
}

/// The latent cache of one layer: per slot `kl` normalised latent values, then `rope` rotated key values.
///
/// One zeroed allocation; the system commits its pages when tokens are first written.
pub struct Cache {
    shape: CacheShape,
    data: Box<[f32]>,
}

impl Cache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] where the system refuses the allocation.
    pub(crate) fn new(shape: CacheShape) -> Result<Self, BackendError> {
        let width = shape.latent.saturating_add(shape.rope);
        let values = shape.pages.saturating_mul(shape.page_tokens).saturating_mul(width);
        // Vec and Box panic past isize::MAX bytes; refuse before that.
        let refused = || BackendError::OutOfMemory {
            what: "the latent cache",
            needed: (values as u64).saturating_mul(4),
            available: 0,
        };
        if values > isize::MAX as usize / 4 {
            return Err(refused());
        }
        let data = bytemuck::allocation::try_zeroed_slice_box(values).map_err(|()| refused())?;
        Ok(Self { shape, data })
    }

    pub(crate) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Values of one slot.
    pub(crate) fn width(&self) -> usize {
        self.shape.latent.saturating_add(self.shape.rope)
    }

    /// The slots of one page, `[page_tokens, kl + rope]`.
    pub(crate) fn page(&self, page: usize) -> &[f32] {
        let size = self.shape.page_tokens * self.width();
        &self.data[page * size..(page + 1) * size]
    }

    /// The same, to be written.
    pub(crate) fn page_mut(&mut self, page: usize) -> &mut [f32] {
        let size = self.shape.page_tokens * self.width();
        &mut self.data[page * size..(page + 1) * size]
    }

    /// One slot, `[kl + rope]`.
    pub(crate) fn slot(&self, page: usize, offset: usize) -> &[f32] {
        &self.page(page)[offset * self.width()..(offset + 1) * self.width()]
    }

    pub(crate) fn slot_mut(&mut self, page: usize, offset: usize) -> &mut [f32] {
        let start = (page * self.shape.page_tokens + offset) * self.width();
        let end = start + self.width();
        &mut self.data[start..end]
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shape", &self.shape).finish_non_exhaustive()
    }
}
