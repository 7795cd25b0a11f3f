//! What can be wrong with the tensors of a checkpoint.

use kimi_quant::FormatError;

/// A checkpoint whose tensors do not make the model that its config describes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// A tensor is not there.
    #[error(
        "{module}: the checkpoint has no tensor {tensor}. It has {there}. Is it whole, and a Kimi-K2 or DeepSeek-V3?"
    )]
    Missing {
        /// The module.
        module: String,
        /// The tensor looked for.
        tensor: String,
        /// How many tensors there are, and some of their names.
        there: String,
    },
    /// A stage's weights are not in this part of the checkpoint.
    #[error(
        "{first}{more} of layers {layers} {are} not in {checkpoint}, which is a part of the model. Get what is missing from a \
         machine that has it: kimi pull-layers MODEL --from NODE --layers {layers} --to FOLDER",
        more = match others { 0 => String::new(), n => format!(" and {n} more parts") },
        are = if *others == 0 { "is" } else { "are" }
    )]
    NotHere {
        /// The checkpoint's name.
        checkpoint: String,
        /// The first group of tensors that is missing.
        first: String,
        /// How many more are.
        others: usize,
        /// The stage's layers, as the command takes them.
        layers: String,
    },
    /// A tensor has another shape than the config asks for.
    #[error("{module}: {tensor} has shape {found:?}, expected {expected}")]
    Shape {
        /// The module.
        module: String,
        /// Which of its tensors.
        tensor: &'static str,
        /// Shape found.
        found: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// The stored row fits no width.
    #[error(
        "{module}: a row of {words} packed words and {groups} groups fits no bit width for {cols} inputs; \
         these would fit: {fits}"
    )]
    NoWidth {
        /// The module.
        module: String,
        /// u32 words a row.
        words: usize,
        /// Groups a row.
        groups: usize,
        /// Inputs by the architecture.
        cols: usize,
        /// Widths and their words a row.
        fits: String,
    },
    /// The config's entry contradicts the tensors.
    #[error(
        "{module}: config.json says {said}, but the tensors are stored as {stored}. Remove or correct the entry"
    )]
    Entry {
        /// The module.
        module: String,
        /// The config's entry.
        said: String,
        /// What the shapes say.
        stored: String,
    },
    /// A type or method that kimi does not read.
    #[error("{module}: {what}")]
    Unsupported {
        /// The module.
        module: String,
        /// What was found, and what to do.
        what: String,
    },
    /// A weight is not a number.
    #[error(
        "{module}: row {row} has a weight that is not a number (an FP8 code or scale of 0x7f or 0xff, or a scale that is not \
         finite). The file is damaged or was made by a faulty converter: download it again"
    )]
    NotANumber {
        /// The module.
        module: String,
        /// The first row that has one.
        row: usize,
    },
    /// The bytes do not fit.
    #[error("{module}: {cause}")]
    Format {
        /// The module.
        module: String,
        /// Why.
        cause: FormatError,
    },
}
