//! The form of a whole answer: thinking, then text or tool calls in K2's markup, then the end.
//!
//! Every marker is one token, so this is a machine over tokens. Between markers a [`Piece`] says what may be written.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

use super::piece::Piece;
use super::vocabulary::{Markup, Vocabulary};
use super::words::Words;
use crate::chat::ReasoningMode;
use crate::constraint::Constraint;

/// Most calls of one answer.
const MAX_CALLS: u64 = 32;

/// What an answer may be.
#[derive(Debug)]
pub(crate) struct AnswerForm {
    /// How thinking is told from the answer.
    pub(crate) reasoning: ReasoningMode,
    /// The text; `None` if a call must stand in its place.
    pub(crate) text: Option<TextForm>,
    /// The tools that may be called.
    pub(crate) calls: Option<CallForm>,
    /// Tokens that the answer may take.
    pub(crate) max_tokens: u32,
}

/// Answers of fewer tokens are cut short where they are; of longer ones the last tokens are kept for coming to an end.
const MIN_CLOSED: u32 = 512;
/// Most tokens that are kept for it.
const MAX_CLOSING: u32 = 512;

impl AnswerForm {
    /// Whether an answer of so many tokens is to come to its end.
    fn closes(&self, taken: u32) -> bool {
        let kept = (self.max_tokens / 4).min(MAX_CLOSING);
        self.max_tokens >= MIN_CLOSED && taken >= self.max_tokens - kept
    }
}

/// What the text of an answer may be.
#[derive(Debug)]
pub(crate) enum TextForm {
    /// Anything.
    Free,
    /// Of a form.
    Held(Piece),
}

/// Which calls an answer may hold.
#[derive(Debug)]
pub(crate) struct CallForm {
    /// The tools.
    pub(crate) tools: Vec<CallableTool>,
    /// Whether one answer may hold several.
    pub(crate) several: bool,
    /// How many calls the conversation holds.
    pub(crate) calls_before: u64,
    /// The ids of those calls.
    pub(crate) used_ids: HashSet<String>,
}

/// A tool that may be called.
#[derive(Debug)]
pub(crate) struct CallableTool {
    /// The function's name.
    pub(crate) name: String,
    /// The form of its arguments, which has taken nothing yet; `None` for any text.
    pub(crate) arguments: Option<Arc<Piece>>,
}

impl CallForm {
    /// The ids that call number `index` of the answer may have: one for each tool.
    fn ids(&self, index: u64) -> Words {
        let id = |tool: &CallableTool| {
            let mut counter = self.calls_before.saturating_add(index);
            loop {
                let id = format!("functions.{}:{counter}", tool.name);
                if !self.used_ids.contains(&id) {
                    return id;
                }
                counter = counter.wrapping_add(1);
            }
        };
        Words::new(self.tools.iter().map(id).collect())
    }
}

#[derive(Debug, Clone)]
enum State {
    /// Before the answer proper.
    Thinking,
    /// The answer proper begins; `fresh` if nothing at all is written, so that thinking may begin.
    Begin {
        fresh: bool,
    },
    /// In free text, which may end or go over to calls anywhere.
    Free,
    Text(Piece),
    /// Between calls.
    Section,
    Id(Words),
    Arguments(Option<Piece>),
    /// Nothing may follow but the end.
    Done,
    /// The answer left its form, or the form can't go on.
    Failed,
}

/// Where an answer is. Clones go their own way.
#[derive(Debug, Clone)]
struct Position {
    state: State,
    calls: u64,
    /// Tokens taken so far.
    taken: u32,
}

/// Holds an answer to its form; the [`Constraint`] of one request.
pub(crate) struct AnswerConstraint {
    vocabulary: Arc<Vocabulary>,
    form: AnswerForm,
    position: Position,
    /// The position after guessed tokens: masks are asked for one guess after another.
    ahead: Option<(Vec<u32>, Position)>,
}

impl fmt::Debug for AnswerConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, position, .. } = self;
        f.debug_struct("AnswerConstraint")
            .field("form", form)
            .field("position", position)
            .finish_non_exhaustive()
    }
}

impl Constraint for AnswerConstraint {
    fn accept(&mut self, token: u32) {
        let known = self.ahead.take();
        match known {
            Some((ahead, position)) if ahead == [token] => self.position = position,
            _ => advance(&self.vocabulary, &self.form, &mut self.position, token),
        }
    }

    fn mask(&mut self, ahead: &[u32]) -> Option<Arc<[u32]>> {
        let Self { vocabulary, form, position, ahead: known } = self;
        if ahead.is_empty() {
            return Some(mask(vocabulary, form, position));
        }
        let (done, mut position) = match known.take() {
            Some((done, position)) if ahead.starts_with(&done) => (done.len(), position),
            _ => (0, position.clone()),
        };
        for &token in &ahead[done..] {
            advance(vocabulary, form, &mut position, token);
        }
        let words = mask(vocabulary, form, &mut position);
        *known = Some((ahead.to_vec(), position));
        Some(words)
    }
}

impl AnswerConstraint {
    /// Begins an answer of this form.
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, form: AnswerForm) -> Self {
        let state = match (form.reasoning, &form.text) {
            // Thinking and text are the same where both are free.
            (_, Some(TextForm::Free)) => State::Free,
            (ReasoningMode::Open, _) => State::Thinking,
            (ReasoningMode::Tagged, _) => State::Begin { fresh: true },
            (ReasoningMode::Off, _) => State::Begin { fresh: false },
        };
        Self { vocabulary, form, position: Position { state, calls: 0, taken: 0 }, ahead: None }
    }
}

/// The markup, where calls are possible.
fn markup<'a>(vocabulary: &Vocabulary, form: &'a AnswerForm) -> Option<(Markup, &'a CallForm)> {
    Some((vocabulary.markup.ok()?, form.calls.as_ref()?))
}

/// Takes a token.
fn advance(vocabulary: &Vocabulary, form: &AnswerForm, position: &mut Position, token: u32) {
    let state = std::mem::replace(&mut position.state, State::Failed);
    position.taken = position.taken.saturating_add(1);
    let calls = markup(vocabulary, form);
    let opens_section = calls.is_some_and(|(markup, _)| token == markup.section_begin);
    let held = |mut piece: Piece, wrap: fn(Piece) -> State| match piece.accept(vocabulary, token) {
        Ok(()) => wrap(piece),
        Err(reason) => {
            tracing::debug!(token, reason, "a token outside of the answer's form");
            State::Failed
        }
    };
    position.state = match state {
        State::Thinking if Some(token) == vocabulary.think_end => State::Begin { fresh: false },
        State::Thinking | State::Free | State::Begin { .. } if opens_section => State::Section,
        State::Thinking => State::Thinking,
        State::Free => State::Free,
        State::Begin { fresh: true } if Some(token) == vocabulary.think_begin => State::Thinking,
        State::Begin { .. } => match &form.text {
            Some(TextForm::Held(piece)) => held(piece.fresh(), State::Text),
            Some(TextForm::Free) => State::Free,
            None => State::Failed,
        },
        State::Text(piece) => held(piece, State::Text),
        State::Section => match calls {
            Some((markup, form)) if token == markup.call_begin => State::Id(form.ids(position.calls)),
            Some((markup, _)) if token == markup.section_end => State::Done,
            _ => State::Failed,
        },
        State::Id(mut words) => match calls {
            Some((markup, form)) if token == markup.argument_begin => {
                let tool = words.complete().and_then(|place| form.tools.get(place));
                tool.map_or(State::Failed, |tool| {
                    State::Arguments(tool.arguments.as_ref().map(|piece| piece.fresh()))
                })
            }
            _ if words.accept(vocabulary, token).is_ok() => State::Id(words),
            _ => State::Failed,
        },
        State::Arguments(_) if calls.is_some_and(|(markup, _)| token == markup.call_end) => {
            position.calls += 1;
            State::Section
        }
        State::Arguments(Some(piece)) => held(piece, |piece| State::Arguments(Some(piece))),
        State::Arguments(None) => State::Arguments(None),
        State::Done => State::Done,
        State::Failed => State::Failed,
    };
}

/// The tokens that may follow.
fn mask(vocabulary: &Vocabulary, form: &AnswerForm, position: &mut Position) -> Arc<[u32]> {
    let mut mask = vocabulary.none();
    if let Err(reason) = allow(vocabulary, form, position, &mut mask) {
        tracing::warn!(reason, "an answer can't go on in its form");
        position.state = State::Failed;
        mask = vocabulary.none();
    }
    mask.as_slice().into()
}

fn allow(
    vocabulary: &Vocabulary,
    form: &AnswerForm,
    position: &mut Position,
    mask: &mut SimpleVob,
) -> Result<(), String> {
    let calls = markup(vocabulary, form);
    let closing = form.closes(position.taken);
    let ends = |mask: &mut SimpleVob| vocabulary.ends.iter().for_each(|&id| mask.allow_token(id));
    let section = |mask: &mut SimpleVob| {
        if let Some((markup, _)) = calls {
            mask.allow_token(markup.section_begin);
        }
    };
    match &mut position.state {
        // The answer may not end before it has begun, so that neither may the turn end here.
        State::Thinking => {
            // What is left of the tokens is for the answer.
            if !closing || vocabulary.think_end.is_none() {
                mask.set_from(&vocabulary.ordinary);
            }
            vocabulary.think_end.into_iter().for_each(|id| mask.allow_token(id));
            section(mask);
        }
        State::Begin { fresh } => {
            let complete = match &form.text {
                Some(TextForm::Held(piece)) => piece.fresh().allow(vocabulary, mask, closing)?,
                Some(TextForm::Free) => {
                    mask.set_from(&vocabulary.all);
                    true
                }
                None => false,
            };
            if complete {
                ends(mask);
            }
            if *fresh {
                vocabulary.think_begin.into_iter().for_each(|id| mask.allow_token(id));
            }
            section(mask);
        }
        State::Free => {
            mask.set_from(&vocabulary.all);
            if let Ok(markup) = vocabulary.markup {
                let Markup { section_begin, section_end, call_begin, argument_begin, call_end } = markup;
                for id in [section_begin, section_end, call_begin, argument_begin, call_end] {
                    mask.disallow_token(id);
                }
            }
            section(mask);
        }
        State::Text(piece) => {
            if piece.allow(vocabulary, mask, closing)? {
                ends(mask);
            }
        }
        State::Section => {
            let Some((markup, form)) = calls else { return Ok(()) };
            let most = if form.several && !closing { MAX_CALLS } else { 1 };
            if position.calls < most {
                mask.allow_token(markup.call_begin);
            }
            if position.calls > 0 {
                mask.allow_token(markup.section_end);
            }
        }
        State::Id(words) => {
            words.allow(vocabulary, mask);
            if let (Some((markup, _)), Some(_)) = (calls, words.complete()) {
                mask.allow_token(markup.argument_begin);
            }
        }
        State::Arguments(piece) => {
            let complete = match piece {
                Some(piece) => piece.allow(vocabulary, mask, closing)?,
                None => {
                    mask.set_from(&vocabulary.ordinary);
                    true
                }
            };
            if let (true, Some((markup, _))) = (complete, calls) {
                mask.allow_token(markup.call_end);
            }
        }
        State::Done => ends(mask),
        State::Failed => return Ok(()),
    }
    if mask.is_zero() { Err("no token is left".to_owned()) } else { Ok(()) }
}
