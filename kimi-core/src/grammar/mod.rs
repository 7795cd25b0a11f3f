//! Holds answers to a form: JSON of a schema, a regular expression, a grammar, tool calls with valid arguments.
//!
//! llguidance does the parsing and finds the tokens that a grammar allows. This module gives it Kimi's vocabulary
//! (`vocabulary.rs`), writes schemas so that what it takes is valid (`schema/`), and puts grammars into an answer with
//! thinking and K2's markup of calls around them (`answer.rs`).

mod answer;
mod compile;
mod guard;
mod piece;
mod schema;
mod vocabulary;
mod words;

pub(crate) use answer::{AnswerConstraint, AnswerForm, CallForm, CallableTool, TextForm};
pub use compile::{Form, Grammars};

pub use crate::chat_model::{GrammarError, GrammarFault, GrammarPlace};
