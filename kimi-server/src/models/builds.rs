//! Published builds of Kimi-K2 and its successors: hub ids, sizes, and how their weights are stored. All have the same shapes.

use kimi_core::config::ConfigError;
use kimi_core::plan::{AverageBits, ModelBytes};
use kimi_core::synthetic::SyntheticShape;

/// Layers of Kimi-K2 and its successors.
pub(super) const LAYERS: usize = 61;

/// A checkpoint on the hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Build {
    /// Short name.
    pub name: &'static str,
    /// Hub id.
    pub hub: &'static str,
    /// Longest context of the model, in tokens.
    pub context: usize,
    /// Its size, where that is known.
    pub size: Option<Size>,
}

/// How large a build is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Bytes of its files, as published, or as its format makes them of the model's shapes (FP8, Thinking, K2.5). A vision
    /// tower is up to 1 GB of them.
    pub files: u64,
    /// How its weights are stored, on average: mixes of bits are counted as if all layers were alike.
    pub bits: AverageBits,
}

const fn build(name: &'static str, hub: &'static str, context: usize) -> Build {
    Build { name, hub, context, size: None }
}

impl Build {
    /// With its files' size in GB, and bits a weight of the routed experts and of the others.
    const fn sized(mut self, gigabytes: f64, experts: f64, other: f64) -> Self {
        let bits = AverageBits { experts, other };
        self.size = Some(Size { files: (gigabytes * 1e9) as u64, bits });
        self
    }

    /// Bytes of its parts; `None` where its size is not known.
    ///
    /// # Errors
    /// None: the sizes are constants.
    pub fn bytes(&self) -> Result<Option<ModelBytes>, ConfigError> {
        let Some(size) = self.size else { return Ok(None) };
        let config = SyntheticShape::KimiK2.config(LAYERS, None)?;
        Ok(Some(ModelBytes::estimate(&config, size.bits)))
    }
}

const SHORT: usize = 131_072;
const LONG: usize = 262_144;

/// The builds, by model. Bits of experts in mixes follow from the size of the files and the bits of the rest.
pub(super) const BUILDS: [Build; 16] = [
    build("kimi-k2-4bit", "inferencerlabs/Kimi-K2-Instruct-MLX-3.985bit", SHORT).sized(504.0, 3.92, 4.5),
    build("kimi-k2-mlx-4bit", "mlx-community/Kimi-K2-Instruct-4bit", SHORT).sized(578.0, 4.5, 4.5),
    // FP8 in blocks of 128x128; embedding and head in bf16.
    build("kimi-k2-fp8", "moonshotai/Kimi-K2-Instruct", SHORT).sized(1029.0, 8.002, 9.63),
    build("kimi-k2-0905-fp8", "moonshotai/Kimi-K2-Instruct-0905", LONG).sized(1029.0, 8.002, 9.63),
    // INT4 experts in groups of 32, the rest in bf16: so are all of Moonshot's own builds since.
    build("kimi-k2-thinking", "moonshotai/Kimi-K2-Thinking", LONG).sized(594.2, 4.5, 16.0),
    build("kimi-k2-thinking-mlx", "mlx-community/Kimi-K2-Thinking", LONG).sized(658.0, 5.0, 16.0),
    build("kimi-k2.5", "moonshotai/Kimi-K2.5", LONG).sized(595.1, 4.5, 16.0),
    build("kimi-k2.5-2.5bit", "spicyneuron/Kimi-K2.5-MLX-2.5bit", LONG),
    build("kimi-k2.5-2.8bit", "spicyneuron/Kimi-K2.5-MLX-2.8bit", LONG),
    build("kimi-k2.5-3.6bit", "inferencerlabs/Kimi-K2.5-MLX-3.6bit", LONG),
    build("kimi-k2.6", "moonshotai/Kimi-K2.6", LONG).sized(595.148, 4.5, 16.0),
    build("kimi-k2.6-3.3bit", "spicyneuron/Kimi-K2.6-MLX-3.3bit", LONG).sized(427.4, 3.27, 8.5),
    build("kimi-k2.6-3.6bit", "spicyneuron/Kimi-K2.6-MLX-3.6bit", LONG).sized(459.1, 3.52, 8.5),
    build("kimi-k2.6-dq3", "mlx-community/Kimi-K2.6-mlx-DQ3_K_M-q8", LONG).sized(470.629, 3.611, 8.5),
    build("kimi-k2.7-code", "moonshotai/Kimi-K2.7-Code", LONG).sized(595.205, 4.5, 16.0),
    build("kimi-k2.7-code-3.6bit", "avlp12/Kimi-K2.7-Code-Alis-MLX-Dynamic-3.6bpw", LONG)
        .sized(465.0, 3.567, 8.5),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bits_agree() {
        for build in BUILDS.iter().filter(|b| b.size.is_some()) {
            let (bytes, size) = (build.bytes().unwrap().unwrap(), build.size.unwrap());
            let (total, files) = (bytes.total() as f64, size.files as f64);
            // Vision towers, and figures that were published in whole gigabytes.
            assert!((total / files - 1.0).abs() < 0.003, "{}: {total:e} of {files:e}", build.name);
        }
    }

    #[test]
    fn names_and_hub_ids_are_there_once() {
        let mut seen = std::collections::HashSet::new();
        assert!(BUILDS.iter().all(|b| seen.insert(b.name) && seen.insert(b.hub) && b.hub.contains('/')));
    }
}
