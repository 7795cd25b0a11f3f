//! Ids to text, one at a time, without ever showing half a character.

use crate::tokenizer::{Tokenizer, TokenizerError};

/// Turns a stream of ids into text that is whole UTF-8 after every step.
///
/// A token may end inside a character; its bytes are held back until the character is complete. Bytes that
/// can never become a character turn into U+FFFD, exactly as `String::from_utf8_lossy` would do over the
/// whole text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    skip_special: bool,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// `skip_special` leaves out the tokens flagged `special`. The tool markers and thinking tags are not
    /// flagged so.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, pending: Vec::with_capacity(4) }
    }

    /// Adds a token; returns the text that is complete now, possibly none.
    ///
    /// # Errors
    /// When the id is outside the vocabulary; the state is as before.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TokenizerError> {
        let token = tokenizer.token_bytes(id).ok_or_else(|| tokenizer.unknown(id))?;
        if self.skip_special && tokenizer.is_special(id) {
            return Ok(String::new());
        }
        Ok(self.push_bytes(token))
    }

    /// Adds bytes; returns the text that is complete now.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // No length means that the bytes so far may still become a character.
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = after.get(invalid..).unwrap_or_default();
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// The end of the stream: half a character that was held back becomes U+FFFD.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Detokenizer;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_from_utf8_lossy_however_the_bytes_are_split(
            text in ".{0,12}",
            noise in prop::collection::vec(any::<u8>(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = text.into_bytes();
            bytes.extend(noise);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut detokenizer = Detokenizer::new(false);
            let mut text: String =
                cuts.windows(2).map(|w| detokenizer.push_bytes(&bytes[w[0]..w[1]])).collect();
            text.push_str(&detokenizer.flush());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
