//! Counts of an engine.

use std::time::Duration;

use crate::scheduler::SchedulerStats;
use crate::stage::StageTime;

/// Counts of an [`Engine`](super::Engine), taken between two batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences and pages of the moment.
    pub scheduler: SchedulerStats,
    /// Batches computed.
    pub steps: u64,
    /// Tokens generated for all requests, those that ended an answer not included.
    pub tokens_generated: u64,
    /// Tokens of prompts computed for all requests; those computed again, after an eviction or a loss, count again.
    pub prompt_tokens_computed: u64,
    /// Each stage, in order.
    pub stages: Vec<StageStats>,
    /// How many batches may be in flight at the moment.
    pub depth: usize,
    /// How many tokens of prompts a batch takes at the moment while others decode.
    pub prompt_tokens: usize,
    /// How often a stage was lost.
    pub losses: u64,
    /// Bytes of pages on the disk, those of other models included; 0 if none are kept there.
    pub stored_bytes: u64,
}

/// What a stage of an [`Engine`](super::Engine) has done since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageStats {
    /// Batches that it has computed.
    pub steps: u64,
    /// Where their time went.
    pub time: StageTime,
    /// Those of them that computed one token of one answer and nothing else.
    pub single: SingleSteps,
    /// Why it is lost; `None` while it works.
    pub lost: Option<String>,
}

/// Steps of one token: how fast a stage is for one conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SingleSteps {
    /// How many there were.
    pub steps: u64,
    /// The time that the stage worked on them, see [`StageTime::busy`].
    pub busy: Duration,
}

impl SingleSteps {
    /// Time of one; `None` before the first.
    pub fn mean(&self) -> Option<Duration> {
        (self.steps > 0).then(|| self.busy.div_f64(self.steps as f64))
    }
}

/// A stage that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostStage {
    /// Its place in the pipeline.
    pub stage: usize,
    /// What was seen.
    pub reason: String,
}
