//! Flags of exo's command line, which people paste from guides: those that say what kimi does anyway are accepted, and the
//! others are answered by what to write in their place.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, FromArgMatches};

use super::args::Cli;
use super::settings;

/// Heading of these flags in --help.
pub(super) const HEADING: &str = "Flags of exo that change nothing here";

/// Flags that say what a node does anyway.
#[derive(Debug, Clone, Default, Args)]
pub struct ExoArgs {
    /// Only `manual`, which is what --discovery-config-path means.
    #[arg(long, value_name = "MODULE", help_heading = HEADING, value_parser = discovery_module)]
    #[arg(requires = "discovery_config_path")]
    pub discovery_module: Option<String>,
    /// Only `mlx`: kimi reads MLX checkpoints, by an engine of its own.
    #[arg(long, value_name = "ENGINE", help_heading = HEADING, value_parser = inference_engine)]
    pub inference_engine: Option<String>,
    /// There is no screen to turn off.
    #[arg(long, help_heading = HEADING)]
    pub disable_tui: bool,
}

fn discovery_module(name: &str) -> Result<String, &'static str> {
    match name {
        "manual" => Ok(name.to_owned()),
        "udp" => Err("leave it out: without --discovery-config-path, workers are found by multicast DNS"),
        "tailscale" => {
            Err("write the tailnet's addresses into a discovery file, and give --discovery-config-path FILE")
        }
        _ => Err("expected manual, with --discovery-config-path FILE"),
    }
}

fn inference_engine(name: &str) -> Result<String, &'static str> {
    match name {
        "mlx" => Ok(name.to_owned()),
        _ => Err(
            "expected mlx, the form of the checkpoint, or nothing; what computes is set by --backend auto, cpu or gpu",
        ),
    }
}

/// Flags that are not accepted, or not by every command, and what to do without them.
const TIPS: [(&[&str], &str); 10] = [
    (
        &["--chatgpt-api-port", "--discovery-timeout"],
        "the API and the search for workers are `kimi serve`'s (--port, --peer-timeout); leave it out elsewhere",
    ),
    (
        &["--listen-port", "--broadcast-port"],
        "workers announce themselves by multicast DNS, which has its port; `kimi worker --node-port` is where one listens",
    ),
    (&["--models-seed-dir"], "MODEL may be the path of a checkpoint's folder"),
    (&["--run-model"], "write `kimi run MODEL --prompt TEXT`"),
    (
        &["--max-generate-tokens", "--default-temp", "--system-prompt", "--prompt"],
        "a request to the API says it (max_tokens, temperature, messages); `kimi run` has --max-tokens, --temperature, \
         --system and --prompt",
    ),
    (&["--chatgpt-api-response-timeout"], "answers have no time limit; leave it out"),
    (
        &["--download-quick-check", "--max-parallel-downloads"],
        "kimi downloads nothing; MODEL names a checkpoint on this machine, from `hf download` for example",
    ),
    (
        &["--tailscale-api-key", "--tailnet-name"],
        "write the tailnet's addresses into a discovery file, and give --discovery-config-path FILE",
    ),
    (
        &["--node-id-filter", "--interface-type-filter"],
        "list the machines and addresses to use in a discovery file, and give --discovery-config-path FILE",
    ),
    (
        &[
            "--iters",
            "--data",
            "--batch-size",
            "--save-every",
            "--resume-checkpoint",
            "--save-checkpoint-dir",
        ],
        "kimi does not train",
    ),
];

/// Reads the command line. Ends the program with help or an error where it holds no command.
pub(super) fn parse() -> Cli {
    let args: Vec<OsString> = std::env::args_os().collect();
    let mut command = settings::command(&args).unwrap_or_else(|error| error.exit());
    let parsed = command.try_get_matches_from_mut(&args);
    parsed.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|mut error| {
        let has_command = args.get(1).is_some_and(|first| !first.to_string_lossy().starts_with('-'));
        if let Some(tip) = tip(&error, has_command) {
            error.remove(ContextKind::SuggestedArg);
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        }
        error.with_cmd(&command).exit()
    })
}

fn tip(error: &clap::Error, has_command: bool) -> Option<&'static str> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = flag.split_once('=').map_or(flag.as_str(), |(name, _)| name);
    if !has_command {
        return Some(
            "write the command first: `kimi serve` on the machine with the API, `kimi worker` on the others",
        );
    }
    TIPS.iter().find(|(flags, _)| flags.contains(&flag)).map(|(_, tip)| *tip)
}
