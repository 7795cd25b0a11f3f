//! Random checkpoints, golden values, and where the shared material is. Each test file uses a part of it.
#![allow(dead_code, reason = "not every test needs every helper")]

pub(crate) mod golden;
pub(crate) mod hub;
pub(crate) mod random;
pub(crate) mod stored;

#[path = "../material/mod.rs"]
mod material;

#[allow(unused_imports, reason = "not every test of these checkpoints has goldens")]
pub(crate) use material::shared;

/// Largest absolute difference; infinite if the lengths differ or a value is not a number.
pub(crate) fn max_abs_err(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let errors = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    errors.fold(0.0, |worst, e| if e.is_nan() { f32::INFINITY } else { worst.max(e) })
}
