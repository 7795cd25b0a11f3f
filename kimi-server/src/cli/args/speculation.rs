//! Whether tokens are guessed.

use clap::Args;
use kimi_core::engine::Speculation;

/// Most guesses that a step verifies.
const MAX: usize = 32;

/// Whether tokens are guessed.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct SpeculationArgs {
    /// Guess tokens where a text repeats its prompt or itself, and verify several in one step: off; auto, where that pays
    /// for a request as measured; or up to N tokens wherever there is a guess. The answers are the same.
    #[arg(long, value_name = "off|auto|N", default_value = "off", value_parser = speculation)]
    pub speculation: Speculation,
}

fn speculation(text: &str) -> Result<Speculation, String> {
    match text {
        "off" => Ok(Speculation::Off),
        "auto" => Ok(Speculation::Auto),
        number => match number.parse() {
            Ok(count @ 1..=MAX) => Ok(Speculation::Fixed(count)),
            _ => Err(format!("expected off, auto or a number of tokens from 1 to {MAX}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_said() {
        assert_eq!(speculation("off"), Ok(Speculation::Off));
        assert_eq!(speculation("auto"), Ok(Speculation::Auto));
        assert_eq!(speculation("5"), Ok(Speculation::Fixed(5)));
        for wrong in ["0", "33", "-1", "on", ""] {
            assert!(speculation(wrong).is_err_and(|e| e.contains("off, auto")), "{wrong}");
        }
    }
}
