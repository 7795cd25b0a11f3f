//! `kimi completions`.

use clap::CommandFactory;

use super::Outcome;
use crate::cli::args::{Cli, CompletionsArgs};

/// Prints the script of a shell, made from the same table as --help.
///
/// # Errors
/// If nobody reads it.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kimi", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Success)
}
