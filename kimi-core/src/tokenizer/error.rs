//! What can be wrong with a tokenizer's files, and with ids handed to it.

use thiserror::Error;

use crate::text_file::{JsonError, NotText};

/// A fault in `tiktoken.model`, in `tokenizer_config.json`, or in what the tokenizer was asked to do.
///
/// Lines are counted from 1.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// An input is larger than anything sensible; nothing was allocated for it.
    #[error("{what} has {found} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Which input.
        what: &'static str,
        /// Its size in bytes.
        found: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A file holds something else than text.
    #[error("{file} {found}")]
    NotText {
        /// Which file.
        file: &'static str,
        /// What it holds.
        found: NotText,
    },
    /// More tokens than any vocabulary has.
    #[error("tiktoken.model has more than {limit} tokens (line {line})")]
    TooManyTokens {
        /// The first line past the limit.
        line: usize,
        /// The limit.
        limit: usize,
    },
    /// A line is not `<base64> <rank>`.
    #[error("tiktoken.model, line {line}: expected `<base64 of the token> <rank>`, found {found:?}")]
    Line {
        /// The line.
        line: usize,
        /// Its beginning.
        found: String,
    },
    /// The first field of a line is not base64.
    #[error("tiktoken.model, line {line}: the token is not valid base64: {reason}")]
    Base64 {
        /// The line.
        line: usize,
        /// What the decoder said.
        reason: String,
    },
    /// The second field of a line is not a rank.
    #[error("tiktoken.model, line {line}: expected a rank (a whole number below {limit}), found {found:?}")]
    Rank {
        /// The line.
        line: usize,
        /// The field as found.
        found: String,
        /// One more than the largest rank accepted.
        limit: usize,
    },
    /// A token of no bytes, or of far too many.
    #[error("tiktoken.model, line {line}: the token has {found} bytes; expected 1 to {limit}")]
    TokenLength {
        /// The line.
        line: usize,
        /// Its length in bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Two lines have one rank.
    #[error("tiktoken.model, line {line}: rank {rank} was already given on line {first}")]
    DuplicateRank {
        /// The later line.
        line: usize,
        /// The earlier line.
        first: usize,
        /// The rank.
        rank: u32,
    },
    /// Two lines have one token.
    #[error("tiktoken.model, line {line}: the token of rank {rank} was already given on line {first}")]
    DuplicateToken {
        /// The later line.
        line: usize,
        /// The earlier line.
        first: usize,
        /// The rank on the later line.
        rank: u32,
    },
    /// The ranks do not run from 0 without a gap.
    #[error(
        "tiktoken.model: rank {missing} is missing (line {line} goes on with rank {next}); ranks must run from 0 to the \
         number of tokens without a gap, because the special tokens follow them"
    )]
    Gap {
        /// The first rank that no line has.
        missing: u32,
        /// The line of the next rank.
        line: usize,
        /// The next rank.
        next: u32,
    },
    /// A single byte is no token, so some texts could not be encoded.
    #[error(
        "tiktoken.model: the single byte 0x{0:02x} is not a token, so a text that holds it could not be encoded"
    )]
    MissingByte(u8),
    /// `tokenizer_config.json` cannot be read.
    #[error("tokenizer_config.json {0}")]
    Config(JsonError),
    /// A key of its `added_tokens_decoder` is no token id.
    #[error("tokenizer_config.json: added_tokens_decoder has the key {found:?}, expected a token id")]
    TokenId {
        /// The key.
        found: String,
    },
    /// Two special ids have one name.
    #[error("tokenizer_config.json: {name:?} is the name of special token {first} and of {second}")]
    DuplicateSpecial {
        /// The name.
        name: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A special token's name is too short or too long to be told from text.
    #[error(
        "tokenizer_config.json: special token {id} is named {name:?}; expected a name of 2 to {limit} characters"
    )]
    SpecialName {
        /// The id.
        id: u32,
        /// The name, cut short.
        name: String,
        /// The limit in characters.
        limit: usize,
    },
    /// The pre-tokenizer's regex failed; a fault of ours or of the regex library.
    #[error("the pre-tokenizer's regex failed at byte {at} of a text: {reason}")]
    Regex {
        /// Where the match began.
        at: usize,
        /// What the regex library said.
        reason: String,
    },
    /// The byte-pair model could not be built or used; a fault of ours or of the library.
    #[error("byte-pair encoding failed: {0}")]
    Bpe(String),
    /// A text has more tokens than its caller wanted.
    #[error("the text has more than {limit} tokens")]
    LongText {
        /// The limit.
        limit: usize,
    },
    /// The caller cancelled it.
    #[error("the encoding was cancelled")]
    Cancelled,
    /// An id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary} ids")]
    UnknownId {
        /// The id.
        id: u32,
        /// The number of ids.
        vocabulary: usize,
    },
}
