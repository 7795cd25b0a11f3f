//! Takes the model's answer apart while it streams: reasoning, text, tool calls.
//!
//! One machine serves both uses; the result of parsing at once ([`Reply::parse`]) and in pieces of any size
//! is the same. It forgives what models do: sections without begin or end, odd ids, arguments that are not
//! JSON, an answer cut short.

use std::collections::HashSet;

use super::scanner::{Lexeme, Marker, Scanner};
use super::tool_id::{self, CallId, MAX_ID_BYTES, ToolSignature};

/// How thinking is told from the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReasoningMode {
    /// The thinking tags are ordinary text (Kimi-K2-Instruct).
    #[default]
    Off,
    /// The answer begins outside; `<think>` opens (Kimi-K2-Thinking, whose prompt does not end with it).
    Tagged,
    /// The prompt ended with `<think>`, so the answer begins inside (Kimi-K2.5).
    Open,
}

/// What becomes of text that follows a section of tool calls. The model should not write any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrailingText {
    /// It is content (llama.cpp, dynamo).
    #[default]
    Keep,
    /// It is left out (vLLM).
    Drop,
}

/// What becomes of the markup of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ToolMarkup {
    /// It is ordinary text.
    #[default]
    Text,
    /// It holds calls.
    Calls,
    /// It is left out with all that is in it, since no tool may be called.
    Drop,
}

/// How an answer is to be read.
#[derive(Debug, Clone, Default)]
pub struct ParserOptions {
    /// How thinking is told from the answer.
    pub reasoning: ReasoningMode,
    /// What becomes of the markup of tool calls.
    pub tool_markup: ToolMarkup,
    /// The declared tools, for ids that do not name one.
    pub tools: Vec<ToolSignature>,
    /// How many calls the conversation already holds; ids that must be made up count on from there.
    pub calls_before: u64,
    /// The ids of these calls, which no other gets.
    pub used_ids: HashSet<String>,
    /// What becomes of text after a section of calls.
    pub trailing_text: TrailingText,
}

/// A step of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEvent {
    /// More of the content.
    Content(String),
    /// More of the reasoning.
    Reasoning(String),
    /// A call begins; `index` counts the calls of this answer from 0.
    CallBegin {
        /// Which call.
        index: usize,
        /// The model's id, verbatim where it names the function.
        id: String,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments, raw as the model wrote them.
    CallArguments {
        /// Which call.
        index: usize,
        /// The text.
        text: String,
    },
    /// A call's arguments are finished.
    CallEnd {
        /// Which call.
        index: usize,
        /// `false` when the answer ended within the arguments.
        complete: bool,
    },
}

/// A call taken from an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedCall {
    /// The call's id.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// The arguments as the model wrote them, without white space around; not always valid JSON.
    pub arguments: String,
    /// Whether the model finished the call.
    pub complete: bool,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// The text for the user.
    pub content: String,
    /// The thinking.
    pub reasoning: String,
    /// The calls, in order.
    pub calls: Vec<ParsedCall>,
}

impl Reply {
    /// Parses a whole answer at once.
    pub fn parse(text: &str, options: ParserOptions) -> Self {
        let mut parser = ReplyParser::new(options);
        let mut reply = Self::default();
        for event in parser.push(text).into_iter().chain(parser.finish()) {
            reply.add(event);
        }
        reply
    }

    /// Adds a step.
    pub fn add(&mut self, event: ReplyEvent) {
        match event {
            ReplyEvent::Content(text) => self.content.push_str(&text),
            ReplyEvent::Reasoning(text) => self.reasoning.push_str(&text),
            ReplyEvent::CallBegin { id, name, .. } => {
                self.calls.push(ParsedCall { id, name, ..ParsedCall::default() });
            }
            ReplyEvent::CallArguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&text);
                }
            }
            ReplyEvent::CallEnd { index, complete } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.complete = complete;
                }
            }
        }
    }
}

/// Where in an answer the machine is.
#[derive(Debug, Clone)]
enum State {
    /// Content or reasoning.
    Text,
    /// Between a section's markers, where only calls count.
    Section,
    /// After a call that stood in no section. White space is held, since another call may follow.
    AfterCall(String),
    Id(String),
    Arguments(Arguments),
    /// A call without a usable id: skipped up to its end.
    Skipped,
    /// After the end of the turn.
    Done,
}

#[derive(Debug, Clone)]
struct Arguments {
    /// The call's index; without one, the function is still to be told from the arguments.
    index: Option<usize>,
    counter: Option<u64>,
    /// The arguments so far, kept while there is no index.
    waiting: String,
    /// White space that is left out if nothing follows.
    space: String,
    begun: bool,
}

/// The streaming parser. It serves one answer.
#[derive(Debug, Clone)]
pub struct ReplyParser {
    options: ParserOptions,
    scanner: Scanner,
    state: State,
    reasoning: bool,
    /// Within tool markup that stays in the content.
    raw_section: bool,
    in_section: bool,
    calls: usize,
    ids: HashSet<String>,
}

impl ReplyParser {
    /// A parser for one answer.
    pub fn new(mut options: ParserOptions) -> Self {
        Self {
            reasoning: options.reasoning == ReasoningMode::Open,
            ids: std::mem::take(&mut options.used_ids),
            options,
            scanner: Scanner::default(),
            state: State::Text,
            raw_section: false,
            in_section: false,
            calls: 0,
        }
    }

    /// Adds text in which markers count, wherever they stand and however they are split.
    pub fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        for lexeme in self.scanner.push(text) {
            match lexeme {
                Lexeme::Text(text) => self.text(&text, &mut events),
                Lexeme::Marker(marker, name) => self.marker(marker, name, &mut events),
            }
        }
        events
    }

    /// Adds text in which nothing is a marker. Whoever has the ids passes control tokens to
    /// [`ReplyParser::push`] and everything else here; then a model that merely writes *about* markers is
    /// understood.
    pub fn push_literal(&mut self, text: &str) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        let held = self.scanner.flush();
        self.text(&held, &mut events);
        self.text(text, &mut events);
        events
    }

    /// The end of the answer. A call that it cuts short is given as far as it came.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        let held = self.scanner.flush();
        self.text(&held, &mut events);
        if let State::Arguments(arguments) = std::mem::replace(&mut self.state, State::Done) {
            self.end_call(arguments, false, &mut events);
        }
        events
    }

    /// Whether the answer is within its thinking.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    fn marker(&mut self, marker: Marker, name: &'static str, events: &mut Vec<ReplyEvent>) {
        let is_think = matches!(marker, Marker::ThinkBegin | Marker::ThinkEnd);
        if is_think && self.options.reasoning == ReasoningMode::Off {
            return self.text(name, events);
        }
        if !is_think && marker != Marker::EndOfTurn && self.options.tool_markup == ToolMarkup::Text {
            return self.raw_marker(marker, name, events);
        }
        let state = std::mem::replace(&mut self.state, State::Text);
        self.state = match (state, marker) {
            (State::Done, _) => State::Done,
            // In arguments only the ends of calls count: their text may well speak of the other markers.
            (State::Arguments(arguments), Marker::CallEnd | Marker::CallBegin | Marker::SectionEnd) => {
                self.end_call(arguments, true, events);
                self.after_call(marker)
            }
            (State::Arguments(mut arguments), _) => {
                self.add_arguments(&mut arguments, name, events);
                State::Arguments(arguments)
            }
            (State::Id(id), Marker::ArgumentBegin) => self.begin_call(&id, events),
            (State::Id(id), Marker::CallEnd) => {
                if let State::Arguments(arguments) = self.begin_call(&id, events) {
                    self.end_call(arguments, true, events);
                }
                self.after_call(marker)
            }
            (State::Id(mut id), Marker::ThinkBegin | Marker::ThinkEnd | Marker::SectionBegin) => {
                id.push_str(name);
                State::Id(id)
            }
            (State::Skipped, Marker::CallEnd) => self.after_call(marker),
            (State::Skipped, Marker::ArgumentBegin | Marker::SectionBegin) => State::Skipped,
            (State::Skipped, Marker::ThinkBegin | Marker::ThinkEnd | Marker::EndOfTurn) => State::Skipped,
            (_, Marker::CallBegin) => self.enter_call(),
            (_, Marker::SectionBegin) => {
                self.in_section = true;
                State::Section
            }
            (_, Marker::SectionEnd) => self.leave_section(),
            (_, Marker::ThinkBegin | Marker::ThinkEnd) => {
                self.reasoning = marker == Marker::ThinkBegin;
                self.leave_section()
            }
            (_, Marker::EndOfTurn) => State::Done,
            (other, Marker::CallEnd | Marker::ArgumentBegin) => other,
        };
    }

    fn enter_call(&self) -> State {
        match self.options.tool_markup {
            ToolMarkup::Drop => State::Skipped,
            _ => State::Id(String::new()),
        }
    }

    fn leave_section(&mut self) -> State {
        self.in_section = false;
        State::Text
    }

    fn after_call(&mut self, marker: Marker) -> State {
        match marker {
            Marker::CallBegin => self.enter_call(),
            Marker::SectionEnd => self.leave_section(),
            _ if self.in_section => State::Section,
            _ => State::AfterCall(String::new()),
        }
    }

    /// Tool markup that stays in the content; yet it interrupts the reasoning.
    fn raw_marker(&mut self, marker: Marker, name: &str, events: &mut Vec<ReplyEvent>) {
        if matches!(marker, Marker::SectionBegin | Marker::CallBegin) {
            self.raw_section = true;
        }
        self.text(name, events);
        if marker == Marker::SectionEnd {
            self.raw_section = false;
        }
    }

    fn text(&mut self, text: &str, events: &mut Vec<ReplyEvent>) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Text => self.plain(text, events),
            State::AfterCall(space) => {
                space.push_str(text);
                if !space.trim_start().is_empty() {
                    let all = std::mem::take(space);
                    self.state = State::Text;
                    self.plain(&all, events);
                }
            }
            State::Id(id) => {
                id.push_str(text);
                if id.len() > MAX_ID_BYTES {
                    self.state = State::Skipped;
                }
            }
            State::Arguments(_) => {
                if let State::Arguments(mut arguments) = std::mem::replace(&mut self.state, State::Text) {
                    self.add_arguments(&mut arguments, text, events);
                    self.state = State::Arguments(arguments);
                }
            }
            State::Section | State::Skipped | State::Done => {}
        }
    }

    fn plain(&mut self, text: &str, events: &mut Vec<ReplyEvent>) {
        if self.reasoning && !self.raw_section {
            match events.last_mut() {
                Some(ReplyEvent::Reasoning(last)) => last.push_str(text),
                _ => events.push(ReplyEvent::Reasoning(text.to_owned())),
            }
        } else if self.calls == 0 || self.options.trailing_text == TrailingText::Keep {
            match events.last_mut() {
                Some(ReplyEvent::Content(last)) => last.push_str(text),
                _ => events.push(ReplyEvent::Content(text.to_owned())),
            }
        }
    }

    fn begin_call(&mut self, id: &str, events: &mut Vec<ReplyEvent>) -> State {
        let mut arguments = Arguments {
            index: None,
            counter: None,
            waiting: String::new(),
            space: String::new(),
            begun: false,
        };
        match tool_id::read(id, &self.options.tools) {
            CallId::Named { name, id, counter } => {
                arguments.index = Some(self.announce(name, id, counter, events));
            }
            CallId::Counter(counter) => match self.options.tools.as_slice() {
                [only] => arguments.index = Some(self.announce(only.name.clone(), None, counter, events)),
                _ => arguments.counter = counter,
            },
            CallId::Random => {}
            CallId::Malformed => return State::Skipped,
        }
        State::Arguments(arguments)
    }

    /// Announces a call under the model's id, or under a new one if there is none or it was used already.
    fn announce(
        &mut self,
        name: String,
        id: Option<String>,
        counter: Option<u64>,
        events: &mut Vec<ReplyEvent>,
    ) -> usize {
        let index = self.calls;
        self.calls += 1;
        let mut next = counter.unwrap_or(self.options.calls_before.saturating_add(index as u64));
        let fresh = id.filter(|id| !self.ids.contains(id));
        let mut id = fresh.unwrap_or_else(|| tool_id::canonical(&name, next));
        while !self.ids.insert(id.clone()) {
            next = next.wrapping_add(1);
            id = tool_id::canonical(&name, next);
        }
        events.push(ReplyEvent::CallBegin { index, id, name });
        index
    }

    /// Leaves out white space before and after the arguments, whichever way the text is split.
    fn add_arguments(&mut self, arguments: &mut Arguments, text: &str, events: &mut Vec<ReplyEvent>) {
        let text = if arguments.begun { text } else { text.trim_start() };
        let kept = text.trim_end();
        if kept.is_empty() {
            if arguments.begun {
                arguments.space.push_str(text);
            }
            return;
        }
        arguments.begun = true;
        let mut all = std::mem::take(&mut arguments.space);
        all.push_str(kept);
        arguments.space.push_str(&text[kept.len()..]);
        match arguments.index {
            None => arguments.waiting.push_str(&all),
            Some(index) => match events.last_mut() {
                Some(ReplyEvent::CallArguments { index: last, text }) if *last == index => {
                    text.push_str(&all)
                }
                _ => events.push(ReplyEvent::CallArguments { index, text: all }),
            },
        }
    }

    fn end_call(&mut self, mut arguments: Arguments, complete: bool, events: &mut Vec<ReplyEvent>) {
        if arguments.index.is_none() {
            let Some(name) = tool_id::infer(&arguments.waiting, &self.options.tools) else { return };
            let index = self.announce(name.to_owned(), None, arguments.counter, events);
            events.push(ReplyEvent::CallArguments { index, text: std::mem::take(&mut arguments.waiting) });
            arguments.index = Some(index);
        }
        let Some(index) = arguments.index else { return };
        if complete && !arguments.begun {
            events.push(ReplyEvent::CallArguments { index, text: "{}".into() });
        }
        events.push(ReplyEvent::CallEnd { index, complete });
    }
}
