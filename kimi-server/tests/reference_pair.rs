//! The reference pair: a main node and a worker as a guide for exo starts them, by their flags and their discovery.json, on
//! two hosts with those addresses. What differs: the programs are `kimi worker` and `kimi serve`, they need the cluster's
//! key, the model is kimi-tiny, and `--json` tells the test when they are ready.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::hosts::TwoHosts;
use common::{Running, json, stderr, stdout};
use serde_json::{Value, json};

const DISCOVERY: &str = r#"{
  "peers": {
    "m2-studio-main": {
      "address": "10.0.2.1",
      "port": 50051,
      "device_capabilities": {
        "model": "Mac Studio",
        "chip": "Apple M2 Ultra",
        "memory": 196608,
        "flops": { "fp32": 26.98, "fp16": 53.96, "int8": 107.92 }
      }
    },
    "m3-studio-worker": {
      "address": "10.0.2.2",
      "port": 50052,
      "device_capabilities": {
        "model": "Mac Studio",
        "chip": "Apple M3 Ultra",
        "memory": 524288,
        "flops": { "fp32": 54.26, "fp16": 108.52, "int8": 217.04 }
      }
    }
  }
}"#;

const WORKER: &str = "worker --node-id m3-studio-worker --node-host 10.0.2.2 --node-port 50052 --discovery-module manual \
    --discovery-config-path discovery.json --default-model kimi-tiny --inference-engine mlx --wait-for-peers 0 --disable-tui";
const MAIN: &str = "--node-id m2-studio-main --node-host 10.0.2.1 --node-port 50051 --discovery-module manual \
    --discovery-config-path discovery.json --inference-engine mlx --wait-for-peers 1 --disable-tui";
const SERVE: &str = "serve --default-model kimi-tiny --chatgpt-api-port 52415";
const PROMPT: &str = "What is the meaning of life?";

/// The two machines, each with a home of its own.
struct Pair {
    hosts: TwoHosts,
    homes: [tempfile::TempDir; 2],
}

impl Pair {
    fn home(&self, host: usize) -> &Path {
        self.homes[host].path()
    }

    /// `kimi ARGS` in a host's home, with no key but the one there.
    fn kimi(&self, host: usize, args: &str) -> Command {
        let mut command = self.hosts.kimi(host);
        command.env_remove("KIMI_CLUSTER_KEY").env("HOME", self.home(host)).current_dir(self.home(host));
        command.args(args.split_whitespace());
        command
    }

    /// `kimi run` with these flags, at temperature 0.
    fn run(&self, flags: &str) -> Output {
        let mut command = self.kimi(0, "run kimi-tiny --temperature 0 --max-tokens 16");
        command.args(["--prompt", PROMPT]).args(flags.split_whitespace());
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// A request on the main node, by curl as it stands in the guide.
    fn curl(&self, body: &Value) -> String {
        let mut curl = self.hosts.command(0, "curl");
        curl.args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "http://localhost:52415/v1/chat/completions",
        ]);
        curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
        let output = curl.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    }
}

#[test]
fn the_guide_runs_as_it_stands() {
    let Some(hosts) = TwoHosts::new("kg", &["10.0.2"]) else { return };
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: there is no curl");
        return;
    }
    let pair = Pair { hosts, homes: [(); 2].map(|()| tempfile::tempdir().unwrap()) };
    for host in 0..2 {
        std::fs::write(pair.home(host).join("discovery.json"), DISCOVERY).unwrap();
    }
    // The one thing more than in the guide: a key, made on one of the two and brought to the other.
    let made = pair.kimi(0, "key new").output().unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let key = Path::new(".config/kimi/cluster.key");
    std::fs::create_dir_all(pair.home(1).join(key).parent().unwrap()).unwrap();
    std::fs::copy(pair.home(0).join(key), pair.home(1).join(key)).unwrap(); // with its mode

    let alone = pair.run("--no-mdns");
    assert!(alone.status.success(), "{}", stderr(&alone));
    let text = stdout(&alone);

    let worker = Running::spawn(pair.kimi(1, WORKER).arg("--json"));
    assert_eq!(worker.address(), "10.0.2.2:50052");
    {
        let main = Running::spawn(pair.kimi(0, &format!("{SERVE} {MAIN}")).arg("--json"));
        assert_eq!(main.address(), "127.0.0.1:52415");
        let health =
            pair.hosts.command(0, "curl").args(["-s", "http://localhost:52415/health"]).output().unwrap();
        let health = json(&health);
        assert!(health.to_string().contains("m3-studio-worker"), "{health}");
        let messages = json!([{"role": "user", "content": PROMPT}]);
        let ask = json!({"model": "kimi-tiny", "messages": messages, "temperature": 0, "max_tokens": 16});
        let answer: Value = serde_json::from_str(&pair.curl(&ask)).unwrap();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(content.trim_end(), text.trim_end(), "{answer}");
        // As in the guide: sampled.
        let sampled =
            json!({"model": "kimi-tiny", "messages": messages, "temperature": 0.7, "max_tokens": 16});
        let sampled: Value = serde_json::from_str(&pair.curl(&sampled)).unwrap();
        assert_eq!(sampled["choices"][0]["message"]["role"], "assistant", "{sampled}");
    }
    let together = pair.run(MAIN);
    assert!(together.status.success(), "{}", stderr(&together));
    assert!(stderr(&together).contains("m3-studio-worker (embedding)"), "{}", stderr(&together));
    assert_eq!(stdout(&together), text);
}
