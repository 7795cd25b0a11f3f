//! Workers that announce themselves, for the commands that look for them.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use kimi_core::plan::HumanBytes;
use kimi_net::{ClusterId, Status, Trust};
use tokio::runtime::Handle;

use crate::cli::args::TrustArgs;
use crate::cli::ui;
use crate::cluster::Wanted;
use crate::cluster::look::Question;
use crate::cluster::routes::look_at;
use crate::cluster_key;
use crate::membership::{self, Member, Wait};

/// A worker that was found and has proved its key.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Where it is; the first address is one that answers.
    pub(super) wanted: Wanted,
    /// What it says of itself.
    pub(super) status: Status,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, status } = self;
        let memory = HumanBytes(status.memory_bytes);
        write!(f, "worker {} at {} ({}, {memory})", wanted.id, wanted.target, status.device.escape_debug())
    }
}

impl Peer {
    /// Bytes that its layers may fill: what is free, and what it holds, if it says. What it holds is replaced.
    pub(super) fn free(&self) -> Option<u64> {
        let held = self.status.holding.as_ref();
        let held = held.map_or(0, |held| held.weight_bytes.saturating_add(held.cache_bytes));
        let free = Some(self.status.available_bytes).filter(|free| *free > 0);
        free.map(|free| free.saturating_add(held))
    }

    /// Whether it serves nobody else than `coordinator`; says so if it does.
    pub(super) fn is_free_for(&self, coordinator: &str) -> bool {
        let served = &self.status.coordinator;
        let free = served.is_empty() || served.starts_with(&format!("{coordinator} ("));
        if !free {
            let served = served.escape_debug();
            ui::notice(format_args!("worker {} is left out: it serves coordinator {served}", self.wanted.id));
        }
        free
    }
}

/// The public name of this machine's cluster, if it has a key.
///
/// # Errors
/// A key that is there and can't be used.
pub(super) fn cluster(args: &TrustArgs) -> anyhow::Result<Option<ClusterId>> {
    Ok(cluster_key::find(args.cluster_key_file.as_deref())?.map(|found| found.key.id()))
}

/// Looks for workers of a cluster, and keeps those that answer and are who they say.
///
/// # Errors
/// If multicast DNS can't be used.
pub(super) fn find(
    cluster: ClusterId,
    wait: Wait,
    enough: impl FnMut(&[Member]) -> bool,
    trust: &Trust,
    me: &str,
    runtime: &Handle,
) -> anyhow::Result<Vec<Peer>> {
    let members = membership::find(cluster, wait, enough)?;
    if members.is_empty() {
        return Ok(Vec::new());
    }
    let reached = runtime.block_on(join_all(members.iter().map(|member| reach(member, trust, me))));
    let mut peers = Vec::with_capacity(members.len());
    for (member, reached) in members.iter().zip(reached) {
        match reached {
            Ok(peer) => peers.push(peer),
            Err(reason) => {
                let id = &member.record.node_id;
                ui::notice(format_args!("worker {id} is left out: {}", reason.escape_debug()));
            }
        }
    }
    Ok(peers)
}

/// Where a member may be, as a worker to connect to.
pub(super) fn wanted(member: &Member) -> Wanted {
    let mut targets = member.addresses.iter().map(ToString::to_string);
    let target = targets.next().unwrap_or_default();
    Wanted { id: member.record.node_id.clone(), target, others: targets.collect() }
}

/// Looks at every address of a member; the first that answers is put first. Else the reasons.
async fn reach(member: &Member, trust: &Trust, me: &str) -> Result<Peer, String> {
    let (mut wanted, mut reasons) = (wanted(member), Vec::new());
    let looks = look_at(&member.addresses, &Question::default(), Duration::ZERO, trust, me).await;
    for (address, result) in looks {
        match result {
            Ok(seen) if seen.node_id == wanted.id => {
                let target = address.to_string();
                wanted.others.retain(|other| *other != target);
                let before = std::mem::replace(&mut wanted.target, target);
                if before != wanted.target {
                    wanted.others.push(before);
                }
                return Ok(Peer { wanted, status: seen.status });
            }
            Ok(seen) => reasons.push(format!("{address}: it calls itself {}", seen.node_id)),
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    Err(reasons.join("; "))
}
