//! Which vector instructions the kernels use.

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain code for any machine.
    Scalar,
}

impl Isa {
    /// Every set that this machine can run, slowest first.
    pub fn available() -> Vec<Self> {
        vec![Self::Scalar]
    }

    /// The fastest set that this machine can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// A name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
        }
    }
}
