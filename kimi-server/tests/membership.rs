//! Two machines that find each other: network namespaces joined by two cables, and no file.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::hosts::TwoHosts;
use common::{json, stderr, stdout};
use kimi_net::ClusterKey;
use serde_json::Value;

/// The networks of two cables.
const CABLES: [&str; 2] = ["10.77.1", "10.77.2"];

const ASK: [&str; 9] =
    ["run", "kimi-tiny", "--prompt", "Hello", "--temperature", "0", "--max-tokens", "12", "--context=512"];

#[test]
fn a_worker_is_found_and_used_without_a_file() {
    let Some(hosts) = TwoHosts::new("kf", &CABLES) else { return };
    let alone = hosts.run(0, &ASK);
    assert!(alone.status.success() && !stderr(&alone).contains("found worker"), "{}", stderr(&alone));
    let _worker = hosts.worker();
    let together = hosts.run(0, &[&ASK[..], &["--wait-for-peers", "1"]].concat());
    let said = stderr(&together);
    assert!(
        together.status.success() && said.contains("found worker b at ") && said.contains("b (embedding)"),
        "{said}"
    );
    assert_eq!(stdout(&together), stdout(&alone));
    // Nobody asked for it, but it is there.
    let by_itself = hosts.run(0, &ASK);
    assert!(stderr(&by_itself).contains("found worker b"), "{}", stderr(&by_itself));
    assert_eq!(stdout(&by_itself), stdout(&alone));
    let by_hand = hosts.run(0, &[&ASK[..], &["--layers", "b=0-1"]].concat());
    let said = stderr(&by_hand);
    let row = said.lines().find(|line| line.starts_with("b (embedding)"));
    assert!(row.is_some_and(|row| row.contains(" 0-1 ")), "{said}");
    assert_eq!(stdout(&by_hand), stdout(&alone));
    let off = hosts.run(0, &[&ASK[..], &["--no-mdns"]].concat());
    assert!(off.status.success() && !stderr(&off).contains("found worker"), "{}", stderr(&off));
}

#[test]
fn a_worker_of_another_cluster_is_no_member() {
    let Some(mut hosts) = TwoHosts::new("ko", &CABLES) else { return };
    let _worker = hosts.worker();
    hosts.key = ClusterKey::generate().unwrap();
    let output = hosts
        .run(0, &[&ASK[..], &["--wait-for-peers=1", "--peer-timeout=3", "--log=kimi_server=debug"]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("0 workers of cluster") && said.contains("ignored a worker of another cluster"),
        "{said}"
    );
    let nodes = json(&hosts.run(0, &["nodes", "--json"]));
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 0, "{nodes}");
}

#[test]
fn every_route_is_shown_and_one_that_is_cut_is_not_needed() {
    let Some(hosts) = TwoHosts::new("kr", &CABLES) else { return };
    let _worker = hosts.worker();
    // By IPv4 or IPv6: an answer of multicast DNS may be lost.
    let is_by = |route: &Value, cable: &str| route["interface"]["name"] == cable;
    let nodes = hosts.nodes_until(|nodes| {
        let routes = nodes["nodes"][0]["routes"].as_array();
        let has = |cable| routes.is_some_and(|routes| routes.iter().any(|route| is_by(route, cable)));
        ["up1", "up2"].into_iter().all(has)
    });
    let node = &nodes["nodes"][0];
    assert_eq!((&node["node_id"], &node["reached"]), (&"b".into(), &true.into()), "{nodes}");
    for route in node["routes"].as_array().unwrap() {
        let cable = if is_by(route, "up1") { "10.77.1.2:" } else { "10.77.2.2:" };
        let address = route["address"].as_str().unwrap();
        assert!(address.starts_with(cable) || address.starts_with("[fe80::"), "{nodes}");
        assert!(route["round_trip_micros"].as_u64().unwrap() > 0, "{nodes}");
        assert!(route["bytes_per_second_to"].as_u64().unwrap() > 1_000_000, "{nodes}");
    }
    hosts.set_cable(1, "down");
    let output = hosts.run(0, &[&ASK[..], &["--wait-for-peers", "1"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    // Not by the cable that was cut.
    let by = |address: &str| stderr(&output).contains(&format!("found worker b at {address}"));
    assert!(!by("10.77.1.2:"), "{}", stderr(&output));
}
