//! What can be wrong with packed weights, and what can go wrong on a device.

use crate::Format;

/// A weight matrix whose bytes do not fit its shape and format.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// The row length is not a whole number of groups or words.
    #[error("a row of {cols} weights can't be stored as {format}: it takes a multiple of {multiple}")]
    Columns {
        /// Weights in a row.
        cols: usize,
        /// The format asked for.
        format: Format,
        /// What the row length must be a multiple of.
        multiple: usize,
    },
    /// One of the byte strings has the wrong length.
    #[error("{part} of a {rows}x{cols} {format} matrix has {found} bytes, expected {expected}")]
    Length {
        /// `weight`, `scales` or `biases`.
        part: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// The format asked for.
        format: Format,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// The sizes overflow.
    #[error("a {rows}x{cols} matrix is larger than this machine can address")]
    TooLarge {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A bit width that no MLX checkpoint has.
    #[error("{0} bits is not a packed width; 2, 3, 4, 5, 6 and 8 are")]
    Bits(u32),
}

/// A failure of a backend.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BackendError {
    /// Two operands do not fit together: the checkpoint or the caller is wrong, never the data.
    #[error("{op}: {what} is {found}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The operand.
        what: &'static str,
        /// Size found.
        found: usize,
        /// Size expected.
        expected: usize,
    },
    /// A token id, page or position outside its range.
    #[error("{op}: {what} {found} is out of range, the limit is {limit}")]
    Range {
        /// The operation.
        op: &'static str,
        /// The operand.
        what: &'static str,
        /// Value found.
        found: usize,
        /// First value that is too large.
        limit: usize,
    },
    /// The device has no room.
    #[error("the device has no room for {what}: {needed} bytes are needed, {available} are free")]
    OutOfMemory {
        /// What was being allocated.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// There is no GPU, or none that was asked for.
    #[error(
        "no GPU: asked for {asked}, there is {seen}; on Linux that takes a Vulkan driver and its loader. Install them, or use \
         the CPU"
    )]
    NoAdapter {
        /// Its number, part of its name, or `any`.
        asked: String,
        /// Numbers and names of all that there are, or why there are none.
        seen: String,
    },
    /// The device failed or went away.
    #[error("the device failed: {0}")]
    Device(String),
}

impl BackendError {
    /// `Ok` if the two sizes agree, else [`BackendError::Shape`].
    pub fn check(op: &'static str, what: &'static str, found: usize, expected: usize) -> Result<(), Self> {
        if found == expected { Ok(()) } else { Err(Self::Shape { op, what, found, expected }) }
    }

    /// `Ok` if `found < limit`, else [`BackendError::Range`].
    pub fn check_range(op: &'static str, what: &'static str, found: usize, limit: usize) -> Result<(), Self> {
        if found < limit { Ok(()) } else { Err(Self::Range { op, what, found, limit }) }
    }
}
