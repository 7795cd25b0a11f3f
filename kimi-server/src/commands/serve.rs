//! `kimi serve`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::{ModelBytes, Plan};
use kimi_core::stage::CacheConfig;
use kimi_core::{ChatFiles, ChatModel, ModelOptions};
use serde_json::json;
use tokio::runtime::Handle;

use super::Outcome;
use crate::cli::args::ServeArgs;
use crate::cli::ui;
use crate::cluster::{self, Built, ClusterStatus, Dialer, Placement, Recovery};
use crate::discovery::{Discovery, Peer};
use crate::host::{Host, LookupError};
use crate::local::LocalCluster;
use crate::models::FoundModel;
use crate::placement::{self, PlanTable};
use crate::serving::{self, Slot};

/// Serves the API until Ctrl-C.
///
/// # Errors
/// If the model, the discovery file, the port or a worker can't be used.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let runtime = super::runtime()?;
    let host: Host = args.host.parse().context("--host")?;
    let addr = runtime.block_on(host.lookup(args.port))?;
    let listener = serving::bind(addr, args.open_api).map_err(|e| super::listen_error(e, addr, "--port"))?;
    let addr = listener.local_addr()?;
    let (found, checkpoint) = super::open(&args.model, None)?;
    let files = ChatFiles::open(&checkpoint)?;
    let options = ModelOptions {
        prompt_time: Some(Duration::from_millis(args.prompt_time)),
        recovery: Duration::from_secs(args.recovery_timeout),
        ..args.cache.options()
    };
    let discovery = args.node.discovery_config_path.as_deref().map(Discovery::read).transpose()?;
    let status = ClusterStatus::default();
    let slot = Slot::new(&found.id, &checkpoint, options.context(&checkpoint), status.clone());
    // From here on the API says how far loading is.
    let server =
        runtime.spawn(serving::serve(listener, slot.served(), args.http.config(), stop(slot.clone())));
    let started = Instant::now();
    let loading = Load {
        args,
        found: &found,
        checkpoint: &checkpoint,
        cache: options.cache(&checkpoint),
        runtime: runtime.handle(),
        status,
        slot: &slot,
    };
    let (built, mut recovery) = match &discovery {
        Some(discovery) => loading.with_workers(discovery)?,
        None => loading.alone()?,
    };
    let seconds = started.elapsed().as_secs_f64();
    ui::notice(format_args!("loaded in {seconds:.1} s on {}", built.devices.join(", ")));
    let model = ChatModel::start(files, &checkpoint, built.stages, &options)?;
    let _stops = super::Stops(model.engine().clone());
    let _search = recovery.guard();
    model.engine().recover_with(move |lost| recovery.replace(lost))?;
    args.cache.note_limit(model.context_tokens());
    slot.loaded(model, built.devices, built.mapped);
    announce(args, addr, &found.id, options.context(&checkpoint))?;
    runtime.block_on(server)??;
    Ok(Outcome::Success)
}

/// Waits for Ctrl-C. Answers under way may end after it; a second Ctrl-C ends the program at once, as the first does while
/// the model is being loaded.
async fn stop(slot: Slot) {
    const INTERRUPTED: i32 = 130; // as after SIGINT
    super::asked_to_stop().await;
    let Some(model) = slot.model() else { std::process::exit(INTERRUPTED) };
    let scheduler = model.stats().scheduler;
    let answers = scheduler.running + scheduler.waiting;
    if answers > 0 {
        let noun = if answers == 1 { "answer" } else { "answers" };
        ui::notice(format_args!("finishing {answers} {noun}; Ctrl-C again ends now"));
    }
    tokio::spawn(async {
        super::asked_to_stop().await;
        std::process::exit(INTERRUPTED);
    });
}

/// What is loaded, and where it is told.
struct Load<'a> {
    args: &'a ServeArgs,
    found: &'a FoundModel,
    checkpoint: &'a Checkpoint,
    cache: CacheConfig,
    runtime: &'a Handle,
    status: ClusterStatus,
    slot: &'a Slot,
}

impl Load<'_> {
    /// All layers in this process.
    fn alone(self) -> anyhow::Result<(Built, Recovery)> {
        let Self { args, found, checkpoint, cache, runtime, .. } = self;
        let bytes = ModelBytes::of(checkpoint)?;
        let tokens = cache.pages * cache.page_tokens;
        let cluster = LocalCluster::start(found, checkpoint, &bytes, 1, tokens, None, &args.device.choice())?;
        show(&found.id, cluster.plan(), false);
        let placement = Placement { status: self.status, ..cluster.placement(cache) };
        self.slot.planned(cluster.plan());
        let watch = load_bars(cluster.plan());
        let built = cluster::build(checkpoint, &placement, Vec::new(), runtime, &watch)?;
        let recovery = Recovery::new(checkpoint, placement, Vec::new(), Vec::new(), runtime.clone());
        Ok((built, recovery))
    }

    /// The last layers in this process, the others on the machines of the discovery file.
    fn with_workers(self, discovery: &Discovery) -> anyhow::Result<(Built, Recovery)> {
        let Self { args, found, checkpoint, cache, runtime, .. } = self;
        let bytes = ModelBytes::of(checkpoint)?;
        let Some(me) = args.node.node_id.as_deref() else {
            anyhow::bail!("which of the machines in the discovery file is this one? Give --node-id")
        };
        let mut nodes = placement::cluster_nodes(discovery, Some(me), args.usable_memory)?;
        let others = discovery.peers.iter().filter(|p| p.id != me);
        let wanted = others.map(Peer::wanted).collect::<Result<Vec<_>, LookupError>>()?;
        let enough = args.wait_for_peers.unwrap_or(wanted.len());
        anyhow::ensure!(
            enough <= wanted.len(),
            "--wait-for-peers {enough}, but the discovery file has only {} other machines",
            wanted.len()
        );
        let all = wanted.len();
        ui::notice(format_args!("waiting for {enough} of {all} workers, at most {} s", args.peer_timeout));
        let within = Duration::from_secs(args.peer_timeout);
        let dialer = Dialer::new(me, super::trust(&args.trust)?);
        let workers = runtime.block_on(cluster::connect(&wanted, enough, within, &dialer))?;
        nodes.retain(|node| node.id == me || workers.iter().any(|w| w.worker.id == node.id));
        let plan = Plan::new(&bytes, &nodes, cache.pages * cache.page_tokens)?;
        show(&found.id, &plan, true);
        self.slot.planned(&plan);
        let watch = load_bars(&plan);
        let placement = Placement {
            status: self.status,
            ..Placement::new(plan, cache, &found.id, args.device.choice(), dialer)
        };
        let holders: Vec<_> = workers.iter().map(|w| w.worker.clone()).collect();
        let built = cluster::build(checkpoint, &placement, workers, runtime, &watch)?;
        let spares = wanted.into_iter().filter(|worker| !holders.contains(worker)).collect();
        let recovery = Recovery::new(checkpoint, placement, holders, spares, runtime.clone());
        Ok((built, recovery))
    }
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
