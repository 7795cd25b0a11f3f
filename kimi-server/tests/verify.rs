//! `kimi verify` on recorded results, split over processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{cases, has_gpu, json, run, shared, stderr, tiny_golden};
use serde_json::Value;

fn verify(model: &str, golden: &Path, more: &[&str]) -> std::process::Output {
    run(&[&["verify", model, "--golden", golden.to_str().unwrap(), "--json"][..], more].concat())
}

fn passes(model: &str, golden: &Path, more: &[&str]) -> Value {
    passes_within(1e-3, model, golden, more)
}

fn passes_within(tolerance: f64, model: &str, golden: &Path, more: &[&str]) -> Value {
    let output = verify(model, golden, more);
    assert!(output.status.success(), "{model} {more:?}: {} {}", common::stdout(&output), stderr(&output));
    let report = json(&output);
    assert_eq!(report["pass"], true);
    for case in report["cases"].as_array().unwrap() {
        assert_eq!(case["greedy_match"], case["greedy_total"], "{case}");
        assert!(case["max_abs_err"].as_f64().unwrap() <= tolerance, "{case}");
    }
    report
}

/// On whatever GPU there is, in one to three processes.
fn on_a_gpu(model: &str, golden: &Path, more: &[&str]) {
    let gpu = [&["--tolerance", "2e-3"], more].concat();
    for stages in ["1", "2", "3"] {
        let report = passes_within(2e-3, model, golden, &[&["--stages", stages][..], &gpu].concat());
        let backend = report["backend"].as_str().unwrap();
        assert!(backend.contains("Vulkan") || backend.contains("Metal"), "{backend}");
        assert!(!backend.contains("cpu ("), "{backend}");
        assert_eq!(backend.contains(", as M2 Ultra"), more == AS_METAL, "{backend}");
    }
}

/// In this process, and in the workers that it starts.
#[test]
fn the_cpu_computes_with_as_many_threads_as_asked() {
    let one = cases(&tiny_golden(), |case| case == "hello");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("golden.safetensors");
    std::fs::write(&path, one).unwrap();
    let ask = |more: &[&str], variable: Option<&str>| {
        let mut command = common::kimi();
        command.args(["verify", "kimi-tiny", "--golden", path.to_str().unwrap(), "--json"]);
        command.args(["--backend", "cpu"]).args(more);
        command.envs(variable.map(|threads| ("KIMI_THREADS", threads)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        json(&output)["backend"].as_str().unwrap().to_owned()
    };
    for stages in ["1", "2"] {
        let backend = ask(&["--stages", stages, "--threads", "3"], Some("5"));
        assert!(backend.ends_with(", 3 threads)"), "{stages} stages: {backend}");
        let backend = ask(&["--stages", stages], Some("5"));
        assert!(backend.ends_with(", 5 threads)"), "{stages} stages: {backend}");
    }
    let output = run(&["verify", "kimi-tiny", "--golden", path.to_str().unwrap(), "--threads", "0"]);
    assert!(!output.status.success() && stderr(&output).contains("--threads"), "{}", stderr(&output));
}

const GPU: [&str; 2] = ["--backend", "gpu"];
/// The path of a Mac's GPU, which any adapter takes.
const AS_METAL: [&str; 1] = ["--as-metal=M2 Ultra"];

#[test]
fn the_embedded_model_on_a_gpu() {
    embedded_on_a_gpu(&GPU);
}

#[test]
fn the_embedded_model_as_metal() {
    embedded_on_a_gpu(&AS_METAL);
}

fn embedded_on_a_gpu(more: &[&str]) {
    if !has_gpu() {
        return;
    }
    // The prompts of over a thousand tokens take a software adapter minutes; kimi-core's tests have them once.
    let short = cases(&tiny_golden(), |case| !matches!(case, "needle" | "noise_1500"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("golden.safetensors");
    std::fs::write(&path, short).unwrap();
    on_a_gpu("kimi-tiny", &path, more);
}

#[test]
fn oracle_checkpoints_on_a_gpu() {
    oracle_on_a_gpu(&GPU);
}

#[test]
fn oracle_checkpoints_as_metal() {
    oracle_on_a_gpu(&AS_METAL);
}

fn oracle_on_a_gpu(more: &[&str]) {
    if !has_gpu() {
        return;
    }
    for (model, golden) in
        [("a_new", "a_new"), ("b_old", "b_old"), ("c_noentries", "a_new"), ("d_hf_bf16", "d_hf_bf16")]
    {
        let golden = shared(&format!("oracle/verify/{golden}.safetensors"));
        if let Some((model, golden)) = shared(&format!("oracle/tiny/{model}")).zip(golden) {
            on_a_gpu(model.to_str().unwrap(), &golden, more);
        }
    }
}

fn oracle(name: &str, golden: &str, more: &[&str]) {
    let Some(model) = shared(&format!("oracle/tiny/{name}")) else { return };
    let Some(golden) = shared(&format!("oracle/verify/{golden}.safetensors")) else { return };
    for stages in ["1", "2", "3"] {
        let report = passes(model.to_str().unwrap(), &golden, &[&["--stages", stages], more].concat());
        assert_eq!(report["stages"].to_string(), stages);
        assert_eq!(report["cases"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn new_layout() {
    oracle("a_new", "a_new", &[]);
}

#[test]
fn old_layout() {
    oracle("b_old", "b_old", &[]);
}

#[test]
fn old_layout_without_entries() {
    let Some(config) = shared("oracle/tiny/b_old/config.noentries.json") else { return };
    oracle("b_old", "b_old", &["--config", config.to_str().unwrap()]);
}

#[test]
fn new_layout_without_entries() {
    oracle("c_noentries", "a_new", &[]);
}

#[test]
fn hugging_face_bf16() {
    oracle("d_hf_bf16", "d_hf_bf16", &[]);
}

#[test]
fn the_embedded_model() {
    for stages in ["1", "2", "3"] {
        passes("kimi-tiny", &tiny_golden(), &["--stages", stages]);
    }
}

/// Byte range of a tensor in a safetensors file.
fn tensor(file: &[u8], name: &str) -> std::ops::Range<usize> {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let offset = |i: usize| 8 + header + json[name]["data_offsets"][i].as_u64().unwrap() as usize;
    offset(0)..offset(1)
}

#[test]
fn a_changed_golden_fails() {
    let folder = tempfile::tempdir().unwrap();
    let good = cases(&tiny_golden(), |case| matches!(case, "noise_5" | "hello"));
    let path = folder.path().join("golden.safetensors");
    let case = |report: &Value, name: &str| -> Value {
        report["cases"].as_array().unwrap().iter().find(|c| c["case"] == name).unwrap().clone()
    };

    let mut bad = good.clone();
    let logit = tensor(&bad, "noise_5.logits").start;
    let value = f32::from_le_bytes(bad[logit..logit + 4].try_into().unwrap()) + 0.01;
    bad[logit..logit + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(&path, &bad).unwrap();
    let output = verify("kimi-tiny", &path, &[]);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&output);
    let found = case(&report, "noise_5");
    assert!((found["max_abs_err"].as_f64().unwrap() - 0.01).abs() < 1e-3, "{found}");
    assert_eq!((&found["pass"], &report["pass"]), (&Value::Bool(false), &Value::Bool(false)));
    assert_eq!(case(&report, "hello")["pass"], true);
    assert!(verify("kimi-tiny", &path, &["--tolerance", "0.1"]).status.success());

    let mut bad = good.clone();
    let token = tensor(&bad, "noise_5.greedy").start;
    bad[token] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let output = verify("kimi-tiny", &path, &[]);
    let found = case(&json(&output), "noise_5");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(found["greedy_match"].as_u64().unwrap() + 1, found["greedy_total"].as_u64().unwrap());

    let mut bad = good.clone();
    bad[logit..logit + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &bad).unwrap();
    let output = verify("kimi-tiny", &path, &[]);
    assert_eq!(
        (output.status.code(), &case(&json(&output), "noise_5")["max_abs_err"]),
        (Some(1), &Value::Null)
    );

    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let output = verify("kimi-tiny", &path, &[]);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true));
}

#[test]
fn more_stages_than_layers_and_the_missing_reference() {
    let output = verify("kimi-tiny", &tiny_golden(), &["--stages", "64"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("64 stages"), "{}", stderr(&output));
    if cfg!(not(feature = "reference")) {
        let output = verify("kimi-tiny", &tiny_golden(), &["--backend", "reference"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("--features reference"), "{}", stderr(&output));
    }
}
