//! Where a model's weights come from: a checkpoint, or nowhere at all ([`crate::synthetic`]).

use std::ops::Range;

use kimi_quant::PackedMatrix;

use crate::config::ModelConfig;
use crate::model::{HostHead, HostLayer};
use crate::weights::{WeightError, Weights};

/// A model's weights, part by part.
pub trait ModelSource {
    /// The model's sizes.
    fn config(&self) -> &ModelConfig;

    /// The embedding, `[V, H]`.
    ///
    /// # Errors
    /// [`WeightError`] names the module, what was found and what would fit.
    fn embedding(&self) -> Result<PackedMatrix, WeightError>;

    /// Layer `index`.
    ///
    /// # Errors
    /// As [`ModelSource::embedding`].
    fn layer(&self, index: usize) -> Result<HostLayer, WeightError>;

    /// Final norm and head.
    ///
    /// # Errors
    /// As [`ModelSource::embedding`].
    fn head(&self) -> Result<HostHead, WeightError>;

    /// Makes sure that the values of a stage of these layers are here, and not their shapes alone.
    ///
    /// # Errors
    /// [`WeightError::NotHere`].
    fn check_here(&self, _layers: &Range<usize>) -> Result<(), WeightError> {
        Ok(())
    }

    /// Whether the weights are pages of files, which the system drops where memory is short.
    fn in_files(&self) -> bool {
        false
    }

    /// A device has copies of all tensors whose names begin so, such as `lm_head.`: their memory may go.
    fn give_back(&self, _tensors: &str) {}
}

impl ModelSource for Weights<'_> {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn embedding(&self) -> Result<PackedMatrix, WeightError> {
        self.embedding()
    }

    fn layer(&self, index: usize) -> Result<HostLayer, WeightError> {
        self.layer(index)
    }

    fn head(&self) -> Result<HostHead, WeightError> {
        self.head()
    }

    fn check_here(&self, layers: &Range<usize>) -> Result<(), WeightError> {
        self.check_here(layers)
    }

    fn in_files(&self) -> bool {
        true
    }

    fn give_back(&self, tensors: &str) {
        self.give_back(tensors);
    }
}
