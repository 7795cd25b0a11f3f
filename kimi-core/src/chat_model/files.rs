//! The files that turn text into tokens and back.

use crate::chat::{ChatTemplate, Message, PromptRequest, TemplateSource};
use crate::chat_model::{ModelDefaults, ModelError};
use crate::checkpoint::Checkpoint;
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// What a checkpoint needs for chats besides its weights: tokenizer, chat template and the tokens that end an answer.
///
/// It is opened before weights are loaded, which may take minutes and several machines, so that a file that is missing or
/// damaged is found first.
#[derive(Debug)]
pub struct ChatFiles {
    pub(super) tokenizer: Tokenizer,
    pub(super) template: ChatTemplate,
    pub(super) stop_ids: Vec<u32>,
    pub(super) defaults: ModelDefaults,
    template_source: TemplateSource,
    warnings: Vec<String>,
}

impl ChatFiles {
    /// Reads and checks `tiktoken.model`, `tokenizer_config.json`, the chat template and `generation_config.json`. What is
    /// odd but can be used is logged, and listed by [`Self::warnings`].
    ///
    /// # Errors
    /// [`ModelError`] names the file and what to do.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let tokenizer_config = checkpoint.file("tokenizer_config.json")?;
        let tokenizer_config = tokenizer_config.as_deref();
        let Some(ranks) = checkpoint.file("tiktoken.model")? else {
            let beside = match checkpoint.file("tokenizer.json")? {
                Some(_) => " (its tokenizer.json is not read)",
                None => "",
            };
            return Err(ModelError::NoTokenizer { model: checkpoint.name().to_owned(), beside });
        };
        let tokenizer = Tokenizer::new(&ranks, tokenizer_config)?;
        let (ids, rows) = (tokenizer.vocabulary_size(), checkpoint.config().vocab_size);
        if ids > rows {
            return Err(ModelError::Vocabulary { tokenizer: ids, model: rows });
        }
        let named = checkpoint.eos_ids()?;
        let mut warnings = Vec::new();
        check_special(tokenizer.special(), &named, &mut warnings)?;
        let (stop_ids, ordinary) = tokenizer.stop_ids(&named);
        if !ordinary.is_empty() {
            let shown: Vec<_> = ordinary.iter().map(|&id| describe(&tokenizer, id)).collect();
            warnings.push(format!(
                "eos_token_id of config.json or generation_config.json names {}, which is no control token: not used, answers \
                 end on {stop_ids:?}",
                shown.join(", ")
            ));
        }
        if stop_ids.is_empty() {
            warnings.push(
                "no file names a token that ends an answer, and there is no <|im_end|>: answers end at their limit only"
                    .to_owned(),
            );
        }
        let jinja = checkpoint.file("chat_template.jinja")?;
        let json = checkpoint.file("chat_template.json")?;
        let (template, template_source) =
            ChatTemplate::from_files(jinja.as_deref(), json.as_deref(), tokenizer_config)?;
        if template_source == TemplateSource::Default {
            warnings.push("the checkpoint has no chat template: that of Kimi-K2-Instruct is used".to_owned());
        }
        if let Err(error) = try_template(&template, tokenizer.special()) {
            warnings.push(format!("{template_source}: a plain question can't be asked: {error}"));
        }
        let defaults = ModelDefaults::of(template.thinking(), &checkpoint.sampling()?);
        for warning in &warnings {
            tracing::warn!("{}: {warning}", checkpoint.name());
        }
        Ok(Self { tokenizer, template, stop_ids, defaults, template_source, warnings })
    }

    /// The ids on which generation stops, ascending.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// How tokens are chosen where a request does not say.
    pub fn defaults(&self) -> ModelDefaults {
        self.defaults
    }

    /// Replaces them, as a user's configuration may.
    #[must_use]
    pub fn with_defaults(self, defaults: ModelDefaults) -> Self {
        Self { defaults, ..self }
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Where the chat template was found.
    pub fn template_source(&self) -> TemplateSource {
        self.template_source
    }

    /// What is odd about the files, though they can be used.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The names of special tokens must stand at the ids that Kimi's models were trained with: some conversions number them
/// anew, and then every prompt is another one than was meant.
fn check_special(special: &SpecialTokens, eos: &[u32], warnings: &mut Vec<String>) -> Result<(), ModelError> {
    let displaced = special.displaced();
    let wrong_end = eos.iter().find_map(|&id| displaced.iter().find(|d| d.found == id));
    if let Some(moved) = wrong_end {
        return Err(ModelError::Renumbered {
            id: moved.found,
            name: moved.name.to_owned(),
            kimis: moved.kimis,
        });
    }
    if let Some(first) = displaced.first() {
        warnings.push(format!(
            "tokenizer_config.json names {} special tokens at other ids than Kimi's own files do, such as {:?} at {} instead of \
             {}. If answers make no sense, take the file from Moonshot's repository",
            displaced.len(),
            first.name,
            first.found,
            first.kimis
        ));
    }
    Ok(())
}

fn describe(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.token_bytes(id) {
        Some(bytes) => format!("{id} ({:?})", String::from_utf8_lossy(bytes)),
        None => format!("{id} (outside the vocabulary of {} ids)", tokenizer.vocabulary_size()),
    }
}

fn try_template(template: &ChatTemplate, special: &SpecialTokens) -> Result<(), crate::chat::TemplateError> {
    let messages = [Message::new("user", "Hello")];
    let variables = serde_json::Map::new();
    let request =
        PromptRequest { messages: &messages, tools: &[], add_generation_prompt: true, variables: &variables };
    template.render(&request, special).map(|_| ())
}
