//! Says in a sentence why a server is slow, from two snapshots of it.

use indicatif::DecimalBytes;

use kimi_core::host_memory::MemoryPressure;

use super::{ModelState, ModelStatus, Snapshot, StageState};

/// Bytes paged in per second from which it is said. A healthy server reads nothing: its weights stay in memory. A disk reads
/// 20 to 300 times as much in a second, so that a step waits for it by then.
const PAGED_BYTES: f64 = 20e6;
/// Page faults per second from which those bytes are paging, and not files that are read as files.
const PAGE_FAULTS: f64 = 10.0;
/// Seconds after which a worker's count has what it read while it loaded: it looks every 2 s, and tells it every 2 s.
const SETTLED: f64 = 5.0;
/// Steps between the two snapshots from which their mean says something.
const MIN_STEPS: u64 = 5;
/// Part of a step on one link from which the link is slow: with Ethernet between two machines it is below a tenth.
const LINK_PART: f64 = 0.3;
/// How much a stage computes, against the mean of the others, from which the split is uneven.
const SPLIT_RATIO: f64 = 2.0;
/// The same for each of its layers: between equal machines they differ by less, as the last stage has the head too.
const LAYER_RATIO: f64 = 1.5;
/// Seconds of a step below which nobody would notice.
const NOTICEABLE: f64 = 1e-3;
/// Part of the pages in use from which waiting requests wait for pages, and not for their turn.
const FULL: f64 = 0.9;

/// Why a server is slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    /// What it is: the same for as long as only the figures change.
    pub cause: Cause,
    /// A sentence with figures, and what helps.
    pub text: String,
}

impl Slow {
    /// Whether it has not been said yet: another cause than the one `known` before, or the same that had gone.
    pub fn is_news(&self, known: Option<&Self>) -> bool {
        known.is_none_or(|known| known.cause != self.cause)
    }
}

/// What makes a server slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A machine reads its weights from the disk again and again: this one, or a node with its name.
    Paging(Option<String>),
    /// This machine's memory is short: a Mac compresses and swaps.
    Pressure,
    /// Requests wait for pages of a model's cache.
    Cache(String),
    /// The link to a node.
    Link(String),
    /// A node computes for much longer than the others.
    Split(String),
}

/// Why a server has been slow between two snapshots; `None` if it has not, has computed too little to tell, or if nothing is
/// known to be wrong. What costs most is looked at first.
pub fn why_slow(before: &Snapshot, now: &Snapshot) -> Option<Slow> {
    let seconds = now.uptime_seconds - before.uptime_seconds;
    if seconds <= 0.0 {
        return None;
    }
    let pairs: Vec<_> = before.models.iter().zip(&now.models).filter(|pair| worked(*pair)).collect();
    let first = |find: fn(&ModelState, &ModelState, f64) -> Option<Slow>| {
        pairs.iter().find_map(|(before, now)| find(before, now, seconds))
    };
    // A model that is being loaded reads as much.
    let loaded = before.models.iter().chain(&now.models).all(|model| model.status == ModelStatus::Ok);
    let computed = loaded && pairs.iter().any(|pair| computed(*pair));
    let paging = if computed { paging(before, now, seconds) } else { None };
    let pressure = if computed { pressure(before, now) } else { None };
    paging
        .or(pressure)
        .or_else(|| first(evictions))
        .or_else(|| first(link))
        .or_else(|| first(split))
        .or_else(|| first(pages))
}

/// Whether a model answered all the time, as the same one.
fn worked((before, now): (&ModelState, &ModelState)) -> bool {
    let answers = |model: &ModelState| model.status == ModelStatus::Ok;
    answers(before) && answers(now) && before.id == now.id && before.stages.len() == now.stages.len()
}

fn computed((before, now): (&ModelState, &ModelState)) -> bool {
    now.steps > before.steps
}

fn paging(before: &Snapshot, now: &Snapshot, seconds: f64) -> Option<Slow> {
    let too_much = |bytes: u64| bytes as f64 >= PAGED_BYTES * seconds;
    let (own, own_now) = (&before.process, &now.process);
    let faults = own_now.major_page_faults.saturating_sub(own.major_page_faults);
    let bytes = own_now.paged_in_since(own);
    if too_much(bytes) && faults as f64 >= PAGE_FAULTS * seconds {
        let swap = match own_now.swap_bytes {
            Some(swap) if swap > 0 => format!(", and {} of its memory are in swap", DecimalBytes(swap)),
            _ => String::new(),
        };
        let text = format!(
            "{} were paged in during the last {seconds:.0} s ({faults} page faults){swap}: this machine's memory does not hold \
             its layers; give it fewer (--usable-memory, or its memory in discovery.json) or end other programs",
            DecimalBytes(bytes)
        );
        return Some(Slow { cause: Cause::Paging(None), text });
    }
    let stages = |of: &Snapshot| of.models.iter().flat_map(|model| model.stages.clone()).collect::<Vec<_>>();
    stages(before).into_iter().zip(stages(now)).find_map(|(before, now)| {
        before.status_seconds.filter(|seconds| *seconds >= SETTLED)?;
        let bytes = now.link?.paged_in_bytes.saturating_sub(before.link?.paged_in_bytes);
        let node = now.name();
        let text = format!(
            "{node}: {} were paged in during the last {seconds:.0} s: its memory does not hold its layers; give it fewer (by its \
             memory in discovery.json or --usable-memory) or end other programs on it",
            DecimalBytes(bytes)
        );
        too_much(bytes).then_some(Slow { cause: Cause::Paging(Some(node)), text })
    })
}

/// Only where it lasts: at both moments.
fn pressure(before: &Snapshot, now: &Snapshot) -> Option<Slow> {
    let short = |of: &Snapshot| of.process.mac.filter(|memory| memory.pressure > MemoryPressure::Normal);
    let memory = short(before).and(short(now))?;
    let limit = match memory.wired_limit_bytes {
        Some(bytes) => format!(" (iogpu.wired_limit_mb lets GPUs keep {})", DecimalBytes(bytes)),
        None => String::new(),
    };
    let text = format!(
        "this Mac's memory is short: {} are compressed and {} are in swap{limit}; give it fewer layers (--usable-memory, or its \
         memory in discovery.json) or end other programs",
        DecimalBytes(memory.compressed_bytes),
        DecimalBytes(memory.swap_bytes)
    );
    Some(Slow { cause: Cause::Pressure, text })
}

fn evictions(before: &ModelState, now: &ModelState, seconds: f64) -> Option<Slow> {
    let evictions = now.evictions.saturating_sub(before.evictions);
    let text = format!(
        "conversations lost their pages of the cache {evictions} times during the last {seconds:.0} s and are computed again \
         ({} pages): raise --cache-tokens",
        now.pages.total
    );
    (evictions > 0).then(|| Slow { cause: Cause::Cache(now.id.clone()), text })
}

fn pages(before: &ModelState, now: &ModelState, _: f64) -> Option<Slow> {
    let waiting = before.sequences.waiting.min(now.sequences.waiting);
    let full = f64::from(now.pages.used) >= FULL * f64::from(now.pages.total);
    let (noun, waits) = if waiting == 1 { ("request", "waits") } else { ("requests", "wait") };
    let text = format!(
        "{waiting} {noun} {waits} for pages of the cache ({} of {} are in use): raise --cache-tokens",
        now.pages.used, now.pages.total
    );
    (waiting > 0 && full).then(|| Slow { cause: Cause::Cache(now.id.clone()), text })
}

/// The mean step of a stage, in seconds.
struct Mean<'a> {
    stage: &'a StageState,
    compute: f64,
    queue: f64,
    wire: f64,
}

impl Mean<'_> {
    fn total(&self) -> f64 {
        self.compute + self.queue + self.wire
    }
}

/// The means of all stages; `None` if there are too few steps.
fn means<'a>(before: &ModelState, now: &'a ModelState) -> Option<Vec<Mean<'a>>> {
    let mean = |(before, now): (&StageState, &'a StageState)| {
        let steps = now.steps.checked_sub(before.steps).filter(|steps| *steps >= MIN_STEPS)? as f64;
        Some(Mean {
            stage: now,
            compute: (now.busy_seconds() - before.busy_seconds()) / steps,
            queue: (now.queue_seconds - before.queue_seconds) / steps,
            wire: (now.wire_seconds - before.wire_seconds) / steps,
        })
    };
    before.stages.iter().zip(&now.stages).map(mean).collect()
}

fn link(before: &ModelState, now: &ModelState, _: f64) -> Option<Slow> {
    let means = means(before, now)?;
    let step: f64 = means.iter().map(Mean::total).sum();
    let slowest = means.iter().max_by(|a, b| a.wire.total_cmp(&b.wire))?;
    if slowest.wire < NOTICEABLE || slowest.wire < LINK_PART * step {
        return None;
    }
    let round_trip = slowest.stage.link.and_then(|link| link.round_trip_seconds);
    let round_trip = round_trip.map_or_else(String::new, |time| format!(" (round trip {})", millis(time)));
    let node = slowest.stage.name();
    let text = format!(
        "the link to {node} takes {} of each {} step{round_trip}: use a cable or a faster network; `kimi nodes` measures \
         each way to it",
        millis(slowest.wire),
        millis(step)
    );
    Some(Slow { cause: Cause::Link(node), text })
}

fn split(before: &ModelState, now: &ModelState, _: f64) -> Option<Slow> {
    let means = means(before, now)?;
    let step: f64 = means.iter().map(Mean::total).sum();
    let slowest = means.iter().max_by(|a, b| a.compute.total_cmp(&b.compute))?;
    let others = || means.iter().filter(|mean| mean.stage.stage != slowest.stage.stage);
    let count = others().count() as f64;
    let other = others().map(|mean| mean.compute).sum::<f64>() / count;
    if count == 0.0 || slowest.compute < NOTICEABLE || slowest.compute < SPLIT_RATIO * other {
        return None;
    }
    // With one batch in flight stages take turns: only a machine that needs longer for a layer than the others is worth
    // relieving. With several, all wait for the one that computes longest.
    let layers = |mean: &Mean<'_>| mean.stage.layers.map(|layers| layers as f64);
    let other_layers = others().map(layers).sum::<Option<f64>>();
    let slow_layers = match (layers(slowest), other_layers) {
        (Some(own), Some(all)) if own > 0.0 && all > 0.0 => {
            slowest.compute / own >= LAYER_RATIO * (other * count) / all
        }
        _ => false,
    };
    if before.batches.in_flight.min(now.batches.in_flight) < 2 && !slow_layers {
        return None;
    }
    let node = slowest.stage.name();
    let text = format!(
        "{node} computes {} of each {} step, {:.1} times as long as the others: the split is uneven; give it fewer layers \
         (--layers NODE=A-B; `kimi plan` shows the split)",
        millis(slowest.compute),
        millis(step),
        slowest.compute / other.max(1e-9)
    );
    Some(Slow { cause: Cause::Split(node), text })
}

fn millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

#[cfg(test)]
mod tests;
