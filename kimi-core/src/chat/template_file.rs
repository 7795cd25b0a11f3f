//! Where a checkpoint's chat template is.

use std::fmt;

use serde::Deserialize;

use super::TemplateError;
use crate::text_file;

/// Used when a checkpoint brings no template: the form of Kimi-K2-Instruct.
const DEFAULT_TEMPLATE: &str = include_str!("default.jinja");

/// Where a template was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateSource {
    /// `chat_template.jinja`.
    Jinja,
    /// `chat_template.json`, as processors of models that see write it.
    Json,
    /// `tokenizer_config.json`, in mid-2025 the only place.
    TokenizerConfig,
    /// Nowhere: the form of Kimi-K2-Instruct is used.
    Default,
}

impl TemplateSource {
    /// The file's name; `None` for the default.
    pub fn file(self) -> Option<&'static str> {
        match self {
            Self::Jinja => Some("chat_template.jinja"),
            Self::Json => Some("chat_template.json"),
            Self::TokenizerConfig => Some("tokenizer_config.json"),
            Self::Default => None,
        }
    }
}

impl fmt::Display for TemplateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file().unwrap_or("the default chat template"))
    }
}

/// Any of the JSON files.
#[derive(Deserialize)]
struct ConfigFile {
    chat_template: Option<ConfigTemplate>,
}

/// One template, or a list of named ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum ConfigTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The text of the first template that is there, and where it was.
pub(super) fn find(
    jinja: Option<&[u8]>,
    json: Option<&[u8]>,
    tokenizer_config: Option<&[u8]>,
) -> Result<(String, TemplateSource), TemplateError> {
    if let Some(bytes) = jinja {
        let source = TemplateSource::Jinja;
        let text = text_file::text(bytes).map_err(|e| fault(source, &e))?;
        return Ok((text.to_owned(), source));
    }
    for (bytes, source) in [(json, TemplateSource::Json), (tokenizer_config, TemplateSource::TokenizerConfig)]
    {
        if let Some(text) = bytes.map(|b| inside(b, source)).transpose()?.flatten() {
            return Ok((text, source));
        }
    }
    Ok((DEFAULT_TEMPLATE.to_owned(), TemplateSource::Default))
}

fn inside(bytes: &[u8], source: TemplateSource) -> Result<Option<String>, TemplateError> {
    let file: ConfigFile = text_file::from_json(bytes).map_err(|e| fault(source, &e))?;
    let text = match file.chat_template {
        None => None,
        Some(ConfigTemplate::One(text)) => Some(text),
        Some(ConfigTemplate::Named(list)) => {
            let default = list.iter().position(|t| t.name == "default").unwrap_or(0);
            list.into_iter().nth(default).map(|t| t.template)
        }
    };
    Ok(text.filter(|t| !t.trim().is_empty()))
}

fn fault(source: TemplateSource, found: &dyn fmt::Display) -> TemplateError {
    TemplateError::File { file: source.file().unwrap_or_default(), reason: found.to_string() }
}
