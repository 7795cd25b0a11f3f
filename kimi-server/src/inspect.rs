//! What a checkpoint holds: formats and bytes of every module. Reads headers only.

use std::fmt;
use std::ops::RangeInclusive;

use kimi_core::ChatFiles;
use kimi_core::chat::Thinking;
use kimi_core::chat_model::{ModelDefaults, SamplingDefaults};
use kimi_core::checkpoint::{Checkpoint, CheckpointError};
use kimi_core::model::Part;
use kimi_core::plan::HumanBytes;
use kimi_core::weights::{Unread, WeightError, Weights};
use kimi_quant::{Format, PackedMatrix};
use serde::Serialize;

use crate::models::OwnSampling;
use crate::table::Table;

/// A checkpoint, taken apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub model: String,
    /// Architecture by its config.
    pub model_type: String,
    /// Sizes that tell models apart.
    pub sizes: Sizes,
    /// How its tensors are named.
    pub layout: Layout,
    /// Bytes of all tensors in the files.
    pub file_bytes: u64,
    /// Number of files with tensors.
    pub shards: usize,
    /// Bytes of the modules that are used.
    pub bytes: u64,
    /// Number of weights of those.
    pub weights: u64,
    /// `8 * bytes / weights`.
    pub bits_per_weight: f64,
    /// The embedding, the final norm and the head.
    pub ends: Vec<Module>,
    /// Every layer.
    pub layers: Vec<LayerReport>,
    /// The ids on which answers end; those that the files name, if the tokenizer can't be used.
    pub eos_ids: Vec<u32>,
    /// The tokenizer's file.
    pub tokenizer: Option<&'static str>,
    /// The file with the chat template.
    pub chat_template: Option<&'static str>,
    /// How tokens are chosen where a request does not say.
    pub default_sampling: Option<DefaultSampling>,
    /// What the files hold beside the text model, such as a vision tower.
    pub unread: Option<Unread>,
    /// Groups of tensors that are not here, of a checkpoint that is a part of one.
    pub missing: Vec<String>,
    /// What is odd or wrong about the files beside the weights.
    pub warnings: Vec<String>,
    /// What two machines compare to know that they hold the same checkpoint.
    pub fingerprint: String,
}

/// Sizes by the config.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // named as in config.json
pub struct Sizes {
    pub num_hidden_layers: usize,
    pub hidden_size: usize,
    pub vocab_size: usize,
    pub num_attention_heads: usize,
    pub n_routed_experts: usize,
    pub num_experts_per_tok: usize,
    pub n_shared_experts: usize,
    pub max_position_embeddings: usize,
}

/// How tokens are chosen where a request does not say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DefaultSampling {
    /// Without more said.
    #[serde(flatten)]
    pub usual: SamplingDefaults,
    /// Where the request wants no thinking, of a model that can think.
    pub without_thinking: Option<SamplingDefaults>,
}

impl DefaultSampling {
    fn of(defaults: &ModelDefaults) -> Self {
        let thinks = defaults.thinking != Thinking::Never;
        Self { usual: defaults.mode(None), without_thinking: thinks.then(|| defaults.mode(Some(false))) }
    }
}

impl fmt::Display for DefaultSampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "temperature {}, top_p {}", self.usual.temperature, self.usual.top_p)?;
        match &self.without_thinking {
            Some(SamplingDefaults { temperature, top_p }) => {
                write!(f, "; without thinking temperature {temperature}, top_p {top_p}")
            }
            None => Ok(()),
        }
    }
}

/// How tensors are named.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layout {
    /// `kv_b_proj`, or `embed_q + unembed_out`.
    pub latent: &'static str,
    /// `stacked`, `fused` (as transformers 5 stores them), `one by one` or `none`.
    pub experts: &'static str,
    /// What stands in the tensors' names in place of `model.`.
    pub body: String,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// Its number.
    pub layer: usize,
    /// Bytes of its modules.
    pub bytes: u64,
    /// Its modules.
    pub modules: Vec<Module>,
}

/// A module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Module {
    /// Its name below its layer.
    pub name: String,
    /// How it is stored, for people.
    pub format: String,
    /// Bits of a weight, without scales.
    pub bits: usize,
    /// Weights that share a scale; 1 where there are none.
    pub group: usize,
    /// Rows and columns, after the number of experts where there are several.
    pub shape: Vec<usize>,
    /// Stored bytes.
    pub bytes: u64,
    /// Number of weights.
    pub weights: u64,
}

/// A checkpoint that can't be taken apart.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Its tensors do not make the model.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// One of its files can't be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl Module {
    fn new(name: &str, part: Part<'_>) -> Self {
        let (format, bits, group, shape) = match part {
            Part::Matrices(list) => match list.first() {
                Some(m) => {
                    (m.format().to_string(), m.format().code_bits(), m.format().group(), shape(list, m))
                }
                None => (String::new(), 0, 1, vec![0]),
            },
            Part::Vector(v) => {
                let format = Format::Float(v.float);
                (format.to_string(), format.code_bits(), 1, vec![v.data.len() / v.float.bytes()])
            }
        };
        Self {
            name: name.to_owned(),
            format,
            bits,
            group,
            shape,
            bytes: part.bytes(),
            weights: part.weights(),
        }
    }

    fn shape_text(&self) -> String {
        self.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
    }
}

fn shape(list: &[PackedMatrix], first: &PackedMatrix) -> Vec<usize> {
    match list.len() {
        1 => vec![first.rows(), first.cols()],
        n => vec![n, first.rows(), first.cols()],
    }
}

impl Report {
    /// Reads the headers of a checkpoint. `own` is what the user says of choosing tokens.
    ///
    /// # Errors
    /// [`InspectError`] names the module or the file.
    pub fn new(model: &str, checkpoint: &Checkpoint, own: OwnSampling) -> Result<Self, InspectError> {
        let config = checkpoint.config();
        let weights = Weights::new(checkpoint);
        let one = |name: &str, m: &PackedMatrix| Module::new(name, Part::Matrices(std::slice::from_ref(m)));
        let head = weights.head()?;
        let mut ends = vec![one("model.embed_tokens", &weights.embedding()?)];
        ends.push(Module::new("model.norm", Part::Vector(&head.norm.weight)));
        if !weights.is_head_tied() {
            ends.push(one("lm_head", &head.lm_head));
        }
        let layers = (0..config.num_hidden_layers).map(|layer| layer_report(&weights, layer));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let modules = || layers.iter().flat_map(|l| &l.modules).chain(&ends);
        let (bytes, count) = (modules().map(|m| m.bytes).sum(), modules().map(|m| m.weights).sum::<u64>());
        let tokenizer = checkpoint.file("tiktoken.model")?.map(|_| "tiktoken.model");
        let mut warnings = checkpoint.warnings().to_vec();
        let (eos_ids, chat_template, default_sampling) = match ChatFiles::open(checkpoint) {
            Ok(files) => {
                warnings.extend_from_slice(files.warnings());
                let sampling = DefaultSampling::of(&own.apply(files.defaults()));
                (files.stop_ids().to_vec(), files.template_source().file(), Some(sampling))
            }
            Err(error) => {
                warnings.push(error.to_string());
                (checkpoint.eos_ids()?, None, None)
            }
        };
        Ok(Self {
            model: model.to_owned(),
            model_type: config.model_type.clone(),
            sizes: Sizes {
                num_hidden_layers: config.num_hidden_layers,
                hidden_size: config.hidden_size,
                vocab_size: config.vocab_size,
                num_attention_heads: config.num_attention_heads,
                n_routed_experts: config.n_routed_experts,
                num_experts_per_tok: config.num_experts_per_tok,
                n_shared_experts: config.n_shared_experts,
                max_position_embeddings: config.max_position_embeddings,
            },
            layout: layout(checkpoint, &weights),
            file_bytes: checkpoint.bytes(),
            shards: checkpoint.shards().len(),
            bytes,
            weights: count,
            bits_per_weight: 8.0 * bytes as f64 / count.max(1) as f64,
            ends,
            layers,
            eos_ids,
            tokenizer,
            chat_template,
            default_sampling,
            unread: weights.unread(),
            missing: checkpoint.missing_groups().iter().map(ToString::to_string).collect(),
            warnings,
            fingerprint: hex(&checkpoint.fingerprint()),
        })
    }

    /// Runs of equal layers.
    fn ranges(&self) -> Vec<(RangeInclusive<usize>, &LayerReport)> {
        let mut ranges: Vec<(RangeInclusive<usize>, &LayerReport)> = Vec::new();
        for layer in &self.layers {
            match ranges.last_mut() {
                Some((range, first)) if first.modules == layer.modules => {
                    *range = *range.start()..=layer.layer
                }
                _ => ranges.push((layer.layer..=layer.layer, layer)),
            }
        }
        ranges
    }
}

fn layer_report(weights: &Weights<'_>, layer: usize) -> Result<LayerReport, WeightError> {
    let mut modules = Vec::new();
    weights.layer(layer)?.visit(&mut |name, part| modules.push(Module::new(name, part)));
    Ok(LayerReport { layer, bytes: modules.iter().map(|m| m.bytes).sum(), modules })
}

fn layout(checkpoint: &Checkpoint, weights: &Weights<'_>) -> Layout {
    let any = |what: &str| checkpoint.tensors().any(|(name, _)| name.contains(what));
    Layout {
        latent: if any(".self_attn.kv_b_proj.") { "kv_b_proj" } else { "embed_q + unembed_out" },
        experts: match (any(".mlp.switch_mlp."), any(".mlp.experts.gate_up_proj"), any(".mlp.experts.")) {
            (true, _, _) => "stacked",
            (_, true, _) => "fused",
            (_, _, true) => "one by one",
            _ => "none",
        },
        body: weights.body_name().to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.sizes;
        writeln!(
            f,
            "{}: {}, {} layers, hidden size {}, {} heads, {} experts ({} chosen, {} shared), vocabulary {}, context {}",
            self.model,
            self.model_type,
            s.num_hidden_layers,
            s.hidden_size,
            s.num_attention_heads,
            s.n_routed_experts,
            s.num_experts_per_tok,
            s.n_shared_experts,
            s.vocab_size,
            s.max_position_embeddings
        )?;
        let Layout { latent, experts, body } = &self.layout;
        let body = if body == "model." { String::new() } else { format!("; {body}* in place of model.*") };
        writeln!(f, "layout: {latent}; experts {experts}{body}")?;
        let or_missing = |file: Option<&'static str>| file.unwrap_or("missing");
        writeln!(
            f,
            "tokenizer: {}; chat template: {}; eos ids: {:?}",
            or_missing(self.tokenizer),
            or_missing(self.chat_template),
            self.eos_ids
        )?;
        if let Some(sampling) = &self.default_sampling {
            writeln!(f, "sampling by default: {sampling}")?;
        }
        writeln!(f, "fingerprint: {}", self.fingerprint)?;
        if let (Some(first), Some(last)) = (self.missing.first(), self.missing.last()) {
            let parts = self.missing.len();
            writeln!(
                f,
                "a part of the model: {parts} parts are not here, {first} to {last} (kimi pull-layers)"
            )?;
        }
        if let Some(unread) = &self.unread {
            writeln!(f, "beside the text model: {unread}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        writeln!(f)?;
        let mut table = Table::new(&["module", "format", "shape", "bytes"], &[2, 3]);
        let mut line = |indent: &str, m: &Module| {
            table.row([
                format!("{indent}{}", m.name),
                m.format.clone(),
                m.shape_text(),
                HumanBytes(m.bytes).to_string(),
            ]);
        };
        self.ends.iter().for_each(|m| line("", m));
        for (range, layer) in self.ranges() {
            let (a, b) = (range.start(), range.end());
            let heading = if a == b { format!("layer {a}") } else { format!("layers {a}-{b}, each") };
            table.row([heading, String::new(), String::new(), HumanBytes(layer.bytes).to_string()]);
            for m in &layer.modules {
                table.row([
                    format!("  {}", m.name),
                    m.format.clone(),
                    m.shape_text(),
                    HumanBytes(m.bytes).to_string(),
                ]);
            }
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "total: {} in {} weights, {:.3} bits a weight ({} in {} files)",
            HumanBytes(self.bytes),
            self.weights,
            self.bits_per_weight,
            HumanBytes(self.file_bytes),
            self.shards
        )
    }
}
