//! What happens to a server's process and to its files, and how much memory requests may take of it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kimi_tests::api::PATIENCE;
use kimi_tests::binary::kimi;
use serde_json::{Value, json};

use super::table::{CHAT, Table, chat, exchange, statuses};

/// Most MiB that the process may grow by, whatever it is sent.
const MAX_GROWTH: u64 = 150;
/// Most MiB that it may keep of that.
const MAX_KEPT: u64 = 60;

/// `kimi serve`.
struct Serve {
    process: Child,
    addr: SocketAddr,
}

impl Serve {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        Self { process, addr: ready["address"].as_str().unwrap().parse().unwrap() }
    }

    fn of(model: &Path) -> Self {
        Self::start(&mut serve(model.to_str().unwrap()))
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn end(&mut self) -> Result<ExitStatus, String> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.process.try_wait().unwrap() {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("it did not end".to_owned())
    }

    /// A stream of 1500 tokens that has begun.
    fn stream(&self) -> TcpStream {
        let body = r#"{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1500, "ignore_eos": true, "stream": true}"#;
        let mut socket = TcpStream::connect(self.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&chat("Connection: close\r\n", body)).unwrap();
        socket.read_exact(&mut [0; 500]).unwrap();
        socket
    }

    fn chat(&self) -> Result<(), String> {
        let reply = exchange(self.addr, &chat("Connection: close\r\n", CHAT));
        same(&statuses(&reply), &vec![200])
    }

    /// Resident memory in MiB: now, and at its highest.
    fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let of = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(model: &str) -> Command {
    let mut command = kimi();
    command.args(["serve", model, "--port", "0", "--json", "--backend", "cpu"]).stdin(Stdio::null());
    command
}

fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it too.
    let _ = socket.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}, expected {expected:?}")) }
}

/// A folder with the files of the embedded model.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kimi-core/assets/kimi-tiny");
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[test]
fn processes() {
    let good = Serve::start(&mut serve("kimi-tiny"));
    let mut table = Table::new("processes");
    let mut case = |name: &str, outcome| table.case(name, good.addr, outcome);

    for signal in ["-TERM", "-INT"] {
        let mut server = Serve::start(&mut serve("kimi-tiny"));
        let outcome = server.chat().and_then(|()| {
            server.signal(signal);
            same(&server.end()?.code(), &Some(0))
        });
        case(&format!("{signal} while idle"), outcome);

        let mut server = Serve::start(&mut serve("kimi-tiny"));
        let stream = server.stream();
        server.signal(signal);
        let refused = || -> Result<(), String> {
            // No new connection while the last answer is given.
            let begun = Instant::now();
            while TcpStream::connect(server.addr).is_ok_and(|s| s.set_nodelay(true).is_ok()) {
                if begun.elapsed() > PATIENCE {
                    return Err("it still accepts connections".to_owned());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let refused = refused();
        let text = rest(stream);
        let whole = same(&text.contains("data: [DONE]"), &true);
        let code = server.end().and_then(|status| same(&status.code(), &Some(0)));
        case(&format!("{signal} in a stream: no new connection"), refused);
        case(&format!("{signal} in a stream: it ends whole"), whole);
        case(&format!("{signal} in a stream: success"), code);
    }

    let mut server = Serve::start(&mut serve("kimi-tiny"));
    let stream = server.stream();
    server.signal("-INT");
    std::thread::sleep(Duration::from_millis(100));
    server.signal("-INT");
    let code = server.end().map(|status| status.code());
    // The stream may have come to its end between the two.
    let ended = rest(stream).contains("[DONE]");
    case("-INT twice", code.and_then(|code| same(&(code == Some(130) || (ended && code == Some(0))), &true)));

    let mut server = Serve::start(&mut serve("kimi-tiny"));
    let stream = server.stream();
    server.signal("-KILL");
    same(&server.end().map(|s| s.signal()), &Ok(Some(9))).unwrap();
    let cut = same(&rest(stream).contains("[DONE]"), &false);
    case("-KILL in a stream", cut);
    let port = server.addr.port().to_string();
    let mut again = kimi();
    again.args(["serve", "kimi-tiny", "--port", &port, "--json", "--backend", "cpu"]).stdin(Stdio::null());
    let again = Serve::start(&mut again);
    case("a start at the same port after it", again.chat());

    let server = Serve::start(&mut serve("kimi-tiny"));
    for signal in ["-PIPE", "-CHLD", "-WINCH"] {
        server.signal(signal);
        case(signal, server.chat());
    }
    let stream = server.stream();
    server.signal("-STOP");
    std::thread::sleep(Duration::from_millis(200));
    server.signal("-CONT");
    case("-STOP and -CONT in a stream", same(&rest(stream).contains("[DONE]"), &true));

    for (name, key, value) in [
        ("no home", "HOME", "/nonexistent"),
        ("an empty home", "HOME", ""),
        ("no folder for temporary files", "TMPDIR", "/nonexistent"),
        ("a wrong log level", "KIMI_LOG", "what="),
        ("another language", "LC_ALL", "xx_YY.nonsense"),
        ("few connections", "KIMI_MAX_CONNECTIONS", "2"),
        ("little memory for bodies", "KIMI_BODY_MEMORY", "8"),
    ] {
        case(name, Serve::start(serve("kimi-tiny").env(key, value)).chat());
    }
    for (key, value) in
        [("KIMI_MAX_CONNECTIONS", "0"), ("KIMI_BODY_MEMORY", "much"), ("KIMI_BACKEND", "abacus")]
    {
        let output = kimi().args(["serve", "kimi-tiny", "--port", "0"]).env(key, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).contains(value);
        case(&format!("{key}={value}"), same(&(output.status.code(), said), &(Some(2), true)));
    }

    // Few open files: connections wait for each other, and all are answered in the end.
    let program = kimi().get_program().to_str().unwrap().to_owned();
    let line = format!("ulimit -n 40 && exec {program} serve kimi-tiny --port 0 --json --backend cpu");
    let few = Serve::start(Command::new("sh").args(["-c", &line]).stdin(Stdio::null()));
    let quiet: Vec<_> = (0..100).filter_map(|_| TcpStream::connect(few.addr).ok()).collect();
    drop(quiet);
    case("few open files", few.chat());

    let busy = Serve::start(&mut serve("kimi-tiny"));
    let port = busy.addr.port().to_string();
    let output = kimi().args(["serve", "kimi-tiny", "--port", &port]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).contains(&port);
    case("a port in use", same(&(output.status.code(), said), &(Some(1), true)));
    table.end();
}

/// Cuts a file, or lengthens it with zeros.
fn resize(folder: &Path, name: &str, length: u64) {
    fs::OpenOptions::new().write(true).open(folder.join(name)).unwrap().set_len(length).unwrap();
}

#[test]
fn files() {
    let good = Serve::start(&mut serve("kimi-tiny"));
    let mut table = Table::new("files");
    let shard = "model.safetensors";
    let config = "config.json";
    let original = folder();
    let size = fs::metadata(original.path().join(shard)).unwrap().len();
    let header = {
        let bytes = fs::read(original.path().join(shard)).unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let write = |name: &'static str, bytes: &'static [u8]| -> Damage<'_> {
        Box::new(move |folder| fs::write(folder.join(name), bytes).unwrap())
    };
    let cut = |name: &'static str, length: u64| -> Damage<'_> { Box::new(move |f| resize(f, name, length)) };
    let patch = |at: usize, bytes: &'static [u8]| -> Damage<'_> {
        Box::new(move |folder| {
            let mut all = fs::read(folder.join(shard)).unwrap();
            all[at..at + bytes.len()].copy_from_slice(bytes);
            fs::write(folder.join(shard), all).unwrap();
        })
    };
    let remove =
        |name: &'static str| -> Damage<'_> { Box::new(move |f| fs::remove_file(f.join(name)).unwrap()) };
    let instead = |name: &'static str| -> Damage<'_> {
        Box::new(move |folder| {
            fs::remove_file(folder.join(name)).unwrap();
            fs::create_dir(folder.join(name)).unwrap();
        })
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let page = b"<!DOCTYPE html><html><body>Sign in</body></html>";
    // Each is refused, by the name of the file.
    let damages: Vec<(&str, &str, Damage<'_>)> = vec![
        ("a shard of nothing", shard, cut(shard, 0)),
        ("a shard of 4 bytes", shard, cut(shard, 4)),
        ("a shard of 8 bytes", shard, cut(shard, 8)),
        ("a shard cut in its header", shard, cut(shard, 8 + header / 2)),
        ("a shard cut behind its header", shard, cut(shard, 8 + header)),
        ("a shard cut in its data", shard, cut(shard, size / 2)),
        ("a shard without its last byte", shard, cut(shard, size - 1)),
        ("a shard that is too long", shard, cut(shard, size + 4096)),
        ("a shard whose header is endless", shard, patch(0, &[0xff; 8])),
        ("a shard whose header has no bytes", shard, patch(0, &[0; 8])),
        ("a shard whose header is not JSON", shard, patch(8, b"[[[[[[[[")),
        ("a shard of zeros", shard, patch(0, &[0; 4096])),
        ("a shard that is a pointer", shard, write(shard, pointer)),
        ("a shard that is a page", shard, write(shard, page)),
        ("no shard", "safetensors", remove(shard)),
        ("a folder for a shard", shard, instead(shard)),
        ("no config", config, remove(config)),
        ("an empty config", config, write(config, b"")),
        ("a config that is cut", config, cut(config, 100)),
        ("a config of an array", config, write(config, b"[]")),
        ("a config of another kind", config, write(config, b"{\"model_type\": \"llama\"}")),
        ("a config of bytes", config, write(config, b"\xff\xfe\0\0")),
        ("a config that is a page", config, write(config, page)),
        ("a folder for a config", config, instead(config)),
        ("no tokenizer", "tiktoken.model", remove("tiktoken.model")),
        ("an empty tokenizer", "tiktoken.model", write("tiktoken.model", b"")),
        ("a tokenizer that is cut", "tiktoken.model", cut("tiktoken.model", 1001)),
        ("a tokenizer that is a pointer", "tiktoken.model", write("tiktoken.model", pointer)),
        ("a tokenizer's config that is cut", "tokenizer_config.json", cut("tokenizer_config.json", 50)),
        ("a template that is cut", "chat", cut("chat_template.jinja", 200)),
        ("generation_config of nothing", "generation_config.json", write("generation_config.json", b"")),
    ];
    for (name, file, damage) in damages {
        let folder = folder();
        damage(folder.path());
        let output = kimi()
            .args(["run", folder.path().to_str().unwrap(), "--prompt", "hi", "--backend", "cpu"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let named = text.contains("error:") && text.contains(file) && !text.contains("panicked");
        let outcome = match (output.status.code(), output.stdout.is_empty(), named) {
            (Some(1), true, true) => Ok(()),
            (code, ..) => Err(format!("exit code {code:?}: {text}")),
        };
        table.case(name, good.addr, outcome);
    }

    // While they are served.
    let ask = |server: &Serve| statuses(&exchange(server.addr, &chat("Connection: close\r\n", CHAT)));
    let damages: Vec<(&str, u16, Damage<'_>)> = vec![
        ("config and tokenizer removed while served", 200, {
            Box::new(|folder| {
                for name in [config, "tiktoken.model", "tokenizer_config.json", "chat_template.jinja"] {
                    fs::remove_file(folder.join(name)).unwrap();
                }
            })
        }),
        ("a shard removed while served", 200, remove(shard)),
        ("a shard replaced while served", 200, {
            Box::new(|folder| {
                fs::write(folder.join("new"), vec![0x55; size as usize]).unwrap();
                fs::rename(folder.join("new"), folder.join(shard)).unwrap();
            })
        }),
        ("a shard overwritten while served", 503, patch(8 + header as usize, &[0x55; 100_000])),
        ("a shard lengthened while served", 503, cut(shard, size + 1)),
    ];
    for (name, status, damage) in damages {
        let folder = folder();
        let server = Serve::of(folder.path());
        let before = ask(&server);
        std::thread::sleep(Duration::from_millis(20)); // another time of the file system's clock
        damage(folder.path());
        table.case(name, good.addr, same(&(before, ask(&server)), &(vec![200], vec![status])));
    }
    table.end();
}

#[test]
fn memory() {
    let server = Serve::start(&mut serve("kimi-tiny"));
    server.chat().unwrap();
    let mut table = Table::new("memory");
    let body = |fields: Value| {
        let mut body: Value = serde_json::from_str(CHAT).unwrap();
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        chat("Connection: close\r\n", &body.to_string())
    };
    let text = "word ".repeat(4_000_000);
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let messages: Vec<_> = (0..300_000).map(|_| json!({"role": "user", "content": "a"})).collect();
    let chunks = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec(),
        b"1\r\n \r\n".repeat(2_000_000),
        b"0\r\n\r\n".to_vec(),
    ]
    .concat();
    let large = body(json!({"messages": [{"role": "user", "content": text}]}));
    let requests: Vec<(&str, Vec<u8>)> = vec![
        ("20 MB of text", large.clone()),
        ("20 MB in a tool's description", body(function(json!({"name": "f", "description": text})))),
        ("20 MB in a tool's name", body(function(json!({"name": text})))),
        ("300,000 messages", body(json!({"messages": messages}))),
        ("a million stop strings", body(json!({"stop": vec!["x"; 1_000_000]}))),
        ("a million numbers", body(json!({"logit_bias": vec![1; 1_000_000]}))),
        ("10 MB of empty arrays", body(json!({"messages": vec![json!([]); 3_000_000]}))),
        ("10 MB of brackets", chat("Connection: close\r\n", &"[".repeat(10_000_000))),
        (
            "10 MB of escapes",
            chat("Connection: close\r\n", &CHAT.replace("hi", &"\\u0041".repeat(1_700_000))),
        ),
        ("2,000,000 chunks", chunks),
        ("30 MB of white space", chat("Connection: close\r\n", &" ".repeat(30 << 20))),
    ];
    let (before, _) = server.memory();
    let bounded =
        |server: &Serve| within(server, before, MAX_GROWTH).and_then(|()| given_back(server, before));
    for (name, bytes) in &requests {
        let found = statuses(&exchange(server.addr, bytes));
        let outcome = same(&found, &vec![400]).and_then(|()| bounded(&server));
        table.case(name, server.addr, outcome);
    }
    // Many at once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| exchange(server.addr, &large));
        }
    });
    table.case("8 of 20 MB at once", server.addr, within(&server, before, 250));
    table.case("8 of 20 MB, given back", server.addr, given_back(&server, before));
    let unfinished: Vec<_> = (0..40)
        .map(|_| {
            let mut socket = TcpStream::connect(server.addr).unwrap();
            // A server that has no room for it does not take it.
            let _ = socket.write_all(&large[..10 << 20]);
            socket
        })
        .collect();
    table.case("40 of 20 MB unfinished", server.addr, within(&server, before, 250));
    drop(unfinished);
    table.case("40 of 20 MB, given back", server.addr, given_back(&server, before));
    let heads: Vec<_> = (0..300)
        .map(|_| {
            let mut socket = TcpStream::connect(server.addr).unwrap();
            let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: {}", "a".repeat(60_000));
            let _ = socket.write_all(head.as_bytes());
            socket
        })
        .collect();
    table.case("300 unfinished heads of 60 kB", server.addr, within(&server, before, 150));
    drop(heads);
    table.end();
}

/// Whether the process has never had so many MiB more than before.
fn within(server: &Serve, before: u64, growth: u64) -> Result<(), String> {
    let (_, peak) = server.memory();
    match peak < before + growth {
        true => Ok(()),
        false => Err(format!("{before} MiB before, {peak} MiB at most")),
    }
}

/// Waits until the process has about as much memory as before; its highest is then counted anew.
fn given_back(server: &Serve, before: u64) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let (now, _) = server.memory();
        if now < before + MAX_KEPT {
            fs::write(format!("/proc/{}/clear_refs", server.process.id()), "5").unwrap();
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{before} MiB before, {now} MiB after"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
