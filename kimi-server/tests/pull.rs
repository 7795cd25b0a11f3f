//! `kimi pull-layers`: layers from a worker, broken off and gone on with, and sources that lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::proxy::Proxy;
use common::{Running, json, kimi, stderr, stdout, with_key};
use kimi_core::Checkpoint;
use kimi_core::checkpoint::{MANIFEST, Manifest};
use kimi_net::{Bytes, Config, Event, Item, Listener, Piece, Trust, Tuning};
use kimi_server::pull::{PullError, Report, Route, pull};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SECONDS: Duration = Duration::from_secs(60);

fn worker(id: &str, more: &[&str]) -> Running {
    let args = ["worker", "--node-id", id, "--node-port", "0", "--no-mdns", "--backend", "cpu", "--json"];
    Running::spawn(with_key(kimi()).args(args).args(more))
}

fn pull_command(from: &str, layers: &str, to: &Path) -> Command {
    let mut command = with_key(kimi());
    command.args(["pull-layers", "kimi-tiny", "--from", from, "--layers", layers, "--json", "--to"]).arg(to);
    command
}

#[track_caller]
fn pulled(from: &str, layers: &str, to: &Path) -> Value {
    let output = pull_command(from, layers, to).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    json(&output)
}

/// A discovery file of worker b and coordinator a, which are equal.
fn peers(port: u16) -> String {
    let peer =
        |port| json!({ "address": "127.0.0.1", "port": port, "device_capabilities": { "memory": 4096 } });
    json!({ "peers": { "b": peer(port), "a": peer(1) } }).to_string()
}

/// `kimi run` of a model as the coordinator of this worker.
fn answer(model: &str, worker: &Running, file: &Path) -> Output {
    let address: SocketAddr = worker.address().parse().unwrap();
    std::fs::write(file, peers(address.port())).unwrap();
    let args = ["run", model, "--prompt", "Hello", "--temperature", "0", "--max-tokens", "24"];
    let cluster = ["--node-id", "a", "--wait-for-peers", "1", "--backend", "cpu", "--discovery-config-path"];
    with_key(kimi()).args(args).args(cluster).arg(file).stdin(Stdio::null()).output().unwrap()
}

/// The layers that are planned for two equal machines: the worker's, then the coordinator's.
fn split(folder: &Path) -> [String; 2] {
    let file = folder.join("plan.json");
    std::fs::write(&file, peers(2)).unwrap();
    let file = file.to_str().unwrap();
    let args = ["plan", "kimi-tiny", "--node-id", "a", "--discovery-config-path", file, "--json"];
    let plan = json(&common::run(&args));
    let stages = plan["stages"].as_array().unwrap_or_else(|| panic!("{plan}"));
    let layers = |stage: &Value| format!("{}-{}", stage["first_layer"], stage["last_layer"]);
    [layers(&stages[0]), layers(&stages[1])]
}

#[test]
fn two_parts_serve_as_the_whole_and_become_it() {
    let folder = tempfile::tempdir().unwrap();
    let [first, last] = split(folder.path());
    let source = worker("source", &[]);
    let (b, a) = (folder.path().join("b"), folder.path().join("a"));
    for (layers, to) in [(&first, &b), (&last, &a)] {
        let report = pulled(&source.address(), layers, to);
        assert!(report["pulled_bytes"].as_u64().unwrap() > 100_000 && report["kept_bytes"] == 0, "{report}");
        // Again: all is there.
        let again = pulled(&source.address(), layers, to);
        assert_eq!((&again["pulled_bytes"], &again["kept_bytes"]), (&json!(0), &report["pulled_bytes"]));
    }
    let whole = Checkpoint::kimi_tiny().unwrap();
    let size = |to: &Path| Checkpoint::open(to).unwrap().bytes();
    assert_eq!(size(&a) + size(&b), whole.bytes());

    // Neither machine has all of it.
    let part = worker("b", &["--default-model", b.to_str().unwrap()]);
    let split = answer(a.to_str().unwrap(), &part, &folder.path().join("discovery.json"));
    assert!(split.status.success(), "{}", stderr(&split));
    let args = ["run", "kimi-tiny", "--prompt", "Hello", "--temperature", "0", "--max-tokens", "24"];
    let alone = common::run(&[&args[..], &["--wait-for-peers", "0", "--backend", "cpu"]].concat());
    assert_eq!(stdout(&split), stdout(&alone));
    assert!(stdout(&alone).len() > 20);

    // A part can't be verified, and says what to do.
    let golden = common::tiny_golden();
    let verify = |to: &Path| {
        let (to, golden) = (to.to_str().unwrap(), golden.to_str().unwrap());
        common::run(&["verify", to, "--golden", golden, "--backend", "cpu"])
    };
    let refused = stderr(&verify(&b));
    assert!(
        refused.contains("are not in b") && refused.contains("kimi pull-layers MODEL --from"),
        "{refused}"
    );
    // The other layers, from a worker that has no more than those itself.
    let other = worker("other", &["--default-model", a.to_str().unwrap()]);
    let error = pull_command(&other.address(), "0-0", &folder.path().join("c")).output().unwrap();
    assert!(stderr(&error).contains("has only a part of kimi-tiny itself"), "{}", stderr(&error));
    pulled(&other.address(), &last, &b);
    let verified = verify(&b);
    assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
}

#[test]
fn a_source_is_found_by_its_name_and_the_part_by_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let source = worker("b", &["--default-model", "kimi-tiny"]);
    let file = folder.path().join("discovery.json");
    let address: SocketAddr = source.address().parse().unwrap();
    std::fs::write(&file, peers(address.port())).unwrap();
    let at_home = |args: &[&str]| {
        let mut command = with_key(kimi());
        command.env("HOME", folder.path()).args(args).output().unwrap()
    };
    let file = file.to_str().unwrap();
    let from = |name| {
        let args = ["pull-layers", "org/a-model", "--layers", "1", "--from", name];
        at_home(&[&args[..], &["--discovery-config-path", file, "--node-id", "a"]].concat())
    };
    let unknown = stderr(&from("c"));
    assert!(unknown.contains("--from c: found b"), "{unknown}");
    let output = from("b");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("a-model"), "{output:?}");
    let inspected = json(&at_home(&["inspect", "org/a-model", "--json"]));
    let missing: Vec<_> =
        inspected["missing"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(
        (missing[0], missing[1], missing[2]),
        ("model.embed_tokens", "model.layers.0", "model.layers.2")
    );
    let text = stdout(&at_home(&["inspect", "org/a-model"]));
    assert!(text.contains("a part of the model: 8 parts are not here"), "{text}");
    // No folder goes by the name of the program's own model.
    let tiny = at_home(&["pull-layers", "kimi-tiny", "--from", &source.address()]);
    assert!(stderr(&tiny).contains("Give --to FOLDER"), "{}", stderr(&tiny));
}

#[test]
fn a_pull_that_is_killed_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("part");
    let source = worker("source", &[]);
    let proxy = Proxy::to(source.address());
    proxy.limit(2_000_000);
    let mut command = pull_command(&proxy.address.to_string(), "0-2", &to);
    let mut killed =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let journal = || files(&to).into_iter().find(|path| path.to_str().unwrap().ends_with(".journal"));
    let broken =
        || proxy.is_at_limit() && journal().is_some_and(|path| std::fs::metadata(path).unwrap().len() > 0);
    assert!(common::wait_until(SECONDS, broken));
    killed.kill().unwrap();
    killed.wait().unwrap();
    // The power failed too: a line of the journal is cut, and one range of the file never reached the disk.
    let journal = journal().unwrap();
    let text = std::fs::read_to_string(&journal).unwrap();
    let first = text.lines().next().unwrap();
    let lost: u64 = first.split(' ').nth(1).unwrap().parse().unwrap();
    let at: usize = first.split(' ').next().unwrap().parse().unwrap();
    let part = journal.with_extension("");
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    std::fs::write(&journal, format!("{text}77 12 abc")).unwrap();

    let report = pulled(&source.address(), "0-2", &to);
    let (came, kept) = (report["pulled_bytes"].as_u64().unwrap(), report["kept_bytes"].as_u64().unwrap());
    assert!(kept > 0 && came >= lost, "{report}");
    let checkpoint = Checkpoint::open(&to).unwrap();
    assert_eq!(checkpoint.bytes(), came + kept);
    let whole = Checkpoint::kimi_tiny().unwrap();
    assert_eq!(checkpoint.fingerprint(), whole.fingerprint());
    for (name, tensor) in checkpoint.tensors().filter(|(name, _)| checkpoint.is_here(name)) {
        assert_eq!(tensor.data, whole.tensor(name).unwrap().data, "{name}");
    }
    let left = files(&to).into_iter().filter(|path| path.to_str().unwrap().contains(".part")).count();
    assert_eq!(left, 0);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// A source in this process, and a folder to pull into.
struct Liar {
    runtime: Runtime,
    route: Route,
    folder: TempDir,
}

impl Liar {
    /// Serves a checkpoint under a manifest; `change` makes something else of the answers about tensors.
    fn new<F>(checkpoint: Checkpoint, manifest: Manifest, change: F) -> Liar
    where
        F: Fn(&mut Piece, &mut Vec<u8>) + Send + Sync + 'static,
    {
        Liar::serve(move |item| self::item(&checkpoint, &manifest, item), change)
    }

    fn serve<I, F>(item: I, change: F) -> Liar
    where
        I: Fn(Item) -> Bytes + Send + Sync + 'static,
        F: Fn(&mut Piece, &mut Vec<u8>) + Send + Sync + 'static,
    {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let trust = Trust::Key(common::key());
        let bound = Listener::bind(([127, 0, 0, 1], 0).into(), trust.clone(), Tuning::default());
        let listener = runtime.block_on(bound).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok(incoming) = listener.accept().await {
                let Ok(mut worker) = incoming.handshake(Config::new("liar")).await else { continue };
                let sender = worker.sender();
                while let Ok(event) = worker.next().await {
                    let Event::Fetched(fetch) = event else { continue };
                    let whole = item(fetch.item);
                    let start = (fetch.offset as usize).min(whole.len());
                    let end = (start + fetch.bytes as usize).min(whole.len());
                    let mut payload = whole[start..end].to_vec();
                    let hash = *blake3::hash(&payload).as_bytes();
                    let mut piece = Piece { total: whole.len() as u64, hash };
                    if matches!(fetch.item, Item::Tensor(_)) {
                        change(&mut piece, &mut payload);
                    }
                    if sender.piece(piece, payload.into()).is_err() {
                        break;
                    }
                }
            }
        });
        let route = Route { address, trust, node_id: "me".into(), model: "kimi-tiny".into() };
        Liar { runtime, route, folder: tempfile::tempdir().unwrap() }
    }

    /// Serves kimi-tiny.
    fn tiny(change: impl Fn(&mut Piece, &mut Vec<u8>) + Send + Sync + 'static) -> Liar {
        let checkpoint = Checkpoint::kimi_tiny().unwrap();
        let manifest = checkpoint.manifest().unwrap();
        Liar::new(checkpoint, manifest, change)
    }

    fn to(&self) -> PathBuf {
        self.folder.path().join("to")
    }

    fn pull(&self, layers: Range<usize>) -> Result<Report, PullError> {
        pull(&self.route, Some(layers), &self.to(), self.runtime.handle(), &|_, _| {})
    }
}

fn item(checkpoint: &Checkpoint, manifest: &Manifest, item: Item) -> Bytes {
    match item {
        Item::Manifest => manifest.to_json().unwrap().into(),
        Item::File(n) => checkpoint.file(&manifest.files[n as usize]).unwrap().unwrap(),
        Item::Tensor(n) => checkpoint.tensor(&manifest.tensors[n as usize].name).unwrap().data.clone(),
    }
}

fn rehash(piece: &mut Piece, payload: &[u8]) {
    piece.hash = *blake3::hash(payload).as_bytes();
}

#[test]
fn a_source_that_lies_of_a_tensor_is_refused() {
    type Change = fn(&mut Piece, &mut Vec<u8>);
    let cases: [(Change, &str); 5] = [
        (|piece, _| piece.hash[3] ^= 1, "another hash"),
        (|_, payload| payload[0] ^= 1, "another hash"),
        (|piece, _| piece.total += 1, "expected"),
        (
            |piece, payload| {
                payload.pop();
                rehash(piece, payload);
            },
            "it sent",
        ),
        // More than was asked for: its own end of the link does not send that, and ends.
        (|_, payload| payload.push(0), "the link to the source"),
    ];
    for (change, part) in cases {
        let liar = Liar::tiny(change);
        let error = liar.pull(0..2).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        let written = files(&liar.to());
        assert!(
            !written.iter().any(|path| path.extension().is_some_and(|e| e == "safetensors")),
            "{written:?}"
        );
    }
}

#[test]
fn a_link_that_breaks_is_made_again() {
    let mut liar = Liar::tiny(|_, _| {});
    let proxy = Proxy::to(liar.route.address.to_string());
    liar.route.address = proxy.address;
    // Broken once the first tensors are there.
    let broken = AtomicBool::new(false);
    let progress = |done: u64, _: u64| {
        if done > 0 && !broken.swap(true, Ordering::Relaxed) {
            proxy.reset();
        }
    };
    let report = pull(&liar.route, Some(0..2), &liar.to(), liar.runtime.handle(), &progress).unwrap();
    assert!(broken.into_inner());
    let checkpoint = Checkpoint::open(liar.to()).unwrap();
    assert_eq!((report.pulled_bytes, report.kept_bytes), (checkpoint.bytes(), 0));
    assert_eq!(checkpoint.fingerprint(), Checkpoint::kimi_tiny().unwrap().fingerprint());
}

#[test]
fn values_that_fit_their_hash_and_not_the_fingerprint_are_refused() {
    let liar = Liar::tiny(|piece, payload| {
        payload.iter_mut().take(8).for_each(|byte| *byte ^= 1);
        rehash(piece, payload);
    });
    let error = liar.pull(0..2).unwrap_err().to_string();
    assert!(error.contains("fingerprint") && error.contains("model.embed_tokens"), "{error}");
}

#[test]
fn a_manifest_that_does_not_make_the_model_is_refused_before_anything_is_written() {
    type Forge = fn(&mut Manifest);
    let forge: [(Forge, &str); 3] = [
        (|m| m.tensors.iter_mut().for_each(|t| t.shape.push(2)), "expected"),
        (|m| m.tensors.truncate(3), "no tensor"),
        (|m| m.description.config[0].1 = "7".into(), "in its files"),
    ];
    for (change, part) in forge {
        let checkpoint = Checkpoint::kimi_tiny().unwrap();
        let mut manifest = checkpoint.manifest().unwrap();
        change(&mut manifest);
        let liar = Liar::new(checkpoint, manifest, |_, _| {});
        let error = liar.pull(0..2).unwrap_err();
        assert!(matches!(error, PullError::Source { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(!liar.to().exists());
    }
}

#[test]
fn what_a_source_writes_does_not_act_on_a_terminal() {
    let tiny = Checkpoint::kimi_tiny().unwrap();
    let json = String::from_utf8(tiny.manifest().unwrap().to_json().unwrap()).unwrap();
    let json = Bytes::from(json.replacen("\"BF16\"", "\"\\u001b[2J\"", 1));
    let liar = Liar::serve(move |_| json.clone(), |_, _| {});
    let error = liar.pull(0..1).unwrap_err().to_string();
    assert!(error.contains("\\u{1b}[2J") && !error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn layers_and_folders_that_cannot_be_are_said_before_a_tensor_comes() {
    let liar = Liar::tiny(|_, _| panic!("a tensor was asked for"));
    let error = liar.pull(4..400).unwrap_err().to_string();
    assert!(error.contains("--layers 4-399") && error.contains("layers 0-"), "{error}");
    // A folder with another checkpoint.
    std::fs::create_dir(liar.to()).unwrap();
    std::fs::write(liar.to().join("config.json"), "{}").unwrap();
    std::fs::write(liar.to().join("model.safetensors"), "").unwrap();
    let error = liar.pull(0..1).unwrap_err();
    assert!(matches!(error, PullError::Occupied { .. }) && error.to_string().contains("--to"), "{error}");
    std::fs::remove_dir_all(liar.to()).unwrap();
    // A pull of another checkpoint.
    let mut other = Checkpoint::kimi_tiny().unwrap().manifest().unwrap();
    other.description.tensors[1].1[0] ^= 1;
    std::fs::create_dir(liar.to()).unwrap();
    std::fs::write(liar.to().join(MANIFEST), other.to_json().unwrap()).unwrap();
    let error = liar.pull(0..1).unwrap_err().to_string();
    assert!(error.contains("at the source") && error.contains("model.layers.0"), "{error}");
}

#[test]
fn a_disk_that_is_too_small_is_said_before_a_tensor_comes() {
    // kimi-tiny with a vocabulary of terabytes: tensors that nobody has, but for their shapes.
    const VOCABULARY: usize = 1 << 36;
    let tiny = Checkpoint::kimi_tiny().unwrap();
    let mut manifest = tiny.manifest().unwrap();
    let old = tiny.config().vocab_size;
    let ends = ["embed_tokens", "lm_head"];
    for tensor in manifest.tensors.iter_mut().filter(|t| ends.iter().any(|end| t.name.contains(end))) {
        tensor.shape.iter_mut().filter(|n| **n == old).for_each(|n| *n = VOCABULARY);
    }
    let mut config: Value = serde_json::from_slice(&tiny.file("config.json").unwrap().unwrap()).unwrap();
    config["vocab_size"] = VOCABULARY.into();
    let checkpoint = |manifest: &Manifest| {
        let file = |name: &String| match name.as_str() {
            "config.json" => Bytes::from(config.to_string()),
            name => tiny.file(name).unwrap().unwrap(),
        };
        let json = Bytes::from(manifest.to_json().unwrap());
        let files = manifest.files.iter().map(|name| (name.clone(), file(name)));
        Checkpoint::from_memory("large", files.chain([(MANIFEST.to_owned(), json)]))
    };
    let large = match checkpoint(&manifest) {
        Ok(large) => large,
        Err(error) => return println!("skipped: {error}"), // a system that gives no address room
    };
    manifest.description = large.description();
    let liar = Liar::new(checkpoint(&manifest).unwrap(), manifest, |_, _| panic!("a tensor was asked for"));
    let error = liar.pull(0..1).unwrap_err();
    let PullError::NoRoom { needed, free, .. } = &error else { panic!("{error}") };
    assert!(needed > free && *needed > 1 << 40, "{error}");
    assert!(error.to_string().contains("too little. Make room"), "{error}");
}
