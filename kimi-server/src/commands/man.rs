//! `kimi man`.

use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::Outcome;
use crate::cli::args::{Cli, ManArgs};
use crate::cli::ui;

/// Prints a man page, or writes all, made from the same table as --help.
///
/// # Errors
/// If there is no such command, or the pages can't be written.
pub fn run(args: &ManArgs) -> anyhow::Result<Outcome> {
    let mut program = Cli::command();
    program.build();
    if let Some(folder) = &args.dir {
        write_all(program, folder)?;
        return Ok(Outcome::Success);
    }
    let command = match &args.command {
        None => program,
        Some(name) => page_of(&program, name).with_context(|| {
            let names: Vec<_> = program.get_subcommands().map(Command::get_name).collect();
            format!("there is no command {name:?}; there are {}", names.join(", "))
        })?,
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    super::print(&String::from_utf8_lossy(&page))?;
    Ok(Outcome::Success)
}

/// A command under the name that its page has.
fn page_of(program: &Command, name: &str) -> Option<Command> {
    let found = program.find_subcommand(name)?.clone();
    Some(found.display_name(format!("kimi-{name}")).name(format!("kimi-{name}")))
}

fn write_all(program: Command, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    clap_mangen::generate_to(program, folder)
        .with_context(|| format!("can't write to {}", folder.display()))?;
    ui::notice(format_args!("the man pages are in {}", folder.display()));
    Ok(())
}
