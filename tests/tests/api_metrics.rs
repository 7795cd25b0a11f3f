//! `/metrics`, and that `/health` says the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::collections::{HashMap, HashSet};

use kimi_core::ChatEvent;
use kimi_core::engine::EngineError;
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, Streamed};
use kimi_tests::script::Script;
use serde_json::{Value, json};

/// The values of a page by name and labels, after a look at its form.
fn metrics(server: &Server) -> HashMap<String, f64> {
    let page = server.get("/metrics");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", page.head);
    let (mut helped, mut kinds, mut values) = (HashSet::new(), HashMap::new(), HashMap::new());
    for line in page.body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a text");
            assert!(!text.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                name.strip_suffix(end).filter(|name| kinds.get(*name).is_some_and(|kind| kind == "histogram"))
            });
            let family = family.unwrap_or(name);
            assert!(helped.contains(family) && kinds.contains_key(family), "{line}");
            assert!(family.starts_with("kimi_") || family.starts_with("process_"), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert_eq!(values.insert(series.to_owned(), value), None, "twice: {line}");
        }
    }
    values
}

fn chat(extra: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "ignore_eos": true});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn chats_are_counted_as_health_counts_them() {
    let server = Server::tiny();
    let before = metrics(&server);
    assert_eq!(before["kimi_generated_tokens_total{model=\"kimi-tiny\"}"], 0.0);
    let usage = server.chat(&chat(json!({}))).ok()["usage"].clone();
    Streamed::read(server.stream(&chat(json!({}))));
    assert_eq!(server.get("/nowhere").status, 404);
    let health = server.wait_for("the end of both", |model| model["sequences"]["running"] == 0);
    let now = metrics(&server);
    let of = |name: &str| now[&format!("{name}{{model=\"kimi-tiny\"}}")];
    assert_eq!(of("kimi_generated_tokens_total"), 16.0);
    assert_eq!(health["tokens_generated"], 16);
    let (prompts, cached) =
        (2.0 * usage["prompt_tokens"].as_f64().unwrap(), of("kimi_cached_prompt_tokens_total"));
    assert_eq!(of("kimi_prompt_tokens_total"), prompts - cached);
    let hits = now["kimi_prefix_cache_requests_total{model=\"kimi-tiny\",result=\"hit\"}"];
    let misses = now["kimi_prefix_cache_requests_total{model=\"kimi-tiny\",result=\"miss\"}"];
    assert_eq!((hits + misses, hits > 0.0), (2.0, cached > 0.0));
    assert_eq!(of("kimi_prompt_tokens_total"), health["prompt_tokens"].as_f64().unwrap());
    assert_eq!(of("kimi_steps_total"), health["steps"].as_f64().unwrap());
    assert_eq!(of("kimi_cache_pages"), health["pages"]["total"].as_f64().unwrap());
    let stage = "model=\"kimi-tiny\",stage=\"0\",node=\"stage 0\"";
    for part in ["compute", "device", "sampling", "queue", "wire"] {
        let seconds = now[&format!("kimi_stage_seconds_total{{{stage},part=\"{part}\"}}")];
        let shown = &health["stages"][0][format!("{part}_seconds")];
        assert_eq!(seconds, shown.as_f64().unwrap(), "{part}");
        // One process on the CPU: it computes and chooses, and waits for nothing but its turn.
        assert_eq!(seconds > 0.0, !["device", "wire"].contains(&part), "{part}: {seconds}");
    }
    assert!(health["stages"][0]["token_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(now["kimi_requests_total{model=\"kimi-tiny\",outcome=\"length\"}"], 2.0);
    assert_eq!(of("kimi_time_to_first_token_seconds_count"), 2.0);
    assert_eq!(of("kimi_time_per_token_seconds_count"), 2.0);
    assert_eq!(now["kimi_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"}"], 2.0);
    assert_eq!(now["kimi_http_requests_total{route=\"other\",status=\"404\"}"], 1.0);
    assert!(now["process_cpu_seconds_total"] > 0.0);
    if cfg!(target_os = "linux") {
        assert!(now["process_resident_memory_bytes"] > 1e6 && now["process_open_fds"] > 3.0);
    }
}

#[test]
fn answers_that_do_not_end_well_are_counted() {
    let failed = vec![ChatEvent::Failed(EngineError::Busy { limit: 1 })];
    let long = vec![ChatEvent::Content("x".to_owned()); 20_000];
    let server = Server::start(
        vec![
            ServedModel::new(Script { id: "fails", events: failed, ..Script::default() }),
            ServedModel::new(Script { id: "long", events: long, ..Script::default() }),
        ],
        HttpConfig::default(),
    );
    server.chat(&chat(json!({"model": "fails"})));
    let mut stream = server.stream(&chat(json!({"model": "long"})));
    assert!(stream.next().is_some());
    drop(stream);
    let cancelled = "kimi_requests_total{model=\"long\",outcome=\"cancelled\"}";
    let begun = std::time::Instant::now();
    let now = loop {
        let now = metrics(&server);
        if now.contains_key(cancelled) || begun.elapsed() > kimi_tests::api::PATIENCE {
            break now;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(now[cancelled], 1.0);
    assert_eq!(now["kimi_requests_total{model=\"fails\",outcome=\"failed\"}"], 1.0);
}

#[test]
fn a_model_that_is_down_shows_in_its_state() {
    let down = Script { id: "a\"b\\", down: true, ..Script::default() };
    let server = Server::start(vec![ServedModel::new(down)], HttpConfig::default());
    let now = metrics(&server);
    assert_eq!(now["kimi_model_state{model=\"a\\\"b\\\\\",state=\"unavailable\"}"], 1.0);
    assert_eq!(now["kimi_model_state{model=\"a\\\"b\\\\\",state=\"ok\"}"], 0.0);
    assert_eq!(server.post("/metrics", b"{}").status, 405);
}
