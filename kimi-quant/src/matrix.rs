//! One weight matrix, as stored.

use std::ops::Range;

use bytes::Bytes;

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
        let per_row = format.row_bytes(cols)?;
        let parts = [("weight", &weight), ("scales", &scales), ("biases", &biases)];
        for ((part, bytes), row) in parts.into_iter().zip(per_row) {
            let expected = row.checked_mul(rows).ok_or(FormatError::TooLarge { rows, cols })?;
            if bytes.len() != expected {
                return Err(FormatError::Length { part, rows, cols, format, found: bytes.len(), expected });
            }
        }
        Ok(Self { rows, cols, format, weight, scales, biases, global_scale: 1.0 })
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

    /// The scales, row after row; empty for floats.
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
        Self {
            rows: end - start,
            weight: cut(&self.weight),
            scales: cut(&self.scales),
            biases: cut(&self.biases),
            ..*self
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
