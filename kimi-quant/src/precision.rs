//! How precisely products are computed.

use std::fmt;
use std::str::FromStr;

/// How precisely a backend multiplies activations with weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Activations keep the precision of f32.
    #[default]
    Exact,
    /// Activations are rounded to 14 bits and a sign of the largest near them, on a CPU whose kernels gain from it: closer
    /// to f32 than 16-bit floats are. Elsewhere it is [`Precision::Exact`].
    Close,
    /// Activations are rounded before they are multiplied, where the backend has kernels that gain from it; on a GPU weights
    /// too, to 16-bit floats. A CPU keeps 7 bits and a sign.
    Fast,
}

impl Precision {
    /// All, from the most precise to the fastest.
    pub const ALL: [Self; 3] = [Self::Exact, Self::Close, Self::Fast];
}

/// A word that names no [`Precision`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision {0:?}: expected exact, close or fast")]
pub struct PrecisionError(String);

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Close => "close",
            Self::Fast => "fast",
        })
    }
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(word: &str) -> Result<Self, PrecisionError> {
        let known = Self::ALL.into_iter().find(|precision| precision.to_string() == word);
        known.ok_or_else(|| PrecisionError(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        let error = "quick".parse::<Precision>().unwrap_err();
        assert_eq!(error.to_string(), "unknown precision \"quick\": expected exact, close or fast");
    }
}
