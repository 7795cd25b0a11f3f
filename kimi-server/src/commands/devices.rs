//! `kimi devices`.

use super::Outcome;
use crate::cli::args::DevicesArgs;
use crate::devices::Report;

/// Prints what this machine can compute on.
///
/// # Errors
/// If a device fails while it is measured.
pub fn run(args: &DevicesArgs) -> anyhow::Result<Outcome> {
    let report = Report::new(args.measure)?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&report.to_string())?;
    }
    Ok(Outcome::Success)
}
