//! Looking at workers: their status while they serve, routes, names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::sync::OnceLock;
use std::time::Duration;

use common::Running;
use kimi_core::plan::ModelBytes;
use kimi_core::stage::CacheConfig;
use kimi_core::{Checkpoint, DeviceChoice};
use kimi_net::{ClusterKey, Fingerprint, ModelFiles, Trust};
use kimi_server::cluster::look::{Question, look};
use kimi_server::cluster::{self, ConnectError, Dialer, Placement, RouteError, Wanted};
use kimi_server::local::silent;
use kimi_server::placement::local_plan;
use tokio::runtime::Runtime;

const SECONDS: Duration = Duration::from_secs(20);

fn worker(more: &[&str]) -> Running {
    named_worker("w", more)
}

fn named_worker(id: &str, more: &[&str]) -> Running {
    let args = [&["worker", "--node-id", id, "--node-port", "0", "--json"][..], more].concat();
    Running::spawn(common::kimi().env("KIMI_CLUSTER_KEY", key().to_text().as_str()).args(args))
}

/// The key of the tests' cluster.
fn key() -> ClusterKey {
    static KEY: OnceLock<ClusterKey> = OnceLock::new();
    KEY.get_or_init(|| ClusterKey::generate().unwrap()).clone()
}

fn trust() -> Trust {
    Trust::Key(key())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn address(worker: &Running) -> SocketAddr {
    worker.address().parse().unwrap()
}

#[test]
fn a_busy_worker_says_what_it_holds() {
    let (worker, runtime) = (worker(&["--backend", "cpu"]), runtime());
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let question = Question { model: "kimi-tiny".into(), bandwidth: true };
    let seen = || runtime.block_on(look(address(&worker), &trust(), "me", &question)).unwrap();

    let idle = seen();
    assert_eq!((idle.node_id.as_str(), &idle.status.holding), ("w", &None));
    assert_eq!(idle.status.coordinator, "");
    let fingerprint = Fingerprint(checkpoint.description().fingerprint());
    assert_eq!(idle.status.model, Some(ModelFiles::Found(fingerprint)));
    assert!(idle.status.device.contains("cpu") && idle.status.memory_bytes > 1 << 20, "{idle:?}");
    assert!(idle.software.starts_with("kimi ") && idle.round_trip > Duration::ZERO, "{idle:?}");
    let bandwidth = idle.bandwidth.unwrap();
    assert!(bandwidth.to > 1e6 && bandwidth.from > 1e6, "{bandwidth:?}");
    // One machine, one clock.
    assert!(idle.clock_ahead_micros.abs() < 1_000_000, "{idle:?}");

    let bytes = ModelBytes::of(&checkpoint).unwrap();
    let plan = local_plan(&bytes, &["w".to_owned(), "me".to_owned()], 256).unwrap();
    let wanted = [Wanted::at("w", worker.address())];
    let workers =
        runtime.block_on(cluster::connect(&wanted, 1, SECONDS, &Dialer::new("me", trust()))).unwrap();
    let (cache, device) = (CacheConfig { pages: 4, page_tokens: 64 }, DeviceChoice::cpu());
    let dialer = Dialer::new("me", trust());
    let placement = Placement::new(plan, cache, "kimi-tiny", device, dialer);
    let built = cluster::build(&checkpoint, &placement, workers, runtime.handle(), &silent()).unwrap();
    let busy = seen().status;
    let holding = busy.holding.as_ref().expect("its layers");
    let stage = &placement.plan.stages[0];
    assert_eq!((holding.first_layer as usize, holding.last_layer as usize), (0, stage.last_layer));
    assert_eq!((holding.weight_bytes, holding.fingerprint), (stage.weight_bytes, fingerprint));
    assert!(busy.coordinator.starts_with("me ("), "{busy:?}");
    drop(built);
}

#[test]
fn files_that_are_not_there_are_said_without_folders() {
    let (worker, runtime) = (worker(&[]), runtime());
    for (model, part) in [("no-such-model", "nowhere on this worker"), ("/etc", "--default-model")] {
        let question = Question { model: model.into(), ..Question::default() };
        let seen = runtime.block_on(look(address(&worker), &trust(), "me", &question)).unwrap();
        let Some(ModelFiles::Unusable(reason)) = seen.status.model else { panic!("{seen:?}") };
        assert!(reason.contains(part) && !reason.contains("nonexistent"), "{reason}");
    }
}

#[test]
fn observers_are_bounded() {
    let (worker, runtime) = (worker(&[]), runtime());
    let observe = || {
        let config = kimi_net::Config::new("o");
        runtime.block_on(kimi_net::observe(address(&worker), &trust(), &kimi_net::Tuning::default(), config))
    };
    let mut many: Vec<_> = (0..8).map(|_| observe().unwrap()).collect();
    for observer in &mut many {
        // Its place is taken once it is answered.
        observer.ask(kimi_net::Look::default()).unwrap();
        runtime.block_on(observer.answer()).unwrap();
    }
    let mut ninth = observe().unwrap();
    let refused = runtime.block_on(ninth.answer()).unwrap_err().to_string();
    assert!(refused.contains("8 others"), "{refused}");
    drop(many);
    let question = Question::default();
    let again = || runtime.block_on(look(address(&worker), &trust(), "me", &question)).is_ok();
    assert!(common::wait_until(SECONDS, again));
}

#[test]
fn another_node_is_refused_with_both_names() {
    let (worker, runtime) = (worker(&[]), runtime());
    let wanted = [Wanted::at("studio-2", worker.address())];
    let error =
        runtime.block_on(cluster::connect(&wanted, 1, SECONDS, &Dialer::new("me", trust()))).unwrap_err();
    let ConnectError::Refused { cause: RouteError::OtherNode { .. }, .. } = &error else { panic!("{error}") };
    let error = error.to_string();
    assert!(
        error.contains("\"w\"") && error.contains("\"studio-2\"") && error.contains("--node-id"),
        "{error}"
    );
}

/// An address of this machine where nobody answers.
fn dead_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn of_several_routes_one_that_answers_is_taken() {
    let (worker, other, runtime) = (worker(&[]), named_worker("other", &[]), runtime());
    let others = vec![other.address(), worker.address(), "no-such-host.invalid:7".to_owned()];
    let wanted = [Wanted { id: "w".into(), target: dead_address(), others }];
    let found = runtime.block_on(cluster::connect(&wanted, 1, SECONDS, &Dialer::new("me", trust()))).unwrap();
    assert_eq!(found[0].link.peer().node_id, "w");
}

#[test]
fn a_name_without_an_address_is_waited_for() {
    let runtime = runtime();
    let wanted = [Wanted::at("w", "no-such-host.invalid:7")];
    let within = Duration::from_millis(700);
    let error =
        runtime.block_on(cluster::connect(&wanted, 1, within, &Dialer::new("me", trust()))).unwrap_err();
    let ConnectError::TooFew { found: 0, missing, .. } = &error else { panic!("{error}") };
    assert!(missing[0].contains("can't look up no-such-host.invalid:7"), "{missing:?}");
}
