//! Settings: flags, else `KIMI_*` in the environment, else `config.toml`, else the default. Environment and file become what
//! clap takes where a flag is not given, so that every flag is a setting without being listed again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, CommandFactory};
use toml::{Table, Value};

use super::args::Cli;
use super::exo;
use crate::system;

/// Name of the file in the config folder.
const FILE_NAME: &str = "config.toml";
/// Commands whose flags are settings. Others measure or show, so that what is set for a server must not change them.
pub const COMMANDS: [&str; 7] = ["serve", "run", "worker", "plan", "nodes", "doctor", "pull-layers"];
/// Flags of these that are said anew each time.
const EACH_TIME: [&str; 7] = ["json", "prompt", "force", "stats", "help", "version", "dry-run"];
/// Commands that work where the file is broken.
const WITHOUT_FILE: [&str; 5] = ["config", "completions", "man", "help", "api-key"];
/// How alike a name must be to be offered for an unknown one.
const ALIKE: f64 = 0.7;

/// What `config.toml` sets.
#[derive(Debug, Default)]
pub struct Settings {
    path: Option<PathBuf>,
    table: Table,
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {found}", path = path.display())]
pub struct SettingsError {
    path: PathBuf,
    found: String,
}

impl SettingsError {
    /// Says what is wrong and ends the program as after wrong arguments.
    pub fn exit(&self) -> ! {
        super::ui::notice(format_args!("{} {self}", super::ui::stderr_style().error("error:")));
        std::process::exit(2)
    }
}

/// The program's commands, with what environment and file set in place of their defaults.
///
/// # Errors
/// If the file can't be read, has a key that is no setting, or a value that its flag would not take.
pub fn command(args: &[OsString]) -> Result<Command, SettingsError> {
    let words = || args.iter().skip(1);
    // A worker that kimi starts for itself is told all there is to know.
    if words().any(|word| word == "--exit-with-stdin") {
        return Ok(Cli::command());
    }
    let command = with_environment(Cli::command());
    let without_file = words().next().is_some_and(|word| WITHOUT_FILE.iter().any(|name| word == name));
    match Settings::read().and_then(|settings| settings.apply(command.clone())) {
        Err(_) if without_file => Ok(command),
        result => result,
    }
}

/// Where the file is or would be; `None` if the system names no folder for it.
pub fn path() -> Option<PathBuf> {
    Some(system::config_folder()?.join(FILE_NAME))
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    format!("KIMI_{}", flag.replace('-', "_").to_ascii_uppercase())
}

/// Has every setting read its variable too.
pub fn with_environment(command: Command) -> Command {
    let named = |arg: Arg| match arg.get_long().map(variable) {
        Some(name) if arg.get_env().is_none() => arg.env(name).hide_env(true),
        _ => arg,
    };
    let set = move |arg: Arg| match (is_setting(&arg), arg.get_action()) {
        (false, _) => arg,
        // Else a variable of a switch would have to be `true` or `false`.
        (true, ArgAction::SetTrue) => named(arg).value_parser(BoolishValueParser::new()),
        (true, _) => named(arg),
    };
    COMMANDS.iter().fold(command.mut_args(set), |all, name| all.mut_subcommand(name, |one| one.mut_args(set)))
}

/// Whether a flag may be set in the environment and in the file.
pub fn is_setting(arg: &Arg) -> bool {
    let heading = arg.get_help_heading();
    arg.get_long().is_some_and(|name| !EACH_TIME.contains(&name))
        && !arg.is_hide_set()
        && heading != Some(exo::HEADING)
}

impl Settings {
    /// What the file sets; nothing if there is none.
    ///
    /// # Errors
    /// If it can't be read or is not TOML.
    pub fn read() -> Result<Self, SettingsError> {
        match path().filter(|path| path.exists()) {
            Some(path) => Self::read_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn read_from(path: &Path) -> Result<Self, SettingsError> {
        let error = |found| SettingsError { path: path.to_owned(), found };
        let text = std::fs::read_to_string(path).map_err(|cause| error(format!("can't read it: {cause}")))?;
        let table = text
            .trim_start_matches('\u{feff}')
            .parse()
            .map_err(|cause: toml::de::Error| error(cause.to_string()))?;
        Ok(Self { path: Some(path.to_owned()), table })
    }

    /// The value of a command's flag: that of its section, else that at the top.
    pub fn get(&self, command: &str, flag: &str) -> Option<&Value> {
        let section = self.table.get(command).and_then(Value::as_table);
        section.and_then(|section| entry(section, flag)).or_else(|| entry(&self.table, flag))
    }

    /// Where they were read.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Makes what is set the default of flags.
    ///
    /// # Errors
    /// For a key that is no setting, or a value that its flag would not take.
    pub fn apply(&self, command: Command) -> Result<Command, SettingsError> {
        let Some(path) = &self.path else { return Ok(command) };
        let error = |found| SettingsError { path: path.clone(), found };
        self.check_names(&command).map_err(error)?;
        let mut command = command;
        for name in own_settings(&command) {
            let Some(value) = entry(&self.table, &name) else { continue };
            let texts = texts(&name, value).map_err(error)?;
            check_value(&command, None, &name, &texts).map_err(error)?;
            command = command.mut_args(|arg| with_default(arg, &name, &texts));
        }
        for of in COMMANDS {
            let Some(found) = command.find_subcommand(of) else { continue };
            for name in own_settings(found) {
                let Some(value) = self.get(of, &name) else { continue };
                let texts = texts(&name, value).map_err(error)?;
                check_value(&command, Some(of), &name, &texts).map_err(error)?;
                command =
                    command.mut_subcommand(of, |one| one.mut_args(|arg| with_default(arg, &name, &texts)));
            }
        }
        Ok(command)
    }

    fn check_names(&self, command: &Command) -> Result<(), String> {
        let of = |name: &str| command.find_subcommand(name).map(own_settings).unwrap_or_default();
        let sections = COMMANDS.map(str::to_owned);
        let mut top = own_settings(command);
        top.extend(COMMANDS.iter().flat_map(|name| of(name)));
        for (key, value) in &self.table {
            match (value, COMMANDS.contains(&key.as_str())) {
                (Value::Table(section), true) => {
                    let known = of(key);
                    if let Some(unknown) = section.keys().find(|name| !known.contains(&dashed(name))) {
                        return Err(format!(
                            "[{key}] has no setting {unknown:?}{}",
                            nearest(unknown, &known)
                        ));
                    }
                }
                (Value::Table(_), false) => {
                    return Err(format!("no command has settings as [{key}]{}", nearest(key, &sections)));
                }
                _ if top.contains(&dashed(key)) => {}
                _ => return Err(format!("there is no setting {key:?}{}", nearest(key, &top))),
            }
        }
        Ok(())
    }
}

/// The value of a flag, whose name may be written with underscores.
fn entry<'a>(table: &'a Table, flag: &str) -> Option<&'a Value> {
    table.get(flag).or_else(|| table.get(&flag.replace('-', "_"))).filter(|value| !value.is_table())
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

/// Names of a command's own settings.
fn own_settings(command: &Command) -> Vec<String> {
    let settings = command.get_arguments().filter(|arg| is_setting(arg));
    settings.filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

/// What is meant instead of an unknown name.
fn nearest(name: &str, known: &[String]) -> String {
    let name = dashed(name);
    let rated = known.iter().map(|known| (strsim::jaro_winkler(&name, known), known));
    match rated.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((rate, known)) if rate >= ALIKE => format!("; did you mean {known:?}?"),
        _ => "; `kimi config` lists them".to_owned(),
    }
}

/// A value as it would be written on the command line.
fn texts(name: &str, value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(values) => {
            let each = values.iter().map(|value| texts(name, value)).collect::<Result<Vec<_>, _>>()?;
            Ok(each.into_iter().flatten().collect())
        }
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(vec![value.to_string()]),
        Value::Datetime(_) | Value::Table(_) => {
            Err(format!("{name} is {value}, expected a text, a number, true or false, or a list of these"))
        }
    }
}

/// Whether a flag takes these values, as clap says it.
fn check_value(command: &Command, of: Option<&str>, name: &str, texts: &[String]) -> Result<(), String> {
    let found = of.map_or(Some(command), |of| command.find_subcommand(of));
    let arg = found.and_then(|found| found.get_arguments().find(|arg| arg.get_long() == Some(name)));
    let Some(arg) = arg else { return Ok(()) };
    match arg.get_action() {
        ArgAction::SetTrue => match texts {
            [text] if text == "true" || text == "false" => return Ok(()),
            _ => return Err(format!("{name} is {}, expected true or false", texts.join(", "))),
        },
        ArgAction::Set if texts.len() != 1 => {
            return Err(format!("{name} has {} values, expected one", texts.len()));
        }
        _ => {}
    }
    let flags = texts.iter().map(|text| format!("--{name}={text}"));
    let words = ["kimi"].into_iter().chain(of).map(str::to_owned).chain(flags);
    let refused = [ErrorKind::InvalidValue, ErrorKind::ValueValidation];
    match command.clone().try_get_matches_from(words) {
        Err(error) if refused.contains(&error.kind()) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(line.trim_start_matches("error: ").replace(&format!("'--{name}"), &format!("'{name}")))
        }
        _ => Ok(()),
    }
}

fn with_default(arg: Arg, name: &str, texts: &[String]) -> Arg {
    let switch_off =
        matches!(arg.get_action(), ArgAction::SetTrue) && texts.first().is_some_and(|text| text == "false");
    match arg.get_long() == Some(name) && !switch_off {
        true => arg.default_values(texts.iter().cloned()),
        false => arg,
    }
}
