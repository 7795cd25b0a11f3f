//! The `kimi` binary.
fn main() {}
