//! `kimi bench` on the small synthetic model. Times are not tested; what is counted is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{json, run, stderr, stdout};
use kimi_core::model::Part;
use kimi_core::plan::ModelBytes;
use kimi_core::source::ModelSource;
use kimi_core::synthetic::{Synthetic, SyntheticShape};
use kimi_quant::BitWidth;
use serde_json::Value;

const BENCH: [&str; 12] = [
    "bench",
    "--synthetic",
    "tiny",
    "--context",
    "70",
    "--prompt",
    "33",
    "--sequences",
    "3",
    "--experts",
    "4",
    "--json",
];

fn bench(backend: &str) -> Value {
    let output = run(&[&BENCH[..], &["--backend", backend]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    json(&output)
}

/// All experts are chosen, so that a token reads every matrix of the layers, the head, and a row of the embedding.
fn bytes_of_a_token() -> u64 {
    let layers = SyntheticShape::Tiny.layers();
    let model = Synthetic::new(SyntheticShape::Tiny.config(layers, Some(4)).unwrap(), BitWidth::B4);
    let mut matrices = model.head().unwrap().lm_head.bytes();
    for layer in 0..layers {
        model.layer(layer).unwrap().visit(&mut |_, part| {
            if let Part::Matrices(_) = part {
                matrices += part.bytes();
            }
        });
    }
    let embedding = model.embedding().unwrap();
    matrices + embedding.bytes() / embedding.rows() as u64
}

/// What every report must have, whatever the device.
fn check(report: &Value) {
    let layers = SyntheticShape::Tiny.layers();
    assert_eq!((report["layers"].as_u64(), report["context_tokens"].as_u64()), (Some(3), Some(70)));
    for key in ["read_gb_per_second", "sequences_speedup"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let model = Synthetic::new(SyntheticShape::Tiny.config(layers, Some(4)).unwrap(), BitWidth::B4);
    let bytes = ModelBytes::of_source(&model).unwrap();
    assert_eq!(report["memory"]["weight_bytes"], bytes.weights(&(0..layers)), "{report}");
    // 3 sequences of 71 tokens in pages of 64.
    assert_eq!(report["memory"]["cache_bytes"], bytes.cache(&(0..layers), 3 * 128), "{report}");
    for (phase, tokens, sequences) in [("decode", 1, 1), ("prefill", 33, 1), ("sequences", 3, 3)] {
        let phase = &report[phase];
        assert_eq!((phase["tokens"].as_u64(), phase["sequences"].as_u64()), (Some(tokens), Some(sequences)));
        assert_eq!(phase["experts_a_layer"].as_f64(), Some(4.0), "{phase}");
        let embedding = bytes.embedding / 512 * (tokens - 1);
        assert_eq!(phase["weight_bytes"], bytes_of_a_token() + embedding, "{phase}");
        let rows = phase["operations"].as_array().unwrap();
        let in_rows: u64 = rows.iter().map(|r| r["weight_bytes"].as_u64().unwrap()).sum();
        assert_eq!(phase["weight_bytes"], in_rows, "{phase}");
        for key in
            ["median_ms", "best_ms", "tokens_per_second", "weight_gb_per_second", "read_bandwidth_share"]
        {
            assert!(phase[key].as_f64().unwrap() > 0.0, "{key}: {phase}");
        }
        for name in [
            "embed",
            "norm_project",
            "latent_query",
            "attend_latent",
            "project_values",
            "project_add",
            "norm_swiglu",
            "route",
            "experts_swiglu",
            "experts_down_add",
            "head",
            "sample",
        ] {
            assert!(rows.iter().any(|r| r["operation"] == name), "{name}: {phase}");
        }
    }
}

#[test]
fn the_cpu_is_measured() {
    let report = bench("cpu");
    check(&report);
    assert_eq!(report["backend"], "cpu");
    let (rows, decode) = (report["decode"]["operations"].as_array().unwrap(), &report["decode"]);
    let calls: u64 = rows.iter().map(|r| r["count"].as_u64().unwrap()).sum();
    // Seven of each layer's attention and dense MLP, or with two more of the experts; and the ends.
    assert_eq!(calls, 8 + 9 + 9 + 3, "{decode}");
    assert!(rows.iter().all(|r| r["microseconds"].as_f64().unwrap() > 0.0), "{decode}");
    assert!(decode["device_ms"].is_null() && decode["dispatches"].is_null(), "{decode}");
}

#[cfg(feature = "gpu")]
#[test]
fn a_gpu_is_measured() {
    if !common::has_gpu() {
        return;
    }
    let report = bench("gpu");
    check(&report);
    assert_eq!(report["backend"], "gpu");
    let held = report["memory"]["weight_bytes"].as_u64().unwrap();
    if let Some(allocated) = report["memory"]["allocated_bytes"].as_u64() {
        assert!(allocated > held, "{report}");
    }
    for phase in ["decode", "prefill", "sequences"] {
        let phase = &report[phase];
        let rows = phase["operations"].as_array().unwrap();
        let kernels: u64 = rows.iter().map(|r| r["count"].as_u64().unwrap()).sum();
        assert!(phase["host_ms"].as_f64().unwrap() > 0.0, "{phase}");
        // Without a clock on the device the table has calls, not kernels.
        if phase["operations_ms"].is_number() {
            assert_eq!(phase["dispatches"].as_u64(), Some(kernels), "{phase}");
            assert!(rows.iter().all(|r| r["kernel"].as_str().is_some_and(|k| !k.is_empty())), "{phase}");
        }
    }
}

#[test]
fn a_real_checkpoint_is_measured_too() {
    let output = run(&[
        "bench",
        "kimi-tiny",
        "--backend",
        "cpu",
        "--context",
        "8",
        "--prompt",
        "9",
        "--sequences",
        "1",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "kimi-tiny, 6 layers",
        "prefill of 9 tokens",
        "experts_swiglu",
        "together",
        "% of the read bandwidth",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("sequences at context"), "{text}");
}

#[test]
fn what_can_not_be_measured_is_said() {
    for (args, code, part) in [
        (&["bench"][..], 1, "--synthetic kimi-k2"),
        (&["bench", "kimi-tiny", "--layers", "2"], 2, "--layers"),
        (&["bench", "kimi-tiny", "--synthetic", "tiny"], 2, "--synthetic"),
        (&["bench", "--synthetic", "tiny", "--bits", "7"], 1, "bit"),
        (&["bench", "--synthetic", "tiny", "--layers", "9"], 1, "the model has 3"),
        (&["bench", "--synthetic", "tiny", "--experts", "3"], 1, "num_experts_per_tok"),
    ] {
        let output = run(&[args, &["--backend", "cpu"]].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }
    if cfg!(feature = "gpu") && common::has_gpu() {
        let output = run(&["bench", "--synthetic", "tiny", "--backend", "gpu", "--gpu-memory", "0.0001"]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains("do not fit") && text.contains("too little"), "{text}");
    }
}
