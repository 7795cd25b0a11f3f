//! Two machines that find each other: network namespaces joined by two cables, and no file.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Running, json, stderr, stdout, wait_until};
use kimi_net::ClusterKey;
use serde_json::Value;

/// Two hosts, `a` and `b`, with two cables between them: 10.77.1.x and 10.77.2.x.
struct TwoHosts {
    names: [String; 2],
    key: ClusterKey,
}

fn ip(args: &str) -> bool {
    let output = Command::new("ip").args(args.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

impl TwoHosts {
    /// `None`, with a word, where namespaces can't be made; that takes root.
    fn new(test: &str) -> Option<TwoHosts> {
        let id = format!("{test}{}", std::process::id());
        let hosts =
            TwoHosts { names: [format!("{id}a"), format!("{id}b")], key: ClusterKey::generate().unwrap() };
        let [a, b] = &hosts.names;
        let mut made = ip(&format!("netns add {a}")) && ip(&format!("netns add {b}"));
        for cable in 1..=2 {
            made = made
                && ip(&format!("-n {a} link add up{cable} type veth peer name up{cable} netns {b}"))
                && ip(&format!("-n {a} addr add 10.77.{cable}.1/24 dev up{cable}"))
                && ip(&format!("-n {b} addr add 10.77.{cable}.2/24 dev up{cable}"))
                && ip(&format!("-n {a} link set up{cable} up"))
                && ip(&format!("-n {b} link set up{cable} up"));
        }
        made = made && ip(&format!("-n {a} link set lo up")) && ip(&format!("-n {b} link set lo up"));
        if !made {
            println!("skipped: network namespaces can't be made here");
            return None;
        }
        Some(hosts)
    }

    /// `kimi` on a host, with the cluster's key.
    fn kimi(&self, host: usize) -> Command {
        let plain = common::kimi();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]).arg(plain.get_program());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("KIMI_CLUSTER_KEY", self.key.to_text().as_str()).env("KIMI_BACKEND", "cpu");
        command
    }

    fn run(&self, host: usize, args: &[&str]) -> Output {
        self.kimi(host).args(args).stdin(Stdio::null()).output().expect("can't run kimi")
    }

    /// A worker on host b, once host a hears of it: a new interface and a new name take seconds.
    fn worker(&self) -> Running {
        let worker = Running::spawn(self.kimi(1).args(["worker", "--node-id", "b", "--json"]));
        self.nodes_until(|nodes| nodes["nodes"][0]["routes"][0].is_object());
        worker
    }

    /// What `kimi nodes` says on host a, once it is as wanted: an answer of multicast DNS may be lost.
    fn nodes_until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut nodes = Value::Null;
        let heard = wait_until(Duration::from_secs(90), || {
            nodes = json(&self.run(0, &["nodes", "--json", "--wait", "1"]));
            wanted(&nodes)
        });
        assert!(heard, "{nodes}");
        nodes
    }

    /// Cuts a cable, or mends it.
    fn set_cable(&self, cable: usize, state: &str) {
        assert!(ip(&format!("-n {} link set up{cable} {state}", self.names[0])));
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns delete {name}"));
        }
    }
}

const ASK: [&str; 9] =
    ["run", "kimi-tiny", "--prompt", "Hello", "--temperature", "0", "--max-tokens", "12", "--context=512"];

#[test]
fn a_worker_is_found_and_used_without_a_file() {
    let Some(hosts) = TwoHosts::new("kf") else { return };
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
    let off = hosts.run(0, &[&ASK[..], &["--no-mdns"]].concat());
    assert!(off.status.success() && !stderr(&off).contains("found worker"), "{}", stderr(&off));
}

#[test]
fn a_worker_of_another_cluster_is_no_member() {
    let Some(mut hosts) = TwoHosts::new("ko") else { return };
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
    let Some(hosts) = TwoHosts::new("kr") else { return };
    let _worker = hosts.worker();
    let is_at = |route: &Value, address: &str| route["address"].as_str().unwrap().starts_with(address);
    let nodes = hosts.nodes_until(|nodes| {
        let routes = nodes["nodes"][0]["routes"].as_array();
        let has = |address| routes.is_some_and(|routes| routes.iter().any(|route| is_at(route, address)));
        ["10.77.1.2:", "10.77.2.2:", "[fe80::"].into_iter().all(has)
    });
    let node = &nodes["nodes"][0];
    assert_eq!((&node["node_id"], &node["reached"]), (&"b".into(), &true.into()), "{nodes}");
    for (address, interface) in [("10.77.1.2:", "up1"), ("10.77.2.2:", "up2"), ("[fe80::", "up")] {
        let route = node["routes"].as_array().unwrap().iter().find(|route| is_at(route, address)).unwrap();
        assert!(route["interface"]["name"].as_str().unwrap().starts_with(interface), "{nodes}");
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
