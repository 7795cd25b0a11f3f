//! `kimi serve`, as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kimi_tests::api::PATIENCE;
use kimi_tests::binary::kimi;
use serde_json::Value;

use super::table::{CHAT, chat, exchange, statuses};

/// `kimi serve`.
pub(super) struct Serve {
    pub(super) process: Child,
    pub(super) addr: SocketAddr,
}

impl Serve {
    pub(super) fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        Self { process, addr: ready["address"].as_str().unwrap().parse().unwrap() }
    }

    pub(super) fn of(model: &Path) -> Self {
        Self::start(&mut serve(model.to_str().unwrap()))
    }

    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(super) fn end(&mut self) -> Result<ExitStatus, String> {
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
    pub(super) fn stream(&self) -> TcpStream {
        let body = r#"{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1500, "ignore_eos": true, "stream": true}"#;
        let mut socket = TcpStream::connect(self.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&chat("Connection: close\r\n", body)).unwrap();
        socket.read_exact(&mut [0; 500]).unwrap();
        socket
    }

    pub(super) fn chat(&self) -> Result<(), String> {
        let reply = exchange(self.addr, &chat("Connection: close\r\n", CHAT));
        same(&statuses(&reply), &vec![200])
    }

    /// Resident memory in MiB: now, and at its highest.
    pub(super) fn memory(&self) -> (u64, u64) {
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

pub(super) fn serve(model: &str) -> Command {
    let mut command = kimi();
    command.args(["serve", model, "--port", "0", "--json", "--backend", "cpu"]).stdin(Stdio::null());
    command
}

pub(super) fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it too.
    let _ = socket.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}, expected {expected:?}")) }
}
