//! `--precision`: what it says of itself, and how far it is from f32.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{cases, json, run, shared, stderr, tiny_golden};
use kimi_server::distance::Distance;
use safetensors::SafeTensors;
use serde_json::Value;

/// The report of `kimi verify`, whose cases may be off by any number.
fn report(model: &str, golden: &Path, more: &[&str]) -> Value {
    let golden = golden.to_str().unwrap();
    let output =
        run(&[&["verify", model, "--golden", golden, "--json", "--tolerance", "1e3"], more].concat());
    assert!(!common::stdout(&output).is_empty(), "{more:?}: {}", stderr(&output));
    json(&output)
}

/// How far all of a report's cases are together.
fn distance(report: &Value) -> Distance {
    let of = |case: &Value| {
        let Value::Object(d) = &case["distance"] else { panic!("{case}") };
        Distance {
            positions: d["positions"].as_u64().unwrap() as usize,
            max_abs_err: d["max_abs_err"].as_f64().unwrap(),
            mean_kl: d["mean_kl"].as_f64().unwrap(),
            same_token: d["same_token"].as_u64().unwrap() as usize,
        }
    };
    report["cases"].as_array().unwrap().iter().map(of).reduce(Distance::and).unwrap()
}

/// The shorter prompts of the embedded model's golden file.
fn short() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("golden.safetensors");
    std::fs::write(&path, cases(&tiny_golden(), |case| matches!(case, "noise_5" | "hello" | "tool_call")))
        .unwrap();
    (folder, path)
}

#[test]
fn verify_is_exact_unless_asked() {
    let (_folder, golden) = short();
    for (more, named) in [
        (&[][..], None),
        (&["--precision", "exact"], None),
        (&["--precision", "close"], Some("close")),
        (&["--precision", "fast"], Some("fast")),
        (&["--precision", "auto"], Some("close")),
    ] {
        let report = report("kimi-tiny", &golden, &[&["--backend", "cpu"], more].concat());
        let backend = report["backend"].as_str().unwrap();
        let found = ["close", "fast"].into_iter().find(|name| backend.contains(name));
        assert_eq!(found, named, "{more:?}: {backend}");
        let found = distance(&report);
        assert!(named.is_some() || found.max_abs_err < 1e-3, "{more:?}: {found:?}");
    }
}

#[test]
fn rounded_results_are_the_same_over_any_number_of_processes() {
    let (_folder, golden) = short();
    for precision in ["close", "fast"] {
        let of = |stages: &str| {
            let how = ["--backend", "cpu", "--precision", precision, "--stages", stages];
            let report = report("kimi-tiny", &golden, &how);
            assert!(report["backend"].as_str().unwrap().contains(precision), "{report}");
            report["cases"].clone()
        };
        let one = of("1");
        for stages in ["2", "3", "4"] {
            assert_eq!(of(stages), one, "{precision}, {stages} stages");
        }
    }
}

#[test]
fn an_unknown_precision_is_refused() {
    let output = run(&["run", "kimi-tiny", "hello", "--precision", "half"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("half") && text.contains("exact, close, fast, auto"), "{text}");
}

/// The oracle's checkpoints, with the golden files of f32 and of mlx-lm's bf16.
const ORACLE: [[&str; 3]; 3] = [
    ["a_new", "a_new", "a_new"],
    ["b_old", "b_old", "b_old__lm0291"],
    ["d_hf_bf16", "d_hf_bf16", "d_hf_bf16"],
];

/// How far mlx-lm's bf16 is from its f32, at the positions that `kimi verify` compares.
fn bf16(golden: &Path, logits: &Path) -> Distance {
    let [truth, found] = [golden, logits].map(|path| std::fs::read(path).unwrap());
    let [truth, found] = [&truth, &found].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let floats = |file: &SafeTensors<'_>, name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let names = truth.names().into_iter().filter(|name| name.ends_with(".logits"));
    let each = names.map(|name| {
        let vocab = truth.tensor(name).unwrap().shape()[1];
        Distance::between(&floats(&found, name), &floats(&truth, name), vocab).unwrap()
    });
    each.reduce(Distance::and).unwrap()
}

/// That what `auto` takes is no farther from f32 than bf16 is, on every oracle checkpoint.
fn auto_is_as_close_as_bf16(backend: &str) {
    for [model, golden, logits] in ORACLE {
        let files = shared(&format!("oracle/tiny/{model}"))
            .zip(shared(&format!("oracle/verify/{golden}.safetensors")))
            .zip(shared(&format!("oracle/golden/{logits}.bf16r.safetensors")));
        let Some(((model, golden), logits)) = files else { return };
        let report = report(model.to_str().unwrap(), &golden, &["--backend", backend, "--precision", "auto"]);
        let (found, bf16) = (distance(&report), bf16(&golden, &logits));
        println!("{} on {}: {found:?}, bf16 {bf16:?}", model.display(), report["backend"]);
        assert!(found.is_within(&bf16), "{}: {found:?} is farther than bf16's {bf16:?}", model.display());
    }
}

#[test]
fn auto_is_as_close_as_bf16_on_the_cpu() {
    auto_is_as_close_as_bf16("cpu");
}

#[test]
fn auto_is_as_close_as_bf16_on_a_gpu() {
    // Without cooperative matrices a GPU is exact, which tests/verify.rs checks.
    let devices = json(&run(&["devices", "--json"]));
    let first = devices["gpus"].as_array().and_then(|gpus| gpus.first());
    match first.and_then(|gpu| gpu["cooperative_matrices"].as_bool()) {
        Some(true) => auto_is_as_close_as_bf16("gpu"),
        _ => println!("skipped: no GPU with cooperative matrices"),
    }
}
