//! Whether the device keeps denormal 16-bit floats, which WGSL lets it take for zero: tried out with one product.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Gpu;
use crate::{Backend, BackendError, BitWidth, FloatType, Format, PackedMatrix};

/// Rows of the product that is tried: with 64 columns, every code of 6 bits at every place.
const ROWS: usize = 8;
const COLS: usize = 64;
const BITS: usize = 6;

impl Gpu {
    /// Multiplies a small matrix whose codes are read as denormals, where products would be of floats. They are read so from
    /// then on if the result is exactly that of whole numbers; else as parts of floats, which takes twice the instructions.
    pub(super) fn try_denormals(&self) -> Result<(), BackendError> {
        let device = &self.recorder.device;
        if self.tuning().map_or(device.hardware.integer_dot, |tuning| tuning.integer) {
            return Ok(());
        }
        device.half_denormals.store(true, Ordering::Relaxed);
        let kept = self.multiplied()? == expected();
        device.half_denormals.store(kept, Ordering::Relaxed);
        if !kept {
            tracing::info!(
                "{}: denormal 16-bit floats are taken for zero; products avoid them",
                device.about
            );
        }
        Ok(())
    }

    fn multiplied(&self) -> Result<Vec<f32>, BackendError> {
        let format = Format::Affine { bits: BitWidth::B6, group: COLS, scales: FloatType::Bf16 };
        let mut packed = vec![0u8; ROWS * COLS * BITS / 8];
        for (i, code) in codes().enumerate() {
            for bit in (0..BITS).filter(|bit| code >> bit & 1 == 1) {
                packed[(i * BITS + bit) / 8] |= 1 << ((i * BITS + bit) % 8);
            }
        }
        let one = [0x80, 0x3f]; // a bf16
        let matrix = PackedMatrix::new(
            ROWS,
            COLS,
            format,
            Bytes::from(packed),
            Bytes::from(one.repeat(ROWS)),
            Bytes::from(vec![0; 2 * ROWS]),
        )
        .map_err(|e| BackendError::Device(format!("a matrix to try: {e}")))?;
        let matrix = self.load_matrix(matrix)?;
        let mut out = self.upload(1, ROWS, &[0.0; ROWS])?;
        self.project_add(&self.upload(1, COLS, &activations())?, &matrix, &mut out)?;
        self.download(&out)
    }
}

/// All of 64 codes, in another order in each row.
fn codes() -> impl Iterator<Item = usize> {
    (0..ROWS * COLS).map(|i| (i % COLS * 37 + i / COLS * 11) % 64)
}

/// Whole numbers, so that every sum is exact.
fn activations() -> Vec<f32> {
    (0..COLS).map(|column| column as f32 - 20.0).collect()
}

fn expected() -> Vec<f32> {
    let (codes, x): (Vec<_>, _) = (codes().collect(), activations());
    codes.chunks(COLS).map(|row| row.iter().zip(&x).map(|(code, x)| *code as f32 * x).sum()).collect()
}
