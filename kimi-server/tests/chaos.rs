//! Threads of real workers that stand still, and workers that die while they load.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::coordinator::{
    LONG, Server, Stream, expected, health, named_worker, port, serve, signal, worker, write_peers,
};
use common::{Running, http, wait_until};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

/// One thread of a program that stands still until this is dropped, while all others go on: as one that waits for a driver or
/// a disk that does not answer.
struct Frozen(Pid);

impl Frozen {
    /// Stops the thread with this name.
    fn thread(of: &Running, name: &str) -> Frozen {
        let named = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|found| found.trim_end() == name)
        };
        let mut found = None;
        let there = wait_until(LONG, || {
            let mut tasks =
                fs::read_dir(format!("/proc/{}/task", of.child.id())).unwrap().map(Result::unwrap);
            found = tasks.find(named).map(|task| task.file_name());
            found.is_some()
        });
        assert!(there, "no thread {name}");
        let thread = Pid::from_raw(found.unwrap().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Frozen(thread)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

/// A coordinator that is still waiting for its worker.
struct Starting {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Starting {
    /// Serves kimi-tiny with a worker, and waits until that loads.
    fn with(worker: &Running) -> Starting {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("discovery.json");
        write_peers(&file, &[("w", port(&worker.address()))]);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child =
            serve(&file, &["--port", &free.port().to_string()]).stdout(Stdio::null()).spawn().unwrap();
        let starting = Starting { child, address: free.to_string(), _folder: folder };
        starting.wait("loading", |status, model| {
            status == 503 && model["stages"][0]["status"] == "loading" && model["stages"][0]["node"] == "w"
        });
        starting
    }

    fn wait(&self, what: &str, mut holds: impl FnMut(u16, &Value) -> bool) {
        let mut seen = Value::Null;
        let there = wait_until(LONG, || {
            let Ok(_) = std::net::TcpStream::connect(&self.address) else { return false };
            let (status, body) = health(&self.address);
            seen = body;
            holds(status, &seen["models"][0])
        });
        assert!(there, "{what}: {seen:#}");
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_compute_thread_that_stands_still_in_the_middle_of_an_answer_is_replaced() {
    let (stuck, spare) = (worker("0"), worker("0"));
    let (at, spare_at) = (port(&stuck.address()), port(&spare.address()));
    drop(spare); // not there at first, or it would have layers of its own
    let server = Server::start(&[("w", at), ("spare", spare_at.clone())], &[]);
    let stream = server.stream().begin();
    let _spare = named_worker("spare", &spare_at);
    let frozen = Frozen::thread(&stuck, "kimi-stage");
    assert_eq!(stream.end(), expected());
    assert_eq!(server.wait("the end", |status, _| status == 200)["losses"], 1);
    drop(frozen);
}

#[test]
fn a_compute_thread_that_stands_still_while_idle_is_noticed_by_the_next_answer() {
    let worker = worker("0");
    let server = Server::start(&[("w", port(&worker.address()))], &[]);
    assert_eq!(server.ask().0, 200);
    let frozen = Frozen::thread(&worker, "kimi-stage");
    let stream = server.stream();
    let lost = server.wait("the loss", |status, model| status == 503 && model["losses"] == 1);
    assert!(lost["reason"].as_str().unwrap().contains("stood still"), "{lost:#}");
    // It moves again: the same worker gets its layers a second time.
    drop(frozen);
    assert_eq!(stream.end(), expected());
}

#[test]
fn a_worker_that_is_killed_while_it_loads_is_waited_for() {
    let first = worker("0");
    let at = port(&first.address());
    let frozen = Frozen::thread(&first, "kimi-worker");
    let starting = Starting::with(&first);
    signal(&first, "-KILL");
    frozen_is_gone(frozen);
    drop(first);
    let _second = worker(&at);
    starting.wait("the model", |status, _| status == 200);
    assert_eq!(Stream::open(&starting.address).end(), expected());
}

#[test]
fn a_worker_that_stops_while_it_loads_goes_on() {
    let worker = worker("0");
    let frozen = Frozen::thread(&worker, "kimi-worker");
    let starting = Starting::with(&worker);
    signal(&worker, "-STOP");
    std::thread::sleep(Duration::from_secs(5)); // longer than its connection lives without a word
    signal(&worker, "-CONT");
    drop(frozen);
    starting.wait("the model", |status, _| status == 200);
    let (status, _) = http(&starting.address, "GET", "/v1/models", "");
    assert_eq!(status, 200);
}

/// A thread that has died in its sleep needs no waking.
fn frozen_is_gone(frozen: Frozen) {
    let thread = frozen.0;
    std::mem::forget(frozen);
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
}
