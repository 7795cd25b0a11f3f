//! One of several given strings.

use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

use super::vocabulary::Vocabulary;

/// The strings that a text may be, and what is written of it.
///
/// Where a single string is left it is written with the tokens that the tokenizer would take, else a model that would
/// rather write something else picks odd ones.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    words: Arc<[String]>,
    written: Vec<u8>,
    tokens: Vec<u32>,
}

impl Words {
    pub(crate) fn new(words: Vec<String>) -> Self {
        Self { words: words.into(), written: Vec::new(), tokens: Vec::new() }
    }

    pub(crate) fn accept(&mut self, vocabulary: &Vocabulary, token: u32) -> Result<(), String> {
        self.written.extend_from_slice(vocabulary.trie().token(token));
        self.tokens.push(token);
        if self.possible().next().is_none() {
            return Err(format!("{:?} is none of the choices", String::from_utf8_lossy(&self.written)));
        }
        Ok(())
    }

    /// Adds the tokens that may follow to `mask`.
    pub(crate) fn allow(&self, vocabulary: &Vocabulary, mask: &mut SimpleVob) {
        let mut possible = self.possible();
        if let (Some(only), None) = (possible.next(), possible.next())
            && let Ok(tokens) = vocabulary.tokenizer.encode(only)
            && let Some(rest) = tokens.strip_prefix(&*self.tokens)
        {
            if let Some(&next) = rest.first() {
                mask.allow_token(next);
            }
            return;
        }
        let trie = vocabulary.trie();
        for word in self.possible() {
            let mut node = trie.root();
            for &byte in &word.as_bytes()[self.written.len()..] {
                let Some(child) = trie.child_at_byte(node, byte) else { break };
                if let Some(token) = child.token_id() {
                    mask.allow_token(token);
                }
                node = child;
            }
        }
    }

    /// The index of the string that is written in full.
    pub(crate) fn complete(&self) -> Option<usize> {
        self.words.iter().position(|word| word.as_bytes() == self.written)
    }

    fn possible(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(String::as_str).filter(|word| word.as_bytes().starts_with(&self.written))
    }
}
