//! `kimi inspect` and `kimi plan` on a checkpoint as large as the real one, written as sparse files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kimi_tests::{binary, full_size};
use serde_json::Value;

/// What the pair of machines of the guide says about itself.
const DISCOVERY: &str = r#"{"peers": {
  "m2-ultra": {"address": "127.0.0.1", "port": 52416, "device_capabilities":
    {"model": "Mac Studio", "chip": "Apple M2 Ultra", "memory": 196608, "flops": {"fp32": 27.2, "fp16": 54.4, "int8": 108.8}}},
  "m3-ultra": {"address": "127.0.0.1", "port": 52417, "device_capabilities":
    {"model": "Mac Studio", "chip": "Apple M3 Ultra", "memory": 524288, "flops": {"fp32": 28.2, "fp16": 56.4, "int8": 112.8}}}
}}"#;

struct Answer {
    json: Value,
    seconds: f64,
    peak_mib: u64,
}

/// Runs `kimi` and watches its memory.
fn kimi(args: &[&str]) -> Answer {
    let start = Instant::now();
    let child = binary::kimi().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let watch = std::thread::spawn({
        let id = child.id();
        move || peak_memory(id)
    });
    let output = Child::wait_with_output(child).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice(&output.stdout).unwrap();
    Answer { json, seconds, peak_mib: watch.join().unwrap() }
}

/// Highest resident memory of a process until it ends; 0 where the system does not say.
fn peak_memory(id: u32) -> u64 {
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let Some(kib) = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()) else {
            return peak;
        };
        peak = peak.max(kib / 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn write_model(folder: &Path) -> u64 {
    let total = full_size::write(folder).unwrap();
    assert!((total as f64 / 504e9 - 1.0).abs() < 0.01, "the checkpoint has {total} bytes, not 504 GB");
    total
}

#[test]
fn inspect_and_plan_read_headers_only() {
    let folder = tempfile::tempdir().unwrap();
    let total = write_model(folder.path());
    let model = folder.path().to_str().unwrap();

    let inspect = kimi(&["inspect", model, "--json"]);
    let plan_file = folder.path().join("discovery.json");
    std::fs::write(&plan_file, DISCOVERY).unwrap();
    let file = plan_file.to_str().unwrap();
    let plan = kimi(&["plan", model, "--discovery-config-path", file, "--node-id", "m2-ultra", "--json"]);

    for (name, answer) in [("inspect", &inspect), ("plan", &plan)] {
        println!("{name}: {:.2} s, {} MiB", answer.seconds, answer.peak_mib);
        assert!(answer.peak_mib < 500, "{name} took {} MiB", answer.peak_mib);
    }
    check_inspect(&inspect.json, total);
    check_plan(&plan.json, total);
}

fn check_inspect(json: &Value, total: u64) {
    assert_eq!(json["bytes"], total, "{json:#}");
    let bits = json["bits_per_weight"].as_f64().unwrap();
    assert!((3.9..4.0).contains(&bits), "{bits} bits a weight");
}

/// The worker gets the first layers, the coordinator about the last 17, and every byte is somewhere.
fn check_plan(json: &Value, total: u64) {
    let stages = json["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 2, "{json:#}");
    let number = |stage: usize, key: &str| stages[stage][key].as_u64().unwrap();
    assert_eq!(
        (stages[0]["node"].as_str(), stages[1]["node"].as_str()),
        (Some("m3-ultra"), Some("m2-ultra"))
    );
    assert_eq!((number(0, "first_layer"), number(1, "last_layer")), (0, 60));
    assert_eq!(number(0, "last_layer") + 1, number(1, "first_layer"));
    assert!((43..=46).contains(&number(1, "first_layer")), "{json:#}");
    assert_eq!(number(0, "weight_bytes") + number(1, "weight_bytes"), total);
    assert!(json["reason"].as_str().unwrap().contains("split by predicted time"), "{json:#}");
    for stage in 0..2 {
        assert!(
            number(stage, "weight_bytes") + number(stage, "cache_bytes") <= number(stage, "usable_bytes")
        );
    }
}
