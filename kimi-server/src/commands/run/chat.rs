//! A conversation with a model, shown as it is written.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Stdout, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use kimi_core::chat::{Content, Message};
use kimi_core::chat_model::{ChatEvent, ChatGeneration, ChatModel, ChatRequest, FinishReason};
use kimi_core::engine::Usage;
use kimi_core::sampler::SamplingParams;

use crate::cli::ui;

/// Stops the answer that is being written, if there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
enum Running {
    #[default]
    Nothing,
    /// An answer that has no generation yet.
    Starting,
    /// An answer that is not wanted any more.
    Stopped,
    Yes(ChatGeneration),
}

impl Interrupt {
    pub(super) fn stop(&self) {
        let mut running = self.state();
        if matches!(*running, Running::Nothing) {
            return;
        }
        if let Running::Yes(generation) = std::mem::replace(&mut *running, Running::Stopped) {
            generation.cancel();
        }
    }

    fn start(&self) {
        *self.state() = Running::Starting;
    }

    fn run(&self, generation: ChatGeneration) {
        let mut running = self.state();
        if matches!(*running, Running::Starting) {
            *running = Running::Yes(generation);
        }
    }

    fn end(&self) {
        *self.state() = Running::Nothing;
    }

    fn state(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an answer came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    Stopped,
}

pub(super) struct Chat {
    model: ChatModel,
    params: SamplingParams,
    max_tokens: Option<u32>,
    stats: bool,
    system: Option<String>,
    /// Without the system prompt.
    messages: Vec<Message>,
}

impl Chat {
    pub(super) fn new(
        model: ChatModel,
        params: SamplingParams,
        max_tokens: Option<u32>,
        stats: bool,
        system: Option<String>,
    ) -> Self {
        Self { model, params, max_tokens, stats, system, messages: Vec::new() }
    }

    /// Forgets the conversation; the system prompt stays.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    pub(super) fn model(&self) -> &ChatModel {
        &self.model
    }

    pub(super) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Takes another system prompt from the next answer on; an empty one is none.
    pub(super) fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
    }

    fn whole(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Streams the answer to a prompt, and keeps both. Of an answer that is stopped what is there is kept.
    ///
    /// # Errors
    /// If it can't be finished; the question is not kept then.
    pub(super) fn answer(&mut self, prompt: &str, interrupt: &Interrupt) -> anyhow::Result<End> {
        self.messages.push(Message::new("user", prompt));
        interrupt.start();
        let answer = self.stream(interrupt);
        interrupt.end();
        match answer {
            Ok((message, end)) if end == End::Complete || message.content.is_some() => {
                self.messages.push(message);
                Ok(end)
            }
            other => {
                self.messages.pop();
                other.map(|(_, end)| end)
            }
        }
    }

    fn stream(&self, interrupt: &Interrupt) -> anyhow::Result<(Message, End)> {
        let request = ChatRequest {
            messages: self.whole(),
            params: self.params.clone(),
            max_tokens: self.max_tokens,
            ..ChatRequest::default()
        };
        let asked = Instant::now();
        let (sender, events) = mpsc::channel();
        // Nobody listens once an answer has failed.
        let generation = self.model.chat_with(request, move |event| drop(sender.send(event)))?;
        interrupt.run(generation);
        let mut shown = Shown::new();
        let mut first = None;
        let mut end = End::Stopped;
        for event in events {
            match event {
                ChatEvent::Content(piece) => {
                    shown.content(&piece)?;
                    first.get_or_insert_with(|| asked.elapsed());
                }
                ChatEvent::Reasoning(piece) => {
                    shown.reasoning(&piece)?;
                    first.get_or_insert_with(|| asked.elapsed());
                }
                ChatEvent::Failed(error) => {
                    shown.end()?;
                    return Err(error.into());
                }
                ChatEvent::Finished { reason, usage } => {
                    shown.end()?;
                    if reason != FinishReason::Cancelled {
                        end = End::Complete;
                    }
                    if self.stats {
                        print_stats(&usage, first);
                    }
                }
                _ => {}
            }
        }
        let content = Some(shown.text).filter(|text| !text.is_empty() || end == End::Complete);
        let reasoning = Some(shown.thinking).filter(|text| !text.is_empty());
        let message = Message {
            role: "assistant".to_owned(),
            content: content.map(Content::Text),
            reasoning_content: reasoning,
            ..Message::default()
        };
        Ok((message, end))
    }

    /// Writes the conversation to a new file: as JSON, in the API's form, if its name ends so; else as text.
    ///
    /// # Errors
    /// If the file is there already or can't be written.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let messages = self.whole();
        let text = if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
            serde_json::to_string_pretty(&messages)? + "\n"
        } else {
            let text = |m: &Message| m.content.as_ref().map(Content::text).unwrap_or_default();
            messages.iter().map(|m| format!("{}:\n{}\n\n", m.role, text(m))).collect()
        };
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let mut file = file.with_context(|| format!("can't create {}", path.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("can't write {}", path.display()))
    }
}

/// An answer on standard output. On a terminal its thinking is shown too, dim, and nothing in it acts on the terminal; elsewhere
/// it is written as the model wrote it.
struct Shown<W> {
    out: W,
    style: ui::Style,
    terminal: bool,
    text: String,
    thinking: String,
    /// Whether the line that is being written has something on it.
    begun: bool,
}

impl Shown<Stdout> {
    fn new() -> Self {
        Self::on(std::io::stdout(), std::io::stdout().is_terminal())
    }
}

impl<W: Write> Shown<W> {
    fn on(out: W, terminal: bool) -> Self {
        let (text, thinking) = (String::new(), String::new());
        Self { out, style: ui::stdout_style(), terminal, text, thinking, begun: false }
    }

    fn content(&mut self, piece: &str) -> anyhow::Result<()> {
        let after_thinking = self.terminal && self.text.is_empty() && !self.thinking.is_empty();
        if after_thinking && self.begun {
            self.write("\n")?;
        }
        self.text += piece;
        if self.terminal { self.write(&ui::text_for_terminal(piece)) } else { self.write(piece) }
    }

    fn reasoning(&mut self, piece: &str) -> anyhow::Result<()> {
        self.thinking += piece;
        if self.terminal { self.write(&self.style.dim(&ui::text_for_terminal(piece))) } else { Ok(()) }
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.write("\n")
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.begun = !text.ends_with('\n');
        Ok(self.out.flush()?)
    }
}

/// `first`: from the question until the first text was written.
fn print_stats(usage: &Usage, first: Option<Duration>) {
    let rate = |tokens: f64, time: Duration| tokens / time.as_secs_f64().max(1e-9);
    let after_first = f64::from(usage.completion_tokens.saturating_sub(1));
    let first = first.or(usage.time_to_first_token).unwrap_or_default();
    ui::notice(format_args!(
        "prompt: {} tokens, {:.1} tokens/s; first token after {:.1} ms; answer: {} tokens, {:.1} tokens/s",
        usage.prompt_tokens,
        rate(usage.prompt_tokens as f64, usage.prefill),
        first.as_secs_f64() * 1e3,
        usage.completion_tokens,
        rate(after_first, usage.decode)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_acts_on_no_terminal_and_is_whole_elsewhere() {
        for (terminal, shown) in [(true, "a\\u{1b}]52;c;eA==\\u{7}\nb"), (false, "a\x1b]52;c;eA==\x07\r\nb")]
        {
            let mut answer = Shown::on(Vec::new(), terminal);
            for piece in ["a\x1b", "]52;c;eA==\x07\r", "\nb"] {
                answer.content(piece).unwrap();
            }
            assert_eq!(String::from_utf8(answer.out).unwrap(), shown);
            // What goes back to the model is what it wrote.
            assert_eq!(answer.text, "a\x1b]52;c;eA==\x07\r\nb");
        }
        let mut thoughts = Shown::on(Vec::new(), true);
        thoughts.reasoning("\x1bc").unwrap();
        assert!(String::from_utf8(thoughts.out).unwrap().contains("\\u{1b}c"));
    }
}
