//! From what a request asks for to a [`Piece`]: bounded, on a thread of its own, and kept for the next request.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use llguidance::Matcher;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::answer::{AnswerConstraint, AnswerForm, TextForm};
use super::guard::JsonGuard;
use super::piece::Piece;
use super::schema::{self, Normalized};
use super::vocabulary::Vocabulary;
use super::words::Words;
use crate::chat::ReasoningMode;
use crate::chat_model::GrammarFault;
use crate::constraint::Constrained;
use crate::tokenizer::Tokenizer;

/// Longest schema, grammar or expression, in bytes.
const MAX_TEXT: usize = 256 << 10;
/// Longest grammar or expression that a client writes itself, in bytes.
const MAX_GRAMMAR_TEXT: usize = 64 << 10;
/// Most strings of a choice.
const MAX_CHOICES: usize = 1000;
/// Compiled forms that are kept.
const MAX_KEPT: usize = 64;
/// Grammars are compiled by functions that call themselves for each level; this is address space, not memory.
const STACK_BYTES: usize = 256 << 20;

/// White space between the parts of a JSON text: none, a space as K2 writes it, or a new line with indentation.
const WHITE_SPACE: &str = r"\x20|\n[\x20]{0,48}|\n\t{1,12}";

/// A form that a text can be held to.
#[derive(Debug, Clone, PartialEq)]
pub enum Form<'a> {
    /// JSON that validates against a schema.
    Json(&'a Value),
    /// Text that an expression of ECMA-262 matches as a whole.
    Regex(&'a str),
    /// Text of a grammar in llguidance's Lark.
    Lark(&'a str),
    /// One of these.
    Choice(&'a [String]),
}

/// Compiles forms for one model.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    ends: Vec<u32>,
    vocabulary: OnceLock<Result<Arc<Vocabulary>, String>>,
    kept: Mutex<VecDeque<(Box<str>, Arc<Piece>)>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Grammars {
    /// `ends` are the tokens that end an answer. Nothing is built yet.
    pub fn new(tokenizer: Arc<Tokenizer>, ends: Vec<u32>) -> Self {
        Self { tokenizer, ends, vocabulary: OnceLock::new(), kept: Mutex::default() }
    }

    /// Builds what all grammars share, unless it is there. For Kimi's vocabulary that takes about a second, so that it is
    /// worth doing before the first request comes.
    ///
    /// # Errors
    /// [`GrammarFault::Invalid`] if the vocabulary is too large.
    pub fn prepare(&self) -> Result<(), GrammarFault> {
        self.vocabulary().map(drop)
    }

    /// Holds a whole answer to a form, from its first token to one that ends it.
    ///
    /// # Errors
    /// [`GrammarFault`]: the form can't be enforced.
    pub fn hold(&self, form: &Form<'_>) -> Result<Constrained, GrammarFault> {
        let text = Some(TextForm::Held(self.piece(form)?.fresh()));
        let form = AnswerForm { reasoning: ReasoningMode::Off, text, calls: None, max_tokens: u32::MAX };
        Ok(Constrained::new(AnswerConstraint::new(self.vocabulary()?, form)))
    }

    /// The vocabulary, which the first call builds.
    pub(crate) fn vocabulary(&self) -> Result<Arc<Vocabulary>, GrammarFault> {
        let build = || {
            let (tokenizer, ends) = (self.tokenizer.clone(), self.ends.clone());
            on_large_stack(move || Vocabulary::new(tokenizer, &ends).map(Arc::new))
        };
        self.vocabulary.get_or_init(build).clone().map_err(|reason| GrammarFault::Invalid { reason })
    }

    /// The piece for a form, which has taken nothing yet.
    ///
    /// # Errors
    /// [`GrammarFault`]: the request is at fault.
    pub(crate) fn piece(&self, form: &Form<'_>) -> Result<Arc<Piece>, GrammarFault> {
        let key = key(form)?;
        if let Some(piece) = self.kept(&key) {
            return Ok(piece);
        }
        let grammar = match form {
            Form::Json(schema) => {
                let Normalized { mut schema, names_once } = schema::normalize(schema)?;
                if let Some(schema) = schema.as_object_mut() {
                    let escapes = if names_once { "nrbtf\\\"u" } else { "nrbtf\\\"" };
                    let options = json!({"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": escapes});
                    schema.insert("x-guidance".into(), options);
                }
                GrammarWithLexer::from_json_schema(schema)
            }
            Form::Regex(expression) => {
                let expression =
                    schema::expression(expression).map_err(|reason| GrammarFault::Invalid { reason })?;
                GrammarWithLexer::from_regex(&expression)
            }
            Form::Lark(grammar) => GrammarWithLexer::from_lark((*grammar).to_owned()),
            Form::Choice(words) => {
                let piece = Arc::new(Piece::Words(Words::new(words.to_vec())));
                return Ok(self.keep(key, piece));
            }
        };
        let guard = matches!(form, Form::Json(_)).then(JsonGuard::new);
        let vocabulary = self.vocabulary()?;
        let compile = move || {
            let parser = vocabulary.factory.create_parser(TopLevelGrammar::from_grammar(grammar));
            let mut matcher = Matcher::new(parser);
            match matcher.get_error() {
                Some(error) => Err(error),
                // Finds what can't even begin.
                None => matcher.clone().compute_mask_or_eos().map_err(|e| e.to_string()).map(|_| {
                    matcher.invalidate_bias_cache();
                    matcher
                }),
            }
        };
        let matcher =
            on_large_stack(compile).map_err(|reason| GrammarFault::Invalid { reason: shown(&reason) })?;
        Ok(self.keep(key, Arc::new(Piece::Grammar(Box::new(matcher), guard))))
    }

    fn kept(&self, key: &str) -> Option<Arc<Piece>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(k, _)| **k == *key)?;
        let entry = kept.remove(place)?;
        let piece = entry.1.clone();
        kept.push_back(entry);
        Some(piece)
    }

    fn keep(&self, key: Box<str>, piece: Arc<Piece>) -> Arc<Piece> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, piece.clone()));
        if kept.len() > MAX_KEPT {
            kept.pop_front();
        }
        piece
    }
}

/// What a form is kept under, if it is within bounds.
fn key(form: &Form<'_>) -> Result<Box<str>, GrammarFault> {
    let within = |what, found, limit| {
        if found > limit { Err(GrammarFault::TooLarge { what, found, limit }) } else { Ok(()) }
    };
    let key = match form {
        Form::Json(schema) => {
            let text = schema.to_string();
            within("the schema's size in bytes", text.len(), MAX_TEXT)?;
            format!("json {text}")
        }
        Form::Regex(text) => {
            within("the expression's size in bytes", text.len(), MAX_GRAMMAR_TEXT)?;
            format!("regex {text}")
        }
        Form::Lark(text) => {
            within("the grammar's size in bytes", text.len(), MAX_GRAMMAR_TEXT)?;
            format!("lark {text}")
        }
        Form::Choice(words) => {
            within("the number of choices", words.len(), MAX_CHOICES)?;
            within(
                "the size of all choices in bytes",
                words.iter().map(String::len).sum(),
                MAX_GRAMMAR_TEXT,
            )?;
            if words.is_empty() || words.iter().any(String::is_empty) {
                let reason = "a choice needs at least one string, and none may be empty".to_owned();
                return Err(GrammarFault::Invalid { reason });
            }
            format!("choice {}", json!(words))
        }
    };
    Ok(key.into())
}

/// An error's first lines: llguidance adds a dump of its state.
fn shown(error: &str) -> String {
    const MAX_CHARS: usize = 600;
    let text = error.split("<non-verbose/>").next().unwrap_or(error);
    let text = text.split("<backtrace>").next().unwrap_or(text).trim();
    text.chars().take(MAX_CHARS).collect()
}

fn on_large_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let thread = thread::Builder::new().name("kimi-grammar".into()).stack_size(STACK_BYTES).spawn(work);
    let thread = thread.map_err(|e| format!("no thread for the grammar: {e}"))?;
    thread.join().unwrap_or_else(|_| Err("the grammar's library failed on it".to_owned()))
}
