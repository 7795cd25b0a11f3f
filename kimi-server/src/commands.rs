//! What each command does.

pub mod api_key;
pub mod bench;
pub mod completions;
pub mod config;
pub mod demo;
pub mod devices;
pub mod doctor;
pub mod inspect;
pub mod key;
pub mod local;
pub mod man;
pub mod nodes;
mod peers;
pub mod plan;
pub mod ps;
pub mod pull_layers;
pub mod run;
pub mod serve;
mod stages;
pub mod top;
pub mod verify;
pub mod worker;

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::engine::Engine;
use kimi_core::weights::Weights;
use kimi_net::Trust;
use serde::Serialize;

use crate::cli::args::{Command, ModelArgs, TrustArgs};
use crate::cli::ui;
use crate::cluster_key;
use crate::models::{FoundModel, Lookup};

/// How a command ended, when it did what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Exit code 1: the answer is no (a check failed, a model does not fit); the reason is printed.
    Failure,
}

/// Runs a command.
///
/// # Errors
/// What kept it from doing what it was asked to.
pub fn run(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Worker(args) => worker::run(&args),
        Command::Key(args) => key::run(&args),
        Command::ApiKey(args) => api_key::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Nodes(args) => nodes::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Top(args) => top::run(&args),
        Command::List(args) => local::list(&args),
        Command::Show(args) => local::show(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Rm(args) => local::rm(&args),
        Command::Plan(args) => plan::run(&args),
        Command::PullLayers(args) => pull_layers::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

/// How long a command that ends waits for the batches that are being computed.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// Stops an engine when it is dropped, and waits for it: the driver of a GPU may crash if the program ends under it.
struct Stops(Engine);

impl Drop for Stops {
    fn drop(&mut self) {
        if !self.0.shutdown(STOP_WAIT) {
            tracing::warn!("a batch is still computed {STOP_WAIT:?} after the end; not waiting for it");
        }
    }
}

/// The command's one async runtime, for the API and the links to workers.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    const THREADS: usize = 4;
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?)
}

/// Finds and opens the model of a command, with another `config.json` if one is given.
fn open(args: &ModelArgs, config: Option<&Path>) -> anyhow::Result<(FoundModel, Checkpoint)> {
    let lookup = Lookup::of_this_machine(args.models.as_deref())?;
    let found = lookup.find(args.name()?)?;
    let checkpoint = with_config(found.open()?, config)?;
    if let Some(unread) = Weights::new(&checkpoint).unread() {
        tracing::warn!("{}: {unread}; kimi runs the text model", checkpoint.name());
    }
    Ok((found, checkpoint))
}

/// With whom this machine links. Without a key it links with nobody, unless it is told to do so in the clear.
fn trust(args: &TrustArgs) -> anyhow::Result<Trust> {
    if args.insecure {
        let warning = "--insecure: links are neither encrypted nor authenticated. Whoever reaches them reads every prompt \
                       and answer and can answer in a machine's place. For measuring, on networks that you trust";
        ui::notice(ui::stderr_style().error(warning));
        return Ok(Trust::Insecure);
    }
    match cluster_key::find(args.cluster_key_file.as_deref())? {
        Some(found) => {
            tracing::info!(cluster = %found.key.id(), place = found.place, "the cluster's key");
            Ok(Trust::Key(found.key))
        }
        None => Err(key::missing(cluster_key::default_path())),
    }
}

fn with_config(checkpoint: Checkpoint, config: Option<&Path>) -> anyhow::Result<Checkpoint> {
    let Some(path) = config else { return Ok(checkpoint) };
    let json = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    checkpoint.with_config_json(&json).with_context(|| path.display().to_string())
}

/// Prints to stdout; an error if nobody reads it.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints one line of JSON.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Says which port is taken and which flag changes it.
fn listen_error(error: impl Into<anyhow::Error>, addr: SocketAddr, flag: &str) -> anyhow::Error {
    let error: anyhow::Error = error.into();
    let in_use = error.chain().any(|cause| match cause.downcast_ref::<kimi_net::LinkError>() {
        Some(kimi_net::LinkError::Io { kind, .. }) => *kind == ErrorKind::AddrInUse,
        _ => cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::AddrInUse),
    });
    match in_use {
        true => anyhow::anyhow!(
            "port {} on {} is in use by another program, perhaps another kimi. Stop it or choose another port with {flag}",
            addr.port(),
            addr.ip()
        ),
        false => error,
    }
}

/// Waits for Ctrl-C or, on Unix, SIGTERM.
async fn asked_to_stop() {
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "can't wait for Ctrl-C");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => _ = signal.recv().await,
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
