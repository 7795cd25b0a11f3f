//! A prediction for people: an estimate, and where its figures come from.

use std::fmt;

use kimi_core::plan::Plan;
use kimi_core::plan::predict::{EFFICIENCY, Prediction, RateSource};

/// How fast a plan would be.
#[derive(Debug, Clone, Copy)]
pub struct PredictionText<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// What is predicted of it, if its nodes' rates are known.
    pub prediction: Option<&'a Prediction>,
}

impl fmt::Display for PredictionText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(found) = self.prediction else { return self.unknown(f) };
        let bound = if found.first_token_at_least { "at least " } else { "" };
        writeln!(
            f,
            "estimated: {:.1} tokens/s for one conversation; first token of a prompt of {} tokens after {bound}{:.1} s",
            found.tokens_per_second, found.prompt_tokens, found.first_token_seconds
        )?;
        for (stage, seconds) in self.plan.stages.iter().zip(&found.stage_seconds) {
            let Some(rate) = &stage.rate else { continue };
            let source = match &rate.source {
                RateSource::Flag => "--bandwidth".to_owned(),
                RateSource::File => "memory_bandwidth in the discovery file".to_owned(),
                RateSource::Measured => {
                    let effective = rate.bytes_per_second * EFFICIENCY / 1e9;
                    let ms = seconds * 1e3;
                    writeln!(
                        f,
                        "  {}: {ms:.2} ms a token, {effective:.1} GB/s (measured in its last answers)",
                        stage.node
                    )?;
                    continue;
                }
                RateSource::Chip(chip) => format!("published of {chip}, not measured"),
            };
            let (ms, gigabytes) = (seconds * 1e3, rate.bytes_per_second / 1e9);
            writeln!(
                f,
                "  {}: {ms:.2} ms a token, reading {:.0} % of {gigabytes:.0} GB/s ({source})",
                stage.node,
                EFFICIENCY * 100.0
            )?;
        }
        if self.plan.stages.len() > 1 {
            writeln!(f, "  links: {:.2} ms a token", found.link_seconds * 1e3)?;
        }
        Ok(())
    }
}

impl PredictionText<'_> {
    fn unknown(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = self.plan.stages.iter().filter(|stage| stage.rate.is_none());
        let flags: Vec<_> = unknown.map(|stage| format!("--bandwidth {}=GB/S", stage.node)).collect();
        writeln!(
            f,
            "no speed is predicted: how fast some machines read their memory is not known. Add {} (`kimi devices --measure` \
             there says it)",
            flags.join(" ")
        )
    }
}
