//! Benches of kimi: `cargo bench -p kimi-benches --bench NAME`. Each is a program that prints a table.

pub use kimi_quant::RandomWeights;
