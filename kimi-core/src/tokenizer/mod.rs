//! Kimi's tokenizer: byte-level byte-pair encoding over `tiktoken.model`, with 256 special ids after the
//! ordinary ones.
//!
//! Three ways to encode differ only in which special tokens' names become control tokens:
//! [`Tokenizer::encode`] none, [`Tokenizer::encode_with_special`] all (what Moonshot's own tokenizer does),
//! and [`Tokenizer::encode_rendered`] those that a chat template wrote, but not those in a user's text.

mod error;
mod pieces;
mod prompt;
mod ranks;
mod special;

use std::sync::Arc;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

pub use error::TokenizerError;
pub use prompt::RenderedPrompt;
pub use special::{Displaced, SPECIAL_TOKENS, SpecialTokens};

use crate::cancel::CancelFlag;
use crate::text_file;
use pieces::{PreTokenizer, cut_long};
use ranks::Ranks;

/// Longest text encoded in one call, in bytes; far above the longest context.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// The end of a turn, on which generation always stops.
const END_OF_TURN: &str = "<|im_end|>";

/// A vocabulary ready for encoding and decoding. It is immutable and can be shared between threads.
pub struct Tokenizer {
    ranks: Ranks,
    special: SpecialTokens,
    pre_tokenizer: PreTokenizer,
    bpe: BPE,
    /// The character that stands for each byte in the byte-pair model.
    byte_chars: [char; 256],
    longest_token: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary_size", &self.vocabulary_size()).finish_non_exhaustive()
    }
}

/// The beginning of an assistant's message, before its role, and the end of every message's role.
const ASSISTANT: &str = "<|im_assistant|>";
const END_OF_ROLE: &str = "<|im_middle|>";

/// Knows tokens that a text was sampled as.
type Sampled<'a> = &'a dyn Fn(&str) -> Option<Arc<[u32]>>;

/// Where a text is in a chat: only what an assistant said was sampled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Elsewhere,
    AssistantsRole,
    AssistantsText,
}

/// Which special names in a text become their tokens.
#[derive(Clone, Copy)]
enum Control<'a> {
    None,
    All,
    /// All but those that a fence (a byte offset, ascending) cuts.
    Fenced(&'a [usize]),
}

impl Tokenizer {
    /// Reads a vocabulary from the bytes of `tiktoken.model` and, if the checkpoint has one, of
    /// `tokenizer_config.json` (for the names of special tokens; see [`SpecialTokens::new`]).
    ///
    /// # Errors
    /// When either file is malformed; the error names the line.
    pub fn new(tiktoken_model: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let tiktoken_model = text_file::text(tiktoken_model)
            .map_err(|found| TokenizerError::NotText { file: "tiktoken.model", found })?;
        let ranks = Ranks::parse(tiktoken_model.as_bytes())?;
        let special = SpecialTokens::new(ranks.len() as u32, tokenizer_config)?;
        let byte_chars = byte_chars();
        let bpe = byte_pair_model(&ranks, &byte_chars)?;
        let longest = ranks.iter().map(<[u8]>::len).max().unwrap_or(0);
        let longest_token = longest.max(special.longest_name());
        Ok(Self { ranks, special, pre_tokenizer: PreTokenizer::new()?, bpe, byte_chars, longest_token })
    }

    /// Bytes of the longest token: a text of `n` bytes has at least `n / longest_token` tokens.
    pub fn longest_token(&self) -> usize {
        self.longest_token
    }

    /// Number of ids, ordinary and special (Kimi-K2: 163,840).
    pub fn vocabulary_size(&self) -> usize {
        self.ranks.len() + SPECIAL_TOKENS
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The id of a special token by its name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.special.id_of(name)
    }

    /// Whether the id is flagged `special`, so that it is left out of text shown to people.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.is_special(id)
    }

    /// Whether the id is one of the 256 control tokens, shown or not.
    pub fn is_control(&self, id: u32) -> bool {
        self.special.name(id).is_some()
    }

    /// The bytes of a token; of a special token, those of its name. A token may end inside a character.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.ranks.bytes(id).or_else(|| self.special.name(id).map(str::as_bytes))
    }

    /// The ids on which generation stops: those of `named` (by `generation_config.json` and `config.json`) that are control
    /// tokens, the tokenizer's own, and `<|im_end|>`, whatever the files say. Ascending, each once.
    ///
    /// Second, those of `named` that are no control tokens. Stopping on one would end answers in mid-sentence: the eos id 1
    /// that transformers writes where a config names none is the double quote.
    pub fn stop_ids(&self, named: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let (mut ids, ordinary): (Vec<u32>, Vec<u32>) = named.iter().partition(|&&id| self.is_control(id));
        ids.extend(self.special.eos());
        ids.extend(self.id_of(END_OF_TURN));
        ids.sort_unstable();
        ids.dedup();
        (ids, ordinary)
    }

    /// Encodes a user's text: the names of special tokens in it are ordinary text.
    ///
    /// # Errors
    /// When the text is too long, or when the regex or byte-pair library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(text, Control::None, usize::MAX, &CancelFlag::default(), None)
    }

    /// Encodes trusted text: every special token's name becomes its token, as in Moonshot's own tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(text, Control::All, usize::MAX, &CancelFlag::default(), None)
    }

    /// Encodes a rendered chat: the template's control tokens are control tokens, what looks like one in a
    /// message is text. For messages that hold no special names this equals
    /// `encode_with_special(prompt.text())`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, prompt: &RenderedPrompt) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(prompt, usize::MAX, &CancelFlag::default())
    }

    /// [`Tokenizer::encode_rendered`], given up when there are more than `max_tokens` or nobody wants them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; [`TokenizerError::LongText`] and [`TokenizerError::Cancelled`].
    pub fn encode_within(
        &self,
        prompt: &RenderedPrompt,
        max_tokens: usize,
        cancel: &CancelFlag,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(prompt.text(), Control::Fenced(prompt.fences()), max_tokens, cancel, None)
    }

    /// [`Tokenizer::encode_within`], but what stands between two control tokens of an assistant's message becomes the tokens
    /// that it was sampled as, if `sampled` knows them.
    pub(crate) fn encode_as_sampled(
        &self,
        prompt: &RenderedPrompt,
        max_tokens: usize,
        cancel: &CancelFlag,
        sampled: Sampled<'_>,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(prompt.text(), Control::Fenced(prompt.fences()), max_tokens, cancel, Some(sampled))
    }

    /// The text of some ids. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// `skip_special` leaves out the tokens flagged `special`.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        for &id in ids {
            let token = self.token_bytes(id).ok_or_else(|| self.unknown(id))?;
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn unknown(&self, id: u32) -> TokenizerError {
        TokenizerError::UnknownId { id, vocabulary: self.vocabulary_size() }
    }

    fn encode_as(
        &self,
        text: &str,
        control: Control<'_>,
        max_tokens: usize,
        cancel: &CancelFlag,
        sampled: Option<Sampled<'_>>,
    ) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TooLarge {
                what: "the text",
                found: text.len(),
                limit: MAX_TEXT_BYTES,
            });
        }
        let mut ids = Vec::with_capacity((text.len() / 3).min(max_tokens));
        let mut place = Place::Elsewhere;
        let encode = |text: &str, place: Place, ids: &mut Vec<u32>| {
            let sampled = sampled.filter(|_| place == Place::AssistantsText && !text.is_empty());
            match sampled.and_then(|sampled| sampled(text)) {
                Some(tokens) => {
                    ids.extend_from_slice(&tokens);
                    Ok(())
                }
                None => self.encode_plain(text, ids, max_tokens, cancel),
            }
        };
        for part in cut_long(text) {
            let end = part.end;
            let mut plain = part.start;
            let mut at = part.start;
            while let Some((start, id, name)) = self.next_control(text, at..end, control) {
                encode(&text[plain..start], place, &mut ids)?;
                ids.push(id);
                at = start + name.len();
                plain = at;
                place = place.after(name);
            }
            // A text that is cut here is no whole answer.
            encode(&text[plain..end], if end == text.len() { place } else { Place::Elsewhere }, &mut ids)?;
        }
        if ids.len() > max_tokens {
            return Err(TokenizerError::LongText { limit: max_tokens });
        }
        Ok(ids)
    }

    /// The first control token's name that stands wholly in `range` and counts: where, its id, its name.
    fn next_control(
        &self,
        text: &str,
        range: std::ops::Range<usize>,
        control: Control<'_>,
    ) -> Option<(usize, u32, &str)> {
        let fences = match control {
            Control::None => return None,
            Control::All => &[][..],
            Control::Fenced(fences) => fences,
        };
        let bytes = text.as_bytes().get(..range.end)?;
        for at in range {
            if !self.special.may_begin_with(bytes[at]) {
                continue;
            }
            let Some((id, name)) = self.special.at(bytes, at) else { continue };
            let after = fences.partition_point(|&fence| fence <= at);
            if fences.get(after).is_none_or(|&fence| fence >= at + name.len()) {
                return Some((at, id, name));
            }
        }
        None
    }

    fn encode_plain(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        max_tokens: usize,
        cancel: &CancelFlag,
    ) -> Result<(), TokenizerError> {
        let mut mapped = String::new();
        self.pre_tokenizer.split(text, |piece| {
            if cancel.is_cancelled() {
                return Err(TokenizerError::Cancelled);
            }
            if ids.len() > max_tokens {
                return Err(TokenizerError::LongText { limit: max_tokens });
            }
            mapped.clear();
            mapped.extend(piece.bytes().map(|b| self.byte_chars[usize::from(b)]));
            let tokens = self.bpe.tokenize(&mapped).map_err(|e| TokenizerError::Bpe(e.to_string()))?;
            ids.extend(tokens.iter().map(|t| t.id));
            Ok(())
        })
    }
}

impl Place {
    /// Where the text behind a control token is.
    fn after(self, name: &str) -> Self {
        match (self, name) {
            (_, ASSISTANT) => Self::AssistantsRole,
            (Self::AssistantsRole, END_OF_ROLE) => Self::AssistantsText,
            (_, END_OF_TURN | "<|im_user|>" | "<|im_system|>") => Self::Elsewhere,
            (place, _) => place,
        }
    }
}

/// The byte-pair model over byte-level strings. A whole piece that is a token is that token
/// (`ignore_merges`), otherwise neighbours are merged by lowest rank: tiktoken's rule.
fn byte_pair_model(ranks: &Ranks, byte_chars: &[char; 256]) -> Result<BPE, TokenizerError> {
    let names: Vec<String> =
        ranks.iter().map(|token| token.iter().map(|&b| byte_chars[usize::from(b)]).collect()).collect();
    let merges = ranks
        .merges()
        .into_iter()
        .filter_map(|(l, r)| Some((names.get(l as usize)?.clone(), names.get(r as usize)?.clone())))
        .collect();
    let vocab: Vocab = names.into_iter().zip(0..).collect();
    BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(true)
        .build()
        .map_err(|e| TokenizerError::Bpe(e.to_string()))
}

/// The usual byte-level alphabet: a printable Latin-1 character stands for itself, the other 68 bytes for
/// U+0100 and up.
fn byte_chars() -> [char; 256] {
    let mut next = 0;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(0xff + next).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}
