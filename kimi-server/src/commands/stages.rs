//! The stages of a model, for `run` and `serve`: all in this process, or with the machines of the cluster.

use std::sync::Arc;
use std::time::Duration;

use kimi_core::DeviceChoice;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::{ModelBytes, Node, Plan, PlanError, USABLE_MEMORY};
use kimi_core::stage::CacheConfig;
use kimi_net::Trust;
use tokio::runtime::Handle;

use super::peers::{self, Peer};
use crate::capacity::Capacity;
use crate::chips;
use crate::cli::args::PeerArgs;
use crate::cli::ui;
use crate::cluster::{self, Built, ClusterStatus, Dialer, Placement, Recovery, Wanted};
use crate::discovery::{self, Discovery};
use crate::host::LookupError;
use crate::local::LocalCluster;
use crate::membership::{Member, Wait};
use crate::models::FoundModel;
use crate::placement::{self, PlanTable};
use crate::rates;

/// How long to look for workers that announce themselves, where the model fits this machine alone.
const LOOK: Duration = Duration::from_millis(1500);
/// The same where it does not.
const PATIENT_LOOK: Duration = Duration::from_secs(10);

/// What is to be loaded, and on what here.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) found: &'a FoundModel,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) cache: CacheConfig,
    pub(super) device: &'a DeviceChoice,
    /// Is told what the nodes do.
    pub(super) status: &'a ClusterStatus,
    /// Is told the plan before it is carried out, and whether its nodes are machines with limits of their own.
    pub(super) planned: &'a dyn Fn(&Plan, bool) -> anyhow::Result<()>,
}

/// Stages that are loaded, and what becomes of them if they are lost.
pub(super) struct Stages {
    pub(super) built: Built,
    pub(super) recovery: Recovery,
}

/// The machines of a cluster and this one, which is the last.
struct Team {
    nodes: Vec<Node>,
    wanted: Vec<Wanted>,
    /// Of those.
    enough: usize,
    me: String,
    trust: Trust,
}

impl Model<'_> {
    fn tokens(&self) -> usize {
        self.cache.tokens()
    }
}

/// Loads all stages: with the machines of the discovery file, or without a file with those that announce themselves, or
/// alone.
///
/// # Errors
/// If the file, the key or a worker can't be used, or the model does not fit.
pub(super) fn start(args: &PeerArgs, model: &Model<'_>, runtime: &Handle) -> anyhow::Result<Stages> {
    let bytes = ModelBytes::of(model.checkpoint)?;
    let team = match &args.node.discovery_config_path {
        Some(path) => Some(listed(args, &Discovery::read(path)?, model.device)?),
        None => announced(args, &bytes, model, runtime)?,
    };
    match team {
        Some(team) => with_workers(args, team, &bytes, model, runtime),
        None => {
            anyhow::ensure!(
                args.placement.layers.is_empty(),
                "--layers says which machine holds which layers, but there is no other machine; `kimi nodes` shows who is there"
            );
            alone(&bytes, model, runtime)
        }
    }
}

/// All layers in this process.
fn alone(bytes: &ModelBytes, model: &Model<'_>, runtime: &Handle) -> anyhow::Result<Stages> {
    let Model { found, checkpoint, cache, device, .. } = *model;
    let cluster = LocalCluster::start(found, checkpoint, bytes, 1, model.tokens(), None, device)?;
    (model.planned)(cluster.plan(), false)?;
    let placement = Placement { status: model.status.clone(), ..cluster.placement(cache) };
    let watch = load_bars(cluster.plan());
    let built = cluster::build(checkpoint, &placement, Vec::new(), runtime, &watch)?;
    let recovery = Recovery::new(checkpoint, placement, Vec::new(), Vec::new(), runtime.clone());
    Ok(Stages { built, recovery })
}

/// The last layers in this process, the others on workers.
fn with_workers(
    args: &PeerArgs,
    team: Team,
    bytes: &ModelBytes,
    model: &Model<'_>,
    runtime: &Handle,
) -> anyhow::Result<Stages> {
    let Team { mut nodes, wanted, enough, me, trust } = team;
    placement::set_by_hand(&mut nodes, &args.placement)?; // before anybody is waited for
    let all = wanted.len();
    ui::notice(format_args!("waiting for {enough} of {all} workers, at most {} s", args.peer_timeout));
    let within = Duration::from_secs(args.peer_timeout);
    let dialer = Dialer::new(me.as_str(), trust);
    let workers = runtime.block_on(cluster::connect(&wanted, enough, within, &dialer))?;
    nodes.retain(|node| node.id == me || workers.iter().any(|w| w.worker.id == node.id));
    let last = rates::recall(model.checkpoint);
    last.iter().for_each(|last| rates::apply(last, &mut nodes));
    let force = args.placement.force;
    let plan = placement::plan_to_carry_out(bytes, &nodes, model.tokens(), force, last.as_ref())?;
    (model.planned)(&plan, true)?;
    let watch = load_bars(&plan);
    let Model { found, checkpoint, cache, device, status, .. } = *model;
    let placement = Placement {
        status: status.clone(),
        ..Placement::new(plan, cache, &found.id, device.clone(), dialer)
    };
    let holders: Vec<_> = workers.iter().map(|w| w.worker.clone()).collect();
    let built = cluster::build(checkpoint, &placement, workers, runtime, &watch)?;
    let spares = wanted.into_iter().filter(|worker| !holders.contains(worker)).collect();
    let recovery = Recovery::new(checkpoint, placement, holders, spares, runtime.clone());
    Ok(Stages { built, recovery })
}

/// The machines of a file.
fn listed(args: &PeerArgs, discovery: &Discovery, device: &DeviceChoice) -> anyhow::Result<Team> {
    let Some(me) = args.node.node_id.as_deref() else {
        anyhow::bail!("which of the machines in the discovery file is this one? Give --node-id")
    };
    let mut nodes = placement::cluster_nodes(discovery, Some(me), args.placement.usable_memory)?;
    if let Some(own) = nodes.last_mut() {
        own.free = Capacity::of(device).free(0);
    }
    let others = discovery.peers.iter().filter(|p| p.id != me);
    let wanted = others.map(discovery::Peer::wanted).collect::<Result<Vec<_>, LookupError>>()?;
    let enough = args.wait_for_peers.unwrap_or(wanted.len());
    anyhow::ensure!(
        enough <= wanted.len(),
        "--wait-for-peers {enough}, but the discovery file has only {} other machines",
        wanted.len()
    );
    Ok(Team { nodes, wanted, enough, me: me.to_owned(), trust: super::trust(&args.trust)? })
}

/// The machines that announce themselves, if there are any to plan with.
fn announced(
    args: &PeerArgs,
    bytes: &ModelBytes,
    model: &Model<'_>,
    runtime: &Handle,
) -> anyhow::Result<Option<Team>> {
    let asked = args.wait_for_peers;
    anyhow::ensure!(
        !(args.no_mdns && asked.is_some_and(|n| n > 0)),
        "--wait-for-peers without --discovery-config-path looks for workers that announce themselves, which --no-mdns forbids"
    );
    if args.no_mdns || asked == Some(0) {
        return Ok(None);
    }
    let Some(cluster) = peers::cluster(&args.trust)? else {
        return match asked {
            Some(_) => Err(super::key::missing(crate::cluster_key::default_path())),
            None => Ok(None), // nobody can be found without a key
        };
    };
    let mut me = args.node.node_id.clone().unwrap_or_else(crate::system::host_name);
    let usable = args.placement.usable_memory.unwrap_or(USABLE_MEMORY);
    let memory = |bytes| if bytes == 0 { u64::MAX >> 8 } else { bytes }; // 0 where the system does not say
    let here = Capacity::of(model.device);
    let own = Node {
        free: here.free(0),
        rate: chips::rate_of(&here.device),
        ..Node::new(me.as_str(), memory(here.memory), usable)
    };
    let plan = |workers: Vec<Node>| {
        let nodes: Vec<_> = workers.into_iter().chain([own.clone()]).collect();
        Plan::new(bytes, &nodes, model.tokens())
    };
    let fits_here = plan(Vec::new());
    let named = |members: &[Member]| {
        let mut ids = args.placement.layers.iter().map(|set| &set.node).filter(|id| **id != me);
        ids.all(|id| members.iter().any(|member| member.record.node_id == *id))
    };
    let within = match (asked, &fits_here) {
        (None, Ok(_)) if !named(&[]) => PATIENT_LOOK,
        (Some(_), _) => Duration::from_secs(args.peer_timeout),
        (None, Ok(_)) => LOOK,
        (None, Err(reason)) => {
            ui::notice(format_args!("alone, {reason}\nLooking for workers, at most {PATIENT_LOOK:?}"));
            PATIENT_LOOK
        }
    };
    let at_least = if asked.is_some() { Duration::ZERO } else { LOOK };
    let enough = |members: &[Member]| match asked {
        Some(n) => members.len() >= n,
        None => {
            let claim = |m: &Member| Node::new(m.record.node_id.as_str(), memory(m.record.memory), usable);
            named(members) && plan(members.iter().map(claim).collect()).is_ok()
        }
    };
    let trust = super::trust(&args.trust)?;
    let mut workers = peers::find(cluster, Wait { within, at_least }, enough, &trust, &me, runtime)?;
    workers.retain(|worker| worker.is_free_for(&me));
    workers.truncate(bytes.layers.len().saturating_sub(1));
    if let Some(asked) = asked.filter(|asked| workers.len() < *asked) {
        anyhow::bail!(
            "--wait-for-peers {asked}, but {} workers of cluster {cluster} were found within {within:?}. Start `kimi worker` on \
             the others, with this cluster's key; `kimi nodes` shows who is there",
            workers.len()
        );
    }
    if workers.is_empty() {
        return Ok(None);
    }
    let node = |w: &Peer| Node {
        free: w.free(),
        rate: chips::rate_of(&w.status.device),
        ..Node::new(w.wanted.id.as_str(), memory(w.status.memory_bytes), usable)
    };
    let offered: Vec<_> = workers.iter().map(node).collect();
    if let (Err(reason @ PlanError::DoesNotFit { .. }), Ok(_)) = (plan(offered.clone()), &fits_here) {
        ui::notice(format_args!("with the workers that were found, {reason}\nUsing this machine alone"));
        return Ok(None);
    }
    for worker in &workers {
        ui::notice(format_args!("found {worker}"));
    }
    if workers.iter().any(|worker| worker.wanted.id == me) {
        me += "-coordinator"; // a worker on this machine has its name
    }
    let nodes = offered.into_iter().chain([Node { id: me.clone(), ..own.clone() }]).collect();
    let enough = workers.len();
    Ok(Some(Team { nodes, wanted: workers.into_iter().map(|w| w.wanted).collect(), enough, me, trust }))
}

/// Says on stderr who gets which layers.
pub(super) fn show(id: &str, plan: &Plan, limits: bool) {
    ui::notice(format_args!("{}\n{}", ui::stderr_style().bold(id), PlanTable { plan, limits }));
}

fn load_bars(plan: &Plan) -> cluster::LoadWatch {
    Arc::new(ui::load_bars(&plan.stages.iter().map(|s| s.node.clone()).collect::<Vec<_>>()))
}
