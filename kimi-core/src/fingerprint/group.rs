//! The groups of tensors that a model is made of.

use std::fmt;

use super::Canonical;
use crate::model::Part;
use crate::weights::{WeightError, Weights};

/// A group of tensors, in the order of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// `model.embed_tokens`.
    Embedding,
    /// `model.layers.N`.
    Layer(usize),
    /// `model.norm`.
    Norm,
    /// `lm_head`.
    Head,
}

impl Group {
    /// The group of a tensor by its name; `None` if no part of the model reads it.
    pub(crate) fn of(name: &str, layers: usize) -> Option<Self> {
        let begins = |module: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        if let Some(rest) = name.strip_prefix("model.layers.") {
            let layer = rest.split_once('.')?.0.parse().ok()?;
            return (layer < layers).then_some(Self::Layer(layer));
        }
        let ends =
            [("model.embed_tokens", Self::Embedding), ("model.norm", Self::Norm), ("lm_head", Self::Head)];
        ends.into_iter().find(|(module, _)| begins(module)).map(|(_, group)| group)
    }

    /// Hashes bits and group size of the group's matrices, as the weights will be read.
    pub(super) fn hash_formats(self, weights: &Weights<'_>, hash: &mut Canonical) -> Result<(), WeightError> {
        let mut add = |module: &str, part: Part<'_>| {
            if let Part::Matrices([first, ..]) = part {
                hash.bytes(module.as_bytes());
                hash.number(first.format().code_bits() as u64);
                hash.number(first.format().group() as u64);
            }
        };
        match self {
            Self::Embedding => add("model.embed_tokens", Part::Matrices(&[weights.embedding()?])),
            Self::Layer(layer) => weights.layer(layer)?.visit(&mut add),
            Self::Norm => {}
            Self::Head => add("lm_head", Part::Matrices(&[weights.lm_head()?])),
        }
        Ok(())
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("model.embed_tokens"),
            Self::Layer(layer) => write!(f, "model.layers.{layer}"),
            Self::Norm => f.write_str("model.norm"),
            Self::Head => f.write_str("lm_head"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_what_the_model_reads() {
        assert_eq!(Group::of("model.layers.3.mlp.gate.weight", 4), Some(Group::Layer(3)));
        assert_eq!(Group::of("model.norm.weight", 4), Some(Group::Norm));
        for other in
            ["model.layers.4.mlp.gate.weight", "model.layers.x.y", "vision_tower.a", "lm_headless.b", ""]
        {
            assert_eq!(Group::of(other, 4), None, "{other}");
        }
    }
}
