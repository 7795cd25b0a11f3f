//! Stop strings in streamed text.

use thiserror::Error;

/// Most stop strings of a request.
const MAX_STRINGS: usize = 64;
/// Longest stop string, in bytes.
const MAX_BYTES: usize = 4096;

/// A request's stop strings are out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("stop: expected {expected}, found {found}")]
pub struct StopError {
    /// What is accepted.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// What can be shown after some text was added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutput {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// The stop string that was found, by its place in the request; generation ends.
    pub matched: Option<usize>,
}

/// Ends a stream before the first stop string to be completed (of several completed by the same character,
/// the longest).
///
/// An end of the text that may become a stop string is held back. How the text is split does not matter.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    done: bool,
}

impl StopStrings {
    /// A matcher for one stream.
    ///
    /// # Errors
    /// When there are too many strings, or one is empty or very long.
    pub fn new(strings: Vec<String>) -> Result<Self, StopError> {
        if strings.len() > MAX_STRINGS {
            let expected = format!("at most {MAX_STRINGS} strings");
            return Err(StopError { expected, found: strings.len().to_string() });
        }
        if let Some(odd) = strings.iter().find(|s| s.is_empty() || s.len() > MAX_BYTES) {
            let expected = format!("strings of 1 to {MAX_BYTES} bytes");
            return Err(StopError { expected, found: format!("one of {} bytes", odd.len()) });
        }
        Ok(Self { strings, held: String::new(), done: false })
    }

    /// Adds text. After a match everything is swallowed.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.done {
            return StopOutput::default();
        }
        if self.strings.is_empty() {
            return StopOutput { text: text.to_owned(), matched: None };
        }
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        if let Some((start, which)) = self.first_match(&all) {
            self.done = true;
            all.truncate(start);
            return StopOutput { text: all, matched: Some(which) };
        }
        let keep = self.begun(&all);
        self.held = all.split_off(keep);
        StopOutput { text: all, matched: None }
    }

    /// The end of the stream: what was held back is no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// A stop string by its place in the request.
    pub fn string(&self, which: usize) -> Option<&str> {
        self.strings.get(which).map(String::as_str)
    }

    /// Where the first completed stop string begins, and which it is.
    fn first_match(&self, text: &str) -> Option<(usize, usize)> {
        let found = |(which, s): (usize, &String)| text.find(s.as_str()).map(|at| (at + s.len(), at, which));
        self.strings.iter().enumerate().filter_map(found).min().map(|(_, start, which)| (start, which))
    }

    /// Where an end of the text begins that is the beginning of a stop string; the text's length if none
    /// does.
    fn begun(&self, text: &str) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest);
        text.char_indices()
            .map(|(at, _)| at)
            .filter(|&at| at >= from)
            .find(|&at| self.strings.iter().any(|s| s.starts_with(&text[at..])))
            .unwrap_or(text.len())
    }
}
