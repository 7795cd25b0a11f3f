//! The roofline model's figures for people.

use std::fmt;

use kimi_core::plan::roofline::{Kernels, Machine, Seconds};

use crate::table::Table;

/// A model's kernels on one machine, as a table.
#[derive(Debug, Clone, Copy)]
pub struct KernelTable<'a> {
    /// The kernels of its layers.
    pub kernels: &'a Kernels,
    /// The machine.
    pub machine: &'a Machine,
}

impl fmt::Display for KernelTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernels, machine } = self;
        let mut table = Table::new(&["kernel", "dispatches", "MB", "waves", "ms", "bound by"], &[1, 2, 3, 4]);
        for kernel in &kernels.kernels {
            let (seconds, bound) = kernel.token_seconds(machine);
            table.row([
                kernel.name.to_owned(),
                kernel.dispatches.to_string(),
                format!("{:.1}", kernel.bytes / 1e6),
                format!("{:.2}", kernel.waves(machine, 1)),
                format!("{:.3}", seconds * 1e3),
                bound.to_string(),
            ]);
        }
        write!(f, "{table}")
    }
}

/// The seconds of a token, as tokens a second with their uncertainty.
pub fn token_text(token: Seconds) -> String {
    let Seconds { best, expected, worst } = token;
    format!(
        "predicted: {:.2} ms a token, {:.1} tokens/s (between {:.1} and {:.1})",
        expected * 1e3,
        1.0 / expected,
        1.0 / worst,
        1.0 / best
    )
}

/// The seconds of a step of several sequences, as tokens a second with their uncertainty.
pub fn step_text(sequences: usize, step: Seconds) -> String {
    let Seconds { best, expected, worst } = step;
    let rate = |seconds: f64| sequences as f64 / seconds;
    format!(
        "predicted: {sequences} sequences {:.2} ms a step, {:.1} tokens/s (between {:.1} and {:.1})",
        expected * 1e3,
        rate(expected),
        rate(worst),
        rate(best)
    )
}

/// The seconds of a prompt, as tokens a second with their uncertainty.
pub fn prompt_text(tokens: usize, prompt: Option<Seconds>) -> String {
    match prompt {
        Some(Seconds { best, expected, worst }) => {
            let rate = |seconds: f64| tokens as f64 / seconds;
            format!(
                "predicted: a prompt of {tokens} tokens {:.2} s, {:.0} tokens/s (between {:.0} and {:.0})",
                expected,
                rate(expected),
                rate(worst),
                rate(best)
            )
        }
        None => "no prompt is predicted: the chip's arithmetic is not published".to_owned(),
    }
}

/// How far to believe it.
pub fn trust_text(extrapolated: bool) -> &'static str {
    match extrapolated {
        true => {
            "not measured: nobody has run these kernels on such a chip. The best case has cheap dispatches, the worst one half of \
             the instructions' rate"
        }
        false => {
            "within 15 % for a token and 25 % for a prompt of all that was measured (docs/performance.md)"
        }
    }
}
