//! Tests of the kernels.

mod translate;
