//! The CPU backend.
/// Runs the model on the CPU.
#[derive(Debug)]
pub struct Cpu;
