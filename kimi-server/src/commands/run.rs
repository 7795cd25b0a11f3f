//! `kimi run`.

mod chat;
mod editor;
mod terminal;

use std::io::{IsTerminal, Read};

use kimi_core::chat_model::{ChatModel, ModelOptions};
use kimi_core::plan::Plan;
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::SMALL_WEIGHTS;
use tokio::runtime::Handle;

use super::Outcome;
use super::stages::{self, Model, Stages};
use crate::cli::args::RunArgs;
use crate::cluster::ClusterStatus;
use chat::Chat;

/// Largest prompt read from standard input, in bytes.
const MAX_PROMPT: u64 = 16 << 20;

/// Answers a prompt, or chats.
///
/// # Errors
/// If the model can't be loaded or an answer can't be finished.
pub fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let given = RawSamplingParams {
        temperature: args.temperature.unwrap_or_default(),
        top_p: args.top_p.unwrap_or(1.0),
        seed: args.seed,
        ..RawSamplingParams::default()
    };
    SamplingParams::new(given.clone())?; // before minutes of loading
    let prompt = prompt(args)?;
    let runtime = super::runtime()?; // holds the links to workers
    let model = load(args, runtime.handle())?;
    let _stops = super::Stops(model.engine().clone());
    let defaults = model.defaults().mode(None);
    let params = SamplingParams::new(RawSamplingParams {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_p: args.top_p.unwrap_or(defaults.top_p),
        ..given
    })?;
    let mut chat = Chat::new(model, params, args.max_tokens, args.stats, args.system.clone());
    match prompt {
        Some(prompt) => chat.answer(&prompt, &chat::Interrupt::default()).map(drop)?,
        None => terminal::talk(&mut chat, runtime.handle(), !args.no_history)?,
    }
    Ok(Outcome::Success)
}

/// What to ask: the prompt of the arguments, and after it what is piped in. `None` to chat.
fn prompt(args: &RunArgs) -> anyhow::Result<Option<String>> {
    let given = args.prompt.clone().unwrap_or_else(|| args.words.join(" "));
    let piped = if std::io::stdin().is_terminal() { None } else { Some(piped()?) };
    let parts = [Some(given), piped.clone()];
    let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.trim().is_empty()).collect();
    if parts.is_empty() {
        anyhow::ensure!(
            piped.is_none() && args.prompt.is_none(),
            "the prompt is empty; give it after the model, with --prompt, or as text on standard input"
        );
        return Ok(None);
    }
    Ok(Some(parts.join("\n\n")))
}

fn piped() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_PROMPT + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_PROMPT, "standard input is over {MAX_PROMPT} bytes");
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| anyhow::anyhow!("standard input is not UTF-8; a prompt is text"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn load(args: &RunArgs, runtime: &Handle) -> anyhow::Result<ChatModel> {
    let (found, checkpoint) = super::open(&args.model, None)?;
    let files = || found.chat_files(&checkpoint);
    // What is wrong with them is said before minutes of loading. The layers of a small model are loaded first: they are brought
    // into memory while its files are read.
    let before = (checkpoint.bytes() > SMALL_WEIGHTS).then(files).transpose()?;
    let options = ModelOptions { speculation: args.speculation.speculation, ..args.cache.options() };
    let cache = options.cache(&checkpoint);
    let device = &args.precision.on(&args.device);
    let status = ClusterStatus::default();
    let planned = |plan: &Plan, limits: bool| {
        if limits {
            stages::show(&found.id, plan, limits); // that all layers are here is no news
        }
        Ok(())
    };
    let source =
        Model { found: &found, checkpoint: &checkpoint, cache, device, status: &status, planned: &planned };
    let Stages { built, mut recovery } = stages::start(&args.peers, &source, runtime)?;
    let files = before.map_or_else(files, Ok)?;
    let model = ChatModel::start(files, &checkpoint, built.stages, &options)?;
    model.engine().recover_with(move |lost| recovery.replace(lost))?;
    args.cache.note_limit(model.context_tokens());
    Ok(model)
}
