//! The vocabulary as grammars see it: a trie over the bytes of all tokens, and sets of tokens.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};

use crate::tokenizer::Tokenizer;

/// Most nodes that a trie can address.
const MAX_TRIE_NODES: usize = 1 << 22;

/// Bounds on one request's grammar: a few megabytes and some milliseconds. Real schemas of a hundred properties take a
/// tenth of this.
const MAX_GRAMMAR_SIZE: usize = 200_000;
const MAX_LEXER_STATES: usize = 20_000;
const MAX_STEP_ITEMS: usize = 50_000;

/// The tokens by their bytes. Control tokens have names that no text can have, so that only a grammar that names one can
/// produce it.
struct Bytes {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl TokenizerEnv for Bytes {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| {
            let encoded = self.tokenizer.encode(text);
            encoded.unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        };
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}

/// The ids that K2's markup is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Markup {
    pub(crate) section_begin: u32,
    pub(crate) section_end: u32,
    pub(crate) call_begin: u32,
    pub(crate) argument_begin: u32,
    pub(crate) call_end: u32,
}

impl Markup {
    /// The ids, or the name of the token that is missing.
    fn new(tokenizer: &Tokenizer) -> Result<Self, &'static str> {
        let id = |name: &'static str| tokenizer.id_of(name).ok_or(name);
        Ok(Self {
            section_begin: id("<|tool_calls_section_begin|>")?,
            section_end: id("<|tool_calls_section_end|>")?,
            call_begin: id("<|tool_call_begin|>")?,
            argument_begin: id("<|tool_call_argument_begin|>")?,
            call_end: id("<|tool_call_end|>")?,
        })
    }
}

/// What all grammars of one model share. It takes about a second and 73 MB to build for Kimi's 163,840 tokens.
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) factory: ParserFactory,
    pub(crate) markup: Result<Markup, &'static str>,
    pub(crate) think_begin: Option<u32>,
    pub(crate) think_end: Option<u32>,
    /// Tokens that end an answer.
    pub(crate) ends: Vec<u32>,
    /// All ordinary tokens.
    pub(crate) ordinary: SimpleVob,
    /// All tokens.
    pub(crate) all: SimpleVob,
    /// Ordinary tokens with a bracket or a brace that opens.
    pub(crate) openers: Vec<u32>,
    /// Ordinary tokens that begin with a quotation mark and have no other.
    pub(crate) quotes: Vec<u32>,
    environment: TokEnv,
}

impl Vocabulary {
    /// `ends` are the tokens that end an answer.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, ends: &[u32]) -> Result<Self, String> {
        let size = tokenizer.vocabulary_size() as u32;
        let words: Vec<Vec<u8>> = (0..size).map(|id| word(&tokenizer, id)).collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes >= MAX_TRIE_NODES {
            return Err(format!(
                "the tokenizer's tokens have {bytes} bytes together, but at most {MAX_TRIE_NODES} can be constrained"
            ));
        }
        let eos = ends.first().copied().unwrap_or(size.saturating_sub(1));
        let trie = TokTrie::from(&TokRxInfo::new(size, eos), &words);
        let (mut ordinary, mut all) = (trie.alloc_token_set(), trie.alloc_token_set());
        let (mut openers, mut quotes) = (Vec::new(), Vec::new());
        for (id, word) in (0..).zip(&words) {
            all.allow_token(id);
            if tokenizer.is_control(id) {
                continue;
            }
            ordinary.allow_token(id);
            if word.iter().any(|b| matches!(b, b'{' | b'[')) {
                openers.push(id);
            }
            if word.first() == Some(&b'"') && !word[1..].contains(&b'"') {
                quotes.push(id);
            }
        }
        let environment: TokEnv = Arc::new(Bytes { tokenizer: tokenizer.clone(), trie });
        let mut factory = ParserFactory::new(
            &environment,
            InferenceCapabilities::default(),
            &SlicedBiasComputer::general_slices(),
        )
        .map_err(|e| e.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.step_max_items = MAX_STEP_ITEMS;
        limits.verbose_errors = false;
        Ok(Self {
            markup: Markup::new(&tokenizer),
            think_begin: tokenizer.id_of("<think>"),
            think_end: tokenizer.id_of("</think>"),
            ends: ends.iter().copied().filter(|&id| id < size).collect(),
            tokenizer,
            factory,
            ordinary,
            all,
            openers,
            quotes,
            environment,
        })
    }

    /// The tokens by their bytes.
    pub(crate) fn trie(&self) -> &TokTrie {
        self.environment.tok_trie()
    }

    /// A set without tokens.
    pub(crate) fn none(&self) -> SimpleVob {
        self.trie().alloc_token_set()
    }

    /// The token that stands for the end of a grammar.
    pub(crate) fn end_of_grammar(&self) -> u32 {
        self.trie().eos_token()
    }
}

fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_control(id) {
        let mut marked = vec![TokTrie::SPECIAL_TOKEN_MARKER];
        marked.extend_from_slice(bytes);
        return marked;
    }
    bytes.to_vec()
}
