//! `kimi ps`: what runs on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kimi_core::plan::HumanBytes;
use serde_json::json;
use tokio::time::timeout;

use super::{Outcome, nodes};
use crate::cli::args::PsArgs;
use crate::cli::defaults;
use crate::cli::ui::Table;
use crate::client;
use crate::cluster::look::{Question, look};
use crate::monitor::{LoadState, ModelState, ModelStatus, Snapshot};
use crate::system;

/// How long a program may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Shows the servers and the worker that answer on this machine's ports.
///
/// # Errors
/// If the cluster's key can't be read.
pub fn run(args: &PsArgs) -> anyhow::Result<Outcome> {
    let runtime = super::runtime()?;
    let ports = if args.port.is_empty() { vec![defaults::HTTP_PORT] } else { args.port.clone() };
    let mut rows = Vec::new();
    for port in ports {
        if let Some(snapshot) = runtime.block_on(server(port)) {
            rows.extend(snapshot.models.iter().map(|model| model_row(model, port)));
        }
    }
    rows.extend(runtime.block_on(worker(args)));
    if args.json {
        let value = |[what, port, model, state, requests]: &[String; 5]| json!({ "what": what, "port": port, "model": model, "state": state, "requests": requests });
        super::print_json(&rows.iter().map(value).collect::<Vec<_>>())?;
    } else if rows.is_empty() {
        super::print(
            "nothing of kimi answers on this machine's ports; `kimi ps --port N` asks at another one\n",
        )?;
    } else {
        let mut table = Table::new(&["", "port", "model", "state", "requests"], &[1]);
        rows.into_iter().for_each(|row| table.row(row));
        super::print(&table.to_string())?;
    }
    Ok(Outcome::Success)
}

async fn server(port: u16) -> Option<Snapshot> {
    let address = format!("{}:{port}", defaults::HTTP_HOST);
    let (_, body) = timeout(PATIENCE, client::get(&address, "/health")).await.ok()?.ok()?;
    serde_json::from_slice(&body).ok()
}

fn model_row(model: &ModelState, port: u16) -> [String; 5] {
    let state = match (model.status, &model.loading, &model.reason) {
        (ModelStatus::Ok, ..) => "ready".to_owned(),
        (
            ModelStatus::Loading,
            Some(LoadState { kernels_made: Some(made), kernels_total: Some(total), .. }),
            _,
        ) => {
            format!("loading, {made} of {total} kernels made")
        }
        (ModelStatus::Loading, Some(load), _) => {
            format!("loading, {} of {}", HumanBytes(load.loaded_bytes), HumanBytes(load.total_bytes))
        }
        (ModelStatus::Loading, None, _) => "loading".to_owned(),
        (ModelStatus::Recovering, ..) => "waits for a lost stage".to_owned(),
        (ModelStatus::Unavailable, _, reason) => reason.clone().unwrap_or_else(|| "down".to_owned()),
    };
    let requests = format!("{} run, {} wait", model.sequences.running, model.sequences.waiting);
    ["server".to_owned(), port.to_string(), model.id.clone(), state, requests]
}

/// The worker at its usual port, if this machine has the cluster's key; workers tell nobody else.
async fn worker(args: &PsArgs) -> Option<[String; 5]> {
    let trust = crate::cluster_key::find(args.cluster_key_file.as_deref()).ok().flatten()?;
    let trust = kimi_net::Trust::Key(trust.key);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, defaults::NODE_PORT));
    let (me, question) = (system::host_name(), Question::default());
    let looked = look(address, &trust, &me, &question);
    let seen = timeout(PATIENCE, looked).await.ok()?.ok()?;
    let port = address.port().to_string();
    Some(["worker".to_owned(), port, String::new(), nodes::holds(&seen.status), String::new()])
}
