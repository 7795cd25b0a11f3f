//! How precisely products are computed.

use std::fmt;
use std::str::FromStr;

/// How precisely a backend multiplies activations with weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Activations keep the precision of f32.
    #[default]
    Exact,
    /// Activations are rounded before they are multiplied, where the backend has kernels that gain from it; on a GPU weights
    /// too, to 16-bit floats.
    Fast,
}

/// A word that names no [`Precision`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision {0:?}: expected exact or fast")]
pub struct PrecisionError(String);

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        })
    }
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(word: &str) -> Result<Self, PrecisionError> {
        let known = [Self::Exact, Self::Fast].into_iter().find(|precision| precision.to_string() == word);
        known.ok_or_else(|| PrecisionError(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for precision in [Precision::Exact, Precision::Fast] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        let error = "quick".parse::<Precision>().unwrap_err();
        assert_eq!(error.to_string(), "unknown precision \"quick\": expected exact or fast");
    }
}
