//! The cluster's key: its file, who may link, and peers who may not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Running, stderr, stdout, wait_until};
use kimi_net::{ClusterKey, Config, Coordinator, LinkError, Trust, Tuning};
use tempfile::TempDir;

/// A machine of a cluster: a config folder of its own.
struct Machine {
    config: TempDir,
}

impl Machine {
    fn new() -> Machine {
        Machine { config: tempfile::tempdir().unwrap() }
    }

    /// One that has a key.
    fn with_key() -> Machine {
        let machine = Machine::new();
        assert!(machine.run(&["key", "new"]).status.success());
        machine
    }

    fn kimi(&self, args: &[&str]) -> Command {
        let mut command = common::kimi();
        command.env("XDG_CONFIG_HOME", self.config.path()).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.kimi(args).output().unwrap()
    }

    fn key_file(&self) -> PathBuf {
        self.config.path().join("kimi/cluster.key")
    }

    fn key(&self) -> ClusterKey {
        std::fs::read_to_string(self.key_file()).unwrap().parse().unwrap()
    }

    fn worker(&self, more: &[&str]) -> Running {
        Running::spawn(&mut self.kimi(&[&["worker", "--node-port", "0", "--json"][..], more].concat()))
    }
}

fn connect(worker: &Running, trust: &Trust, config: Config) -> Result<Coordinator, LinkError> {
    runtime().block_on(kimi_net::connect(worker.address(), trust, &Tuning::default(), config))
}

/// One for all links of a test: a link ends with its runtime.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    })
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_key_is_made_once_for_its_user_alone() {
    let machine = Machine::new();
    let file = machine.key_file();
    let made = machine.run(&["key", "new"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let (text, key) = (stdout(&made), machine.key());
    assert_eq!(mode(&file), 0o600);
    for part in [file.to_str().unwrap(), "ssh USER@HOST", "kimi worker", &key.id().to_string()] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains(key.to_text().as_str()), "{text}");

    let again = machine.run(&["key", "new"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    assert_eq!(machine.key(), key);
    assert!(machine.run(&["key", "new", "--force"]).status.success());
    assert!(machine.key() != key && mode(&file) == 0o600);

    let shown = machine.run(&["key", "show"]);
    assert_eq!(stdout(&shown), format!("{}\n", *machine.key().to_text()));
    assert!(stderr(&shown).contains("ssh USER@HOST"), "{}", stderr(&shown));
    assert_eq!(stdout(&machine.run(&["key", "id"])), format!("{}\n", machine.key().id()));
}

#[test]
fn the_command_that_is_printed_brings_the_key_over() {
    let (machine, home) = (Machine::with_key(), tempfile::tempdir().unwrap());
    let text = stderr(&machine.run(&["key", "show"]));
    let command = text.lines().find_map(|line| line.trim().strip_prefix("ssh USER@HOST ")).unwrap();
    // What ssh would do there: run the command in the other machine's home.
    let script = format!("there() {{ HOME={:?} sh -c \"$1\"; }}; there {command}", home.path());
    assert!(Command::new("bash").args(["-c", &script]).status().unwrap().success(), "{script}");
    let file = home.path().join(".config/kimi/cluster.key");
    assert_eq!(
        (std::fs::read(&file).unwrap(), mode(&file)),
        (std::fs::read(machine.key_file()).unwrap(), 0o600)
    );
    let id = common::kimi().env("HOME", home.path()).args(["key", "id"]).output().unwrap();
    assert_eq!(stdout(&id), format!("{}\n", machine.key().id()));
}

#[test]
fn the_flag_goes_before_the_variable_and_that_before_the_folder() {
    let (machine, other, third) = (Machine::with_key(), Machine::with_key(), Machine::with_key());
    let id = |command: &mut Command| stdout(&command.output().unwrap()).trim().to_owned();
    let text = other.key().to_text();
    let mut with_variable = machine.kimi(&["key", "id"]);
    assert_eq!(id(with_variable.env("KIMI_CLUSTER_KEY", text.as_str())), other.key().id().to_string());
    let flag = third.key_file();
    let mut with_flag = machine.kimi(&["key", "id", "--cluster-key-file", flag.to_str().unwrap()]);
    assert_eq!(id(with_flag.env("KIMI_CLUSTER_KEY", text.as_str())), third.key().id().to_string());
    assert_eq!(id(machine.kimi(&["key", "id"]).env("KIMI_CLUSTER_KEY", "")), machine.key().id().to_string());
}

#[test]
fn files_that_are_no_key_are_named_with_what_they_are() {
    let machine = Machine::with_key();
    let file = machine.key_file();
    let good = std::fs::read_to_string(&file).unwrap();
    let changed = if good.contains('7') { good.replace('7', "8") } else { good.replace('0', "1") };
    for (bytes, part) in [
        (b"".to_vec(), "it is empty"),
        (b"hunter2\n".to_vec(), "does not begin with"),
        (good.as_bytes()[..50].to_vec(), "39 digits"),
        (changed.into_bytes(), "checksum"),
        (vec![0xff, 0xfe, 0x6b, 0], "not text"),
        (vec![b'a'; 100_000], "100000 bytes"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        for args in [&["worker", "--node-port", "0"][..], &["key", "id"]] {
            let output = machine.run(args);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(part) && text.contains("cluster.key"), "{part}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
    std::fs::write(&file, format!("\u{feff}{}\r\n", good.trim())).unwrap();
    assert!(machine.run(&["key", "id"]).status.success());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = stderr(&machine.run(&["key", "id"]));
    assert!(text.contains("0644") && text.contains("chmod 600"), "{text}");
    let folder = machine.config.path().to_str().unwrap();
    for (path, part) in [(folder, "a folder"), ("/no/such.key", "/no/such.key")] {
        let text = stderr(&machine.run(&["key", "id", "--cluster-key-file", path]));
        assert!(text.contains(part), "{text}");
    }
    let output = machine.kimi(&["key", "id"]).env("KIMI_CLUSTER_KEY", "kimi-key-1:12").output().unwrap();
    let text = stderr(&output);
    assert!(text.contains("KIMI_CLUSTER_KEY") && text.contains("2 digits"), "{text}");
}

#[test]
fn without_a_key_nothing_links_and_the_way_to_one_is_said() {
    let machine = Machine::new();
    let text = stderr(&machine.run(&["worker", "--node-port", "0"]));
    assert!(text.contains("kimi key new") && text.contains(machine.key_file().to_str().unwrap()), "{text}");

    let worker = machine.worker(&["--insecure"]);
    assert!(connect(&worker, &Trust::Insecure, Config::new("me")).is_ok());
    let error =
        connect(&worker, &Trust::Key(ClusterKey::generate().unwrap()), Config::new("me")).err().unwrap();
    assert_eq!(error, LinkError::NotEncrypted);
}

#[test]
fn a_plain_coordinator_and_one_with_another_key_are_refused_at_once() {
    let machine = Machine::with_key();
    let worker = machine.worker(&[]);
    let error = connect(&worker, &Trust::Insecure, Config::new("me")).err().unwrap();
    assert!(error.to_string().contains("--insecure"), "{error}");
    let error =
        connect(&worker, &Trust::Key(ClusterKey::generate().unwrap()), Config::new("me")).err().unwrap();
    assert!(matches!(error, LinkError::WrongKey { .. }), "{error}");
    assert!(connect(&worker, &Trust::Key(machine.key()), Config::new("me")).is_ok());

    // As people meet it: serve does not wait for a worker that has another key.
    let other = Machine::with_key();
    let file = other.config.path().join("discovery.json");
    let port = worker.address().rsplit(':').next().unwrap().to_owned();
    let peer = |port: &str| {
        format!(r#"{{"address": "127.0.0.1", "port": {port}, "device_capabilities": {{"memory": 4096}}}}"#)
    };
    std::fs::write(&file, format!(r#"{{"peers": {{"me": {}, "w": {}}}}}"#, peer("1"), peer(&port))).unwrap();
    let serve = ["serve", "kimi-tiny", "--port", "0", "--node-id", "me", "--peer-timeout", "60"];
    let output = other.run(&[&serve[..], &["--discovery-config-path", file.to_str().unwrap()]].concat());
    let text = stderr(&output);
    assert!(text.contains("does not have this cluster's key") && text.contains("kimi key show"), "{text}");
}

#[test]
fn an_insecure_link_is_said_to_be_one() {
    let machine = Machine::new();
    let mut child = machine
        .kimi(&["worker", "--node-port", "0", "--json", "--insecure"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("neither encrypted nor authenticated"), "{line}");
}

#[test]
fn a_worker_that_is_stopped_says_goodbye() {
    let machine = Machine::with_key();
    let mut worker = machine.worker(&[]);
    let link = connect(&worker, &Trust::Key(machine.key()), Config::new("me")).unwrap();
    let pid = worker.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let reason = runtime().block_on(link.closed());
    assert_eq!(reason, LinkError::PeerLeft { reason: "the worker was stopped".into() });
    assert!(worker.child.wait().unwrap().success());
}

#[test]
fn silent_peers_do_not_keep_a_coordinator_out() {
    let machine = Machine::with_key();
    let worker = machine.worker(&[]);
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(worker.address()).unwrap()).collect();
    // Less than the time that a worker gives each of them.
    let config = Config { handshake_timeout: Duration::from_secs(4), ..Config::new("me") };
    let link = connect(&worker, &Trust::Key(machine.key()), config);
    assert!(link.is_ok(), "{}", link.err().unwrap());
    drop(silent);
}

/// A number of /proc/PID/status; `None` where there is no /proc.
fn status(process: u32, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, |list| list.count())
}

#[test]
fn a_thousand_connections_take_little_and_leave_nothing() {
    let machine = Machine::with_key();
    let worker = machine.worker(&["--log", "error"]);
    let process = worker.child.id();
    let coordinator = connect(&worker, &Trust::Key(machine.key()), Config::new("me")).unwrap();
    let (memory, files) = (status(process, "VmRSS"), open_files(process));
    // A greeting that claims the longest record there is, and ends within it.
    let mut greeting = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3];
    greeting.resize(8000, 7);
    let mut open = Vec::new();
    for i in 0..1000 {
        let mut socket = TcpStream::connect(worker.address()).unwrap();
        // The worker may close before all is written.
        let _ = match i % 4 {
            0 => socket.write_all(&greeting),
            1 => socket.write_all(b"KIMI\x01\x00\x01\x00"),
            2 => socket.write_all(&[0x16]),
            _ => Ok(()),
        };
        open.push(socket);
    }
    if let (Some(before), Some(now)) = (memory, status(process, "VmHWM")) {
        assert!(now < before + (64 << 10), "{before} kB before, {now} kB at most");
    }
    assert_eq!(coordinator.closed_reason(), None, "the coordinator that is served was put out");
    // Those that were put out see the end of their stream.
    let mut first = open.swap_remove(3);
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(matches!(first.read(&mut [0; 64]), Ok(0) | Err(_)));
    drop((open, first));
    assert!(
        wait_until(Duration::from_secs(20), || open_files(process) <= files),
        "{} files",
        open_files(process)
    );
    drop(coordinator);
    let again = || connect(&worker, &Trust::Key(machine.key()), Config::new("me")).is_ok();
    assert!(wait_until(Duration::from_secs(20), again));
}

#[test]
fn a_refusal_does_not_tell_the_workers_folders() {
    let machine = Machine::with_key();
    let worker = machine.worker(&[]);
    let link = connect(&worker, &Trust::Key(machine.key()), Config::new("me")).unwrap();
    let assign = kimi_net::Assign {
        model: "no-such-model".into(),
        fingerprint: kimi_net::Fingerprint([0; 32]),
        description: Vec::new(),
        layers: 0..1,
        first: true,
        cache_pages: 1,
        page_tokens: 1,
        max_tokens: 1,
        hidden_size: 1,
        session: 1,
        resume: false,
        precision: kimi_net::Precision::Exact,
        state: kimi_net::LayerState::LatentPages,
    };
    let error = runtime().block_on(link.assign(assign, |_| {})).unwrap_err().to_string();
    assert!(error.contains("nowhere on this worker") && error.contains("--default-model"), "{error}");
    // HOME of the tests' program.
    assert!(!error.contains("/nonexistent") && !error.contains('\x1b'), "{error}");
}
