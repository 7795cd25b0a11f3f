//! Settings, keys of the API, completions and man pages, as a user meets them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Running, http, json, kimi, run, stderr, stdout};
use serde_json::Value;

/// The program with a config folder of its own.
fn with_config(folder: &Path) -> Command {
    let mut command = kimi();
    command.env("XDG_CONFIG_HOME", folder).stdin(Stdio::null());
    command
}

fn write_config(folder: &Path, text: &str) {
    std::fs::create_dir_all(folder.join("kimi")).unwrap();
    std::fs::write(folder.join("kimi/config.toml"), text).unwrap();
}

fn output(command: &mut Command) -> Output {
    command.output().expect("can't run kimi")
}

/// A setting of `kimi config show COMMAND --json`: its value and where it comes from.
fn setting(shown: &Value, name: &str) -> (Option<String>, String) {
    let found = shown.as_array().unwrap().iter().find(|one| one["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {shown}"));
    (found["value"].as_str().map(str::to_owned), found["source"].as_str().unwrap().to_owned())
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    write_config(
        folder.path(),
        "log-format = \"json\"\nmax_chats = 7\ncors-origin = [\"https://a.example\", \"localhost\"]\n\
         [serve]\nport = 8111\nlog-prompts = true\nopen-metrics = false\n[worker]\nnode-port = 9000\n",
    );
    let file = folder.path().join("kimi/config.toml").display().to_string();
    let mut command = with_config(folder.path());
    command.args(["config", "show", "--json"]).env("KIMI_MAX_CHATS", "9").env("KIMI_API_KEY", "top-secret");
    let result = output(&mut command);
    let shown = json(&result);
    for (name, value, source) in [
        ("port", Some("8111"), file.as_str()),
        ("max-chats", Some("9"), "KIMI_MAX_CHATS"),
        ("max-connections", Some("704"), "default"),
        ("cors-origin", Some("https://a.example, localhost"), file.as_str()),
        ("log-prompts", Some("true"), file.as_str()),
        ("log-format", Some("json"), file.as_str()),
        ("api-key", Some("(hidden)"), "KIMI_API_KEY"),
        ("allow-host", None, "default"),
    ] {
        assert_eq!(setting(&shown, name), (value.map(str::to_owned), source.to_owned()), "{name}");
    }
    assert!(!stdout(&result).contains("top-secret"));
    let worker = json(&output(with_config(folder.path()).args(["config", "show", "worker", "--json"])));
    assert_eq!(setting(&worker, "node-port"), (Some("9000".to_owned()), file.clone()));
    // For people it is a table.
    let table = stdout(&output(with_config(folder.path()).arg("config")));
    assert!(table.lines().any(|line| line.starts_with("port ") && line.contains(&file)), "{table}");
    assert_eq!(stdout(&output(with_config(folder.path()).args(["config", "path"]))), format!("{file}\n"));

    // The variable would be refused; the flag is taken.
    let mut command = with_config(folder.path());
    let serve = ["serve", "kimi-tiny", "--json", "--no-mdns", "--backend", "cpu"];
    command
        .args(serve)
        .args(["--port", "0"])
        .env("KIMI_HOST", "127.0.0.1")
        .env("KIMI_SERVED_MODEL_NAME", "a,b");
    let server = Running::spawn(command.stderr(Stdio::null()));
    assert_eq!(server.ready["model"], "a");
    assert_ne!(server.ready["address"], "127.0.0.1:8111");
    let (status, models) = http(&server.address(), "GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status, &models["data"][0]["id"]), (200, &Value::from("a")));
    assert_eq!(http(&server.address(), "GET", "/v1/models/b", "").0, 200);
    assert_eq!(http(&server.address(), "GET", "/v1/models/kimi-tiny", "").0, 404);
}

#[test]
fn what_a_file_may_not_hold_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (text, parts) in [
        ("prot = 1", &["\"prot\"", "\"port\""][..]),
        ("[serve]\nmax-chat = 1", &["[serve]", "\"max-chat\"", "\"max-chats\""]),
        ("[server]\nport = 1", &["[server]", "\"serve\""]),
        ("[worker]\nport = 1", &["[worker]", "\"port\""]),
        ("[serve]\nport = \"many\"", &["port", "many"]),
        ("[serve]\nport = 70000", &["port", "70000"]),
        ("[serve]\nport = [1, 2]", &["port", "2 values"]),
        ("open-metrics = \"yes\"", &["open-metrics", "true or false"]),
        ("cors-origin = [\"nonsense\"]", &["cors-origin", "nonsense"]),
        ("backend = \"abacus\"", &["backend", "abacus"]),
        ("prompt = \"x\"", &["\"prompt\""]),
        ("port = ", &["TOML"]),
    ] {
        write_config(folder.path(), text);
        let result = output(with_config(folder.path()).args(["plan", "kimi-tiny"]));
        let message = stderr(&result);
        assert_eq!(result.status.code(), Some(2), "{text}: {message}");
        assert!(message.contains("config.toml"), "{text}: {message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        // What does not need it works.
        assert!(output(with_config(folder.path()).args(["config", "path"])).status.success());
    }
    let result = output(with_config(folder.path()).arg("config"));
    assert_eq!(result.status.code(), Some(1));
    assert!(stderr(&result).contains("config.toml"));
    // A variable is checked as the flag is.
    let result = output(kimi().args(["serve", "kimi-tiny"]).env("KIMI_PORT", "tcp://10.0.0.1:80"));
    assert_eq!(result.status.code(), Some(2));
    assert!(stderr(&result).contains("--port"), "{}", stderr(&result));
}

#[test]
fn keys_are_made_listed_used_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let api_key = |args: &[&str]| output(with_config(folder.path()).arg("api-key").args(args));
    let made = api_key(&["new", "laptop", "--chats", "3", "--requests", "100"]);
    let key = stdout(&made).trim().to_owned();
    assert!(key.starts_with("sk-kimi-") && key.len() == 72, "{key}");
    let file = std::fs::read_to_string(folder.path().join("kimi/api-keys")).unwrap();
    assert!(!file.contains(&key) && file.contains("laptop blake3:"), "{file}");
    let again = api_key(&["new", "laptop"]);
    assert!(again.status.code() == Some(1) && stderr(&again).contains("already"), "{}", stderr(&again));
    assert!(api_key(&["new", "bad name"]).status.code() == Some(1));
    let list = json(&api_key(&["list", "--json"]));
    assert_eq!(list, serde_json::json!([{"name": "laptop", "chats": 3, "requests": 100, "tokens": null}]));

    // The file in its usual place is used without a word, and makes it right to listen for others.
    let mut command = with_config(folder.path());
    command.args([
        "serve",
        "kimi-tiny",
        "--json",
        "--no-mdns",
        "--backend",
        "cpu",
        "--port",
        "0",
        "--host",
        "0.0.0.0",
    ]);
    let server = Running::spawn(command.stderr(Stdio::null()));
    let address = server.address().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(http(&address, "GET", "/v1/models", "").0, 401);
    assert_eq!(http(&address, "GET", "/health", "").0, 200);
    let revoked = api_key(&["revoke", "laptop"]);
    assert!(revoked.status.success());
    assert!(stderr(&api_key(&["revoke", "laptop"])).contains("no key named"));
}

#[test]
fn an_open_server_is_warned_about() {
    let mut command = kimi();
    command.args(["serve", "kimi-tiny", "--json", "--no-mdns", "--port", "0", "--host", "0.0.0.0"]);
    let refused = output(command.stdin(Stdio::null()));
    assert!(refused.status.code() == Some(1) && stderr(&refused).contains("kimi api-key new"));
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    command.arg("--open-api").stderr(std::fs::File::create(&log).unwrap());
    let _server = Running::spawn(&mut command);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("WARNING") && text.contains("asks for no key"), "{text}");
}

#[test]
fn completions_and_man_pages_come_from_the_same_table() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&run(&["completions", shell]));
        assert!(script.contains("api-key") && script.contains("served-model-name"), "{shell}");
    }
    assert_eq!(run(&["completions", "basic"]).status.code(), Some(2));
    let page = stdout(&run(&["man", "serve"]));
    assert!(page.contains(".TH kimi-serve") && page.contains("cors\\-origin"), "{page}");
    assert!(stdout(&run(&["man"])).contains("kimi\\-serve"));
    assert!(stderr(&run(&["man", "fly"])).contains("no command"));
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    assert!(run(&["man", "--dir", pages.to_str().unwrap()]).status.success());
    for name in ["kimi.1", "kimi-serve.1", "kimi-api-key.1", "kimi-config.1"] {
        assert!(pages.join(name).exists(), "{name}");
    }
}
