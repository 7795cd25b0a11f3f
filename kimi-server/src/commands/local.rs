//! `kimi list`, `kimi show` and `kimi rm`: the models that are on this machine.

use std::io::{BufRead, IsTerminal};

use kimi_core::chat::Thinking;
use kimi_core::chat_model::SamplingDefaults;
use kimi_core::plan::HumanBytes;
use serde_json::{Value, json};

use super::Outcome;
use crate::cli::args::{ListArgs, RmArgs, ShowArgs};
use crate::cli::ui::{self, Table};
use crate::inspect::Report;
use crate::models::{EMBEDDED, Lookup, Source};

/// Lists the models that are found by name.
///
/// # Errors
/// If the user's registry can't be used.
pub fn list(args: &ListArgs) -> anyhow::Result<Outcome> {
    let found = Lookup::of_this_machine(args.models.as_deref())?.all();
    if args.json {
        let models = found.iter().map(|m| {
            json!({ "name": m.name, "folder": m.folder, "bytes": m.bytes, "missing": m.missing, "pulled": m.pulled })
        });
        super::print_json(&models.collect::<Vec<Value>>())?;
        return Ok(Outcome::Success);
    }
    let mut table = Table::new(&["model", "size", "files", "folder"], &[1]);
    let part = "part of kimi".to_owned();
    table.row([EMBEDDED.to_owned(), String::new(), "whole".to_owned(), part]);
    for model in found {
        let files =
            model.missing.map_or_else(|| "whole".to_owned(), |missing| format!("not whole: {missing}"));
        table.row([
            model.name,
            HumanBytes(model.bytes).to_string(),
            files,
            model.folder.display().to_string(),
        ]);
    }
    super::print(&table.to_string())?;
    Ok(Outcome::Success)
}

/// Shows what a model is and how it is used. Reads headers only.
///
/// # Errors
/// If the model is not found or can't be used.
pub fn show(args: &ShowArgs) -> anyhow::Result<Outcome> {
    let (found, checkpoint) = super::open(&args.model, None)?;
    let report = Report::new(&found.id, &checkpoint, found.sampling)?;
    let files = found.chat_files(&checkpoint)?;
    let defaults = files.defaults();
    let tools = files.template().source().contains("tools");
    let folder = match &found.source {
        Source::Embedded => "part of kimi".to_owned(),
        Source::Folder(path) => path.display().to_string(),
    };
    let (thinks, instant) = (defaults.mode(Some(true)), defaults.mode(Some(false)));
    if args.json {
        super::print_json(&json!({
            "model": report.model, "folder": folder, "model_type": report.model_type, "sizes": report.sizes,
            "bytes": report.bytes, "bits_per_weight": report.bits_per_weight,
            "context_length": report.sizes.max_position_embeddings, "chat_template": files.template_source().to_string(),
            "tools": tools, "thinking": thinking(defaults.thinking),
            "sampling": { "thinking": thinks, "instant": instant }, "eos_ids": files.stop_ids(),
            "missing": report.missing, "warnings": report.warnings,
        }))?;
        return Ok(Outcome::Success);
    }
    let sizes = &report.sizes;
    let layers = format!(
        "{} layers, {} experts, {} of them for a token, vocabulary {}",
        sizes.num_hidden_layers, sizes.n_routed_experts, sizes.num_experts_per_tok, sizes.vocab_size
    );
    let sampling = match defaults.thinking {
        Thinking::Never => shown(instant),
        Thinking::Always => shown(thinks),
        Thinking::Switched { .. } => format!("{}; while it does not think {}", shown(thinks), shown(instant)),
    };
    let mut lines = vec![
        ("model", report.model.clone()),
        ("files", folder),
        ("type", report.model_type.clone()),
        ("sizes", layers),
        ("weights", format!("{}, {:.2} bits each", HumanBytes(report.bytes), report.bits_per_weight)),
        ("context", format!("{} tokens", sizes.max_position_embeddings)),
        ("template", files.template_source().to_string()),
        ("tools", if tools { "yes" } else { "the template knows none" }.to_owned()),
        ("thinking", thinking(defaults.thinking)),
        ("sampling", sampling),
        ("ends on", format!("{:?}", files.stop_ids())),
    ];
    lines.extend(report.missing.iter().map(|missing| ("missing", missing.clone())));
    lines.extend(report.warnings.iter().map(|warning| ("warning", warning.clone())));
    super::print(&lines.iter().map(|(name, what)| format!("{name:<9} {what}\n")).collect::<String>())?;
    Ok(Outcome::Success)
}

fn shown(sampling: SamplingDefaults) -> String {
    format!("temperature {}, top-p {}", sampling.temperature, sampling.top_p)
}

fn thinking(thinking: Thinking) -> String {
    match thinking {
        Thinking::Never => "no".to_owned(),
        Thinking::Always => "always".to_owned(),
        Thinking::Switched { by } => format!("yes; the template's variable {by} switches it off"),
    }
}

/// Deletes a model that kimi has fetched, once the user agrees.
///
/// # Errors
/// If it is not there, or is not kimi's to delete.
pub fn rm(args: &RmArgs) -> anyhow::Result<Outcome> {
    let lookup = Lookup::of_this_machine(args.models.as_deref())?;
    let folder = lookup.removable(&args.model)?;
    let bytes = lookup.all().iter().find(|m| m.folder == folder).map_or(0, |m| m.bytes);
    if !args.yes {
        anyhow::ensure!(
            std::io::stdin().is_terminal(),
            "{} would be deleted; --yes does it without a question",
            folder.display()
        );
        ui::prompt(format_args!("delete {} ({})? [y/N] ", folder.display(), HumanBytes(bytes)));
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            ui::notice("nothing was deleted");
            return Ok(Outcome::Failure);
        }
    }
    std::fs::remove_dir_all(&folder)?;
    super::print(&format!("deleted {}: {}\n", folder.display(), HumanBytes(bytes)))?;
    Ok(Outcome::Success)
}
