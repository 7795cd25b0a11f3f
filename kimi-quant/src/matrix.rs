//! One weight matrix, as stored.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use crate::{Format, FormatError, Stored};

/// A weight matrix `[rows, cols]` in its storage format. Rows are outputs, columns inputs, groups run along a row.
///
/// The bytes are reference-counted slices, usually of a memory map, at any alignment. Cloning and slicing copy
/// nothing.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    format: Format,
    weight: Bytes,
    scales: Bytes,
    biases: Bytes,
    global_scale: f32,
    /// The row of its first block of scales that it begins with: other than 0 only in slices.
    first_row: usize,
    /// See [`Self::with_filled`].
    filled: Option<Arc<Self>>,
}

impl PackedMatrix {
    /// Checks that the bytes fit the shape. `scales` and `biases` are empty where the format has none.
    ///
    /// # Errors
    /// [`FormatError`] says which part has how many bytes and how many were expected.
    pub fn new(
        rows: usize,
        cols: usize,
        format: Format,
        weight: Bytes,
        scales: Bytes,
        biases: Bytes,
    ) -> Result<Self, FormatError> {
        let parts = [("weight", &weight), ("scales", &scales), ("biases", &biases)];
        for ((part, bytes), expected) in parts.into_iter().zip(format.bytes(rows, cols)?) {
            if bytes.len() != expected {
                return Err(FormatError::Length { part, rows, cols, format, found: bytes.len(), expected });
            }
        }
        Ok(Self { rows, cols, format, weight, scales, biases, global_scale: 1.0, first_row: 0, filled: None })
    }

    /// The same matrix with every value multiplied by `scale` (nvfp4's `global_scale`).
    #[must_use]
    pub fn with_global_scale(mut self, scale: f32) -> Self {
        self.global_scale = scale;
        self
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The factor on every value; 1 for all formats but nvfp4.
    pub fn global_scale(&self) -> f32 {
        self.global_scale
    }

    /// The packed codes, row after row.
    pub fn weight(&self) -> &Bytes {
        &self.weight
    }

    /// The scales, row after row, of a slice from its first block on; empty for floats.
    pub fn scales(&self) -> &Bytes {
        &self.scales
    }

    /// The biases, row after row; empty but for affine.
    pub fn biases(&self) -> &Bytes {
        &self.biases
    }

    /// All stored bytes.
    pub fn bytes(&self) -> u64 {
        (self.weight.len() + self.scales.len() + self.biases.len()) as u64
    }

    /// Rows `range` of this matrix, sharing its bytes. The range is clipped to the matrix.
    #[must_use]
    pub fn slice_rows(&self, range: Range<usize>) -> Self {
        let end = range.end.min(self.rows);
        let start = range.start.min(end);
        let cut = |bytes: &Bytes| {
            let row = bytes.len().checked_div(self.rows).unwrap_or(0);
            bytes.slice(start * row..end * row)
        };
        let scales = match start == end {
            true => 0..0,
            false => self.scale_range(start).start..self.scale_range(end - 1).end,
        };
        Self {
            rows: end - start,
            weight: cut(&self.weight),
            scales: self.scales.slice(scales),
            biases: cut(&self.biases),
            first_row: (self.first_row + start) % self.format.scale_rows(),
            filled: None,
            ..*self
        }
    }

    /// Where the scales of row `row` lie in [`Self::scales`].
    pub(crate) fn scale_range(&self, row: usize) -> Range<usize> {
        let width = self.format.groups(self.cols) * self.format.scale_bytes();
        let start = (self.first_row + row) / self.format.scale_rows() * width;
        start..start + width
    }

    /// Whether its first row is the first one of a block of scales.
    #[cfg(feature = "gpu")]
    pub(crate) fn begins_block(&self) -> bool {
        self.first_row == 0
    }

    /// A copy whose rows are filled up to `cols` columns with zeros.
    pub(crate) fn widened(&self, cols: usize) -> Result<Self, FormatError> {
        let (from, to) = (self.format.bytes(1, self.cols)?, self.format.bytes(1, cols)?);
        let widened = |bytes: &Bytes, i: usize| {
            if from[i] == to[i] {
                return bytes.clone();
            }
            let mut out = vec![0; bytes.len() / from[i].max(1) * to[i]];
            let lines = out.chunks_exact_mut(to[i].max(1)).zip(bytes.chunks_exact(from[i].max(1)));
            lines.for_each(|(out, line)| out[..line.len()].copy_from_slice(line));
            Bytes::from(out)
        };
        let (weight, scales, biases) =
            (widened(&self.weight, 0), widened(&self.scales, 1), widened(&self.biases, 2));
        Ok(Self { cols, weight, scales, biases, filled: None, ..*self })
    }

    /// The same matrix, with a copy beside it whose rows are filled up to `cols` columns with zeros: for a backend that reads
    /// whole blocks.
    #[must_use]
    pub(crate) fn with_filled(mut self, cols: usize) -> Self {
        self.filled = self.widened(cols).ok().map(Arc::new);
        self
    }

    /// The copy with `cols` columns, if there is one.
    pub(crate) fn filled(&self, cols: usize) -> Option<&Self> {
        self.filled.as_deref().filter(|filled| filled.cols == cols)
    }

    /// The first row that has a weight which is not a number, in formats with NVIDIA's e4m3: in `Fp8` a code of 0x7f or
    /// 0xff or a scale that is not finite, in `Nvfp4` such a scale. Kernels do not look for them: they take those codes for
    /// 480, as MLX does. This reads all that may hold one.
    pub fn first_nan_row(&self) -> Option<usize> {
        let is_nan = |bytes: &[u8]| bytes.iter().fold(false, |found, b| found | (b & 0x7f == 0x7f));
        let codes = self.weight.len().checked_div(self.rows).unwrap_or(0);
        let rows = (0..self.rows).into_par_iter();
        match self.format {
            Format::Fp8 { scales: float } => rows.find_first(|&row| {
                let scales = &self.scales[self.scale_range(row)];
                is_nan(&self.weight[row * codes..(row + 1) * codes])
                    || (0..scales.len() / float.bytes()).any(|i| !float.read(scales, i).is_finite())
            }),
            Format::Nvfp4 if !self.global_scale.is_finite() => Some(0),
            Format::Nvfp4 => rows.find_first(|&row| is_nan(&self.scales[self.scale_range(row)])),
            _ => None,
        }
    }

    /// Splits `[n * rows, cols]` into `n` matrices of equal height, as stacked experts are stored. Shares the bytes.
    #[must_use]
    pub fn split_rows(&self, n: usize) -> Vec<Self> {
        let rows = self.rows.checked_div(n).unwrap_or(0);
        (0..n).map(|i| self.slice_rows(i * rows..(i + 1) * rows)).collect()
    }
}

impl Stored for PackedMatrix {
    fn shape(&self) -> [usize; 3] {
        [1, self.rows, self.cols]
    }

    fn stored_bytes(&self) -> u64 {
        self.bytes()
    }
}
