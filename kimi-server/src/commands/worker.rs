//! `kimi worker`.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use kimi_core::DeviceChoice;
use kimi_net::{Listener, Trust, Tuning, Versions};
use serde_json::json;

use super::Outcome;
use crate::capacity::Capacity;
use crate::cli::args::WorkerArgs;
use crate::cli::{defaults, ui};
use crate::cluster::worker::{WorkerConfig, serve};
use crate::discovery::Discovery;
use crate::host::Host;
use crate::membership::{self, Announced, MembershipError, Record, Spoken};
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
        let listener = listen(&host, port, &trust).await?;
        let addr = listener.local_addr()?;
        let device = args.device.choice();
        let announced = if args.no_mdns { None } else { announce(&node_id, addr, &device, &trust) };
        if args.json {
            super::print_json(&json!({ "event": "listening", "address": addr, "node_id": node_id }))?;
        } else {
            ui::tell(format_args!(
                "worker {node_id} listens on {addr}, waiting for a coordinator{}; Ctrl-C ends it",
                if announced.is_some() { ", and announces itself" } else { "" }
            ));
        }
        let config = WorkerConfig { node_id, model, lookup, device };
        let served = serve(listener, config, super::asked_to_stop()).await;
        drop(announced);
        served.context("the worker can't go on")
    })?;
    runtime.shutdown_background(); // a stage that is computing is not waited for
    Ok(Outcome::Success)
}

/// Every address of this machine, IPv4's too.
const ALL_ADDRESSES: &str = "::";

/// Listens; where this machine has no IPv6, on all of IPv4 in place of all addresses.
async fn listen(host: &Host, port: u16, trust: &Trust) -> anyhow::Result<Listener> {
    let addr = host.lookup(port).await?;
    let mut bound = Listener::bind(addr, trust.clone(), Tuning::default()).await;
    if bound.is_err() && addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        bound = Listener::bind(v4, trust.clone(), Tuning::default()).await;
    }
    bound.map_err(|e| super::listen_error(e, addr, "--node-port"))
}

/// Announces this worker to the machines of its cluster. What keeps it from doing so is said: it serves all the same.
fn announce(node_id: &str, addr: SocketAddr, device: &DeviceChoice, trust: &Trust) -> Option<Announced> {
    let Trust::Key(key) = trust else { return None };
    if addr.ip().is_loopback() {
        return None; // nobody else can reach it
    }
    let Capacity { device, memory, .. } = Capacity::of(device);
    let record = Record::new(node_id, memory.max(1), &device, Spoken(Versions::OURS), key.id());
    let announced =
        record.map_err(MembershipError::from).and_then(|record| membership::announce(&record, addr));
    announced.unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    })
}

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
        // Only those with the key get in.
        (None, None) if !args.trust.insecure => ALL_ADDRESSES.parse()?,
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
