//! `kimi doctor` and `kimi nodes`, as people run them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use common::{Running, json, stderr, stdout};
use kimi_net::ClusterKey;
use serde_json::{Value, json};

/// The program with the key of the tests' cluster.
fn kimi() -> Command {
    static KEY: OnceLock<ClusterKey> = OnceLock::new();
    let key = KEY.get_or_init(|| ClusterKey::generate().unwrap());
    let mut command = common::kimi();
    command.env("KIMI_CLUSTER_KEY", key.to_text().as_str());
    command
}

fn run(args: &[&str]) -> Output {
    kimi().args(args).stdin(Stdio::null()).output().expect("can't run kimi")
}

fn worker(id: &str) -> Running {
    let args = ["worker", "--node-id", id, "--node-host", "127.0.0.1", "--node-port", "0", "--json"];
    Running::spawn(kimi().args(args))
}

fn port(address: &str) -> u16 {
    address.rsplit(':').next().unwrap().parse().unwrap()
}

/// A file with this machine and b at a port of loopback.
fn discovery(port: u16) -> (tempfile::TempDir, String) {
    let peer = |port: u16| json!({ "address": "127.0.0.1", "port": port, "device_capabilities": { "memory": 8192 } });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    std::fs::write(&path, json!({ "peers": { "a": peer(1), "b": peer(port) } }).to_string()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

fn doctor(path: &str) -> (i32, Value) {
    let args = ["doctor", "kimi-tiny", "--discovery-config-path", path, "--node-id", "a", "--json"];
    let output = run(&args);
    (output.status.code().unwrap(), json(&output))
}

/// The one finding of a check about a node.
fn finding<'a>(report: &'a Value, check: &str, node: Option<&str>) -> &'a Value {
    let all = report["findings"].as_array().unwrap();
    let found: Vec<_> = all.iter().filter(|f| f["check"] == check && f["node"].as_str() == node).collect();
    assert_eq!(found.len(), 1, "{check} of {node:?}: {report}");
    found[0]
}

#[test]
fn two_machines_in_order() {
    let worker = worker("b");
    let (_folder, path) = discovery(port(&worker.address()));
    let (code, report) = doctor(&path);
    assert_eq!((code, &report["ok"]), (0, &json!(true)), "{report}");
    for check in ["link", "clock", "version", "memory", "checkpoint", "interface"] {
        assert_ne!(finding(&report, check, Some("b"))["level"], "fail", "{report}");
    }
    for check in ["version", "memory", "swap", "open files", "GPU", "key", "discovery", "model", "fit"] {
        assert_ne!(finding(&report, check, None)["level"], "fail", "{report}");
    }
    assert!(finding(&report, "checkpoint", Some("b"))["found"].as_str().unwrap().contains("is the same"));
    assert!(finding(&report, "fit", None)["found"].as_str().unwrap().starts_with("2 machines"), "{report}");
    // For people, the same.
    let text = stdout(&run(&["doctor", "kimi-tiny", "--discovery-config-path", &path, "--node-id", "a"]));
    assert!(text.contains("ok    checkpoint     b: kimi-tiny is the same"), "{text}");
}

#[test]
fn a_peer_that_is_not_there_is_a_failure() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_folder, path) = discovery(gone);
    let (code, report) = doctor(&path);
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    let finding = finding(&report, "port", Some("b"));
    assert_eq!(
        (&finding["level"], finding["fix"].as_str().unwrap().contains("kimi worker")),
        (&json!("fail"), true)
    );
    let nodes = run(&["nodes", "--discovery-config-path", &path, "--node-id", "a", "--json"]);
    let value = json(&nodes);
    assert_eq!((nodes.status.code(), &value["nodes"][0]["reached"]), (Some(1), &json!(false)), "{value}");
}

#[test]
fn another_node_and_another_key_are_failures() {
    let worker = worker("c");
    let (_folder, path) = discovery(port(&worker.address()));
    let (code, report) = doctor(&path);
    let text = finding(&report, "name", Some("b"))["found"].as_str().unwrap().to_owned();
    assert!(code == 1 && text.contains("\"c\"") && text.contains("\"b\""), "{report}");

    let other = ClusterKey::generate().unwrap();
    let args = ["doctor", "--discovery-config-path", &path, "--node-id", "a", "--json"];
    let mut command = common::kimi();
    let output = command.env("KIMI_CLUSTER_KEY", other.to_text().as_str()).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(finding(&json(&output), "link", Some("b"))["level"], "fail", "{}", stdout(&output));
}

#[test]
fn a_broken_file_a_missing_key_and_a_missing_model_are_failures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    std::fs::write(&path, r#"{"peers": {"a": {"address": "10.0.0.2:5", "port": 5}}}"#).unwrap();
    let (code, report) = doctor(path.to_str().unwrap());
    let text = finding(&report, "discovery", None)["found"].as_str().unwrap().to_owned();
    assert!(code == 1 && text.contains("has a port in it"), "{report}");

    let (_folder, good) = discovery(2);
    let output = common::run(&["doctor", "--discovery-config-path", &good, "--json"]);
    let finding_of_key = json(&output);
    assert_eq!(finding(&finding_of_key, "key", None)["fix"], "kimi key new");
    assert_eq!(output.status.code(), Some(1));

    let output = common::run(&["doctor", "no-such-model", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(finding(&json(&output), "model", None)["level"], "fail");
    // Alone and without a model there is nothing to fail.
    let output = common::run(&["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn nodes_are_shown_with_what_they_hold() {
    let worker = worker("b");
    let (_folder, path) = discovery(port(&worker.address()));
    let args = ["nodes", "--discovery-config-path", &path, "--node-id", "a"];
    let output = run(&args);
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("a (this machine)"), "{text}");
    let line = text.lines().find(|line| line.starts_with("b ")).expect("no line of b");
    assert!(line.contains(&worker.address()) && line.contains(" ms ") && line.contains("nothing"), "{text}");
    let value = json(&run(&[&args[..], &["--json"]].concat()));
    let node = &value["nodes"][0];
    assert_eq!(
        (&node["node_id"], &node["reached"], &node["holding"]),
        (&json!("b"), &json!(true), &Value::Null)
    );
    assert!(node["memory_bytes"].as_u64().unwrap() > 0, "{value}");
}
