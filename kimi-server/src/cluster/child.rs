//! Workers as processes of this machine.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kimi_core::{DeviceChoice, DeviceKind};
use kimi_net::ClusterKey;
use serde::Deserialize;

use super::Wanted;
use crate::cluster_key;

/// How long a worker may take to listen: it reads the model's headers first.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long a worker may take to end when it is told to.
const END_WAIT: Duration = Duration::from_secs(2);

/// A `kimi worker` on loopback that ends with its owner: it reads a pipe that this process holds open, so it ends too if
/// this process is killed.
#[derive(Debug)]
pub struct WorkerProcess {
    id: String,
    address: SocketAddr,
    child: Child,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The `kimi` program.
    pub program: PathBuf,
    /// The model's path or name on this machine.
    pub model: String,
    /// A `config.json` in place of the checkpoint's.
    pub config: Option<PathBuf>,
    /// What it computes on.
    pub device: DeviceChoice,
    /// The key that its links need.
    pub key: ClusterKey,
}

/// A worker that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program can't be run.
    #[error("can't start {program}: {cause}", program = program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It ended, said something else or nothing.
    #[error("worker {id} did not start: {reason}")]
    Silent {
        /// The worker.
        id: String,
        /// What was seen in place of its address.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Listening {
    address: SocketAddr,
}

impl WorkerCommand {
    /// For workers of this very program.
    ///
    /// # Errors
    /// If the system does not know the program's file.
    pub fn new(
        model: String,
        config: Option<&Path>,
        device: &DeviceChoice,
        key: &ClusterKey,
    ) -> std::io::Result<Self> {
        let (config, device, key) = (config.map(Path::to_owned), device.clone(), key.clone());
        Ok(Self { program: std::env::current_exe()?, model, config, device, key })
    }

    /// Starts a worker and waits until it listens.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn start(&self, id: &str) -> Result<WorkerProcess, StartError> {
        let mut command = Command::new(&self.program);
        command.args([
            "worker",
            "--node-host",
            "127.0.0.1",
            "--node-port",
            "0",
            "--json",
            "--exit-with-stdin",
        ]);
        command.args(["--node-id", id, "--default-model", &self.model]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.args(["--backend", backend_name(self.device.kind)]);
        command.args(self.device.adapter.iter().flat_map(|name| ["--adapter", name]));
        if let Some(bytes) = self.device.memory {
            command.arg("--gpu-memory").arg((bytes as f64 / 1e9).to_string());
        }
        if let Some(threads) = self.device.threads {
            command.arg("--threads").arg(threads.to_string());
        }
        if self.device.idle_clocks {
            command.arg("--idle-clocks");
        }
        if let Some(time) = self.device.keep_alive {
            command.arg("--keep-alive").arg(time.as_secs().to_string());
        }
        if let Some(chip) = self.device.as_metal {
            command.arg(format!("--as-metal={}", chip.short_name()));
        }
        // Not as an argument: those can be read by every user of the machine.
        command.env(cluster_key::VARIABLE, self.key.to_text().as_str());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let spawned = command.spawn();
        let child = spawned.map_err(|cause| StartError::Program { program: self.program.clone(), cause })?;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut worker = WorkerProcess { id: id.to_owned(), address, child }; // ends with this scope on error
        worker.address = worker.read_address()?;
        Ok(worker)
    }
}

fn backend_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Auto => "auto",
        DeviceKind::Cpu => "cpu",
        DeviceKind::Gpu => "gpu",
    }
}

impl WorkerProcess {
    fn read_address(&mut self) -> Result<SocketAddr, StartError> {
        let silent = |reason: String| StartError::Silent { id: self.id.clone(), reason };
        let Some(stdout) = self.child.stdout.take() else {
            return Err(silent("it has no output".to_owned()));
        };
        let (sender, line) = mpsc::channel();
        let read = move || {
            let mut text = String::new();
            let result = BufReader::new(stdout).read_line(&mut text).map(|_| text);
            // Nobody waits any more after the time limit.
            let _ = sender.send(result);
        };
        thread::Builder::new().name("kimi-child".into()).spawn(read).map_err(|e| silent(e.to_string()))?;
        match line.recv_timeout(START_WAIT) {
            Ok(Ok(text)) if text.is_empty() => Err(silent("it ended; its messages are above".to_owned())),
            Ok(Ok(text)) => match serde_json::from_str::<Listening>(&text) {
                Ok(listening) => Ok(listening.address),
                Err(error) => Err(silent(format!("it said {text:?} ({error})"))),
            },
            Ok(Err(error)) => Err(silent(error.to_string())),
            Err(_) => Err(silent(format!("it does not listen after {START_WAIT:?}"))),
        }
    }

    /// Where to connect to it.
    pub fn wanted(&self) -> Wanted {
        Wanted::at(self.id.clone(), self.address.to_string())
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // the worker ends when it sees this
        let deadline = Instant::now() + END_WAIT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        tracing::warn!(worker = self.id, "does not end by itself; killing it");
        // Errors mean that it has ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
