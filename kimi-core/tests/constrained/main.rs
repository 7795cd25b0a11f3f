//! Answers that are held to a form, by a model that takes any token it may.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

#[path = "../common/mod.rs"]
mod common;
mod limits;
mod random;
mod sampler;
mod suites;
mod tools;
