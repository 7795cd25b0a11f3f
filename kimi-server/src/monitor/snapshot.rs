//! The state of a server and its models, as `/health` shows it.

use std::time::Duration;

use kimi_core::engine::{EngineStats, StageStats};
use kimi_core::scheduler::PrefixStats;
use kimi_core::stage::StageTime;
use serde::{Deserialize, Serialize};

use super::ProcessState;
use crate::cluster::{Loading, NodeLoad, NodeState};
use crate::http::StageInfo;

/// A server at one moment. Its JSON is the body of `/health`; what another version does not know is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// `ok`, or `unavailable` if one of the models cannot answer.
    pub status: String,
    /// Version of the program.
    pub version: String,
    /// Why it is slow, in a sentence; `None` if it is not, or if nothing is known to be wrong.
    pub slow: Option<String>,
    /// Since the server began.
    pub uptime_seconds: f64,
    /// The models, in the order of `/v1/models`.
    pub models: Vec<ModelState>,
    /// The server's process.
    pub process: ProcessState,
}

/// A model at one moment. Counts are those since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelState {
    /// Its name.
    pub id: String,
    /// Whether it answers.
    pub status: ModelStatus,
    /// Why it does not.
    pub reason: Option<String>,
    /// How far loading is.
    pub loading: Option<LoadState>,
    /// Its stages, in order.
    pub stages: Vec<StageState>,
    /// Requests.
    pub sequences: Sequences,
    /// Pages of the cache.
    pub pages: Pages,
    /// How often a sequence had to give up its pages.
    pub evictions: u64,
    /// What prompts shared.
    pub prefix_cache: PrefixCache,
    /// Tokens that were guessed.
    pub drafts: Drafts,
    /// Batches computed.
    pub steps: u64,
    /// How often a stage was lost.
    pub losses: u64,
    /// Batches under way.
    pub batches: Batches,
    /// How many tokens of prompts a batch takes while others decode.
    pub prompt_tokens_a_step: usize,
    /// Tokens of prompts computed.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub tokens_generated: u64,
}

/// What a model can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelStatus {
    /// It answers.
    Ok,
    /// It is being loaded.
    Loading,
    /// Its requests wait for a lost stage.
    Recovering,
    /// It does not answer any more. Also what is not known.
    #[default]
    #[serde(other)]
    Unavailable,
}

/// What a stage does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageStatus {
    /// It computes what it gets.
    Ok,
    /// Its layers are being loaded.
    Loading,
    /// Its connection is being made again.
    Reconnecting,
    /// Another coordinator has its node.
    Taken,
    /// It is gone. Also what is not known.
    #[default]
    #[serde(other)]
    Lost,
}

/// Requests of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sequences {
    /// Those that hold pages.
    pub running: usize,
    /// Those that wait for pages or for their turn.
    pub waiting: usize,
}

/// Pages of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pages {
    /// Those in use.
    pub used: u32,
    /// All.
    pub total: u32,
}

/// What prompts shared with others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixCache {
    /// Pages that prompts may share, in use or kept.
    pub pages: u32,
    /// Requests that began with such pages.
    pub hits: u64,
    /// Requests that began without.
    pub misses: u64,
    /// Tokens of prompts that were not computed.
    pub tokens: u64,
    /// Pages on the disk that prompts may begin with.
    pub stored_pages: u32,
    /// Bytes of all pages on the disk, those of other models included.
    pub stored_bytes: u64,
    /// Pages that were brought back from the disk.
    pub restored_pages: u64,
}

/// Tokens that were guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drafts {
    /// Those that steps verified.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted: u64,
}

/// Batches under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Batches {
    /// Those in flight.
    pub in_flight: usize,
    /// Most at the moment.
    pub limit: usize,
}

/// How far loading is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadState {
    /// Bytes in place.
    pub loaded_bytes: u64,
    /// Bytes in all; 0 until it is known.
    pub total_bytes: u64,
    /// Kernels compiled, once the weights are in place.
    pub kernels_made: Option<usize>,
    /// Kernels to compile.
    pub kernels_total: Option<usize>,
    /// How long it has taken.
    pub seconds: f64,
    /// How long it will still take, where there is a rate yet.
    pub remaining_seconds: Option<f64>,
}

/// A stage at one moment. Counts are those since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageState {
    /// Its place in the pipeline.
    pub stage: usize,
    /// Name of its node, where it has one.
    pub node: Option<String>,
    /// For instance `node-2: layers 0-43 on cpu avx2`.
    pub holds: Option<String>,
    /// How many layers.
    pub layers: Option<usize>,
    /// Bytes of weights and cache.
    pub bytes: Option<u64>,
    /// What it does.
    pub status: StageStatus,
    /// For how long.
    pub status_seconds: Option<f64>,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// How far loading is.
    pub loading: Option<LoadState>,
    /// Batches that it has computed.
    pub steps: u64,
    /// Time computing, or handing work to a device.
    pub compute_seconds: f64,
    /// Time waiting for the device.
    pub device_seconds: f64,
    /// Time choosing tokens, where the device does not do that too.
    pub sampling_seconds: f64,
    /// Time that batches waited behind others, where the stage is.
    pub queue_seconds: f64,
    /// Time between the two machines, both ways.
    pub wire_seconds: f64,
    /// Mean time that it works on one token of one answer, while nothing else is computed.
    pub token_seconds: Option<f64>,
    /// Its link, where it is on another machine.
    pub link: Option<LinkState>,
}

/// A link at one moment. Its counts begin again when it is made again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkState {
    /// The mean over the last few round trips.
    pub round_trip_seconds: Option<f64>,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes that the other machine had to read again because its memory does not hold them, since its program was started.
    pub paged_in_bytes: u64,
}

/// What is seen of a model.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its counts.
    pub stats: EngineStats,
    /// Why it cannot answer any more.
    pub down: Option<String>,
    /// How far loading is.
    pub loading: Option<Loading>,
}

impl ModelStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Loading, Self::Recovering, Self::Unavailable];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Loading => "loading",
            Self::Recovering => "recovering",
            Self::Unavailable => "unavailable",
        }
    }
}

impl StageStatus {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Loading, Self::Reconnecting, Self::Taken, Self::Lost];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Loading => "loading",
            Self::Reconnecting => "reconnecting",
            Self::Taken => "taken",
            Self::Lost => "lost",
        }
    }

    fn new(lost: bool, state: Option<&NodeState>) -> Self {
        match (lost, state) {
            // While it is replaced its layers are loaded again.
            (_, Some(NodeState::Loading(_))) => Self::Loading,
            (true, _) | (false, Some(NodeState::Lost { .. } | NodeState::Stuck { .. })) => Self::Lost,
            (false, None | Some(NodeState::Ready)) => Self::Ok,
            (false, Some(NodeState::Reconnecting { .. })) => Self::Reconnecting,
            (false, Some(NodeState::Taken { .. })) => Self::Taken,
        }
    }
}

impl PrefixCache {
    fn new(stats: PrefixStats, stored_bytes: u64) -> Self {
        let PrefixStats { pages, hits, misses, tokens, stored: stored_pages, restored: restored_pages } =
            stats;
        Self { pages, hits, misses, tokens, stored_pages, restored_pages, stored_bytes }
    }
}

impl From<&Loading> for LoadState {
    fn from(loading: &Loading) -> Self {
        Self {
            loaded_bytes: loading.loaded,
            total_bytes: loading.total,
            kernels_made: loading.kernels.map(|(made, _)| made),
            kernels_total: loading.kernels.map(|(_, total)| total),
            seconds: loading.time.as_secs_f64(),
            remaining_seconds: loading.remaining().map(|time| time.as_secs_f64()),
        }
    }
}

impl ModelState {
    /// The state of a model with a name; `infos` is what is known of its stages beyond their counts.
    pub fn new(id: &str, seen: Seen, infos: Vec<StageInfo>) -> Self {
        let Seen { stats, down, loading } = seen;
        let EngineStats { scheduler, steps, tokens_generated, prompt_tokens_computed, .. } = stats;
        let lost = stats.stages.iter().find_map(|stage| stage.lost.clone());
        let count = stats.stages.len().max(infos.len());
        let mut counts = stats.stages.into_iter();
        let mut infos = infos.into_iter();
        let stages =
            (0..count).map(|i| StageState::new(i, counts.next().unwrap_or_default(), infos.next())).collect();
        let status = match (&loading, &down, &lost) {
            (_, Some(_), _) => ModelStatus::Unavailable,
            (Some(_), None, _) => ModelStatus::Loading,
            (None, None, Some(_)) => ModelStatus::Recovering,
            (None, None, None) => ModelStatus::Ok,
        };
        Self {
            id: id.to_owned(),
            status,
            reason: down.or(lost),
            loading: loading.as_ref().map(LoadState::from),
            stages,
            sequences: Sequences { running: scheduler.running, waiting: scheduler.waiting },
            pages: Pages { used: scheduler.pages_used, total: scheduler.pages_total },
            evictions: scheduler.evictions,
            prefix_cache: PrefixCache::new(scheduler.prefix, stats.stored_bytes),
            drafts: Drafts { drafted: scheduler.drafts.drafted, accepted: scheduler.drafts.accepted },
            steps,
            losses: stats.losses,
            batches: Batches { in_flight: scheduler.in_flight, limit: stats.depth },
            prompt_tokens_a_step: stats.prompt_tokens,
            prompt_tokens: prompt_tokens_computed,
            tokens_generated,
        }
    }
}

impl StageState {
    fn new(stage: usize, stats: StageStats, info: Option<StageInfo>) -> Self {
        let StageStats { steps, time, single, lost } = stats;
        let StageTime { queue, compute, device, sampling, wire } = time;
        let node = info.as_ref().and_then(|info| info.node.as_ref());
        let state = node.map(|node| &node.state);
        let loading = match (node, state) {
            (Some(node), Some(&NodeState::Loading(NodeLoad { loaded, total, kernels }))) => {
                Some(LoadState::from(&Loading { loaded, total, kernels, time: node.since.elapsed() }))
            }
            _ => None,
        };
        Self {
            stage,
            node: info.as_ref().map(|info| info.name.clone()),
            holds: info.as_ref().map(|info| info.holds.clone()),
            layers: info.as_ref().map(|info| info.layers.len()),
            bytes: info.as_ref().map(|info| info.bytes),
            status: StageStatus::new(lost.is_some(), state),
            status_seconds: node.map(|node| node.since.elapsed().as_secs_f64()),
            reason: lost.or_else(|| state?.reason().map(str::to_owned)),
            loading,
            steps,
            compute_seconds: compute.as_secs_f64(),
            device_seconds: device.as_secs_f64(),
            sampling_seconds: sampling.as_secs_f64(),
            token_seconds: single.mean().map(|time| time.as_secs_f64()),
            queue_seconds: queue.as_secs_f64(),
            wire_seconds: wire.as_secs_f64(),
            // This machine's own stage has a state too, and no link.
            link: node.map(|node| &node.link).filter(|link| link.bytes_sent > 0).map(|link| LinkState {
                round_trip_seconds: link.mean_round_trip.as_ref().map(Duration::as_secs_f64),
                sent_bytes: link.bytes_sent,
                received_bytes: link.bytes_received,
                paged_in_bytes: link.paged_in_bytes,
            }),
        }
    }

    /// Time that the stage and its device have worked.
    pub fn busy_seconds(&self) -> f64 {
        self.compute_seconds + self.device_seconds + self.sampling_seconds
    }

    /// What to call it: its node, else its number.
    pub fn name(&self) -> String {
        self.node.clone().unwrap_or_else(|| format!("stage {}", self.stage))
    }
}
