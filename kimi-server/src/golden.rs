//! Recorded logits and greedy tokens, in a safetensors file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kimi_quant::FloatType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Largest file that is read.
const MAX_BYTES: u64 = 16 << 30;

/// A prompt with its recorded results.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The prompt, `[T]`.
    pub ids: Vec<u32>,
    /// `[T, V]`, or `[1, V]` for the last position only.
    pub logits: Vec<f32>,
    /// Whether the logits are those of every position.
    pub every_position: bool,
    /// What greedy decoding continues with, `[G]`.
    pub greedy: Vec<u32>,
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// Not readable.
    #[error("can't read the golden file {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Not of the right form.
    #[error("golden file {path}: {reason}. Expected CASE.ids I32[T], CASE.logits F32[T or 1, V], CASE.greedy I32[G]", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor's name.
        reason: String,
    },
}

/// Reads all cases, those with short prompts first. `vocab` is the model's.
///
/// # Errors
/// [`GoldenError`] names the tensor, what was found and what was expected.
pub fn read(path: &Path, vocab: usize) -> Result<Vec<Case>, GoldenError> {
    let io = |cause| GoldenError::Io { path: path.to_owned(), cause };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_BYTES {
        return Err(io(std::io::Error::other(format!("{size} bytes, expected at most {MAX_BYTES}"))));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    parse(&bytes, vocab).map_err(|reason| GoldenError::Form { path: path.to_owned(), reason })
}

fn parse(bytes: &[u8], vocab: usize) -> Result<Vec<Case>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let mut names = BTreeSet::new();
    for name in file.names() {
        let (case, part) =
            name.rsplit_once('.').ok_or_else(|| format!("tensor {name:?} belongs to no case"))?;
        if !matches!(part, "ids" | "logits" | "greedy") {
            return Err(format!("tensor {name:?} is none of ids, logits, greedy"));
        }
        names.insert(case.to_owned());
    }
    if names.is_empty() {
        return Err("there is no case".to_owned());
    }
    let mut cases = names.into_iter().map(|name| case(&file, name, vocab)).collect::<Result<Vec<_>, _>>()?;
    cases.sort_by_key(|c| c.ids.len());
    Ok(cases)
}

fn case(file: &SafeTensors<'_>, name: String, vocab: usize) -> Result<Case, String> {
    let tensor = |part: &str, dtype| -> Result<TensorView<'_>, String> {
        let full = format!("{name}.{part}");
        let tensor = file.tensor(&full).map_err(|_| format!("there is no tensor {full:?}"))?;
        match tensor.dtype() == dtype {
            true => Ok(tensor),
            false => Err(format!("{full} is {:?}, expected {dtype:?}", tensor.dtype())),
        }
    };
    let ids = token_ids(&tensor("ids", Dtype::I32)?, vocab).map_err(|e| format!("{name}.ids {e}"))?;
    if ids.is_empty() {
        return Err(format!("{name}.ids is empty"));
    }
    let greedy =
        token_ids(&tensor("greedy", Dtype::I32)?, vocab).map_err(|e| format!("{name}.greedy {e}"))?;
    let logits = tensor("logits", Dtype::F32)?;
    let (rows, cols) = match *logits.shape() {
        [rows, cols] => (rows, cols),
        ref other => return Err(format!("{name}.logits has shape {other:?}, expected two dimensions")),
    };
    if cols != vocab || (rows != 1 && rows != ids.len()) {
        let t = ids.len();
        return Err(format!(
            "{name}.logits has shape [{rows}, {cols}], expected [1 or {t}, {vocab}] for this model"
        ));
    }
    let values = (0..rows * cols).map(|i| FloatType::F32.read(logits.data(), i)).collect();
    Ok(Case { name, every_position: rows > 1, ids, logits: values, greedy })
}

fn token_ids(tensor: &TensorView<'_>, vocab: usize) -> Result<Vec<u32>, String> {
    if tensor.shape().len() != 1 {
        return Err(format!("has shape {:?}, expected one dimension", tensor.shape()));
    }
    let ids = tensor.data().chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    ids.map(|id| match u32::try_from(id) {
        Ok(id) if (id as usize) < vocab => Ok(id),
        _ => Err(format!("has the token {id}, expected 0 to {}", vocab.saturating_sub(1))),
    })
    .collect()
}
