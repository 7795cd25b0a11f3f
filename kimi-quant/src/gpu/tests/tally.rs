//! Results of work that a device did not do.

use super::fake::{K2, Looks, Run, affine};
use crate::{Backend, BitWidth, FloatType};

/// wgpu's noop backend runs no kernel, so nothing is counted: as where Metal has ended a submission.
#[test]
fn results_of_work_that_was_not_done_are_refused() {
    let gpu = Looks::apple().gpu().unwrap();
    let written = gpu.upload(1, 64, &[1.0; 64]).unwrap();
    assert_eq!(gpu.download(&written).unwrap(), [1.0; 64], "no kernel had to run");
    let run = Run { gpu: &gpu, model: K2, format: affine(BitWidth::B4, 64, FloatType::Bf16) };
    let rows = gpu.embed(&run.matrix(8, 64).unwrap(), &[0]).unwrap();
    let lost = gpu.download(&rows).unwrap_err().to_string();
    assert!(lost.contains("Apple M3 Ultra") && lost.contains("0 of 1 submissions"), "{lost}");
    assert!(lost.contains("display") && lost.contains("--gpu-memory"), "{lost}");
    assert!(gpu.download(&written).is_err(), "the device stays lost");
}
