//! `kimi config`.

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory};
use serde_json::json;

use super::Outcome;
use crate::cli::args::{Cli, ConfigArgs, ConfigCommand};
use crate::cli::settings::{self, COMMANDS, Settings};
use crate::cli::ui;
use crate::table::Table;

/// Shows what is set, or where.
///
/// # Errors
/// If the file can't be used, or there is no such command.
pub fn run(args: &ConfigArgs) -> anyhow::Result<Outcome> {
    match &args.command {
        None => show("serve", false)?,
        Some(ConfigCommand::Show { command, json }) => show(command, *json)?,
        Some(ConfigCommand::Path) => {
            let path = settings::path().context("neither XDG_CONFIG_HOME nor HOME is set")?;
            super::print(&format!("{}\n", path.display()))?;
            if !path.exists() {
                ui::notice("it is not there; `kimi config --help` shows what it may hold");
            }
        }
    }
    Ok(Outcome::Success)
}

/// One setting as it holds.
struct Shown {
    name: String,
    value: Option<String>,
    source: String,
}

fn show(name: &str, as_json: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        COMMANDS.contains(&name),
        "{name:?} has no settings; those that have are {}",
        COMMANDS.join(", ")
    );
    let settings = Settings::read()?;
    let command = settings.apply(settings::with_environment(Cli::command()))?;
    let matches = command.clone().try_get_matches_from(["kimi", name])?;
    let own = matches.subcommand_matches(name).context("the command is not there")?;
    let found = command.find_subcommand(name).context("the command is not there")?;
    let args = command.get_arguments().chain(found.get_arguments());
    let all: Vec<_> =
        args.filter(|arg| settings::is_setting(arg)).map(|arg| setting(name, arg, own, &settings)).collect();
    if as_json {
        let each = all.iter().map(|s| json!({"name": s.name, "value": s.value, "source": s.source}));
        return super::print_json(&each.collect::<Vec<_>>());
    }
    let mut table = Table::new(&["setting", "value", "from"], &[]);
    for Shown { name, value, source } in all {
        table.row([name, value.unwrap_or_else(|| "-".to_owned()), source]);
    }
    super::print(&table.to_string())
}

fn setting(command: &str, arg: &Arg, matches: &ArgMatches, settings: &Settings) -> Shown {
    let name = arg.get_long().unwrap_or_default().to_owned();
    let id = arg.get_id().as_str();
    let raw = matches.get_raw(id).into_iter().flatten();
    let value = raw.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ");
    let hidden = arg.is_hide_env_values_set() && arg.get_long() != Some("log");
    let value = match (value.is_empty(), hidden) {
        (true, _) => None,
        (false, true) => Some("(hidden)".to_owned()),
        (false, false) => Some(value),
    };
    let variable = || arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let source = match (matches.value_source(id), settings.get(command, &name), settings.path()) {
        (Some(ValueSource::EnvVariable), ..) => variable(),
        (_, Some(_), Some(path)) => path.display().to_string(),
        _ => "default".to_owned(),
    };
    Shown { name, value, source }
}
