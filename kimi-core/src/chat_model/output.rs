//! What form an answer must have: which tools it may call, and what its text looks like.

use std::fmt;

use serde_json::Value;

/// Which tools the model may call, and whether it must call one.
///
/// Where a call is forced, the model writes nothing but the call (after its thinking, if it thinks), and the arguments are
/// held to the tool's parameters. A tool that is [`strict`](crate::chat::Tool::strict) is held to them whenever it is
/// called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides between text and calls of any of [`ChatRequest::tools`](super::ChatRequest::tools).
    #[default]
    Auto,
    /// The model calls no tool. It still sees them in its prompt.
    None,
    /// The model must call a tool, whichever.
    Required,
    /// The model must call this one.
    Named(String),
    /// The model may call these and no others, though it sees all of them (OpenAI's `allowed_tools`).
    Allowed {
        /// Whether it must call one (`mode: required`) or may answer with text too (`mode: auto`).
        required: bool,
        /// Names of declared tools, at least one.
        names: Vec<String>,
    },
}

/// What the text of an answer must look like. Thinking before it is free, and so is a tool call in its place where
/// [`ToolChoice`] allows one.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OutputFormat {
    /// Anything.
    #[default]
    Text,
    /// One JSON object.
    JsonObject,
    /// JSON that validates against a schema.
    JsonSchema {
        /// What the client calls the schema; for messages only.
        name: String,
        /// The schema: a JSON object, `true` or `false`.
        schema: Value,
        /// OpenAI's `strict`. An answer validates either way, and what OpenAI's subset does not have is taken here too.
        strict: bool,
    },
    /// Text that a regular expression of ECMA-262 matches from beginning to end; looking around, word boundaries and references
    /// to groups are refused.
    Regex(String),
    /// Text of a context-free grammar, in llguidance's dialect of Lark.
    Lark(String),
    /// One of these strings.
    Choice(Vec<String>),
}

/// Why the form that a request asks for can't be enforced. The request is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct GrammarError {
    /// Which part of the request.
    pub place: GrammarPlace,
    /// What is wrong with it.
    pub fault: GrammarFault,
}

/// The part of a request that a [`GrammarError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrammarPlace {
    /// [`ChatRequest::output`](super::ChatRequest::output).
    Output,
    /// The parameters of a tool.
    Tool {
        /// Its index in [`ChatRequest::tools`](super::ChatRequest::tools).
        index: usize,
    },
    /// [`ChatRequest::tool_choice`](super::ChatRequest::tool_choice).
    ToolChoice,
}

impl fmt::Display for GrammarPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Output => f.write_str("the output format"),
            Self::Tool { index } => write!(f, "the parameters of tool {index}"),
            Self::ToolChoice => f.write_str("the tool choice"),
        }
    }
}

/// What is wrong with the form that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarFault {
    /// A schema says something that can't be enforced.
    #[error("{path}: {reason}")]
    Schema {
        /// Where in the schema: a JSON pointer that begins with `#` and ends with the keyword.
        path: String,
        /// What was found and what to do.
        reason: String,
    },
    /// The grammar, or the schema as a whole, is not well-formed, or nothing satisfies it.
    #[error("{reason}")]
    Invalid {
        /// What was found.
        reason: String,
    },
    /// It is out of bounds.
    #[error("{what} is {found}, but at most {limit} is accepted; simplify it")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The count; where counting ended early, what it had reached.
        found: usize,
        /// The most that is accepted.
        limit: usize,
    },
    /// A tool is named that is not declared.
    #[error("there is no tool {name:?}; declared are: {declared}")]
    UnknownTool {
        /// The name.
        name: String,
        /// The declared names, separated by commas.
        declared: String,
    },
    /// A call is demanded, and no tool is declared.
    #[error("a call is required, but no tools are declared; add tools, or leave the choice to the model")]
    NoTools,
    /// The vocabulary lacks a token that the form is written with.
    #[error("the model's tokenizer has no token {token}, which tool calls are written with")]
    NoToken {
        /// Its name.
        token: &'static str,
    },
}
