//! The chat in a terminal: its commands, and what Ctrl-C does.

use std::path::Path;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::chat::{Chat, End, Interrupt};
use super::editor::{LineEditor, Typed};
use crate::cli::{is_broken_pipe, ui};

/// The commands of a chat, and what they do.
pub(super) const COMMANDS: [(&str, &str); 5] = [
    ("/help", "shows this"),
    ("/new", "forgets the conversation; the system prompt stays"),
    ("/system", "shows the system prompt; with text after it sets it, with \"\" removes it"),
    ("/save", "writes the conversation to a new FILE, as JSON if its name ends with .json"),
    ("/bye", "leaves, as Ctrl-D does"),
];

/// A line that is no message.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    Message(&'l str),
    Help,
    New,
    System(&'l str),
    Save(&'l str),
    Bye,
    Unknown(&'l str),
}

impl<'l> Line<'l> {
    fn new(text: &'l str) -> Self {
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let is_command =
            |word: &str| word.starts_with('/') && !word.get(1..).unwrap_or_default().contains('/');
        match word {
            "/help" | "/?" => Self::Help,
            "/new" | "/clear" => Self::New,
            "/system" => Self::System(rest.trim()),
            "/save" => Self::Save(rest.trim()),
            "/bye" | "/quit" | "/exit" => Self::Bye,
            word if is_command(word) && !text.contains('\n') => Self::Unknown(word),
            _ => Self::Message(text),
        }
    }
}

/// Chats until the user leaves. Ctrl-C stops the answer that is being written; twice where nothing is typed it leaves.
///
/// # Errors
/// If the terminal or the model can't be used any more.
pub(super) fn talk(chat: &mut Chat, runtime: &Handle, keep_history: bool) -> anyhow::Result<()> {
    let style = ui::stderr_style();
    let interrupt = Interrupt::default();
    let _watch = watch(runtime, interrupt.clone())?;
    let mut editor = LineEditor::new(keep_history)?;
    ui::notice(style.dim("/help shows the commands; \"\"\" begins and ends a message of several lines"));
    let mut interrupted = false;
    loop {
        let again = std::mem::take(&mut interrupted);
        let text = match editor.read("> ")? {
            Typed::Text(text) => text,
            Typed::End => return Ok(()),
            Typed::Interrupt if again => return Ok(()),
            Typed::Interrupt => {
                ui::notice(style.dim("Ctrl-C again leaves, as Ctrl-D and /bye do"));
                interrupted = true;
                continue;
            }
        };
        if text.is_empty() {
            continue;
        }
        match Line::new(&text) {
            Line::Bye => return Ok(()),
            Line::Message(text) => match chat.answer(text, &interrupt) {
                Ok(End::Complete) => {}
                Ok(End::Stopped) => ui::notice(style.dim("(stopped)")),
                Err(error) if is_broken_pipe(&error) => return Err(error), // nobody reads the answers any more
                Err(error) => {
                    ui::notice(format_args!("{} {error:#}", style.error("error:")));
                    anyhow::ensure!(chat.model().engine().down().is_none(), "the model is down");
                }
            },
            command => ui::notice(obey(chat, &command)),
        }
    }
}

/// Does what a command says; returns what to show.
fn obey(chat: &mut Chat, command: &Line<'_>) -> String {
    match *command {
        Line::Help => help(),
        Line::New => {
            chat.clear();
            "a new conversation".to_owned()
        }
        Line::System("") => chat.system().unwrap_or("there is no system prompt").to_owned(),
        Line::System(text) => {
            chat.set_system(text.trim_matches('"'));
            "from the next answer on".to_owned()
        }
        Line::Save("") => "which file? /save FILE".to_owned(),
        Line::Save(path) => match chat.save(Path::new(path)) {
            Ok(()) => format!("saved as {path}"),
            Err(error) => format!("{} {error:#}", ui::stderr_style().error("error:")),
        },
        Line::Unknown(word) => {
            format!("there is no {word}; /help shows the commands. It was not sent to the model")
        }
        Line::Message(_) | Line::Bye => String::new(),
    }
}

fn help() -> String {
    let commands = COMMANDS.iter().map(|(name, what)| format!("{name:<9} {what}\n"));
    let keys = [
        ("\"\"\"", "begins and ends a message of several lines"),
        ("Up", "brings earlier messages back, Ctrl-R looks for one"),
        ("Ctrl-C", "stops an answer"),
    ];
    let keys = keys.iter().map(|(name, what)| format!("{name:<9} {what}\n"));
    commands.chain(keys).collect::<String>().trim_end().to_owned()
}

/// Stops answers on Ctrl-C, for as long as it is kept.
///
/// # Errors
/// If the system does not take a handler.
fn watch(runtime: &Handle, interrupt: Interrupt) -> anyhow::Result<impl Drop> {
    struct Watch(tokio::task::JoinHandle<()>);
    impl Drop for Watch {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    // Now, and not when the task first runs: until then Ctrl-C would end the program.
    let entered = runtime.enter();
    let mut presses = signal(SignalKind::interrupt()).context("can't watch for Ctrl-C")?;
    drop(entered);
    Ok(Watch(runtime.spawn(async move {
        while presses.recv().await.is_some() {
            interrupt.stop();
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        for (text, line) in [
            ("/help", Line::Help),
            ("/system", Line::System("")),
            ("/system  Be brief. ", Line::System("Be brief.")),
            ("/save a b.json", Line::Save("a b.json")),
            ("/quit", Line::Bye),
            ("/qiut", Line::Unknown("/qiut")),
            ("/ what", Line::Unknown("/")),
            ("/etc/passwd is what?", Line::Message("/etc/passwd is what?")),
            ("a /help", Line::Message("a /help")),
            ("/1\n/2", Line::Message("/1\n/2")),
        ] {
            assert_eq!(Line::new(text), line, "{text:?}");
        }
    }
}
