//! Reading discovery.json, and the plans made from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use kimi_server::discovery::Discovery;
use kimi_server::placement::cluster_nodes;
use serde_json::{Value, json};

fn peer(address: &str, memory: u64) -> Value {
    json!({ "address": address, "port": 52416, "device_capabilities": {
        "model": "Mac Studio", "chip": "Apple M3 Ultra", "memory": memory,
        "flops": { "fp32": 57, "fp16": 114.5, "int8": 228 } } })
}

fn read(text: &str) -> Result<Discovery, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    fs::write(&path, text).unwrap();
    Discovery::read(&path).map_err(|e| e.to_string())
}

#[test]
fn the_order_of_the_file_with_the_coordinator_last() {
    let file = json!({ "peers": {
        "z": peer("10.0.0.3", 524_288), "m2": peer("10.0.0.1", 196_608), "a": peer("10.0.0.2", 524_288) } });
    let discovery = read(&file.to_string()).unwrap();
    let ids = |coordinator| -> Vec<String> {
        cluster_nodes(&discovery, coordinator, None).unwrap().into_iter().map(|n| n.id).collect()
    };
    assert_eq!(ids(None), ["z", "a", "m2"]);
    assert_eq!(ids(Some("z")), ["m2", "a", "z"]);
    let nodes = cluster_nodes(&discovery, None, Some(0.5)).unwrap();
    assert_eq!((nodes[2].memory, nodes[2].usable), (192 << 30, 0.5));
    let error = cluster_nodes(&discovery, Some("nobody"), None).unwrap_err().to_string();
    assert!(error.contains("nobody") && error.contains("m2"), "{error}");
    assert_eq!(discovery.peer("a").unwrap().target(), "10.0.0.2:52416");
}

#[test]
fn only_memory_is_needed_and_further_keys_do_not_matter() {
    let file = r#"{"comment": 1, "peers": {"a": {"address": "::1", "port": 1, "note": "x",
        "device_capabilities": {"memory": 8192}}}}"#;
    let discovery = read(file).unwrap();
    assert_eq!(discovery.peers[0].target(), "[::1]:1");
}

#[test]
fn every_mistake_is_named() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = json!({ "peers": { "a": peer("10.0.0.1", 1024), "b": peer("10.0.0.2", 1024) } });
        change(&mut file);
        file.to_string()
    };
    let twice = format!("{{\"peers\": {{\"a\": {0}, \"a\": {0}}}}}", peer("10.0.0.1", 1));
    let cases: Vec<(String, &str)> = vec![
        ("".into(), "EOF"),
        ("[]".into(), "invalid"),
        ("{}".into(), "peers"),
        (r#"{"peers": []}"#.into(), "object of peers"),
        (r#"{"peers": {}}"#.into(), "empty"),
        (twice, "twice"),
        (with(&|f| f["peers"]["b"] = json!(5)), "\"b\": is a number"),
        (with(&|f| f["peers"]["b"]["port"] = json!(0)), "port is 0"),
        (with(&|f| f["peers"]["b"]["port"] = json!(70_000)), "70000"),
        (with(&|f| f["peers"]["b"]["port"] = json!("1")), "string"),
        (with(&|f| f["peers"]["b"]["address"] = json!("")), "address"),
        (with(&|f| f["peers"]["b"]["address"] = json!("10.0.0.1")), "same address"),
        (with(&|f| f["peers"]["b"]["device_capabilities"]["memory"] = json!(0)), "memory is 0"),
        (with(&|f| f["peers"]["b"]["device_capabilities"]["memory"] = json!(-5)), "-5"),
        (with(&|f| f["peers"]["b"]["device_capabilities"] = Value::Null), "null"),
        (with(&|f| _ = f["peers"]["b"].as_object_mut().unwrap().remove("port")), "port"),
    ];
    for (text, part) in cases {
        let error = read(&text).unwrap_err();
        assert!(error.contains(part) && error.contains("discovery.json"), "{text}: {error}");
    }
    let missing = Discovery::read("/no/such/discovery.json".as_ref()).unwrap_err().to_string();
    assert!(missing.contains("/no/such/discovery.json"), "{missing}");
}
