//! `kimi worker`.

use std::io::Read;

use anyhow::Context;
use kimi_net::{Listener, Tuning};
use serde_json::json;

use super::Outcome;
use crate::cli::args::WorkerArgs;
use crate::cli::{defaults, ui};
use crate::cluster::worker::{WorkerConfig, serve};
use crate::discovery::Discovery;
use crate::host::Host;
use crate::models::Lookup;
use crate::system;

/// Serves coordinators until Ctrl-C.
///
/// # Errors
/// If the model is not found or the address can't be listened on.
pub fn run(args: &WorkerArgs) -> anyhow::Result<Outcome> {
    if args.exit_with_stdin {
        exit_with_stdin()?;
    }
    let lookup = Lookup::of_this_machine(args.models.as_deref())?;
    let model = match &args.default_model {
        Some(name) => Some(super::with_config(lookup.find(name)?.open()?, args.config.as_deref())?),
        None => None,
    };
    let node_id = args.node.node_id.clone().unwrap_or_else(system::host_name);
    let (host, port) = address(args, &node_id)?;
    let trust = super::trust(&args.trust)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let addr = host.lookup(port).await?;
        let listener = Listener::bind(addr, trust, Tuning::default()).await;
        let listener = listener.map_err(|e| super::listen_error(e, addr, "--node-port"))?;
        let addr = listener.local_addr()?;
        if args.json {
            super::print_json(&json!({ "event": "listening", "address": addr, "node_id": node_id }))?;
        } else {
            ui::tell(format_args!(
                "worker {node_id} listens on {addr}, waiting for a coordinator; Ctrl-C ends it"
            ));
        }
        let config = WorkerConfig { node_id, model, lookup, device: args.device.choice() };
        tokio::select! {
            result = serve(listener, config) => result.context("the worker can't go on")?,
            () = super::asked_to_stop() => {}
        }
        Ok::<_, anyhow::Error>(())
    })?;
    runtime.shutdown_background(); // a stage that is computing is not waited for
    Ok(Outcome::Success)
}

/// Every address of this machine, IPv4's too.
const ALL_ADDRESSES: &str = "::";

/// Flags first, then the discovery file, then the defaults.
fn address(args: &WorkerArgs, node_id: &str) -> anyhow::Result<(Host, u16)> {
    let peer = match &args.node.discovery_config_path {
        Some(path) => Some(Discovery::read(path)?.peer(node_id)?.clone()),
        None => None,
    };
    let port = args.node_port.or(peer.as_ref().map(|p| p.port)).unwrap_or(defaults::NODE_PORT);
    let host = match (&args.node_host, peer) {
        (Some(host), _) => host.parse().context("--node-host")?,
        // It is to be reached at all of them.
        (None, Some(peer)) if !peer.others.is_empty() => ALL_ADDRESSES.parse()?,
        (None, Some(peer)) => peer.host,
        (None, None) => defaults::NODE_HOST.parse()?,
    };
    Ok((host, port))
}

/// Ends the process when standard input does: its writer has ended.
fn exit_with_stdin() -> anyhow::Result<()> {
    let watch = || {
        let mut byte = [0];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut byte).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    };
    std::thread::Builder::new().name("kimi-stdin".into()).spawn(watch)?;
    Ok(())
}
