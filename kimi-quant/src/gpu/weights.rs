//! Packed weights on the device, as stored; only rows that are no whole number of units are filled up.

use std::ops::Range;
use std::sync::{Arc, Weak};

use rayon::prelude::*;

use super::f16_range::fits_f16;
use super::pool::Buffer;
use super::recorder::Recorder;
use super::shader::Packing;
use super::upload::Writer;
use crate::backend::check;
use crate::{BackendError, PackedMatrix, Stored};

type Result<T> = std::result::Result<T, BackendError>;

/// Some rows of a matrix, or some experts: as much as one binding holds.
pub(crate) struct Part {
    /// Rows, or experts, that it holds.
    pub(crate) range: Range<usize>,
    pub(crate) codes: Arc<Buffer>,
    pub(crate) scales: Arc<Buffer>,
    /// Words before the scales.
    pub(crate) scale_base: u32,
    /// Whether all weights fit 16-bit floats.
    pub(crate) fits_f16: bool,
    owner: Weak<Recorder>,
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.forget(self.codes.id);
        }
    }
}

/// A packed matrix on the device.
pub struct GpuMatrix {
    pub(crate) rows: usize,
    pub(crate) packing: Packing,
    pub(crate) parts: Vec<Part>, // by rows
}

/// The same projection of all experts of a layer.
pub struct GpuExperts {
    pub(crate) count: usize,
    pub(crate) rows: usize,
    pub(crate) packing: Packing,
    pub(crate) parts: Vec<Part>, // by experts
}

impl Part {
    /// With room for nothing: for tests that only record what would be computed.
    #[cfg(test)]
    pub(crate) fn unfilled(recorder: &Arc<Recorder>, range: Range<usize>) -> Result<Self> {
        Ok(Self {
            range,
            codes: recorder.pool.keep("codes", 256)?,
            scales: recorder.pool.keep("scales", 256)?,
            scale_base: 0,
            fits_f16: recorder.device.hardware.cooperative,
            owner: Arc::downgrade(recorder),
        })
    }
}

impl GpuMatrix {
    pub(crate) fn load(recorder: &Arc<Recorder>, matrix: &PackedMatrix) -> Result<Self> {
        let packing = Packing::new(matrix.format(), matrix.cols());
        let packing = if matrix.begins_block() { packing } else { packing.with_own_scales() };
        Self::in_parts(recorder, matrix.rows(), packing, |range| {
            upload(recorder, packing, range.clone(), &[matrix.slice_rows(range)])
        })
    }

    /// As many rows a part as one binding holds.
    pub(crate) fn in_parts(
        recorder: &Recorder,
        rows: usize,
        packing: Packing,
        part: impl FnMut(Range<usize>) -> Result<Part>,
    ) -> Result<Self> {
        let step = max_rows(recorder, packing)? / packing.scale_rows * packing.scale_rows;
        if step == 0 {
            return Err(too_large(recorder, packing, packing.scale_rows));
        }
        let parts = ranges(rows, step).map(part).collect::<Result<_>>()?;
        Ok(Self { rows, packing, parts })
    }

    pub(crate) fn cols(&self) -> usize {
        self.packing.cols
    }

    /// Its only part.
    pub(crate) fn whole(&self, op: &'static str) -> Result<&Part> {
        match self.parts.as_slice() {
            [part] => Ok(part),
            parts => Err(BackendError::Shape {
                op,
                what: "parts of a matrix that must fit one binding of this adapter",
                found: parts.len(),
                expected: 1,
            }),
        }
    }
}

impl GpuExperts {
    pub(crate) fn load(recorder: &Arc<Recorder>, experts: &[PackedMatrix]) -> Result<Self> {
        let first = check::load_experts(experts)?;
        let shape = [experts.len(), first.rows()];
        let packing = match experts.iter().all(PackedMatrix::begins_block) {
            true => Packing::of_experts(first.format(), first.rows(), first.cols()),
            false => Packing::new(first.format(), first.cols()).with_own_scales(),
        };
        Self::in_parts(recorder, shape, packing, |range| {
            upload(recorder, packing, range.clone(), &experts[range])
        })
    }

    /// `[count, rows]`, as many experts a part as one binding holds.
    pub(crate) fn in_parts(
        recorder: &Recorder,
        [count, rows]: [usize; 2],
        packing: Packing,
        part: impl FnMut(Range<usize>) -> Result<Part>,
    ) -> Result<Self> {
        let step = max_rows(recorder, packing)? / rows.max(1);
        if step == 0 {
            return Err(too_large(recorder, packing, rows));
        }
        let parts = ranges(count, step).map(part).collect::<Result<_>>()?;
        Ok(Self { count, rows, packing, parts })
    }
}

impl Stored for GpuMatrix {
    fn shape(&self) -> [usize; 3] {
        [1, self.rows, self.packing.cols]
    }

    fn stored_bytes(&self) -> u64 {
        stored_bytes(self.packing, self.rows)
    }
}

impl Stored for GpuExperts {
    fn shape(&self) -> [usize; 3] {
        [self.count, self.rows, self.packing.cols]
    }

    fn stored_bytes(&self) -> u64 {
        stored_bytes(self.packing, self.rows) * self.count as u64
    }
}

/// Bytes of a matrix as a checkpoint stores it.
fn stored_bytes(packing: Packing, rows: usize) -> u64 {
    let parts = packing.format.bytes(rows, packing.cols);
    parts.map_or(0, |parts| parts.iter().sum::<usize>() as u64) // a loaded matrix has rows that fit
}

/// `0..count` in ranges of `step`.
fn ranges(count: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(step).map(move |start| start..(start + step).min(count))
}

/// Bytes of one row on the device.
fn row_bytes(packing: Packing) -> usize {
    packing.units() * packing.bits() * 4
}

/// Rows that one binding holds.
fn max_rows(recorder: &Recorder, packing: Packing) -> Result<usize> {
    let scales = packing.groups() * packing.format.scale_bytes();
    let row = row_bytes(packing).max(2 * scales + 8);
    match (recorder.pool.largest() as usize - 64) / row {
        0 => Err(too_large(recorder, packing, 1)),
        rows => Ok(rows),
    }
}

fn too_large(recorder: &Recorder, packing: Packing, rows: usize) -> BackendError {
    let (needed, available) = (stored_bytes(packing, rows), recorder.pool.largest());
    BackendError::OutOfMemory { what: "one binding of a matrix", needed, available }
}

fn upload(
    recorder: &Arc<Recorder>,
    packing: Packing,
    range: Range<usize>,
    matrices: &[PackedMatrix],
) -> Result<Part> {
    let rows: usize = matrices.iter().map(PackedMatrix::rows).sum();
    let mut writer = Writer::new(recorder, "weights", (rows * row_bytes(packing)) as u64)?;
    for matrix in matrices {
        let stored = matrix.weight().len().checked_div(matrix.rows()).unwrap_or(0);
        if stored == row_bytes(packing) {
            writer.write(matrix.weight())?;
        } else {
            for row in matrix.weight().chunks_exact(stored.max(1)) {
                writer.write(row)?;
                writer.zeros(row_bytes(packing) - stored)?;
            }
        }
    }
    let codes = writer.finish()?;

    let globals = if packing.has_global() { matrices.len() } else { 0 };
    let own_scales = packing.scale_rows < packing.format.scale_rows();
    let scale_bytes = |m: &PackedMatrix| match own_scales {
        true => m.rows() * m.scale_range(0).len(),
        false => m.scales().len(),
    };
    let parameters: usize = matrices.iter().map(|m| scale_bytes(m) + m.biases().len()).sum();
    let bytes = 4 * globals + parameters.next_multiple_of(4);
    let mut writer = Writer::new(recorder, "scales", bytes as u64)?;
    if packing.has_global() {
        for matrix in matrices {
            writer.write(&matrix.global_scale().to_le_bytes())?;
        }
    }
    // Some matrices at a time: this is as much work as reading them.
    for some in matrices.chunks(rayon::current_num_threads()) {
        let joined: Vec<_> =
            some.par_iter().map(|m| (!m.biases().is_empty()).then(|| side_by_side(m))).collect();
        for (matrix, joined) in some.iter().zip(joined) {
            if own_scales {
                (0..matrix.rows())
                    .try_for_each(|row| writer.write(&matrix.scales()[matrix.scale_range(row)]))?;
            } else {
                writer.write(joined.as_deref().unwrap_or(matrix.scales()))?;
            }
        }
    }
    writer.zeros(bytes - 4 * globals - parameters)?;
    let scales = writer.finish()?;
    let scale_base = globals as u32;
    let fits_f16 = recorder.device.hardware.cooperative && matrices.par_iter().all(|m| fits_f16(packing, m));
    Ok(Part { range, codes, scales, scale_base, fits_f16, owner: Arc::downgrade(recorder) })
}

/// Each scale followed by its bias: both come with one read.
fn side_by_side(matrix: &PackedMatrix) -> Vec<u8> {
    fn join<const N: usize>(scales: &[u8], biases: &[u8]) -> Vec<u8> {
        let mut joined = vec![0; scales.len() + biases.len()];
        let pairs = scales.as_chunks::<N>().0.iter().zip(biases.as_chunks::<N>().0);
        for (to, (scale, bias)) in joined.as_chunks_mut::<N>().0.chunks_exact_mut(2).zip(pairs) {
            to.copy_from_slice(&[*scale, *bias]);
        }
        joined
    }
    let floats = matrix.rows() * matrix.cols().checked_div(matrix.format().group()).unwrap_or(0);
    match matrix.scales().len().checked_div(floats) {
        Some(4) => join::<4>(matrix.scales(), matrix.biases()),
        _ => join::<2>(matrix.scales(), matrix.biases()),
    }
}
