//! The command line, as a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{json, kimi, run, stderr, stdout, with_key};
use serde_json::json;

#[test]
fn help_and_version() {
    let version = run(&["--version"]);
    assert_eq!(stdout(&version), format!("kimi {}\n", env!("CARGO_PKG_VERSION")));
    let help = stdout(&run(&["--help"]));
    for part in
        ["demo", "run", "serve", "worker", "plan", "inspect", "verify", "devices", "Examples:", "Exit codes:"]
    {
        assert!(help.contains(part), "{part}");
    }
    for command in ["demo", "run", "serve", "worker", "plan", "pull-layers", "inspect", "verify", "devices"] {
        let output = run(&[command, "--help"]);
        assert!(output.status.success() && stdout(&output).contains("Usage:"), "{command}");
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    for args in [
        &["fly"][..],
        &["run", "--no-such-flag"],
        &["serve", "--port", "70000"],
        &["verify", "kimi-tiny"],
        &["verify", "kimi-tiny", "--golden", "x", "--stages", "0"],
        &["verify", "kimi-tiny", "--golden", "x", "--backend", "abacus"],
        &["verify", "kimi-tiny", "--golden", "x", "--tolerance", "NaN"],
        &["verify", "kimi-tiny", "--golden", "x", "--tolerance=-1"],
        &["run", "kimi-tiny", "--backend", "abacus"],
        &["run", "kimi-tiny", "--backend", "reference"],
        &["run", "kimi-tiny", "--gpu-memory", "0"],
        &["plan", "kimi-tiny"],
        &["serve", "kimi-tiny", "--context", "-1"],
        &["serve", "kimi-tiny", "--max-connections", "0"],
        &["serve", "kimi-tiny", "--max-connections-per-address", "many"],
        &["serve", "kimi-tiny", "--max-chats", "0"],
        &["serve", "kimi-tiny", "--body-memory", "1"],
        &["plan", "kimi-tiny", "--discovery-config-path", "x", "--usable-memory", "1.5"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn flags_of_exo_are_accepted_or_answered() {
    let manual = ["--discovery-module", "manual", "--discovery-config-path", "/no/d.json"];
    for command in [
        &["serve", "--default-model", "kimi-tiny", "--chatgpt-api-port", "0", "--discovery-timeout", "3"][..],
        &[
            "run",
            "kimi-tiny",
            "--prompt",
            "x",
            "--max-generate-tokens",
            "1",
            "--default-temp",
            "0",
            "--system-prompt",
            "y",
        ],
        &["worker"],
    ] {
        let node = ["--node-id", "a", "--node-host", "0.0.0.0", "--node-port", "0", "--wait-for-peers", "1"];
        let args = [command, &node, &manual, &["--inference-engine", "mlx", "--disable-tui"]].concat();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("/no/d.json"), "{}", stderr(&output));
    }
    for (args, part) in [
        (&["serve", "kimi-tiny", "--discovery-module", "manual"][..], "--discovery-config-path"),
        (&["serve", "kimi-tiny", "--discovery-module", "udp"], "multicast DNS"),
        (&["worker", "--inference-engine=tinygrad"], "--backend"),
        (&["worker", "--chatgpt-api-port", "52415"], "--port"),
        (&["serve", "kimi-tiny", "--listen-port=5678"], "--node-port"),
        (&["serve", "kimi-tiny", "--models-seed-dir", "x"], "path of a checkpoint"),
        (&["serve", "kimi-tiny", "--prompt", "x"], "kimi run"),
        (&["--node-id", "a", "--wait-for-peers", "1"], "kimi worker"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn failures_exit_with_1_and_say_why() {
    for (args, part) in [
        (&["inspect"][..], "--default-model"),
        (&["inspect", "no-such-model"], "kimi-k2-4bit"),
        (&["inspect", "org/no-such-model"], "hf download org/no-such-model"),
        (&["inspect", "/no/such/folder"], "/no/such/folder"),
        (&["inspect", "kimi-tiny", "--models", "/no/such.toml"], "/no/such.toml"),
        (&["verify", "kimi-tiny", "--golden", "/no/golden"], "/no/golden"),
        (&["plan", "kimi-tiny", "--discovery-config-path", "/no/d.json"], "/no/d.json"),
        (&["worker", "--node-port", "0"], "kimi key new"),
        (&["serve", "kimi-tiny", "--port", "0", "--wait-for-peers", "1"], "kimi key new"),
        (&["run", "kimi-tiny", "--prompt", "x", "--wait-for-peers", "1"], "kimi key new"),
        (&["run", "kimi-tiny", "--prompt", "x", "--wait-for-peers", "1", "--no-mdns"], "--no-mdns forbids"),
        (&["run", "kimi-tiny", "--prompt", "x", "--no-mdns", "--layers", "b=0-1"], "no other machine"),
        (&["serve", "kimi-tiny", "--host", "0.0.0.0"], "--open-api"),
        (&["run", "kimi-tiny", "--prompt", "x", "--temperature", "9"], "temperature"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = stderr(&output);
        assert!(text.contains(part), "{args:?}: {text}");
        assert!(text.matches("os error").count() <= 1, "said twice: {text}");
    }
}

#[test]
fn a_context_above_the_models_is_said_to_be_cut() {
    let ask = ["run", "kimi-tiny", "--backend", "cpu", "--prompt", "Hello", "--max-tokens", "1", "--context"];
    for (context, noted) in [("4096", false), ("999999", true)] {
        let output = run(&[&ask[..], &[context]].concat());
        let text = stderr(&output);
        assert!(output.status.success(), "{text}");
        assert_eq!(text.contains("--context 999999 is cut to"), noted, "{text}");
    }
}

#[test]
fn inspect_shows_the_embedded_model() {
    let report = json(&run(&["inspect", "kimi-tiny", "--json"]));
    assert_eq!(report["model_type"], "kimi_k2");
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len() as u64, report["sizes"]["num_hidden_layers"].as_u64().unwrap());
    let ends = report["ends"].as_array().unwrap();
    let sum = |list: &[serde_json::Value]| list.iter().map(|x| x["bytes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(report["bytes"].as_u64().unwrap(), sum(layers) + sum(ends));
    let embedding = ends.iter().find(|m| m["name"] == "model.embed_tokens").unwrap();
    assert_eq!((embedding["bits"].as_u64(), embedding["group"].as_u64()), (Some(3), Some(64)));
    let text = stdout(&run(&["inspect", "--default-model", "kimi-tiny"]));
    for part in [
        "self_attn.kv_b_proj",
        "bits a weight",
        "chat_template.jinja",
        "eos ids",
        "temperature 0.6, top_p 1",
        "layers 2-4, each",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn plan_by_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discovery.json");
    let device = |memory: u64| json!({ "model": "PC", "chip": "x", "memory": memory });
    let write = |a: u64, b: u64| {
        let file = json!({ "peers": {
            "small": { "address": "10.0.0.1", "port": 1, "device_capabilities": device(a) },
            "large": { "address": "10.0.0.2", "port": 1, "device_capabilities": device(b) } } });
        std::fs::write(&path, file.to_string()).unwrap();
    };
    write(64, 256);
    let args = ["plan", "kimi-tiny", "--discovery-config-path", path.to_str().unwrap(), "--json"];
    let plan = json(&run(&args));
    let stages = plan["stages"].as_array().unwrap();
    assert_eq!((stages[0]["node"].as_str(), stages[1]["node"].as_str()), (Some("large"), Some("small")));
    assert_eq!(stages[0]["first_layer"], 0);
    assert_eq!(stages[0]["last_layer"].as_u64().unwrap() + 1, stages[1]["first_layer"].as_u64().unwrap());
    let shorter = json(&run(&[&args[..], &["--context", "64"]].concat()));
    assert!(shorter["stages"][0]["cache_bytes"].as_u64() < stages[0]["cache_bytes"].as_u64());
    let text = stdout(&run(&args[..4]));
    assert!(text.contains("small (coordinator, head)") && text.contains("headroom"), "{text}");

    write(1, 1);
    let output = run(&args[..4]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("too little"), "{}", stderr(&output));
    let output = run(&args);
    assert_eq!((output.status.code(), json(&output)["fits"].as_bool()), (Some(1), Some(false)));
}

#[test]
fn run_answers_a_prompt_given_or_piped() {
    let args = ["run", "kimi-tiny", "--max-tokens", "8", "--temperature", "0", "--stats"];
    let given = run(&[&args[..], &["--prompt", "Hello"]].concat());
    assert!(given.status.success(), "{}", stderr(&given));
    assert!(stderr(&given).contains("tokens/s"), "{}", stderr(&given));
    let mut child = kimi()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Hello\n").unwrap();
    let piped = child.wait_with_output().unwrap();
    assert_eq!(stdout(&piped), stdout(&given), "the same prompt must give the same text");
    assert_eq!(run(&args).status.code(), Some(1), "an empty prompt is an error");
}

#[test]
fn a_port_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, flag) in [
        (&["serve", "kimi-tiny", "--port", port.as_str()][..], "--port"),
        (&["demo", "--port", port.as_str()], "--port"),
        (&["worker", "--insecure", "--node-port", port.as_str()], "--node-port"),
    ] {
        let output = with_key(kimi()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = stderr(&output);
        assert!(text.contains(&port) && text.contains(flag) && text.contains("in use"), "{args:?}: {text}");
    }
}

#[test]
fn the_demo_runs_end_to_end() {
    let output = run(&["demo", "--max-tokens", "4", "--prompt", "Hi"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in
        ["worker-1", "coordinator", "time to first token", "tokens/s in all", "4 answer tokens", "> Hi"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// A Vulkan loader that finds no driver, as on a machine without a GPU.
#[cfg(target_os = "linux")]
#[test]
fn without_a_gpu_auto_is_the_cpu_and_gpu_is_refused() {
    let run = |args: &[&str]| {
        let mut command = kimi();
        command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
        command.args(args).stdin(Stdio::null()).output().unwrap()
    };
    let ask = ["run", "kimi-tiny", "--prompt", "Hi", "--max-tokens", "2"];
    let auto = run(&[&ask[..], &["--log", "info"]].concat());
    assert!(
        auto.status.success() && stderr(&auto).contains("running on the CPU: no GPU"),
        "{}",
        stderr(&auto)
    );
    assert_eq!(stderr(&run(&ask)), "");
    let gpu = run(&[&ask[..], &["--backend", "gpu", "--adapter", "Voodoo"]].concat());
    assert_eq!((gpu.status.code(), gpu.stdout.is_empty()), (Some(1), true));
    assert!(stderr(&gpu).contains("asked for \"Voodoo\", there is none"), "{}", stderr(&gpu));
    let report = json(&run(&["devices", "--json"]));
    assert_eq!(report["gpus"], if cfg!(feature = "gpu") { json!([]) } else { json!(null) });
    assert!(report["cpu"]["name"].as_str().unwrap().starts_with("cpu ("), "{report}");
}

/// Nobody may read what a program says beside its results: the reader has ended (`2>&1 | tee`), or the disk is full.
#[cfg(target_os = "linux")]
#[test]
fn notices_that_cannot_be_written_are_dropped() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let closed = || std::io::pipe().unwrap().1; // whose reader is dropped at once
    let ask = ["run", "kimi-tiny", "--backend", "cpu", "--prompt", "hi", "--max-tokens", "3"];
    let noisy = ["--stats", "--context", "9999999", "--log", "trace"];
    for unread in [Stdio::from(full()), Stdio::from(closed())] {
        let output = kimi().args(ask).args(noisy).stderr(unread).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
        assert_eq!(output.stdout.last(), Some(&b'\n'));
    }
    let failed = kimi().args(["inspect", "no-such-model"]).stderr(full()).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));

    // `| head` is no failure, a full disk is.
    let ended = kimi().args(ask).stdout(closed()).output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", stderr(&ended));
    let lost = kimi().args(ask).stdout(full()).output().unwrap();
    assert_eq!(lost.status.code(), Some(1));
    assert!(stderr(&lost).contains("No space left"), "{}", stderr(&lost));
}

/// A server goes on without a reader of its notices.
#[cfg(target_os = "linux")]
#[test]
fn a_server_without_stdout_and_stderr_answers() {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = probe.local_addr().unwrap();
    drop(probe);
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let port = addr.port().to_string();
    let mut server = kimi()
        .args(["serve", "kimi-tiny", "--backend", "cpu", "--log", "trace", "--port", &port])
        .stdout(full())
        .stderr(full())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    let mut text = String::new();
    while !text.contains("200 OK") {
        assert!(begun.elapsed().as_secs() < 60 && server.try_wait().unwrap().is_none(), "{text}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let Ok(mut socket) = std::net::TcpStream::connect(addr) else { continue };
        socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
        text.clear();
        let _ = std::io::Read::read_to_string(&mut socket, &mut text);
    }
    let stop = |server: &std::process::Child| {
        let pid = server.id().to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap()
    };
    assert!(stop(&server).success());
    assert!(server.wait().unwrap().success());
}

/// A limit of the shell that starts the program, as a service or a container has one.
#[cfg(target_os = "linux")]
fn within(kilobytes: u64, args: &str) -> std::process::Output {
    let program = env!("CARGO_BIN_EXE_kimi");
    let line = format!("ulimit -d {kilobytes} && exec {program} {args}");
    std::process::Command::new("sh")
        .args(["-c", &line])
        .env("HOME", "/nonexistent")
        .env("KIMI_BACKEND", "cpu")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("can't run sh")
}

#[test]
#[cfg(target_os = "linux")]
fn a_cache_that_does_not_fit_is_refused_before_anything_is_loaded() {
    // 1,000,000 tokens of kimi-tiny take 3.8 GB.
    let output = within(2_000_000, "run kimi-tiny --prompt Hello --cache-tokens 1000000");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["cache does not fit", "take 3.8 GB", "ulimit -d", "--cache-tokens", "too little"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("loaded"), "{text}");
    let output = within(2_000_000, "run kimi-tiny --prompt Hello --max-tokens 2 --cache-tokens 4096");
    assert!(output.status.success(), "{}", stderr(&output));
}
