//! What is in a file that should hold text or JSON: a byte order mark, a pointer that Git LFS left, a web page, an
//! archive. Such files are common, and a parser's "expected value at line 1 column 1" helps nobody.
//!
//! The messages of [`NotText`] and [`JsonError`] read on after the file's name: `config.json is empty: ..`.

use std::borrow::Cow;
use std::fmt;

use serde::de::DeserializeOwned;

use crate::plan::HumanBytes;

mod lint;

/// How many bytes are looked at where a part tells what the whole is.
const HEAD: usize = 4096;

/// Most characters of a file that a message quotes.
const QUOTED: usize = 80;

/// UTF-8's byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// First bytes of files that are no text, and what they are.
const MAGIC: [(&[u8], &str); 16] = [
    (b"\x1f\x8b", "a gzip archive; unpack it with `gunzip`"),
    (b"PK\x03\x04", "a zip archive (PyTorch's .bin and .pt files are such too)"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it with `unzstd`"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it with `unxz`"),
    (b"BZh", "a bzip2 archive; unpack it with `bunzip2`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"GGUF", "a GGUF file; kimi reads safetensors, such as MLX's and Moonshot's own"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF"),
    (b"bplist00", "a binary property list"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (
        b"\0\x05\x16\x07",
        "an AppleDouble file, which macOS writes beside files on foreign disks; delete it (`dot_clean` does)",
    ),
    (b"\xd0\xcf\x11\xe0", "an Office document; save it as plain text"),
];

/// What a file holds in place of text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotText {
    /// Nothing, or only white space.
    #[error("is empty: download or write it again")]
    Empty,
    /// It begins with zeros.
    #[error(
        "holds zeros where its content should be: a download was broken off, or a disk lost it; download it again"
    )]
    Zeros,
    /// The file is kept elsewhere, and this is its address.
    #[error(
        "is a {system} pointer{size}, not the file itself: run `{command}` in its folder, or fetch the model with `hf download`",
        size = bytes.map(|b| format!(" to a file of {}", HumanBytes(b))).unwrap_or_default()
    )]
    Pointer {
        /// Such as `Git LFS`.
        system: &'static str,
        /// Size of the file, if the pointer says.
        bytes: Option<u64>,
        /// What fetches the file.
        command: &'static str,
    },
    /// A symbolic link whose text was copied.
    #[error(
        "is the text of a symbolic link to {target:?}, not the file: copy the folder again, following links (`rsync -rL`, `cp -RL`)"
    )]
    Link {
        /// Where it points.
        target: String,
    },
    /// What a server answered in place of the file.
    #[error("is {kind}, not the file{}: download it again", title.as_ref().map(|t| format!(" ({t:?})")).unwrap_or_default())]
    Page {
        /// `a web page` or `an XML page`.
        kind: &'static str,
        /// Its title or message.
        title: Option<String>,
    },
    /// Rich text.
    #[error(
        "is rich text (RTF), not plain text: in TextEdit choose Format, Make Plain Text, and save it again"
    )]
    Rtf,
    /// Another encoding of Unicode.
    #[error("is {encoding} text: save it again as UTF-8")]
    Encoding {
        /// `UTF-16` or `UTF-32`.
        encoding: &'static str,
    },
    /// A file of another kind.
    #[error("is {what}")]
    Binary {
        /// What it is, with an article.
        what: &'static str,
    },
    /// Not UTF-8.
    #[error(
        "is not UTF-8 text (byte {byte:#04x} at offset {offset}): it is damaged or in another encoding; download it again, or save it as UTF-8"
    )]
    NotUtf8 {
        /// The first byte that does not fit.
        byte: u8,
        /// Where it is.
        offset: usize,
    },
}

/// Why a file's JSON can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is no text.
    #[error(transparent)]
    NotText(#[from] NotText),
    /// It is text, but not JSON.
    #[error("is not JSON: {0}")]
    Syntax(String),
    /// It is JSON, but not of the form that is needed.
    #[error("is not as expected: {0}")]
    Form(String),
}

/// The text of a JSON file as bytes, without a byte order mark. It need not be valid JSON.
///
/// # Errors
/// [`NotText`] says what the file is instead.
pub fn json_text(bytes: &[u8]) -> Result<&[u8], NotText> {
    text(bytes).map(str::as_bytes)
}

/// The text of a file, without a byte order mark. White space alone counts as empty.
///
/// # Errors
/// [`NotText`] says what the file is instead.
pub fn text(bytes: &[u8]) -> Result<&str, NotText> {
    if let Some(found) = recognize(bytes).or_else(|| safetensors(bytes)) {
        return Err(found);
    }
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|e| {
        let offset = e.valid_up_to();
        NotText::NotUtf8 { byte: bytes.get(offset).copied().unwrap_or(0), offset }
    })
}

/// Reads a value from a JSON file.
///
/// # Errors
/// [`JsonError`] says what the file is instead, or where and how it deviates from JSON.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let text = text(bytes)?;
    serde_json::from_str(text).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => JsonError::Form(e.to_string()),
        _ => JsonError::Syntax(explain(text, &e)),
    })
}

/// What is wrong with a text that is not JSON: the mistake if it is one that people make, else the parser's words.
pub fn explain(text: &str, error: &serde_json::Error) -> String {
    match lint::first_mistake(text) {
        Some(mistake) => mistake.to_string(),
        None if error.is_eof() => format!(
            "it ends too early, after {} bytes: it was cut off (download it again), or a closing bracket is missing",
            text.len()
        ),
        None => error.to_string(),
    }
}

/// What a file is that should be something else: text, or a shard. It need not be given as a whole: 4 KB tell. `None` if it
/// may be what it should be.
pub fn recognize(bytes: &[u8]) -> Option<NotText> {
    let whole = &bytes[..bytes.len().min(HEAD)];
    let head = whole.strip_prefix(BOM).unwrap_or(whole);
    if let Some(encoding) = wide(head) {
        return Some(NotText::Encoding { encoding });
    }
    if head.iter().all(|b| *b == 0) && !head.is_empty() {
        return Some(NotText::Zeros);
    }
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(NotText::Binary { what });
    }
    let trimmed = head.trim_ascii();
    if trimmed.is_empty() {
        return Some(NotText::Empty);
    }
    if trimmed.starts_with(b"{\\rtf") {
        return Some(NotText::Rtf);
    }
    let start = String::from_utf8_lossy(trimmed);
    pointer(&start).or_else(|| page(&start))
}

/// UTF-16 and UTF-32, by their mark or by the zeros between ASCII characters.
fn wide(head: &[u8]) -> Option<&'static str> {
    match *head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] if is_text(a) && is_text(b) => Some("UTF-16"),
        _ => None,
    }
}

fn is_text(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte.is_ascii_whitespace()
}

fn pointer(start: &str) -> Option<NotText> {
    if start.starts_with("version https://git-lfs") || start.starts_with("version https://hawser") {
        let size = start.lines().find_map(|line| line.strip_prefix("size "));
        let bytes = size.and_then(|size| size.trim().parse().ok());
        return Some(NotText::Pointer { system: "Git LFS", bytes, command: "git lfs pull" });
    }
    let line = start.lines().next().unwrap_or_default();
    if start.len() > 512 || start.lines().count() != 1 {
        return None;
    }
    if line.contains("/annex/objects/") {
        return Some(NotText::Pointer { system: "git-annex", bytes: None, command: "git annex get ." });
    }
    let link = line.starts_with("../") && line.contains("blobs/") && !line.contains(char::is_whitespace);
    link.then(|| NotText::Link { target: quoted(line).into_owned() })
}

/// A web page, or an answer of a server in a few words.
fn page(start: &str) -> Option<NotText> {
    let lower = start.to_ascii_lowercase();
    let within = |open: &str, close: &str| {
        let from = lower.find(open)? + open.len();
        let to = from + lower[from..].find(close)?;
        Some(quoted(start[from..to].trim()).into_owned()).filter(|t| !t.is_empty())
    };
    if ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| lower.starts_with(tag)) {
        return Some(NotText::Page { kind: "a web page", title: within("<title>", "</title>") });
    }
    if lower.starts_with("<?xml") || lower.starts_with("<error") {
        return Some(NotText::Page { kind: "an XML page", title: within("<message>", "</message>") });
    }
    const ANSWERS: [&str; 7] = [
        "entry not found",
        "not found",
        "404: not found",
        "invalid username or password",
        "access to model",
        "repository not found",
        "too many requests",
    ];
    let answers = start.len() < 512 && ANSWERS.iter().any(|answer| lower.starts_with(answer));
    answers.then(|| NotText::Page { kind: "a server's answer", title: Some(quoted(start).into_owned()) })
}

/// A safetensors file: 8 bytes with the length of the JSON that follows.
fn safetensors(bytes: &[u8]) -> Option<NotText> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    let found = bytes.get(8) == Some(&b'{') && length > 1 && length <= 100 << 20 && bytes[7] == 0;
    found.then_some(NotText::Binary { what: "a safetensors file, which holds tensors, not text" })
}

/// A short piece of a file, as a message can hold it.
fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}..", &text[..end]).into(),
        None => text.into(),
    }
}

/// A mistake in a text, and the line that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    line: usize,
    what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

#[cfg(test)]
mod tests;
