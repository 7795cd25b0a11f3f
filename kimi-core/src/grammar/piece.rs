//! A part of an answer that has a form: a choice, or the text of a grammar.

use std::fmt;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::guard::JsonGuard;
use super::vocabulary::Vocabulary;
use super::words::Words;

/// The state of one constrained text. Clones go their own way.
#[derive(Clone)]
pub(crate) enum Piece {
    /// One of several strings.
    Words(Words),
    /// Text of a grammar, which is JSON if there is a guard.
    Grammar(Box<Matcher>, Option<JsonGuard>),
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(words) => words.fmt(f),
            Self::Grammar(_, guard) => f.debug_tuple("Grammar").field(guard).finish_non_exhaustive(),
        }
    }
}

impl Piece {
    /// Takes a token of the text.
    pub(crate) fn accept(&mut self, vocabulary: &Vocabulary, token: u32) -> Result<(), String> {
        match self {
            Self::Words(words) => words.accept(vocabulary, token),
            Self::Grammar(matcher, guard) => {
                matcher.consume_token(token).map_err(|e| e.to_string())?;
                if let Some(guard) = guard {
                    guard.accept(vocabulary.trie().token(token));
                }
                Ok(())
            }
        }
    }

    /// Adds the tokens that may follow to `mask`, where `closing` those that lead to the end; says whether the text may end
    /// here.
    pub(crate) fn allow(
        &mut self,
        vocabulary: &Vocabulary,
        mask: &mut SimpleVob,
        closing: bool,
    ) -> Result<bool, String> {
        let (matcher, guard) = match self {
            Self::Words(words) => {
                words.allow(vocabulary, mask);
                return Ok(words.complete().is_some());
            }
            Self::Grammar(matcher, guard) => (matcher, guard),
        };
        if matcher.is_stopped() {
            let reason = matcher.stop_reason();
            return if reason.is_ok() { Ok(true) } else { Err(reason.to_string()) };
        }
        let mut allowed = matcher.compute_mask().map_err(|e| e.to_string())?;
        let complete = matcher.is_accepting().map_err(|e| e.to_string())?;
        allowed.disallow_token(vocabulary.end_of_grammar());
        if let Some(guard) = guard {
            if closing && complete {
                return Ok(true);
            }
            guard.restrict(vocabulary, &mut allowed, complete);
            if closing || guard.is_deep() {
                guard.close(vocabulary, &mut allowed);
            }
        }
        mask.or(&allowed);
        Ok(complete)
    }

    /// A piece for another answer, from one that has taken nothing yet.
    pub(crate) fn fresh(&self) -> Self {
        match self {
            Self::Words(words) => Self::Words(words.clone()),
            // The lexer's states are the copy's own: what one request makes of them does not count for another.
            Self::Grammar(matcher, guard) => Self::Grammar(Box::new(matcher.deep_clone()), *guard),
        }
    }
}
