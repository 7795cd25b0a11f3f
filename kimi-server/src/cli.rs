//! The command line: arguments, logging, exit codes.

pub mod args;
pub mod defaults;
pub mod exo;
pub mod settings;
pub mod ui;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::commands::{self, Outcome};
use crate::system;
use args::{Command, LogFormat};

/// Runs the program. Exit codes: 0 success, 1 failure, 2 wrong arguments.
pub fn main() -> ExitCode {
    system::keep_little_freed_memory();
    let cli = exo::parse();
    let usual = match &cli.command {
        Command::Worker(args) if !args.exit_with_stdin => defaults::WORKER_LOG,
        Command::Serve(_) => defaults::SERVE_LOG,
        _ => defaults::LOG,
    };
    start_logging(cli.log.as_deref().unwrap_or(usual), cli.log_format);
    system::allow_open_files();
    match commands::run(cli.command) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Failure) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // It may quote a file, a server or a model.
            let text = format!("{error:#}");
            let text = ui::text_for_terminal(&text);
            ui::notice(format_args!("{} {text}", ui::stderr_style().error("error:")));
            ExitCode::from(1)
        }
    }
}

/// Logs go to stderr; results go to stdout.
fn start_logging(level: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new(defaults::LOG));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi && format == LogFormat::Text)
        // Else it would say with `eprintln!` that stderr can't be written to.
        .log_internal_errors(false);
    // Fails only if a logger is there already, as in tests.
    let _ = match format {
        LogFormat::Text => logger.try_init(),
        LogFormat::Json => logger.json().flatten_event(true).try_init(),
    };
}

/// `kimi inspect MODEL | head` is no failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
