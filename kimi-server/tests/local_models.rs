//! `kimi list`, `show`, `ps` and `rm`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{kimi, stderr, stdout};
use serde_json::Value;

fn in_home(home: &Path, args: &[&str]) -> Output {
    kimi().env("HOME", home).args(args).stdin(Stdio::null()).output().unwrap()
}

/// A copy of the embedded model in a folder of `home`.
fn copy(home: &Path, folder: &str) -> PathBuf {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kimi-core/assets/kimi-tiny");
    let folder = home.join(folder);
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(assets).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    folder
}

#[test]
fn models_are_listed_by_the_name_that_finds_them() {
    let home = tempfile::tempdir().unwrap();
    copy(home.path(), "models/small");
    copy(home.path(), ".lmstudio/models/someone/tiny");
    let part = copy(home.path(), "models/part");
    fs::remove_file(part.join("model.safetensors")).unwrap();
    fs::create_dir_all(home.path().join("models/notes")).unwrap();
    let listed = stdout(&in_home(home.path(), &["list"]));
    for name in ["kimi-tiny", "small", "someone/tiny", "part "] {
        assert!(listed.contains(name), "{name}: {listed}");
    }
    assert!(!listed.contains("notes") && listed.contains("not whole"), "{listed}");
    let json: Value = serde_json::from_str(&stdout(&in_home(home.path(), &["ls", "--json"]))).unwrap();
    let names: Vec<_> = json.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["part", "small", "someone/tiny"]);
    for name in ["small", "someone/tiny"] {
        let shown = in_home(home.path(), &["show", name]);
        assert!(shown.status.success(), "{}", stderr(&shown));
    }
}

#[test]
fn a_model_is_shown_with_what_its_user_wants_to_know() {
    let home = tempfile::tempdir().unwrap();
    let shown = stdout(&in_home(home.path(), &["show", "kimi-tiny"]));
    for part in ["context ", "tokens", "template ", "tools     yes", "thinking ", "temperature", "ends on"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json: Value =
        serde_json::from_str(&stdout(&in_home(home.path(), &["show", "kimi-tiny", "--json"]))).unwrap();
    assert!(json["context_length"].as_u64().unwrap() >= 4096);
    assert!(json["sampling"]["instant"]["temperature"].is_number(), "{json}");
}

#[test]
fn only_what_kimi_has_fetched_is_deleted() {
    let home = tempfile::tempdir().unwrap();
    let theirs = copy(home.path(), "models/theirs");
    let elsewhere = copy(home.path(), "elsewhere");
    let pulled = copy(home.path(), "models/pulled");
    for folder in [&elsewhere, &pulled] {
        fs::write(folder.join("kimi-layers.json"), "{}").unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(&elsewhere, home.path().join("models/link")).unwrap();
    let fails = |args: &[&str], reason: &str| {
        let output = in_home(home.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains(reason), "{args:?}: {}", stderr(&output));
    };
    fails(&["rm", "kimi-tiny", "--yes"], "part of the program");
    fails(&["rm", "nowhere", "--yes"], "nowhere on this machine");
    fails(&["rm", "theirs", "--yes"], "was not fetched by kimi");
    fails(&["rm", elsewhere.to_str().unwrap(), "--yes"], "was not fetched by kimi");
    #[cfg(unix)]
    fails(&["rm", "link", "--yes"], "was not fetched by kimi");
    fails(&["rm", "pulled"], "--yes does it without a question");
    assert!(theirs.is_dir() && elsewhere.join("config.json").is_file() && pulled.is_dir());
    let output = in_home(home.path(), &["rm", "pulled", "--yes"]);
    assert!(output.status.success() && stdout(&output).contains("deleted"), "{}", stderr(&output));
    assert!(!pulled.exists() && theirs.is_dir() && elsewhere.is_dir());
}

#[test]
fn nothing_runs_at_a_port_where_nobody_listens() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let home = tempfile::tempdir().unwrap();
    let output = in_home(home.path(), &["ps", "--port", &port]);
    assert!(
        output.status.success() && stdout(&output).contains("nothing of kimi answers"),
        "{}",
        stderr(&output)
    );
    let json = stdout(&in_home(home.path(), &["ps", "--port", &port, "--json"]));
    assert_eq!(json.trim(), "[]");
}
