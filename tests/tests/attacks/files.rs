//! What happens to a model's files, before they are served and meanwhile.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kimi_tests::binary::kimi;

use super::serve::{Serve, same, serve};
use super::table::{CHAT, Table, chat, exchange, statuses};

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
