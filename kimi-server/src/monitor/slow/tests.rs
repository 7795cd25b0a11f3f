//! What two snapshots say.

use super::*;
use crate::monitor::{LinkState, Pages};

const MS: f64 = 1e-3;

/// Two stages of 10 layers, and 100 steps with so much time in each: computing and on the wire.
fn steps(times: [(f64, f64); 2]) -> (Snapshot, Snapshot) {
    let stage = |i: usize, steps: u64, (compute, wire): (f64, f64)| StageState {
        stage: i,
        node: Some(["a", "m3"][i].to_owned()),
        layers: Some(10),
        steps,
        compute_seconds: compute * steps as f64,
        wire_seconds: wire * steps as f64,
        link: (i == 1).then(|| LinkState { round_trip_seconds: Some(8.0 * MS), ..LinkState::default() }),
        ..StageState::default()
    };
    let at = |uptime_seconds: f64, steps: u64| Snapshot {
        uptime_seconds,
        models: vec![ModelState {
            id: "k2".to_owned(),
            status: ModelStatus::Ok,
            steps,
            stages: (0..2).map(|i| stage(i, steps, times[i])).collect(),
            pages: Pages { used: 10, total: 100 },
            ..ModelState::default()
        }],
        ..Snapshot::default()
    };
    (at(20.0, 1000), at(30.0, 1100))
}

fn healthy() -> (Snapshot, Snapshot) {
    steps([(10.0 * MS, 0.0), (11.0 * MS, 1.0 * MS)])
}

fn text(pair: &(Snapshot, Snapshot)) -> String {
    why_slow(&pair.0, &pair.1).map_or_else(String::new, |slow| slow.text)
}

#[test]
fn nothing_is_wrong() {
    assert_eq!(text(&healthy()), "");
    let (before, now) = healthy();
    assert_eq!(why_slow(&now, &now), None, "no time has passed");
    let mut restarted = now.clone();
    restarted.models[0].id = "another".to_owned();
    assert_eq!(why_slow(&before, &restarted), None);
}

#[test]
fn weights_that_are_paged_in() {
    let mut pair = healthy();
    pair.1.process.disk_read_bytes = Some(4_100_000_000);
    assert_eq!(text(&pair), "", "files may be read");
    pair.1.process.major_page_faults = 31_500;
    let said = text(&pair);
    assert!(said.starts_with("4.10 GB were paged in during the last 10 s (31500 page faults): "), "{said}");
    assert!(said.contains("--usable-memory") && !said.contains("swap"), "{said}");
    pair.1.process.swap_bytes = Some(2_000_000_000);
    assert!(text(&pair).contains("2.00 GB of its memory are in swap"));
    // Where the system counts no bytes, pages are counted.
    (pair.1.process.disk_read_bytes, pair.1.process.major_page_faults) = (None, 100_000);
    assert!(text(&pair).starts_with("409.60 MB were paged in"), "{}", text(&pair));
    assert_eq!(why_slow(&pair.0, &pair.1).unwrap().cause, Cause::Paging(None));
    // Loading reads as much.
    pair.0.models[0].status = ModelStatus::Loading;
    assert_eq!(text(&pair), "");
}

#[test]
fn a_worker_that_pages() {
    let mut pair = healthy();
    for (snapshot, paged_in_bytes) in [(&mut pair.0, 500_000_000_000), (&mut pair.1, 504_100_000_000)] {
        let stage = &mut snapshot.models[0].stages[1];
        stage.link = Some(LinkState { paged_in_bytes, ..LinkState::default() });
        stage.status_seconds = Some(60.0);
    }
    let slow = why_slow(&pair.0, &pair.1).unwrap();
    assert_eq!(slow.cause, Cause::Paging(Some("m3".to_owned())));
    assert!(slow.text.starts_with("m3: 4.10 GB were paged in during the last 10 s"), "{}", slow.text);
    // What it read while it loaded is told late.
    pair.0.models[0].stages[1].status_seconds = Some(2.0);
    assert_eq!(text(&pair), "");
    pair.0.models[0].stages[1].status_seconds = Some(60.0);
    // A worker that was started again counts from 0.
    let restarted = LinkState { paged_in_bytes: 1000, ..LinkState::default() };
    pair.1.models[0].stages[1].link = Some(restarted);
    assert_eq!(text(&pair), "");
}

#[test]
fn a_slow_link() {
    let pair = steps([(8.0 * MS, 0.0), (7.0 * MS, 9.0 * MS)]);
    let slow = why_slow(&pair.0, &pair.1).unwrap();
    assert_eq!(slow.cause, Cause::Link("m3".to_owned()));
    let begin = "the link to m3 takes 9.0 ms of each 24.0 ms step (round trip 8.0 ms): use a cable";
    assert!(slow.text.starts_with(begin), "{}", slow.text);
    // Other figures are no news; another link is.
    let worse = why_slow(&pair.0, &steps([(8.0 * MS, 0.0), (7.0 * MS, 9.1 * MS)]).1).unwrap();
    assert!(worse != slow && !worse.is_news(Some(&slow)) && worse.is_news(None));
    let other = Slow { cause: Cause::Link("a".to_owned()), ..slow.clone() };
    assert!(other.is_news(Some(&slow)));
    assert_eq!(text(&steps([(0.08 * MS, 0.0), (0.07 * MS, 0.09 * MS)])), "", "nobody would notice");
}

#[test]
fn an_uneven_split() {
    let pair = steps([(5.0 * MS, 0.0), (18.0 * MS, 1.0 * MS)]);
    let slow = why_slow(&pair.0, &pair.1).unwrap();
    assert_eq!(slow.cause, Cause::Split("m3".to_owned()));
    let begin = "m3 computes 18.0 ms of each 24.0 ms step, 3.6 times as long as the others";
    assert!(slow.text.starts_with(begin), "{}", slow.text);
    // More layers take longer, which costs nothing while stages take turns.
    let mut pair = pair;
    pair.1.models[0].stages[1].layers = Some(40);
    assert_eq!(text(&pair), "");
    (pair.0.models[0].batches.in_flight, pair.1.models[0].batches.in_flight) = (3, 2);
    assert!(text(&pair).starts_with(begin));
}

#[test]
fn requests_that_wait_for_pages() {
    let mut pair = healthy();
    (pair.0.models[0].sequences.waiting, pair.1.models[0].sequences.waiting) = (4, 3);
    assert_eq!(text(&pair), "", "they wait for their turn");
    pair.1.models[0].pages.used = 95;
    let said = text(&pair);
    assert_eq!(said, "3 requests wait for pages of the cache (95 of 100 are in use): raise --cache-tokens");
    pair.0.models[0].sequences.waiting = 0;
    assert_eq!(text(&pair), "", "a moment is no reason");
    pair.1.models[0].evictions = 2;
    assert!(text(&pair).starts_with("conversations lost their pages of the cache 2 times"));
}

#[test]
fn too_few_steps_say_nothing() {
    let (mut before, now) = steps([(5.0 * MS, 0.0), (80.0 * MS, 90.0 * MS)]);
    for (stage, now) in before.models[0].stages.iter_mut().zip(&now.models[0].stages) {
        *stage = StageState { steps: now.steps - MIN_STEPS + 1, ..stage.clone() };
    }
    assert_eq!(why_slow(&before, &now), None);
}

#[test]
fn a_mac_whose_memory_is_short() {
    use kimi_core::host_memory::{MacMemory, MemoryPressure};
    let mut pair = healthy();
    let memory = MacMemory {
        pressure: MemoryPressure::Warning,
        compressed_bytes: 3_000_000_000,
        swap_bytes: 1_000_000_000,
        swap_total_bytes: 2_000_000_000,
        wired_limit_bytes: Some(460_000_000_000),
    };
    pair.1.process.mac = Some(memory);
    assert_eq!(text(&pair), "", "it may pass");
    pair.0.process.mac = Some(memory);
    let said = text(&pair);
    assert!(
        said.starts_with("this Mac's memory is short: 3.00 GB are compressed and 1.00 GB are in swap"),
        "{said}"
    );
    assert!(said.contains("lets GPUs keep 460.00 GB") && said.contains("--usable-memory"), "{said}");
    assert_eq!(why_slow(&pair.0, &pair.1).unwrap().cause, Cause::Pressure);
    pair.0.process.mac = Some(MacMemory::default());
    assert_eq!(text(&pair), "");
}
