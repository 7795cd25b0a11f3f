//! A prompt between the chat template and the tokenizer.

/// A rendered chat: the prompt's text, and the places that no control token may span.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedPrompt {
    text: String,
    fences: Vec<usize>,
}

impl RenderedPrompt {
    /// A prompt in which every special token's name is meant as its token.
    pub fn trusted(text: impl Into<String>) -> Self {
        Self { text: text.into(), fences: Vec::new() }
    }

    /// A prompt with fences at these byte offsets, ascending, each once.
    pub(crate) fn fenced(text: String, fences: Vec<usize>) -> Self {
        Self { text, fences }
    }

    /// The prompt, as the reference would render it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte offsets into the text, ascending: a special name with one strictly inside it is a user's text.
    pub fn fences(&self) -> &[usize] {
        &self.fences
    }

    /// Cuts off what follows a byte offset, which is no place inside a character.
    pub(crate) fn truncate(&mut self, at: usize) {
        self.text.truncate(at);
        self.fences.retain(|&fence| fence <= at);
    }

    /// Appends another prompt. No control token spans the place where they meet.
    pub(crate) fn append(&mut self, other: Self) {
        let at = self.text.len();
        self.text.push_str(&other.text);
        self.fences.push(at);
        self.fences.extend(other.fences.iter().map(|fence| fence + at));
        self.fences.dedup();
    }
}
