//! The API as OpenAI's own Python package sees it (openai_client.py).
//!
//! Takes the Python of `KIMI_PYTHON`, else `python3`. Where the package is not installed the test is skipped, unless
//! `KIMI_REQUIRE_OPENAI=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use kimi_core::ChatEvent;
use kimi_core::engine::EngineError;
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, tiny};
use kimi_tests::script::{Script, two_calls};

fn python() -> OsString {
    std::env::var_os("KIMI_PYTHON").unwrap_or_else(|| "python3".into())
}

#[test]
fn the_openai_package_works() {
    let found = Command::new(python()).args(["-c", "import openai"]).output();
    if !found.as_ref().is_ok_and(|output| output.status.success()) {
        let required = std::env::var_os("KIMI_REQUIRE_OPENAI").is_some_and(|value| value == "1");
        assert!(!required, "{:?} can't import openai: {found:?}", python());
        eprintln!("skipped: {:?} has no package openai (pip install openai)", python());
        return;
    }
    let failed = ChatEvent::Failed(EngineError::Down { reason: "a worker is lost".to_owned() });
    let broken = vec![ChatEvent::Content("Once".to_owned()), failed];
    let models = vec![
        ServedModel::new(tiny()),
        ServedModel::new(Script { id: "caller", events: two_calls(), ..Script::default() }),
        ServedModel::new(Script { id: "broken", events: broken, ..Script::default() }),
    ];
    let server = Server::start(models, HttpConfig::default());
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let output = Command::new(python())
        .arg(client)
        .arg(format!("http://{}", server.addr))
        .output()
        .expect("a run of Python");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("\nall "), "{out}");
}
