//! What the tests of the program share.
#![allow(dead_code, unreachable_pub)]

#[cfg(target_os = "linux")]
pub mod cable;
pub mod coordinator;
#[cfg(target_os = "linux")]
pub mod hosts;
pub mod proxy;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kimi_net::ClusterKey;
use serde_json::Value;

/// The program, with nothing of the user's around it.
pub fn kimi() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimi"));
    command.env("HOME", "/nonexistent").env("NO_COLOR", "1");
    let own =
        std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("KIMI_"));
    let names = ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"];
    for name in own.chain(names.map(Into::into)) {
        command.env_remove(name);
    }
    command
}

/// The key of the tests' cluster.
pub fn key() -> ClusterKey {
    static KEY: OnceLock<ClusterKey> = OnceLock::new();
    KEY.get_or_init(|| ClusterKey::generate().unwrap()).clone()
}

/// A command that has that key.
pub fn with_key(mut command: Command) -> Command {
    command.env("KIMI_CLUSTER_KEY", key().to_text().as_str());
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    kimi().args(args).stdin(Stdio::null()).output().expect("can't run kimi")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is not UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON on stdout.
pub fn json(output: &Output) -> Value {
    let text = stdout(output);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text:?}; stderr: {}", stderr(output)))
}

/// A file of the shared material; `None`, with a word, where it is absent. An error where `KIMI_REQUIRE_SHARED` is set.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KIMI_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var_os("KIMI_REQUIRE_SHARED").is_some();
    assert!(!required, "{} is not there (set KIMI_SHARED)", path.display());
    println!("skipped: {} is not there (set KIMI_SHARED)", path.display());
    None
}

/// Whether there is a GPU, software too; without one a word. An error where `KIMI_REQUIRE_GPU` is set.
pub fn has_gpu() -> bool {
    let report = json(&run(&["devices", "--json"]));
    let found = report["gpus"].as_array().is_some_and(|gpus| !gpus.is_empty());
    assert!(found || std::env::var_os("KIMI_REQUIRE_GPU").is_none(), "there is no GPU: {report}");
    if !found {
        println!("skipped: there is no GPU");
    }
    found
}

/// The golden file of the embedded model.
pub fn tiny_golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kimi-core/assets/kimi-tiny/golden.safetensors")
}

/// The golden file's cases that `keep` names.
pub fn cases(path: &Path, keep: impl Fn(&str) -> bool) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let some = all.tensors().into_iter().filter(|(name, _)| name.split('.').next().is_some_and(&keep));
    safetensors::serialize(some, None).unwrap()
}

/// A program that runs until it is dropped.
pub struct Running {
    pub child: Child,
    /// The JSON that it printed when it was ready.
    pub ready: Value,
}

impl Running {
    /// Starts `kimi ARGS`, which must contain `--json`, and waits for its first line.
    pub fn start(args: &[&str]) -> Running {
        Self::spawn(kimi().args(args))
    }

    pub fn spawn(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("can't run kimi");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).expect("no output");
        let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line:?}"));
        Running { child, ready }
    }

    pub fn address(&self) -> String {
        self.ready["address"].as_str().expect("no address").to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a request.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("no status");
    (status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

/// Waits until something holds.
pub fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
