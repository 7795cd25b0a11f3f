//! An answer that goes on after text that its client gave: Moonshot's partial mode.

use super::fence::Fence;
use super::message::Message;
use super::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{RenderedPrompt, SpecialTokens};

/// How the beginning of an assistant's message ends in Kimi's templates, after the role or the name.
const HEADER: [&str; 2] = ["<|im_assistant|>", "<|im_middle|>"];

/// How a template and a model deal with thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// The model does not think (Kimi-K2-Instruct).
    Never,
    /// The model thinks whatever the template is told (Kimi-K2-Thinking).
    Always,
    /// A variable of the template switches it, and it is on by default (Kimi-K2.5 and later).
    Switched {
        /// The variable.
        by: &'static str,
    },
}

impl ChatTemplate {
    /// Appends an assistant's message to a prompt that ends where an answer begins, without the end of the message, so that
    /// the answer goes on after it. Its thinking stands before its text as in a history; without text the answer goes on
    /// within the thinking, which the second value says.
    ///
    /// # Errors
    /// [`TemplateError::NoMark`].
    pub fn begin_answer(
        &self,
        prompt: &RenderedPrompt,
        message: &Message,
        special: &SpecialTokens,
    ) -> Result<(RenderedPrompt, bool), TemplateError> {
        let content = message.content.as_ref().map(|content| content.text()).unwrap_or_default();
        let reasoning = message.reasoning_content.as_ref().or(message.reasoning.as_ref());
        let reasoning = reasoning.map_or("", String::as_str);
        let name = message.name.as_deref().filter(|name| !name.is_empty() && self.shows_names());
        let strings = [content.as_str(), reasoning, name.unwrap_or_default()];
        let fence = Fence::new(special, strings).ok_or(TemplateError::NoMark)?;

        let end = prompt.text().trim_end();
        let (opened, closed) = (end.ends_with("<think>"), end.ends_with("</think>"));
        let thinks = opened || self.thinking() != Thinking::Never;
        let mut rest = String::new();
        if !closed && thinks && (!content.is_empty() || !reasoning.is_empty()) {
            if !opened {
                rest.push_str("<think>");
            }
            rest.push_str(&fence.string(reasoning));
            if !content.is_empty() {
                rest.push_str("</think>");
            }
        }
        rest.push_str(&fence.string(&content));

        let mut begun = prompt.clone();
        if let Some((name, at)) = name.zip(prompt.text().rfind(HEADER[0])) {
            let after = at + HEADER[0].len();
            if let Some(role) = prompt.text()[after..].find(HEADER[1]) {
                let kept = prompt.text()[after + role..].to_owned();
                begun.truncate(after);
                begun.append(fence.open(&fence.string(name)));
                begun.append(RenderedPrompt::trusted(kept));
            }
        }
        begun.append(fence.open(&rest));
        Ok((begun, content.is_empty() && (opened || (thinks && !closed && !reasoning.is_empty()))))
    }

    /// Whether an assistant's message may have a name in place of its role.
    fn shows_names(&self) -> bool {
        ["'name'", "\"name\"", "message.name"].iter().any(|name| self.source().contains(name))
    }
}
