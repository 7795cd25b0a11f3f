//! `kimi inspect`.

use super::Outcome;
use crate::cli::args::InspectArgs;
use crate::inspect::Report;

/// Prints what a checkpoint holds.
///
/// # Errors
/// If the model is not found or its headers can't be used.
pub fn run(args: &InspectArgs) -> anyhow::Result<Outcome> {
    let (found, checkpoint) = super::open(&args.model, args.config.as_deref())?;
    let report = Report::new(&found.id, &checkpoint, found.sampling)?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&report.to_string())?;
    }
    Ok(Outcome::Success)
}
