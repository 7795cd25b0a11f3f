//! Workers and coordinators that are lost in the middle of an answer, and come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::coordinator::{
    LONG, Server, Stream, expected, health, named_worker, port, request, serve, signal, worker, write_peers,
};
use common::proxy::Proxy;
use common::{Running, http, key, wait_until};
use kimi_net::{
    Config, ErrorCode, ErrorReport, Event, Listener, LoadProgress, Ready, StepResult, Subject, Trust, Tuning,
};
use serde_json::Value;

#[test]
fn a_killed_worker_comes_back_in_the_middle_of_an_answer() {
    let first = worker("0");
    let at = port(&first.address());
    let server = Server::start(&[("w", at.clone())], &[]);
    let stream = server.stream().begin();
    drop(first); // SIGKILL
    let lost = server.wait("the loss", |status, model| status == 503 && model["status"] == "recovering");
    let reason = lost["stages"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("on w is lost"), "{lost:#}");
    let second = worker(&at);
    assert_eq!(stream.end(), expected());
    let health = server.wait("the end", |status, _| status == 200);
    assert_eq!(health["losses"], 1, "{health:#}");
    // Idle this time.
    drop(second);
    server.wait("the loss", |status, _| status == 503);
    let _third = worker(&at);
    server.wait("the worker", |status, _| status == 200);
    assert_eq!(server.ask().0, 200);
}

#[test]
fn a_broken_connection_is_made_again_and_the_caches_live_on() {
    let worker = worker("0");
    let proxy = Proxy::to(worker.address());
    let server = Server::start(&[("w", proxy.address.port().to_string())], &[]);
    let mut stream = server.stream().begin();
    proxy.reset();
    let more = stream.text.len() + 40;
    while stream.text.len() < more {
        stream.next().expect("it goes on after the end of a connection");
    }
    // A pulled cable: silence, and nobody is told.
    proxy.pull();
    let cut = server.wait("the silence", |_, model| model["stages"][0]["status"] == "reconnecting");
    let reason = cut["stages"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("nothing was received for 2s"), "{reason}");
    thread::sleep(Duration::from_secs(2));
    proxy.plug_in();
    assert_eq!(stream.end(), expected());
    let health = server.wait("the connection", |_, model| model["stages"][0]["status"] == "ok");
    assert_eq!(health["losses"], 0, "{health:#}");
}

#[test]
fn a_stopped_worker_goes_on() {
    let worker = worker("0");
    let server = Server::start(&[("w", port(&worker.address()))], &[]);
    let stream = server.stream().begin();
    signal(&worker, "-STOP");
    server.wait("the silence", |_, model| model["stages"][0]["status"] == "reconnecting");
    signal(&worker, "-CONT");
    assert_eq!(stream.end(), expected());
    assert_eq!(server.wait("the end", |status, _| status == 200)["losses"], 0);
}

#[test]
fn a_worker_that_stays_away_ends_answers_and_not_the_server() {
    let first = worker("0");
    let at = port(&first.address());
    let server = Server::start(&[("w", at.clone())], &["--recovery-timeout", "1"]);
    let stream = server.stream().begin();
    drop(first);
    let error = stream.error();
    assert!(error.contains("stage on w is lost") && error.contains("no other came within 1 s"), "{error}");
    let (status, body) = server.ask();
    assert!(status == 503 && body.contains("no other came within 1 s"), "{status} {body}");
    let _second = worker(&at);
    server.wait("the worker", |status, _| status == 200);
    assert_eq!(server.ask().0, 200);
}

#[test]
fn another_worker_takes_the_layers_of_a_lost_one() {
    let (first, spare) = (worker("0"), worker("0"));
    let (at, spare_at) = (port(&first.address()), port(&spare.address()));
    drop(spare); // not there at first
    let server = Server::start(&[("w", at), ("spare", spare_at.clone())], &[]);
    let stream = server.stream().begin();
    let _spare = named_worker("spare", &spare_at);
    drop(first);
    assert_eq!(stream.end(), expected());
    assert_eq!(server.wait("the end", |status, _| status == 200)["losses"], 1);
}

#[test]
fn a_coordinator_that_is_started_again_takes_its_worker_over() {
    let worker = worker("0");
    let proxy = Proxy::to(worker.address());
    let mut server = Server::start(&[("w", proxy.address.port().to_string())], &[]);
    let _stream = server.stream().begin();
    // Power loss: the worker is not told that the coordinator is gone.
    proxy.pull();
    server.running.child.kill().unwrap();
    server.running.child.wait().unwrap();
    proxy.plug_in();
    let file = server.folder.path().join("discovery.json");
    server.running = Running::spawn(&mut serve(&file, &[]));
    assert_eq!(server.ask().0, 200);
    assert_eq!(server.stream().end(), expected());

    // Two at a time: the later one has the worker, and the earlier one says so instead of fighting for it.
    let second = Running::spawn(&mut serve(&file, &[]));
    let earlier = server.wait("the reason", |_, model| model["status"] == "unavailable");
    assert!(
        earlier["reason"].as_str().unwrap().contains("of the same name has taken this worker over"),
        "{earlier:#}"
    );
    assert_eq!(Stream::open(&second.address()).end(), expected());
}

#[test]
fn twenty_deaths_leave_nothing_behind() {
    let mut running = worker("0");
    let at = port(&running.address());
    let server = Server::start(&[("w", at.clone())], &[]);
    let expected = expected();
    let mut before = Footprint::default();
    for death in 0..=20 {
        let stream = server.stream();
        // In the prefill, and somewhere in the answer.
        let stream = if death % 2 == 0 { stream } else { stream.begin() };
        drop(running);
        running = worker(&at);
        assert_eq!(stream.end(), expected, "after death {death}");
        let health =
            server.wait("the end", |status, model| status == 200 && model["sequences"]["running"] == 0);
        assert_eq!(health["pages"]["used"], 0, "{health:#}");
        if death == 0 {
            before = Footprint::of(&server.running);
        }
    }
    let mut after = Footprint::default();
    let same = wait_until(LONG, || {
        after = Footprint::of(&server.running);
        after.descriptors <= before.descriptors && after.threads <= before.threads
    });
    assert!(same && after.resident_mb <= before.resident_mb + 16, "{after:?}, before {before:?}");
}

/// What a process holds.
#[derive(Debug, Default)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    resident_mb: usize,
}

impl Footprint {
    /// Nothing where the system does not say.
    fn of(running: &Running) -> Footprint {
        let folder = Path::new("/proc").join(running.child.id().to_string());
        let count = |name: &str| std::fs::read_dir(folder.join(name)).map_or(0, Iterator::count);
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let resident_mb = resident.and_then(|kib| kib.parse::<usize>().ok()).map_or(0, |kib| kib >> 10);
        Footprint { descriptors: count("fd"), threads: count("task"), resident_mb }
    }
}

#[test]
fn clients_that_leave_while_a_worker_is_lost_leave_nothing_behind() {
    let first = worker("0");
    let at = port(&first.address());
    let server = Server::start(&[("w", at.clone())], &[]);
    let _answering = server.stream().begin();
    drop(first);
    server.wait("the loss", |status, _| status == 503);
    let _waiting = server.stream();
    drop((_answering, _waiting));
    let _second = worker(&at);
    server.wait("the end", |status, model| {
        status == 200 && model["sequences"]["running"] == 0 && model["sequences"]["waiting"] == 0
    });
    assert_eq!(server.ask().0, 200);
}

#[test]
fn a_worker_that_is_lost_while_it_loads_is_asked_again() {
    let mut times = 0;
    let at = fake(move |event, sender| {
        if let Event::Assigned(_) = event {
            times += 1;
            match times {
                1 => sender.fail(ErrorReport::fatal(ErrorCode::Overloaded, "busy")).unwrap(),
                2 => sender
                    .fail(ErrorReport::new(ErrorCode::LoadFailed, Subject::Assignment, "no disk"))
                    .unwrap(),
                _ => sender.ready(ready()).unwrap(),
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("discovery.json");
    write_peers(&file, &[("w", port(&at))]);
    let output = serve(&file, &[]).output().unwrap();
    let text = common::stderr(&output);
    assert!(output.status.code() == Some(1) && text.contains("no disk") && !text.contains("busy"), "{text}");
}

/// A worker of the test's own making, which loads nothing. `more` gets each event and what to answer with.
fn fake(mut more: impl FnMut(Event, &kimi_net::WorkerSender) + Send + 'static) -> String {
    let (sender, address) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = Listener::bind(([127, 0, 0, 1], 0).into(), Trust::Key(key()), Tuning::default())
                .await
                .unwrap();
            sender.send(listener.local_addr().unwrap().to_string()).unwrap();
            loop {
                let incoming = listener.accept().await.unwrap();
                let Ok(mut worker) = incoming.handshake(Config::new("w")).await else { continue };
                let sender = worker.sender();
                while let Ok(event) = worker.next().await {
                    more(event, &sender);
                }
            }
        });
    });
    address.recv().unwrap()
}

fn ready() -> Ready {
    Ready { weight_bytes: 1, cache_bytes: 1, load_micros: 1, device: "none".to_owned() }
}

#[test]
fn a_stuck_worker_is_noticed_although_it_answers_pings() {
    let mut steps = 0;
    let at = fake(move |event, sender| match event {
        Event::Assigned(_) => sender.ready(ready()).unwrap(),
        Event::Forward(forward, _) if steps < 5 => {
            steps += 1;
            let zeros = vec![0; 4 * (forward.rows * forward.cols) as usize];
            let header = StepResult {
                step: forward.step,
                rows: forward.rows,
                cols: forward.cols,
                compute_micros: 1000,
                device_micros: 0,
                queue_micros: 0,
            };
            sender.result(header, zeros.into()).unwrap();
        }
        _ => {}
    });
    let server = Server::start(&[("w", port(&at))], &["--recovery-timeout", "1"]);
    let error = server.stream().error();
    assert!(error.contains("its computing has stood still") && error.contains("kimi worker"), "{error}");
}

#[test]
fn the_api_says_how_far_loading_is() {
    let at = fake(|event, sender| {
        if let Event::Assigned(_) = event {
            sender
                .progress(LoadProgress {
                    loaded_bytes: 4_000_000_000,
                    total_bytes: 4_000_000_000,
                    kernels: Some((30, 120)),
                })
                .unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("discovery.json");
    write_peers(&file, &[("w", port(&at))]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut child = serve(&file, &["--port", &free]);
    let mut child = child.stdout(std::process::Stdio::null()).spawn().unwrap();
    let address = format!("127.0.0.1:{free}");
    let mut seen = Value::Null;
    let loading = wait_until(LONG, || {
        let Ok(_) = TcpStream::connect(&address) else { return false };
        let (status, body) = health(&address);
        seen = body["models"][0].clone();
        status == 503
            && seen["status"] == "loading"
            && seen["stages"][0]["loading"]["loaded_bytes"] == 4_000_000_000_u64
            && seen["stages"][0]["loading"]["kernels_made"] == 30
    });
    let (status, answer) = http(&address, "POST", "/v1/chat/completions", &request(8, false));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(loading, "{seen:#}");
    assert!(seen["loading"]["total_bytes"].as_u64().unwrap() >= 4_000_000_000, "{seen:#}");
    assert!(
        status == 503 && answer.contains("model_loading") && answer.contains("is being loaded"),
        "{answer}"
    );
}
