//! The `kimi` binary that stands beside the running test.

use std::path::PathBuf;
use std::process::Command;

/// A command that runs `kimi`.
///
/// `cargo test --workspace` has built it already; a test run by itself builds it first.
///
/// # Panics
/// If it can't be built: then no test of it makes sense.
pub fn kimi() -> Command {
    let mut command = Command::new(path());
    // Settings and keys of whoever runs the tests.
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

#[allow(clippy::expect_used, clippy::panic)]
fn path() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    // target/PROFILE/deps/TEST-HASH
    let profile = test.parent().and_then(|deps| deps.parent()).expect("a target folder");
    let binary = profile.join(format!("kimi{}", std::env::consts::EXE_SUFFIX));
    if !binary.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "-p", "kimi-server", "--bin", "kimi", "--target-dir"]);
        cargo.arg(profile.parent().expect("a target folder"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().is_ok_and(|s| s.success()), "can't build the kimi binary");
    }
    binary
}
