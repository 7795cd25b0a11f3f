//! `kimi serve`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::engine::Engine;
use kimi_core::plan::{ModelBytes, Plan};
use kimi_core::stage::CacheConfig;
use kimi_core::{ChatFiles, ChatModel, ModelOptions};
use serde_json::json;
use tokio::runtime::Handle;

use super::Outcome;
use crate::cli::args::ServeArgs;
use crate::cli::ui;
use crate::cluster::{self, Built, Placement, Wanted};
use crate::discovery::Discovery;
use crate::host::{Host, LookupError};
use crate::local::LocalCluster;
use crate::models::FoundModel;
use crate::placement::{self, PlanTable};
use crate::serving;

/// Serves the API until Ctrl-C.
///
/// # Errors
/// If the model, the discovery file, the port or a worker can't be used.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let runtime = super::runtime()?;
    let host: Host = args.host.parse().context("--host")?;
    let addr = runtime.block_on(host.lookup(args.port))?;
    let listener = serving::bind(addr, args.insecure).map_err(|e| super::listen_error(e, addr, "--port"))?;
    let addr = listener.local_addr()?;
    let (found, checkpoint) = super::open(&args.model, None)?;
    let files = ChatFiles::open(&checkpoint)?;
    let prompt_time = Some(Duration::from_millis(args.prompt_time));
    let options = ModelOptions { prompt_time, ..args.cache.options() };
    let cache = options.cache(&checkpoint);
    let started = Instant::now();
    let (plan, built) = match &args.node.discovery_config_path {
        Some(path) => {
            with_workers(args, &Discovery::read(path)?, &found, &checkpoint, cache, runtime.handle())?
        }
        None => alone(args, &found, &checkpoint, cache, runtime.handle())?,
    };
    let seconds = started.elapsed().as_secs_f64();
    ui::notice(format_args!("loaded in {seconds:.1} s on {}", built.devices.join(", ")));
    let model = ChatModel::start(files, &checkpoint, built.stages, &options)?;
    let _stops = super::Stops(model.engine().clone());
    model.engine().recover_with(cluster::reload_last(&checkpoint, &args.device.choice(), &plan, cache))?;
    args.cache.note_limit(model.context_tokens());
    announce(args, addr, &found.id, model.context_tokens())?;
    let stop = stop(model.engine().clone());
    let served = serving::served(&found.id, model, &plan, &built.devices, built.mapped);
    runtime.block_on(serving::serve(listener, served, stop))?;
    Ok(Outcome::Success)
}

/// Waits for Ctrl-C. Answers under way may end after it; a second Ctrl-C ends the program at once.
async fn stop(engine: Engine) {
    super::asked_to_stop().await;
    let scheduler = engine.stats().scheduler;
    let answers = scheduler.running + scheduler.waiting;
    if answers > 0 {
        let noun = if answers == 1 { "answer" } else { "answers" };
        ui::notice(format_args!("finishing {answers} {noun}; Ctrl-C again ends now"));
    }
    tokio::spawn(async {
        super::asked_to_stop().await;
        std::process::exit(130); // as after SIGINT
    });
}

/// All layers in this process.
fn alone(
    args: &ServeArgs,
    found: &FoundModel,
    checkpoint: &Checkpoint,
    cache: CacheConfig,
    runtime: &Handle,
) -> anyhow::Result<(Plan, Built)> {
    let bytes = ModelBytes::of(checkpoint)?;
    let tokens = cache.pages * cache.page_tokens;
    let cluster = LocalCluster::start(found, checkpoint, &bytes, 1, tokens, None, &args.device.choice())?;
    show(&found.id, cluster.plan(), false);
    let built = cluster.build(checkpoint, cache, &load_bars(cluster.plan()), runtime)?;
    Ok((cluster.plan().clone(), built))
}

/// The last layers in this process, the others on the machines of the discovery file.
fn with_workers(
    args: &ServeArgs,
    discovery: &Discovery,
    found: &FoundModel,
    checkpoint: &Checkpoint,
    cache: CacheConfig,
    runtime: &Handle,
) -> anyhow::Result<(Plan, Built)> {
    let bytes = ModelBytes::of(checkpoint)?;
    let Some(me) = args.node.node_id.as_deref() else {
        anyhow::bail!("which of the machines in the discovery file is this one? Give --node-id")
    };
    let mut nodes = placement::cluster_nodes(discovery, Some(me), args.usable_memory)?;
    let others = discovery.peers.iter().filter(|p| p.id != me);
    let wanted = others.map(|p| Ok(Wanted { id: p.id.clone(), target: p.target()? }));
    let wanted = wanted.collect::<Result<Vec<_>, LookupError>>()?;
    let enough = args.wait_for_peers.unwrap_or(wanted.len());
    anyhow::ensure!(
        enough <= wanted.len(),
        "--wait-for-peers {enough}, but the discovery file has only {} other machines",
        wanted.len()
    );
    let all = wanted.len();
    ui::notice(format_args!("waiting for {enough} of {all} workers, at most {} s", args.peer_timeout));
    let within = Duration::from_secs(args.peer_timeout);
    let workers = runtime.block_on(cluster::connect(&wanted, enough, within, args.insecure, me))?;
    nodes.retain(|node| node.id == me || workers.iter().any(|w| w.id == node.id));
    let plan = Plan::new(&bytes, &nodes, cache.pages * cache.page_tokens)?;
    show(&found.id, &plan, true);
    let watch = load_bars(&plan);
    let device = &args.device.choice();
    let placement = Placement { plan: &plan, workers, cache, model: &found.id, device };
    let built = cluster::build(checkpoint, placement, runtime, &watch)?;
    Ok((plan, built))
}

fn show(id: &str, plan: &Plan, limits: bool) {
    ui::notice(format_args!("{}\n{}", ui::stderr_style().bold(id), PlanTable { plan, limits }));
}

fn load_bars(plan: &Plan) -> cluster::LoadWatch {
    Arc::new(ui::load_bars(&plan.stages.iter().map(|s| s.node.clone()).collect::<Vec<_>>()))
}

fn announce(args: &ServeArgs, addr: SocketAddr, id: &str, context: usize) -> anyhow::Result<()> {
    if args.json {
        return super::print_json(&json!({
            "event": "listening", "address": addr, "url": format!("http://{addr}/v1"), "model": id,
            "context_tokens": context,
        }));
    }
    ui::tell(format_args!(
        "{id} is served at http://{addr}/v1 (context {context} tokens; state at http://{addr}/health). Try\n  \
         curl http://{addr}/v1/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"model\": \"{id}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\nCtrl-C ends it"
    ));
    Ok(())
}
