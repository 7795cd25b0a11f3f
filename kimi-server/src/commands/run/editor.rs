//! The line that is being typed: history, completion of commands, several lines between `"""`.

use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Context, Editor, Helper};

use super::terminal::COMMANDS;
use crate::system;

/// Marks the beginning and the end of a message of several lines.
const QUOTES: &str = "\"\"\"";
const MAX_HISTORY: usize = 1000;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Text(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the end of the terminal.
    End,
}

/// Reads what is typed.
pub(super) struct LineEditor {
    editor: Editor<Words, DefaultHistory>,
    /// Where earlier lines are kept.
    history: Option<PathBuf>,
}

impl LineEditor {
    /// With the lines of earlier chats, if they are kept.
    ///
    /// # Errors
    /// If the terminal can't be used.
    pub(super) fn new(keep_history: bool) -> anyhow::Result<Self> {
        use std::io::IsTerminal;
        // Prompts must not go into the file or pipe that takes the answers.
        let behavior = if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)?
            .history_ignore_dups(true)?
            .bracketed_paste(true)
            .behavior(behavior)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Words));
        let history = if keep_history { history_file() } else { None };
        if let Some(path) = &history
            && let Err(error) = editor.load_history(path)
        {
            tracing::debug!(path = %path.display(), %error, "no lines of earlier chats");
        }
        Ok(Self { editor, history })
    }

    /// The next message.
    ///
    /// # Errors
    /// If the terminal can't be read.
    pub(super) fn read(&mut self, prompt: &str) -> anyhow::Result<Typed> {
        let line = match self.editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => return Ok(Typed::Interrupt),
            Err(ReadlineError::Eof) => return Ok(Typed::End),
            Err(error) => return Err(error.into()),
        };
        if !line.trim().is_empty() {
            self.editor.add_history_entry(line.as_str())?;
            self.save();
        }
        let line = line.trim();
        let quoted = line.strip_prefix(QUOTES).map(|rest| rest.strip_suffix(QUOTES).unwrap_or(rest));
        Ok(Typed::Text(quoted.unwrap_or(line).trim().to_owned()))
    }

    fn save(&mut self) {
        let Some(path) = &self.history else { return };
        if let Err(error) = self.editor.append_history(path) {
            tracing::warn!(path = %path.display(), %error, "typed lines are not kept");
            self.history = None;
        }
    }
}

/// `$XDG_STATE_HOME/kimi/history`; `None` if its folder can't be made.
fn history_file() -> Option<PathBuf> {
    let folder = system::state_folder()?;
    match std::fs::create_dir_all(&folder) {
        Ok(()) => Some(folder.join("history")),
        Err(error) => {
            tracing::debug!(path = %folder.display(), %error, "typed lines are not kept");
            None
        }
    }
}

/// Knows the commands, and when a message is complete.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = line.get(..at).unwrap_or_default();
        let fitting = COMMANDS.iter().map(|(name, _)| *name).filter(|name| name.starts_with(begun));
        Ok((0, if begun.starts_with('/') { fitting.map(str::to_owned).collect() } else { Vec::new() }))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input().trim();
        let open = text.strip_prefix(QUOTES).is_some_and(|rest| !rest.ends_with(QUOTES));
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Helper for Words {}
