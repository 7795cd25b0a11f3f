//! What the end-to-end tests share.

pub mod api;
pub mod binary;
pub mod browser;
pub mod full_size;
pub mod script;
