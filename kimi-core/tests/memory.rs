//! Pages of a checkpoint that are given back leave this process's memory, and come back as they were.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use kimi_core::Checkpoint;

/// Kilobytes of the mapped file `name` that are in memory.
fn resident(name: &str) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut kilobytes = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = line.ends_with(name);
        } else if inside && first == "Rss:" {
            kilobytes += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    kilobytes
}

#[test]
fn given_back_pages_leave_and_return() {
    const SHARD: &str = "kimi-tiny/model.safetensors";
    let checkpoint =
        Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/kimi-tiny")).unwrap();
    let sum = || -> u64 {
        let bytes = checkpoint.tensors().map(|(_, t)| t.data.iter().map(|b| u64::from(*b)).sum::<u64>());
        bytes.sum()
    };
    let before = sum();
    let all = resident(SHARD);
    assert!(all * 1024 >= checkpoint.bytes(), "{all} kB of {} bytes", checkpoint.bytes());

    checkpoint.give_back("model.layers.1.");
    let part = resident(SHARD);
    assert!(part < all && part > 0, "{part} of {all} kB");
    checkpoint.give_back("");
    assert!(resident(SHARD) * 20 < all, "{} of {all} kB", resident(SHARD)); // the header stays
    assert_eq!(sum(), before);
}
