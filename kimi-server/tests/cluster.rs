//! Workers and coordinators: as processes, over TCP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Running, http, json, key, stderr, wait_until};
use kimi_core::plan::{ModelBytes, Plan};
use kimi_core::stage::CacheConfig;
use kimi_core::{Checkpoint, DeviceChoice};
use kimi_net::{
    Assign, Config, Coordinator, ErrorCode, Fingerprint, LayerState, LinkError, Precision, Trust, Tuning,
    Versions,
};
use kimi_server::cluster::child::WorkerCommand;
use kimi_server::cluster::{self, BuildError, Built, ConnectError, Connected, Dialer, Placement, Wanted};
use kimi_server::local::silent;
use kimi_server::placement::local_plan;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const SECONDS: Duration = Duration::from_secs(20);
const CACHE: CacheConfig = CacheConfig { pages: 4, page_tokens: 64 };

/// The program with the key of the tests' cluster.
fn kimi() -> Command {
    common::with_key(common::kimi())
}

fn run(args: &[&str]) -> Output {
    kimi().args(args).stdin(Stdio::null()).output().expect("can't run kimi")
}

fn start(args: &[&str]) -> Running {
    Running::spawn(kimi().args(args))
}

fn worker(more: &[&str]) -> Running {
    let args = ["worker", "--node-id", "w", "--node-port", "0", "--json"];
    let loopback = ["--node-host", "127.0.0.1"];
    let host = if more.contains(&"--node-host") { &[][..] } else { &loopback };
    start(&[&args[..], host, more].concat())
}

/// One coordinator, in this process.
struct Lead {
    runtime: Runtime,
    checkpoint: Checkpoint,
    plan: Plan,
}

impl Lead {
    fn new() -> Lead {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let checkpoint = Checkpoint::kimi_tiny().unwrap();
        let bytes = ModelBytes::of(&checkpoint).unwrap();
        let plan = local_plan(&bytes, &["w".to_owned(), "me".to_owned()], 256).unwrap();
        Lead { runtime, checkpoint, plan }
    }

    fn connect(&self, worker: &Running, name: &str) -> Result<Vec<Connected>, ConnectError> {
        let wanted = [Wanted::at("w", worker.address())];
        self.runtime.block_on(cluster::connect(&wanted, 1, SECONDS, &Dialer::new(name, Trust::Key(key()))))
    }

    fn build(&self, worker: &Running, name: &str, model: &str) -> Result<Built, BuildError> {
        let workers = self.connect(worker, name).unwrap();
        let dialer = Dialer::new(name, Trust::Key(key()));
        let mut placement = Placement::new(self.plan.clone(), CACHE, model, DeviceChoice::cpu(), dialer);
        placement.patience.load = Duration::from_secs(1);
        cluster::build(&self.checkpoint, &placement, workers, self.runtime.handle(), &silent())
    }

    /// A link without the glue.
    fn link(&self, worker: &Running, config: Config) -> Result<Coordinator, LinkError> {
        let trust = Trust::Key(key());
        self.runtime.block_on(kimi_net::connect(worker.address(), &trust, &Tuning::default(), config))
    }

    fn assign(&self) -> Assign {
        Assign {
            model: "kimi-tiny".into(),
            fingerprint: Fingerprint(self.checkpoint.fingerprint()),
            description: Vec::new(),
            layers: 0..2,
            first: true,
            precision: Precision::Exact,
            state: LayerState::LatentPages,
            cache_pages: 4,
            page_tokens: 64,
            max_tokens: 512,
            hidden_size: self.checkpoint.config().hidden_size as u32,
            session: 1,
            resume: false,
        }
    }
}

#[test]
fn a_second_coordinator_is_refused_and_served_when_the_first_has_left() {
    let (worker, lead) = (worker(&[]), Lead::new());
    let first = lead.build(&worker, "first", "kimi-tiny").unwrap();
    let error = lead.build(&worker, "second", "kimi-tiny").unwrap_err().to_string();
    assert!(error.contains("serves coordinator first"), "{error}");
    drop(first);
    assert!(wait_until(SECONDS, || lead.build(&worker, "third", "kimi-tiny").is_ok()));
}

/// A worker of kimi-tiny whose config.json is changed.
fn worker_with(change: impl FnOnce(&mut Value)) -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    let bytes = Checkpoint::kimi_tiny().unwrap().file("config.json").unwrap().unwrap();
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut value);
    std::fs::write(&config, value.to_string()).unwrap();
    (worker(&["--default-model", "kimi-tiny", "--config", config.to_str().unwrap()]), folder)
}

#[test]
fn another_checkpoint_is_refused_and_the_key_is_named() {
    let theta = Checkpoint::kimi_tiny().unwrap().config().rope_theta;
    let (worker, _folder) = worker_with(|config| config["rope_theta"] = json!(12_345.0));
    let error = Lead::new().build(&worker, "me", "kimi-tiny").unwrap_err().to_string();
    let both = error.contains("12345") && error.contains(&theta.to_string());
    assert!(error.contains("checkpoints differ") && error.contains("rope_theta") && both, "{error}");
}

#[test]
fn what_decides_nothing_may_differ() {
    let (worker, _folder) = worker_with(|config| {
        let object = config.as_object_mut().unwrap();
        let mut reversed: Vec<_> = std::mem::take(object).into_iter().collect();
        reversed.reverse();
        object.extend(reversed);
        object.insert("model_type".into(), json!("deepseek_v3"));
        object.insert("max_position_embeddings".into(), json!(1000));
        if let Some(quantization) = object.get_mut("quantization").and_then(Value::as_object_mut) {
            quantization.retain(|key, _| ["group_size", "bits", "mode"].contains(&key.as_str()));
        }
    });
    Lead::new().build(&worker, "me", "kimi-tiny").unwrap();
}

#[test]
fn layers_are_loaded_anew_for_another_precision() {
    let (worker, lead) = (worker(&["--backend", "cpu"]), Lead::new());
    let link = lead.link(&worker, Config::new("me")).unwrap();
    for precision in [Precision::Exact, Precision::Fast, Precision::Close, Precision::Exact] {
        let assign = Assign { precision, ..lead.assign() };
        let ready = lead.runtime.block_on(link.assign(assign, |_| {})).unwrap();
        assert_eq!(ready.device.contains("fast"), precision == Precision::Fast, "{}", ready.device);
        assert_eq!(ready.device.contains("close"), precision == Precision::Close, "{}", ready.device);
    }
}

#[test]
fn another_version_is_refused() {
    let (worker, lead) = (worker(&[]), Lead::new());
    let config = Config { versions: Versions { min: 900, max: 901 }, ..Config::new("me") };
    let error = lead.link(&worker, config).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("900-901") && error.contains("same release"), "{error}");
    assert!(lead.build(&worker, "me", "kimi-tiny").is_ok());
}

#[test]
fn unknown_models_and_paths_are_refused() {
    let (worker, lead) = (worker(&[]), Lead::new());
    for (model, part) in
        [("no-such-model", "nowhere"), ("/etc", "--default-model"), ("../x", "--default-model")]
    {
        let refused = || lead.build(&worker, "me", model).unwrap_err().to_string();
        // The link of the round before may not have been given up yet.
        let mut error = String::new();
        wait_until(SECONDS, || {
            error = refused();
            !error.contains("serves coordinator")
        });
        assert!(error.contains(part), "{model}: {error}");
    }
}

#[test]
fn impossible_assignments_are_refused_and_the_link_goes_on() {
    let (worker, lead) = (worker(&[]), Lead::new());
    let link = lead.link(&worker, Config::new("me")).unwrap();
    let good = lead.assign();
    for (bad, code) in [
        (Assign { cache_pages: u32::MAX, page_tokens: u32::MAX, ..good.clone() }, ErrorCode::OutOfMemory),
        // 5.5 TB
        (Assign { cache_pages: 1 << 20, page_tokens: 4096, ..good.clone() }, ErrorCode::OutOfMemory),
        (Assign { layers: 0..4_000_000_000, ..good.clone() }, ErrorCode::LoadFailed),
        (Assign { layers: 3..6, first: false, ..good.clone() }, ErrorCode::LoadFailed),
        (Assign { first: false, ..good.clone() }, ErrorCode::LoadFailed),
        (Assign { fingerprint: Fingerprint([1; 32]), ..good.clone() }, ErrorCode::FingerprintMismatch),
    ] {
        let error = lead.runtime.block_on(link.assign(bad, |_| {})).unwrap_err();
        let LinkError::Failed(report) = &error else { panic!("{error}") };
        assert_eq!(report.code, code, "{error}");
        let named =
            report.message.contains("cache does not fit") && report.message.contains("--cache-tokens");
        assert!(code != ErrorCode::OutOfMemory || named, "{error}");
    }
    let ready = lead.runtime.block_on(link.assign(good, |_| {})).unwrap();
    let bytes = ModelBytes::of(&lead.checkpoint).unwrap();
    assert_eq!((ready.weight_bytes, ready.cache_bytes), (bytes.weights(&(0..2)), bytes.cache(&(0..2), 256)));
}

#[test]
fn garbage_does_not_stop_a_worker() {
    let (worker, lead) = (worker(&[]), Lead::new());
    let mut huge = b"KIMI\x01\x00\x01\x00".to_vec();
    huge.extend(u32::MAX.to_le_bytes());
    huge.extend((1u64 << 60).to_le_bytes());
    let noise: Vec<u8> = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &huge, &noise, b"", b"KIMI"] {
        let mut socket = TcpStream::connect(worker.address()).unwrap();
        // The worker may close before all is written.
        let _ = socket.write_all(bytes);
    }
    assert!(lead.build(&worker, "me", "kimi-tiny").is_ok());
}

/// Whether a process runs; one that has ended but was not waited for does not.
fn runs(process: &str) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", process]).output().expect("can't run ps");
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}

#[test]
fn a_worker_ends_with_its_owner() {
    let program = env!("CARGO_BIN_EXE_kimi").into();
    let command = WorkerCommand {
        program,
        model: "kimi-tiny".into(),
        config: None,
        device: DeviceChoice::cpu(),
        key: key(),
    };
    let worker = command.start("w").unwrap();
    let process = worker.process_id().to_string();
    assert!(runs(&process));
    drop(worker);
    assert!(!runs(&process));
}

#[test]
fn a_worker_ends_when_its_owner_is_killed() {
    let mut demo = kimi()
        .args(["demo", "--keep", "--max-tokens", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("can't run kimi");
    let mut process = None;
    for line in BufReader::new(demo.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once("worker-1 is process ") {
            process = rest.split_whitespace().next().map(str::to_owned);
        }
        if line.contains("until Ctrl-C") {
            break;
        }
    }
    let process = process.expect("the demo names its worker");
    assert!(runs(&process));
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(wait_until(SECONDS, || !runs(&process)), "worker {process} lives on");
}

#[test]
fn a_worker_that_does_not_start() {
    let program = env!("CARGO_BIN_EXE_kimi").into();
    let command = WorkerCommand {
        program,
        model: "/no/such/model".into(),
        config: None,
        device: DeviceChoice::cpu(),
        key: key(),
    };
    let error = command.start("w").unwrap_err().to_string();
    assert!(error.contains("worker w did not start"), "{error}");
}

fn discovery(path: &Path, worker: &Running) {
    let port: u16 = worker.address().rsplit(':').next().unwrap().parse().unwrap();
    let peer = |port: u16| {
        json!({ "address": "127.0.0.1", "port": port,
            "device_capabilities": { "model": "PC", "chip": "x", "memory": 256 } })
    };
    let file = json!({ "peers": { "me": peer(1), "w": peer(port) } });
    std::fs::write(path, file.to_string()).unwrap();
}

#[test]
fn serving_with_a_worker_and_losing_it() {
    let worker = worker(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    discovery(&path, &worker);
    let path = path.to_str().unwrap();
    let cluster = ["--node-id", "me", "--discovery-config-path", path, "--wait-for-peers", "1"];
    let cluster = [&cluster[..], &["--recovery-timeout", "1"]].concat();
    let serve = ["serve", "--default-model", "kimi-tiny", "--port", "0", "--context", "512", "--json"];
    let log = folder.path().join("log");
    let server = Running::spawn(
        kimi().args([&serve[..], &cluster].concat()).stderr(std::fs::File::create(&log).unwrap()),
    );
    let address = server.address();

    let ask = || {
        let body = json!({ "model": "kimi-tiny", "max_tokens": 12, "temperature": 0, "ignore_eos": true,
            "messages": [{ "role": "user", "content": "Hello" }] });
        http(&address, "POST", "/v1/chat/completions", &body.to_string())
    };
    let (status, body) = ask();
    assert_eq!(status, 200, "{body}");
    let split: Value = serde_json::from_str(&body).unwrap();
    let alone = start(&serve);
    let alone_address = alone.address();
    let body = json!({ "max_tokens": 12, "temperature": 0, "ignore_eos": true,
        "messages": [{ "role": "user", "content": "Hello" }] });
    let (_, body) = http(&alone_address, "POST", "/v1/chat/completions", &body.to_string());
    let whole: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(split["choices"][0]["message"]["content"], whole["choices"][0]["message"]["content"]);

    let (status, body) = http(&address, "GET", "/health", "");
    assert!(status == 200 && body.contains("w: layers 0-"), "{body}");
    drop(worker);
    let noticed = wait_until(Duration::from_secs(5), || {
        let (status, body) = http(&address, "GET", "/health", "");
        status == 503 && body.contains("stage on w is lost") && body.contains("recovering")
    });
    assert!(noticed, "the lost worker is not in /health, though nobody has chatted");
    let (status, body) = ask();
    assert!(status == 503 && body.contains("no other came within 1 s"), "{status} {body}");
    let log = std::fs::read_to_string(&log).unwrap();
    assert_eq!(log.matches("a stage is lost").count(), 1, "{log}");
}

#[test]
fn peers_that_do_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    let gone = {
        let worker = worker(&[]);
        discovery(&path, &worker);
        worker.address()
    };
    let path = path.to_str().unwrap();
    let serve = ["serve", "kimi-tiny", "--port", "0", "--discovery-config-path", path, "--peer-timeout", "1"];
    let output = run(&[&serve[..], &["--node-id", "me"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("0 of 1 workers") && text.contains(&gone) && text.contains("kimi worker"),
        "{text}"
    );
    for (more, part) in [
        (&[][..], "--node-id"),
        (&["--node-id", "nobody"], "nobody"),
        (&["--node-id", "me", "--wait-for-peers", "2"], "--wait-for-peers 2"),
    ] {
        let output = run(&[&serve[..], more].concat());
        assert!(output.status.code() == Some(1) && stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn a_worker_takes_its_address_from_the_discovery_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    let address = {
        let worker = worker(&[]);
        discovery(&path, &worker);
        worker.address()
    };
    let args = ["worker", "--node-id", "w", "--discovery-config-path", path.to_str().unwrap(), "--json"];
    assert_eq!(start(&args).address(), address);
}

/// IPv6 addresses of this machine with the interface that they hold on: loopback's, and one of a link if there is one.
fn zoned_addresses() -> Vec<String> {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return Vec::new();
    }
    let loopback = if cfg!(target_os = "macos") { "::1%lo0" } else { "::1%lo" };
    let list = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let on_link = list.lines().find(|line| line.starts_with("fe80")).and_then(|line| {
        let (digits, interface) = (line.get(..32)?, line.split_whitespace().last()?);
        let ip = std::net::Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?);
        Some(format!("{ip}%{interface}"))
    });
    [Some(loopback.to_owned()), on_link].into_iter().flatten().collect()
}

#[test]
fn an_address_with_an_interface_is_listened_on_and_connected_to() {
    let addresses = zoned_addresses();
    if addresses.is_empty() {
        return println!("skipped: this machine has no IPv6");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    let peer = |address: &str, port: u16| json!({ "address": address, "port": port, "device_capabilities": { "memory": 4096 } });
    let serve = |file: Value| {
        std::fs::write(&path, file.to_string()).unwrap();
        let path = path.to_str().unwrap();
        let args = ["serve", "kimi-tiny", "--port", "0", "--context", "512", "--json", "--node-id", "me"];
        kimi()
            .args([&args[..], &["--discovery-config-path", path, "--peer-timeout", "5"]].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for address in addresses {
        let worker = worker(&["--node-host", &address]);
        let port = worker.address().rsplit(':').next().unwrap().parse().unwrap();
        let mut server = serve(json!({ "peers": { "me": peer("127.0.0.1", 1), "w": peer(&address, port) } }));
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        server.kill().unwrap();
        let output = server.wait_with_output().unwrap();
        assert!(line.contains("listening"), "{address}: {}", stderr(&output));
    }
    let file = json!({ "peers": { "me": peer("127.0.0.1", 1), "w": peer("fe80::1%nosuch9", 1) } });
    let output = serve(file).wait_with_output().unwrap();
    let text = stderr(&output);
    assert!(text.contains("interface nosuch9") && text.contains("it has lo"), "{text}");
    assert!(!text.contains("waiting for"), "it should not wait for what can't come: {text}");
}

#[test]
fn plans_in_json_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    discovery(&path, &worker(&[]));
    let plan =
        json(&run(&["plan", "kimi-tiny", "--discovery-config-path", path.to_str().unwrap(), "--json"]));
    assert_eq!((&plan["model"], &plan["fits"]), (&json!("kimi-tiny"), &json!(true)));
    assert!(plan["reason"].as_str().is_some_and(|r| !r.is_empty()));
}
