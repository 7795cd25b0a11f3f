//! Files as people have them (cases F02 to F19): what the commands say of them, and that nothing is loaded before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kimi-core/assets/kimi-tiny");

/// A copy of kimi-tiny.
fn tiny() -> TempDir {
    copy(Path::new(TINY))
}

fn copy(from: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

/// A case's files, where they are there.
fn case(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/files").join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("KIMI_REQUIRE_SHARED").is_none(), "{} is missing", path.display());
    eprintln!("skipped: {} is missing", path.display());
    None
}

fn kimi(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimi"));
    command.args(args).env_remove("RUST_LOG").output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text}\ndoes not say {part:?}");
    }
}

/// A folder's model must be refused by `run` and `serve` with these words, before anything is loaded.
#[track_caller]
fn refused(folder: &Path, parts: &[&str]) {
    let folder = folder.to_str().unwrap();
    for args in [
        &["run", folder, "--prompt", "Hello", "--backend", "cpu"][..],
        &["serve", folder, "--port", "0", "--backend", "cpu"],
    ] {
        let output = kimi(args);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        says(&text, parts);
        assert!(!text.contains("loaded in"), "{text}");
    }
}

/// It runs, and a warning has these words.
#[track_caller]
fn runs_with_warning(folder: &Path, parts: &[&str]) {
    let args =
        ["run", folder.to_str().unwrap(), "--prompt", "Hello", "--backend", "cpu", "--max-tokens", "4"];
    let output = kimi(&args);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    says(&text, parts);
    let inspected = kimi(&["inspect", folder.to_str().unwrap()]);
    says(&String::from_utf8_lossy(&inspected.stdout), &["warning: "]);
}

fn discovery(folder: &Path) -> PathBuf {
    let path = folder.join("discovery.json");
    let json = r#"{"peers": {"here": {"address": "127.0.0.1", "port": 50051, "device_capabilities": {"memory": 65536}}}}"#;
    std::fs::write(&path, json).unwrap();
    path
}

#[test]
fn the_files_of_chats_are_checked_before_weights_are_loaded() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2795286\n";
    for (file, content, parts) in [
        ("tiktoken.model", None, &["no tiktoken.model"][..]),
        ("tiktoken.model", Some(pointer), &["tiktoken.model is a Git LFS pointer", "git lfs pull"]),
        ("chat_template.jinja", Some("{% if x %}"), &["chat template", "compiled"]),
        ("chat_template.jinja", Some(""), &["chat_template.jinja is empty"]),
        ("generation_config.json", Some(""), &["generation_config.json", "is empty"]),
        (
            "generation_config.json",
            Some("{\"eos_token_id\": \"x\"}"),
            &["generation_config.json", "eos_token_id"],
        ),
        ("tokenizer_config.json", Some("{"), &["tokenizer_config.json is not JSON"]),
    ] {
        let folder = tiny();
        let path = folder.path().join(file);
        match content {
            Some(content) => std::fs::write(path, content).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        refused(folder.path(), parts);
        // The plan is made, and says it.
        let discovery = discovery(folder.path());
        let plan =
            ["plan", folder.path().to_str().unwrap(), "--discovery-config-path", discovery.to_str().unwrap()];
        let output = kimi(&plan);
        assert!(output.status.success(), "{}", text(&output));
        says(&text(&output), &["run and serve will refuse this model"]);
        says(&text(&output), parts);
    }
}

#[test]
fn eos_ids_and_special_tokens_of_other_numbers() {
    if let Some(config) = case("kimi-tiny.eos_is_comma.config.json") {
        let folder = tiny();
        std::fs::copy(config, folder.path().join("config.json")).unwrap();
        runs_with_warning(folder.path(), &["eos_token_id", "no control token"]);
    }
    if let Some(config) = case("kimi-tiny.renumbered.tokenizer_config.json") {
        let folder = tiny();
        std::fs::copy(config, folder.path().join("tokenizer_config.json")).unwrap();
        refused(folder.path(), &["tokenizer_config.json", "numbered the special tokens anew"]);
    }
}

/// `kimi verify` against the case's golden values.
#[track_caller]
fn verifies(folder: &Path, config: Option<&Path>) -> String {
    let golden = folder.join("golden.safetensors");
    let mut args =
        vec!["verify", folder.to_str().unwrap(), "--golden", golden.to_str().unwrap(), "--backend", "cpu"];
    if let Some(config) = config {
        args.extend(["--config", config.to_str().unwrap()]);
    }
    let output = kimi(&args);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn indexes_of_another_build() {
    for name in ["stale_index", "stale_index_same_file_name"] {
        if let Some(folder) = case(name) {
            says(&verifies(&folder, None), &["another build", "model.safetensors.index.json"]);
        }
    }
    if let Some(folder) = case("index_is_lfs_pointer") {
        refused(&folder, &["model.safetensors.index.json is a Git LFS pointer", "git lfs pull"]);
    }
}

#[test]
fn a_head_that_is_stored_is_listed() {
    if let Some(folder) = case("tied_true_head_stored") {
        verifies(&folder, None);
        let inspected = kimi(&["inspect", folder.to_str().unwrap()]);
        says(&text(&inspected), &["lm_head", "147.0 kB"]);
    }
}

#[test]
fn a_config_with_a_byte_order_mark() {
    if let Some(config) = case("config.bom.json") {
        let folder = tiny();
        std::fs::copy(config, folder.path().join("config.json")).unwrap();
        let output = kimi(&["inspect", folder.path().to_str().unwrap()]);
        assert!(!text(&output).contains("line 1 column 1"), "{}", text(&output));
    }
}

#[test]
fn a_template_of_null_is_missing() {
    let folder = tiny();
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let settings = std::fs::read_to_string(folder.path().join("tokenizer_config.json")).unwrap();
    let settings = settings.replacen('{', "{\"chat_template\": null,", 1);
    std::fs::write(folder.path().join("tokenizer_config.json"), settings).unwrap();
    let inspected = kimi(&["inspect", folder.path().to_str().unwrap()]);
    says(&text(&inspected), &["chat template: missing"]);
}

#[test]
fn a_shard_whose_end_is_zeros() {
    let folder = tiny();
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let from = bytes.len() * 3 / 5;
    bytes[from..].fill(0);
    std::fs::write(&path, bytes).unwrap();
    runs_with_warning(folder.path(), &["model.safetensors ends in", "zero bytes"]);
}

/// A server of a folder's model on the CPU.
#[cfg(unix)]
struct Server {
    process: std::process::Child,
    address: String,
}

#[cfg(unix)]
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(unix)]
impl Server {
    fn start(folder: &Path) -> Self {
        use std::io::BufRead;
        let mut process = Command::new(env!("CARGO_BIN_EXE_kimi"))
            .args(["serve", folder.to_str().unwrap(), "--port", "0", "--backend", "cpu", "--json"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self { process, address: event["address"].as_str().unwrap().to_owned() }
    }

    fn connect(&self, request: &str) -> std::net::TcpStream {
        use std::io::Write;
        let mut socket = std::net::TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    fn ask(&self, request: &str) -> String {
        use std::io::Read;
        let mut text = String::new();
        self.connect(request).read_to_string(&mut text).unwrap();
        text
    }

    fn chat(&self, more: &str) -> String {
        let body =
            format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a story\"}}]{more}}}");
        let head =
            format!("Host: {}\r\nConnection: close\r\nContent-Type: application/json\r\n", self.address);
        format!("POST /v1/chat/completions HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
    }
}

#[cfg(unix)]
#[test]
fn a_shard_that_is_written_to_while_it_is_served_is_named() {
    let folder = tiny();
    let shard = folder.path().join("model.safetensors");
    let server = Server::start(folder.path());
    let health = format!("GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.address);
    says(&server.ask(&health), &["200 OK"]);
    says(&server.ask(&server.chat(", \"max_tokens\": 2")), &["200 OK"]);
    let bytes = std::fs::read(&shard).unwrap();
    // In place, as a copy over it does; the file keeps its length.
    std::thread::sleep(std::time::Duration::from_millis(20)); // another time of the file system's clock
    std::fs::write(&shard, vec![0x55; bytes.len()]).unwrap();
    for request in [health, server.chat("")] {
        says(&server.ask(&request), &["503", "model.safetensors was written to after it was opened"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_shard_that_is_cut_in_the_middle_of_an_answer_is_named() {
    use std::io::Read;
    let folder = tiny();
    let mut server = Server::start(folder.path());
    let mut socket =
        server.connect(&server.chat(", \"stream\": true, \"max_tokens\": 3000, \"temperature\": 2"));
    let mut first = [0; 600];
    socket.read_exact(&mut first).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(4096).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest);
    let mut text = String::new();
    if rest.contains("[DONE]") {
        eprintln!("skipped: the answer ended before the shard was cut");
        return;
    }
    server.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(server.process.wait().unwrap().code(), Some(135), "{text}");
    says(&text, &["error: shard model.safetensors", "was cut while it is in use", "Put the file back"]);
}
