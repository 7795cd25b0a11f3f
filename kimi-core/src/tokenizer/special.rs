//! The 256 special ids that follow the ordinary tokens, and the search for their names in text.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::TokenizerError;
use crate::text_file;

/// How many special ids follow the ordinary ones.
pub const SPECIAL_TOKENS: usize = 256;

/// Longest name of a special token, in characters.
const MAX_NAME_CHARS: usize = 128;
/// Largest `tokenizer_config.json` accepted, in bytes.
const MAX_CONFIG_BYTES: usize = 16 << 20;

/// Kimi-K2's names by their offset from the first special id, for a checkpoint whose `tokenizer_config.json`
/// is lost or lists none. The flag is `special`: whether the token is left out of text shown to people. The
/// tool markers and the thinking tags are not, because parsers need them.
const K2_NAMES: [(u32, &str, bool); 23] = [
    (0, "[BOS]", true),
    (1, "[EOS]", true),
    (2, "<|im_end|>", true),
    (3, "<|im_user|>", true),
    (4, "<|im_assistant|>", true),
    (6, "<|start_header_id|>", true),
    (7, "<|end_header_id|>", true),
    (9, "[EOT]", true),
    (10, "<|im_system|>", true),
    (11, "<|tool_calls_section_begin|>", false),
    (12, "<|tool_calls_section_end|>", false),
    (13, "<|tool_call_begin|>", false),
    (14, "<|tool_call_argument_begin|>", false),
    (15, "<|tool_call_end|>", false),
    (17, "<|im_middle|>", true),
    (18, "<|media_begin|>", true),
    (19, "<|media_content|>", true),
    (20, "<|media_end|>", true),
    (21, "<|media_pad|>", true),
    (22, "<think>", false),
    (23, "</think>", false),
    (254, "[UNK]", true),
    (255, "[PAD]", true),
];

#[derive(Deserialize)]
struct ConfigFile {
    added_tokens_decoder: Option<BTreeMap<String, AddedToken>>,
    eos_token: Option<TokenName>,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Plain(String),
    Added { content: String },
}

/// A special token that has another id than in Kimi's own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Displaced {
    /// Its name.
    pub name: &'static str,
    /// The id that it has.
    pub found: u32,
    /// The id that it should have.
    pub kimis: u32,
}

/// The special tokens of one vocabulary: ids `first .. first + 256`.
///
/// Also the search for their names in text, which is needed in two places: where they become tokens, and
/// where a user's text must be kept from becoming one ([`crate::chat::ChatTemplate`]).
#[derive(Debug, Clone)]
pub struct SpecialTokens {
    first: u32,
    names: Vec<String>,
    hidden: Vec<bool>,
    by_name: HashMap<String, u32>,
    /// The names' offsets in the order of their bytes.
    sorted: Vec<u16>,
    /// By byte: whether a name begins with it.
    first_bytes: Vec<bool>,
    eos: Option<u32>,
}

impl SpecialTokens {
    /// Names the ids from `first` on. `config` is the bytes of `tokenizer_config.json`: names in its
    /// `added_tokens_decoder` win; without that table the names are Kimi-K2's. What stays unnamed is
    /// `<|reserved_token_ID|>` with the absolute id, as in Moonshot's tokenizer.
    ///
    /// # Errors
    /// When the file is not the JSON it should be, or when names are equal, too short or too long.
    pub fn new(first: u32, config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let config = config.map(read_config).transpose()?;
        let last = first + SPECIAL_TOKENS as u32;
        let mut names: Vec<String> = (first..last).map(|id| format!("<|reserved_token_{id}|>")).collect();
        let mut hidden = vec![false; SPECIAL_TOKENS];
        match config.as_ref().and_then(|c| c.added_tokens_decoder.as_ref()) {
            Some(table) => {
                for (key, token) in table {
                    let id: u32 = key.parse().map_err(|_| TokenizerError::TokenId { found: key.clone() })?;
                    // Moonshot's tokenizer reads this table only for the special ids.
                    let Some(at) = id.checked_sub(first).map(|o| o as usize).filter(|&o| o < SPECIAL_TOKENS)
                    else {
                        continue;
                    };
                    names[at].clone_from(&token.content);
                    hidden[at] = token.special;
                }
            }
            None => {
                for (offset, name, special) in K2_NAMES {
                    names[offset as usize] = name.to_owned();
                    hidden[offset as usize] = special;
                }
            }
        }
        let eos_name = match config.and_then(|c| c.eos_token) {
            Some(TokenName::Plain(name) | TokenName::Added { content: name }) => name,
            None => "[EOS]".to_owned(),
        };
        Self::index(first, names, hidden, &eos_name)
    }

    fn index(
        first: u32,
        names: Vec<String>,
        hidden: Vec<bool>,
        eos_name: &str,
    ) -> Result<Self, TokenizerError> {
        let mut by_name = HashMap::with_capacity(names.len());
        let mut first_bytes = vec![false; 256];
        for (offset, name) in names.iter().enumerate() {
            let id = first + offset as u32;
            if !(2..=MAX_NAME_CHARS).contains(&name.chars().count()) {
                let shown = name.chars().take(MAX_NAME_CHARS).collect();
                return Err(TokenizerError::SpecialName { id, name: shown, limit: MAX_NAME_CHARS });
            }
            if let Some(other) = by_name.insert(name.clone(), id) {
                return Err(TokenizerError::DuplicateSpecial {
                    name: name.clone(),
                    first: other,
                    second: id,
                });
            }
            first_bytes[usize::from(name.as_bytes()[0])] = true;
        }
        let mut sorted: Vec<u16> = (0..names.len() as u16).collect();
        sorted.sort_by_key(|&offset| &names[usize::from(offset)]);
        let eos = by_name.get(eos_name).copied();
        Ok(Self { first, names, hidden, by_name, sorted, first_bytes, eos })
    }

    /// The first special id; the number of ordinary tokens.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// The id of a name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The name of a special id.
    pub fn name(&self, id: u32) -> Option<&str> {
        self.offset(id).map(|o| self.names[o].as_str())
    }

    /// Whether the token is flagged `special`, that is, left out of text shown to people. `false` for the
    /// tool markers, the thinking tags and the reserved ids, as in Moonshot's files.
    pub fn is_special(&self, id: u32) -> bool {
        self.offset(id).is_some_and(|o| self.hidden[o])
    }

    /// The id of the `eos_token` that `tokenizer_config.json` names (`[EOS]` when it names none).
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Names of Kimi-K2's that stand at another id than in Kimi's own files, by the ids that they should have.
    pub fn displaced(&self) -> Vec<Displaced> {
        let named = K2_NAMES.iter().filter_map(|&(offset, name, _)| {
            let (found, kimis) = (self.id_of(name)?, self.first + offset);
            (found != kimis).then_some(Displaced { name, found, kimis })
        });
        named.collect()
    }

    fn offset(&self, id: u32) -> Option<usize> {
        id.checked_sub(self.first).map(|o| o as usize).filter(|&o| o < self.names.len())
    }

    /// The special token whose name stands at byte `at` of `text`; the longest if there are several. Its id
    /// and name.
    pub(crate) fn at(&self, text: &[u8], at: usize) -> Option<(u32, &str)> {
        let mut rest = text.get(at..)?;
        loop {
            // A name that the text begins with is not above the text, and of several the longest is the
            // highest. If the highest name not above the text is none, then another can only lie within what
            // the two have in common.
            let above = self.sorted.partition_point(|&o| self.names[usize::from(o)].as_bytes() <= rest);
            let offset = usize::from(*self.sorted.get(above.checked_sub(1)?)?);
            let name = &self.names[offset];
            if rest.starts_with(name.as_bytes()) {
                return Some((self.first + offset as u32, name));
            }
            let common = rest.iter().zip(name.as_bytes()).take_while(|(a, b)| a == b).count();
            rest = &rest[..common];
        }
    }

    /// Whether any name begins with this byte.
    pub(crate) fn may_begin_with(&self, byte: u8) -> bool {
        self.first_bytes[usize::from(byte)]
    }

    /// Whether `text` is the beginning, but not the whole, of some name.
    pub(crate) fn is_beginning(&self, text: &str) -> bool {
        let above = self.sorted.partition_point(|&o| self.names[usize::from(o)].as_str() <= text);
        !text.is_empty()
            && self.sorted.get(above).is_some_and(|&o| self.names[usize::from(o)].starts_with(text))
    }

    /// Length in bytes of the longest name.
    pub(crate) fn longest_name(&self) -> usize {
        self.names.iter().map(String::len).max().unwrap_or(0)
    }
}

fn read_config(bytes: &[u8]) -> Result<ConfigFile, TokenizerError> {
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(TokenizerError::TooLarge {
            what: "tokenizer_config.json",
            found: bytes.len(),
            limit: MAX_CONFIG_BYTES,
        });
    }
    text_file::from_json(bytes).map_err(TokenizerError::Config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn search_equals_trying_every_name(
            names in prop::collection::btree_set("[ab<]{2,5}", 1..30),
            text in "[ab<]{0,12}",
        ) {
            let table: Vec<String> =
                names.iter().enumerate().map(|(at, name)| format!("\"{at}\": {{\"content\": \"{name}\"}}")).collect();
            let config = format!("{{\"added_tokens_decoder\": {{{}}}}}", table.join(","));
            let special = SpecialTokens::new(0, Some(config.as_bytes())).unwrap();
            for at in 0..=text.len() {
                let rest = &text[at..];
                let longest = names.iter().filter(|n| rest.starts_with(n.as_str())).max_by_key(|n| n.len());
                prop_assert_eq!(special.at(text.as_bytes(), at).map(|f| f.1), longest.map(String::as_str));
                if let Some((id, name)) = special.at(text.as_bytes(), at) {
                    prop_assert_eq!(special.id_of(name), Some(id));
                }
                let begins = !rest.is_empty() && names.iter().any(|n| n.len() > rest.len() && n.starts_with(rest));
                // The reserved names go on with "<|".
                prop_assert_eq!(special.is_beginning(rest), begins || rest == "<");
            }
        }
    }
}
