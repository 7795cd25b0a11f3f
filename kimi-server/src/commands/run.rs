//! `kimi run`.

use std::io::{BufRead, IsTerminal, Read, Write};

use kimi_core::chat::Message;
use kimi_core::chat_model::{ChatEvent, ChatModel, ChatRequest};
use kimi_core::engine::Usage;
use kimi_core::plan::Plan;
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use tokio::runtime::Handle;

use super::Outcome;
use super::stages::{self, Model, Stages};
use crate::cli::args::RunArgs;
use crate::cli::{is_broken_pipe, ui};
use crate::cluster::ClusterStatus;

/// Largest prompt read from standard input, in bytes.
const MAX_PROMPT: u64 = 16 << 20;

/// Answers a prompt, or chats.
///
/// # Errors
/// If the model can't be loaded or an answer can't be finished.
pub fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    // Checked before a model is loaded, which may take minutes.
    let given = RawSamplingParams {
        temperature: args.temperature.unwrap_or_default(),
        top_p: args.top_p.unwrap_or(1.0),
        seed: args.seed,
        ..RawSamplingParams::default()
    };
    SamplingParams::new(given.clone())?;
    let stdin = std::io::stdin();
    let prompt = match &args.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if stdin.is_terminal() => None,
        None => Some(piped_prompt()?),
    };
    let runtime = super::runtime()?; // holds the links to workers
    let model = load(args, runtime.handle())?;
    let _stops = super::Stops(model.engine().clone());
    let card = model.defaults().mode(None);
    let params = SamplingParams::new(RawSamplingParams {
        temperature: args.temperature.unwrap_or(card.temperature),
        top_p: args.top_p.unwrap_or(card.top_p),
        ..given
    })?;
    let mut chat = Chat { model, args, params, messages: Vec::new() };
    chat.reset();
    match prompt {
        Some(prompt) => chat.answer(&prompt)?,
        None => chat.talk()?,
    }
    Ok(Outcome::Success)
}

fn piped_prompt() -> anyhow::Result<String> {
    let mut prompt = String::new();
    std::io::stdin().lock().take(MAX_PROMPT + 1).read_to_string(&mut prompt)?;
    anyhow::ensure!(prompt.len() as u64 <= MAX_PROMPT, "the prompt is over {MAX_PROMPT} bytes");
    anyhow::ensure!(
        !prompt.trim().is_empty(),
        "the prompt is empty; give --prompt or text on standard input"
    );
    Ok(prompt.trim_end_matches('\n').to_owned())
}

fn load(args: &RunArgs, runtime: &Handle) -> anyhow::Result<ChatModel> {
    let (found, checkpoint) = super::open(&args.model, None)?;
    let files = found.chat_files(&checkpoint)?;
    let options = args.cache.options();
    let cache = options.cache(&checkpoint);
    let device = &args.device.choice();
    let status = ClusterStatus::default();
    let planned = |plan: &Plan, limits: bool| {
        if limits {
            stages::show(&found.id, plan, limits); // that all layers are here is no news
        }
    };
    let source =
        Model { found: &found, checkpoint: &checkpoint, cache, device, status: &status, planned: &planned };
    let Stages { built, mut recovery } = stages::start(&args.peers, &source, runtime)?;
    let model = ChatModel::start(files, &checkpoint, built.stages, &options)?;
    model.engine().recover_with(move |lost| recovery.replace(lost))?;
    args.cache.note_limit(model.context_tokens());
    Ok(model)
}

struct Chat<'a> {
    model: ChatModel,
    args: &'a RunArgs,
    params: SamplingParams,
    messages: Vec<Message>,
}

impl Chat<'_> {
    fn reset(&mut self) {
        self.messages = self.args.system.iter().map(|text| Message::new("system", text)).collect();
    }

    /// Reads lines from a terminal until it ends.
    fn talk(&mut self) -> anyhow::Result<()> {
        let style = ui::stderr_style();
        ui::notice(style.dim("/new starts again, /quit or Ctrl-D leaves"));
        let mut lines = std::io::stdin().lock().lines();
        loop {
            ui::prompt(format_args!("{} ", style.bold(">")));
            let Some(line) = lines.next().transpose()? else { break };
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => break,
                "/new" => self.reset(),
                text => {
                    if let Err(error) = self.answer(text) {
                        if is_broken_pipe(&error) {
                            return Err(error); // nobody reads the answers any more
                        }
                        ui::notice(format_args!("{} {error:#}", style.error("error:")));
                        self.messages.pop(); // the question: it can be asked otherwise
                        anyhow::ensure!(self.model.engine().down().is_none(), "the model is down");
                    }
                }
            }
        }
        Ok(())
    }

    /// Streams the answer to a prompt, and keeps both.
    fn answer(&mut self, prompt: &str) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", prompt));
        let request = ChatRequest {
            messages: self.messages.clone(),
            params: self.params.clone(),
            max_tokens: self.args.max_tokens,
            ..ChatRequest::default()
        };
        let style = ui::stdout_style();
        let mut out = std::io::stdout().lock();
        let mut text = String::new();
        for event in self.model.chat(request)? {
            match event {
                ChatEvent::Content(piece) => {
                    out.write_all(piece.as_bytes())?;
                    text += &piece;
                }
                ChatEvent::Reasoning(piece) => out.write_all(style.dim(&piece).as_bytes())?,
                ChatEvent::Failed(error) => return Err(error.into()),
                ChatEvent::Finished { usage, .. } => {
                    out.write_all(b"\n")?;
                    if self.args.stats {
                        print_stats(&usage);
                    }
                }
                _ => {}
            }
            out.flush()?;
        }
        self.messages.push(Message::new("assistant", text));
        Ok(())
    }
}

fn print_stats(usage: &Usage) {
    let rate = |tokens: f64, time: std::time::Duration| tokens / time.as_secs_f64().max(1e-9);
    let after_first = f64::from(usage.completion_tokens.saturating_sub(1));
    let first = usage.time_to_first_token.unwrap_or_default();
    ui::notice(format_args!(
        "prompt: {} tokens, {:.1} tokens/s; first token after {:.3} s; answer: {} tokens, {:.1} tokens/s",
        usage.prompt_tokens,
        rate(usage.prompt_tokens as f64, usage.prefill),
        first.as_secs_f64(),
        usage.completion_tokens,
        rate(after_first, usage.decode)
    ));
}
