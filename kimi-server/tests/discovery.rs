//! Reading discovery.json, and the plans made from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::{json as output_json, run, stderr, stdout};
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
    assert_eq!(discovery.peer("a").unwrap().wanted().unwrap().target, "10.0.0.2:52416");
}

#[test]
fn only_memory_is_needed_and_further_keys_do_not_matter() {
    let file = r#"{"comment": 1, "peers": {"a": {"address": "::1", "port": 1, "note": "x",
        "device_capabilities": {"memory": 8192}}}}"#;
    let discovery = read(file).unwrap();
    assert_eq!(discovery.peers[0].wanted().unwrap().target, "[::1]:1");
}

#[test]
fn every_mistake_is_named() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = json!({ "peers": { "a": peer("10.0.0.1", 1024), "b": peer("10.0.0.2", 1024) } });
        change(&mut file);
        file.to_string()
    };
    let twice = format!("{{\"peers\": {{\"a\": {0}, \"a\": {0}}}}}", peer("10.0.0.1", 1));
    let b = |key: &'static str, value: Value| with(&|f| f["peers"]["b"][key] = value.clone());
    let memory = |value: Value| with(&|f| f["peers"]["b"]["device_capabilities"]["memory"] = value.clone());
    let cases: Vec<(String, &str)> = vec![
        ("".into(), "is empty"),
        ("[]".into(), "a list"),
        ("{}".into(), "\"peers\" is missing"),
        (r#"{"studio-1": {}}"#.into(), "there are \"studio-1\""),
        (r#"{"peers": []}"#.into(), "object of peers"),
        (r#"{"peers": {}}"#.into(), "empty"),
        (twice, "twice"),
        (r#"{"peers": {"a": {"port": 1, "port": 2}}}"#.into(), "\"port\" stands twice"),
        (with(&|f| f["peers"]["b"] = json!(5)), "\"b\": is the number 5"),
        (b("port", json!(0)), "port is the number 0"),
        (b("port", json!(70_000)), "port is the number 70000"),
        (b("port", json!(-1)), "port is the number -1"),
        (
            b("port", json!(50052.0)),
            "port is the number 50052.0, expected a whole number from 1 to 65535: write 50052",
        ),
        (
            b("port", json!("50052")),
            "port is the text \"50052\", expected a whole number from 1 to 65535: write it without",
        ),
        (b("port", Value::Null), "port is null"),
        (b("address", Value::Null), "address is null, expected a host name or an IP address"),
        (b("address", json!(["10.0.0.2"])), "address is a list"),
        (b("address", json!("")), "address \"\" is empty"),
        (b("address", json!("10.0.0.1")), "same address"),
        (b("address", json!("[::ffff:10.0.0.1]")), "same address"),
        (
            b("address", json!("127.0.0.1:50052")),
            "has a port in it; write the host alone, and the port by itself; the right form is \"address\": \
             \"127.0.0.1\", \"port\": 50052",
        ),
        (
            b("address", json!("http://10.0.2.2")),
            "the right form is \"address\": \"10.0.2.2\", \"port\": 52416",
        ),
        (
            b("address", json!("[fd00::2]:50052")),
            "the right form is \"address\": \"fd00::2\", \"port\": 50052",
        ),
        (b("addresses", json!("10.0.3.2")), "addresses is the text \"10.0.3.2\", expected a list"),
        (b("addresses", json!(["10.0.3.2", 5])), "addresses has the number 5 in its list"),
        (b("addresses", json!(["10.0.3.2:1"])), "the right form is \"addresses\": \"10.0.3.2\", \"port\": 1"),
        (b("addresses", json!(vec!["10.0.3.2"; 17])), "addresses is a list of 17"),
        (b("addresses", json!(["10.0.3.2", "10.0.0.1"])), "same address 10.0.0.1"),
        (b("address", json!("0.0.0.0")), "all addresses"),
        (b("address", json!("fe80::1")), "name the interface"),
        (memory(json!(0)), "memory is 0"),
        (memory(json!(-5)), "device_capabilities.memory is the number -5"),
        (memory(Value::Null), "device_capabilities.memory is null"),
        (memory(json!("524288")), "device_capabilities.memory is the text \"524288\""),
        (memory(json!("524288")), "write it without quotes, 524288"),
        (memory(json!("512 GB")), "without quotes, 524288"),
        (memory(json!("lots")), "the text \"lots\""),
        (memory(json!(524_288.0)), "the number 524288.0, expected"),
        (memory(json!(524_288.0)), ": write 524288."),
        (memory(json!(0.5)), "the number 0.5"),
        (memory(json!(549_755_813_888_u64)), "bytes? 549755813888 bytes are 524288 MiB"),
        (memory(json!(536_870_912)), "KiB? 536870912 KiB are 524288 MiB"),
        (b("device_capabilities", Value::Null), "device_capabilities is null"),
        (
            b("device_capabilities", json!({ "Memory": 1 })),
            "memory is missing, expected the machine's memory in MiB",
        ),
        (b("device_capabilities", json!({ "Memory": 1 })), "there is \"Memory\", write \"memory\""),
        (with(&|f| _ = f["peers"]["b"].as_object_mut().unwrap().remove("port")), "port is missing"),
        (
            b("address", json!("1.2.3.4")).replace("\"address\":\"1.2.3.4\"", "\"ip\":\"1.2.3.4\""),
            "there is \"ip\"",
        ),
        ("{\\rtf1\\ansi {\"peers\": {}}}".into(), "rich text"),
        ("{\u{201c}peers\u{201d}: {}}".into(), "typographic quotation mark"),
        (with(&|_| {}).replace("}}}", "},}}"), "a comma stands before }"),
        (format!("// machines\n{}", with(&|_| {})), "line 1: // begins a comment"),
        ("<!doctype html><title>Not here</title>".into(), "web page"),
    ];
    for (text, part) in cases {
        let error = read(&text).unwrap_err();
        assert!(error.contains(part) && error.contains("discovery.json"), "{text}: {error}");
        let of_peer = text.contains("\"b\"") && !text.contains("//") && !text.contains(",}");
        assert!(!of_peer || error.contains("peer \"b\"") || error.contains("and \"b\""), "{text}: {error}");
    }
    let missing = Discovery::read("/no/such/discovery.json".as_ref()).unwrap_err().to_string();
    assert!(missing.contains("/no/such/discovery.json"), "{missing}");
}

#[test]
fn a_machine_may_have_several_addresses() {
    let mut file = json!({ "peers": { "a": peer("10.0.0.1", 8192) } });
    file["peers"]["a"]["addresses"] = json!(["fd00::1", "10.0.0.1", "fe80::1%nosuch9", "studio.local"]);
    let discovery = read(&file.to_string()).unwrap();
    let wanted = discovery.peers[0].wanted().unwrap();
    assert_eq!(wanted.target, "10.0.0.1:52416");
    // The one given twice counts once, and that of an interface which only other machines have is left out.
    assert_eq!(wanted.others, ["[fd00::1]:52416", "studio.local:52416"]);
    file["peers"]["a"]["address"] = json!("fe80::1%nosuch9");
    file["peers"]["a"]["addresses"] = json!([]);
    let error = read(&file.to_string()).unwrap().peers[0].wanted().unwrap_err().to_string();
    assert!(error.contains("nosuch9"), "{error}");
}

#[test]
fn what_is_not_used_may_be_anything() {
    for flops in [json!(57), json!({ "fp32": 1, "fp16": 2 }), Value::Null, json!("fast")] {
        let mut file = json!({ "peers": { "a": peer("10.0.0.1", 8192) } });
        let device = &mut file["peers"]["a"]["device_capabilities"];
        (device["flops"], device["model"], device["chip"]) = (flops, json!(3), Value::Null);
        assert_eq!(read(&file.to_string()).unwrap().peers[0].memory_mib, 8192);
    }
}

#[test]
fn a_byte_order_mark_and_names_of_all_kinds_pass() {
    for address in
        ["m3.local", "studio_2", "fe80::1%en5", "fe80::1%bridge0", "fe80::1%4", "[fd00::2]", "169.254.1.2"]
    {
        let file = json!({ "peers": { "a": peer(address, 8192) } });
        let discovery = read(&format!("\u{feff}{file}")).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(discovery.peers[0].host.to_string(), address.trim_matches(['[', ']']));
    }
}

#[test]
fn memory_that_is_possible_but_unlikely_is_doubted() {
    let doubts = |memory| {
        let file = json!({ "peers": { "a": peer("10.0.0.1", 8192), "b": peer("10.0.0.2", memory) } });
        read(&file.to_string()).unwrap().doubts()
    };
    assert!(doubts(4096).is_empty() && doubts(524_288).is_empty() && doubts(4 << 20).is_empty());
    let [little] = &doubts(512)[..] else { panic!("{:?}", doubts(512)) };
    assert!(little.contains("peer \"b\"") && little.contains("512 GB are 524288 MiB"), "{little}");
    let [much] = &doubts(33_554_432)[..] else { panic!("{:?}", doubts(33_554_432)) };
    assert!(much.contains("33554432 KiB are 32768 MiB"), "{much}");
}

/// Runs `kimi plan` on a discovery file.
fn plan(file: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    fs::write(&path, file).unwrap();
    let output = run(&["plan", "kimi-tiny", "--discovery-config-path", path.to_str().unwrap()]);
    (output.status.success(), stderr(&output))
}

#[test]
fn the_plan_says_what_is_doubted_and_refuses_what_is_wrong() {
    let file = |address: &str, memory: u64| {
        json!({ "peers": { "a": peer("10.0.0.1", 8192), "b": peer(address, memory) } }).to_string()
    };
    let (fine, text) = plan(&file("10.0.0.2", 512));
    assert!(fine && text.contains("512 GB are 524288 MiB") && text.contains("peer \"b\""), "{text}");
    let (fine, text) = plan(&file("10.0.0.2:50052", 8192));
    assert!(!fine && text.contains("\"address\": \"10.0.0.2\", \"port\": 50052"), "{text}");
}

/// The two machines of the README.
fn two_macs() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    let file = json!({ "peers": { "m2": peer("10.0.0.1", 196_608), "m3": peer("10.0.0.2", 524_288) } });
    fs::write(&path, file.to_string()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn a_build_that_is_not_here_is_planned_from_the_registry() {
    let (_folder, path) = two_macs();
    for name in ["kimi-k2-mlx-4bit", "mlx-community/Kimi-K2-Instruct-4bit"] {
        let output = run(&["plan", name, "--discovery-config-path", &path, "--usable-memory", "0.85"]);
        let text = stdout(&output);
        assert!(output.status.success(), "{text} {}", stderr(&output));
        for part in [
            "from the registry: mlx-community/Kimi-K2-Instruct-4bit (578.0 GB of files)",
            "m3 (embedding)",
            "m2 (coordinator, head)",
            "cache for 32768 tokens",
            "a token reads 18.",
            "moonshotai/Kimi-K2-Thinking",
            "too little",
            "fits",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    let output = run(&["plan", "kimi-k2-mlx-4bit", "--discovery-config-path", &path, "--json"]);
    let value = output_json(&output);
    assert_eq!((&value["fits"], &value["from"]), (&json!(false), &json!("registry")), "{value}");
    let fitting = |wanted| {
        let builds = value["builds"].as_array().unwrap();
        builds.iter().filter(|b| b["fits"] == wanted).map(|b| b["name"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert!(
        fitting(true).contains(&"kimi-k2.6-3.3bit") && fitting(true).contains(&"kimi-k2-4bit"),
        "{value}"
    );
    assert!(
        fitting(false).contains(&"kimi-k2-fp8") && !fitting(true).contains(&"kimi-k2-mlx-4bit"),
        "{value}"
    );
    let output = run(&["plan", "kimi-k2-fp8", "--discovery-config-path", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does not fit") && stdout(&output).contains("kimi-k2-4bit"));
    // Of this one the size is not known.
    let output = run(&["plan", "kimi-k2.5-2.8bit", "--discovery-config-path", &path]);
    assert!(stderr(&output).contains("hf download spicyneuron/Kimi-K2.5-MLX-2.8bit"), "{}", stderr(&output));
}

#[test]
fn a_plan_says_what_a_token_reads() {
    let (_folder, path) = two_macs();
    let output = run(&["plan", "kimi-tiny", "--discovery-config-path", &path, "--json"]);
    let value = output_json(&output);
    let all: u64 =
        value["stages"].as_array().unwrap().iter().map(|s| s["weight_bytes"].as_u64().unwrap()).sum();
    let token = value["token_bytes"].as_u64().unwrap();
    assert!(token > all / 20 && token < all, "{token} of {all}");
    assert_eq!((&value["from"], &value["builds"]), (&json!("checkpoint"), &Value::Null));
}
