//! Two hosts on one machine: network namespaces joined by cables.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kimi_net::ClusterKey;
use serde_json::Value;

use super::{Running, json, wait_until};

/// Two hosts, `a` (.1) and `b` (.2).
pub struct TwoHosts {
    names: [String; 2],
    /// What both have.
    pub key: ClusterKey,
}

/// Whether `ip ARGS` did it.
pub fn ip(args: &str) -> bool {
    let output = Command::new("ip").args(args.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

/// A program in a network namespace.
fn command_in(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// `kimi` in a network namespace, with nothing of the user's around it.
pub fn kimi_in(namespace: &str) -> Command {
    let plain = super::kimi();
    let mut command = command_in(namespace, plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

impl TwoHosts {
    /// With a cable for each of the networks, such as `10.0.2`. `None`, with a word, where namespaces can't be made; that
    /// takes root.
    pub fn new(test: &str, cables: &[&str]) -> Option<TwoHosts> {
        let id = format!("{test}{}", std::process::id());
        let hosts =
            TwoHosts { names: [format!("{id}a"), format!("{id}b")], key: ClusterKey::generate().unwrap() };
        let [a, b] = &hosts.names;
        let mut made = ip(&format!("netns add {a}")) && ip(&format!("netns add {b}"));
        for (number, network) in cables.iter().enumerate() {
            let cable = number + 1;
            made = made
                && ip(&format!("-n {a} link add up{cable} type veth peer name up{cable} netns {b}"))
                && ip(&format!("-n {a} addr add {network}.1/24 dev up{cable}"))
                && ip(&format!("-n {b} addr add {network}.2/24 dev up{cable}"))
                && ip(&format!("-n {a} link set up{cable} up"))
                && ip(&format!("-n {b} link set up{cable} up"));
        }
        made = made && ip(&format!("-n {a} link set lo up")) && ip(&format!("-n {b} link set lo up"));
        if !made {
            println!("skipped: network namespaces can't be made here");
            return None;
        }
        // An interface whose addresses are still being checked takes no multicast, and whoever starts meanwhile does not try again.
        let settled = |name: &String| {
            let output = Command::new("ip").args(["-n", name, "-6", "addr", "show", "tentative"]).output();
            output.is_ok_and(|output| output.stdout.is_empty())
        };
        assert!(
            wait_until(Duration::from_secs(20), || hosts.names.iter().all(settled)),
            "no address settles"
        );
        Some(hosts)
    }

    /// A program on a host.
    pub fn command(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.names[host], program)
    }

    /// `kimi` on a host, with the cluster's key.
    pub fn kimi(&self, host: usize) -> Command {
        let mut command = kimi_in(&self.names[host]);
        command.env("KIMI_CLUSTER_KEY", self.key.to_text().as_str()).env("KIMI_BACKEND", "cpu");
        command
    }

    pub fn run(&self, host: usize, args: &[&str]) -> Output {
        self.kimi(host).args(args).stdin(Stdio::null()).output().expect("can't run kimi")
    }

    /// A worker on host b, once host a hears of it: a new interface and a new name take seconds.
    pub fn worker(&self) -> Running {
        let worker = Running::spawn(self.kimi(1).args(["worker", "--node-id", "b", "--json"]));
        self.nodes_until(|nodes| nodes["nodes"][0]["routes"][0].is_object());
        worker
    }

    /// What `kimi nodes` says on host a, once it is as wanted: an answer of multicast DNS may be lost.
    pub fn nodes_until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut nodes = Value::Null;
        let heard = wait_until(Duration::from_secs(90), || {
            nodes = json(&self.run(0, &["nodes", "--json", "--wait", "1"]));
            wanted(&nodes)
        });
        assert!(heard, "{nodes}");
        nodes
    }

    /// Cuts a cable, or mends it.
    pub fn set_cable(&self, cable: usize, state: &str) {
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
