//! What the end-to-end tests share.

pub mod binary;
pub mod full_size;
