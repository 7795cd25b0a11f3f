//! Finding workers that answer.

use std::time::{Duration, Instant};

use kimi_core::fingerprint::Description;
use kimi_net::{Config, Coordinator, LinkError, Tuning};

use super::wire;

/// Pause between two rounds of trying.
const RETRY: Duration = Duration::from_millis(500);

/// A worker to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub id: String,
    /// `host:port`.
    pub target: String,
}

/// A worker that has answered.
pub struct Connected {
    /// Its name.
    pub id: String,
    /// The link to it.
    pub link: Coordinator,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A worker that will not do, however long one waits.
    #[error("worker {id} at {target}: {cause}")]
    Refused {
        /// The worker.
        id: String,
        /// Its address.
        target: String,
        /// Why.
        cause: LinkError,
    },
    /// A worker with another checkpoint.
    #[error("worker {id} at {target}: the checkpoints differ: {difference}")]
    Checkpoint {
        /// The worker.
        id: String,
        /// Its address.
        target: String,
        /// What differs, and what to do.
        difference: String,
    },
    /// Too few have answered in time.
    #[error(
        "{found} of {wanted} workers answered within {after:?}. Missing:{}\nStart `kimi worker` on them, or ask for \
         fewer with --wait-for-peers", missing.iter().map(|m| format!("\n  {m}")).collect::<String>()
    )]
    TooFew {
        /// Workers that answered.
        found: usize,
        /// Workers asked for.
        wanted: usize,
        /// How long was waited.
        after: Duration,
        /// Each missing one, with the last error.
        missing: Vec<String>,
    },
}

/// Holds the checkpoint that a worker describes, if it has one already, against this side's.
fn compare(peer: &Wanted, link: &Coordinator, checkpoint: &Description) -> Result<(), ConnectError> {
    let theirs = link.peer().checkpoint.as_ref().map(wire::from_description);
    match theirs.and_then(|theirs| checkpoint.difference(&theirs)) {
        None => Ok(()),
        Some(difference) => Err(ConnectError::Checkpoint {
            id: peer.id.clone(),
            target: peer.target.clone(),
            difference: difference.between("here", &format!("on {}", peer.id)),
        }),
    }
}

/// Connects to workers until at least `enough` have answered, and returns those that have, in their order.
///
/// # Errors
/// [`ConnectError`]: a worker that answers and refuses ends the search at once.
pub async fn connect(
    peers: &[Wanted],
    enough: usize,
    within: Duration,
    insecure: bool,
    node_id: &str,
    checkpoint: &Description,
) -> Result<Vec<Connected>, ConnectError> {
    let started = Instant::now();
    let mut links: Vec<Option<Coordinator>> = peers.iter().map(|_| None).collect();
    let mut errors: Vec<String> = vec![String::new(); peers.len()];
    let enough = enough.min(peers.len());
    loop {
        for (i, peer) in peers.iter().enumerate() {
            if links[i].as_ref().is_some_and(|link| link.closed_reason().is_none()) {
                continue;
            }
            links[i] = None; // a link that has ended is no worker found
            let config = Config::new(node_id);
            match kimi_net::connect(peer.target.as_str(), insecure, &Tuning::default(), config).await {
                Ok(link) => {
                    compare(peer, &link, checkpoint)?;
                    tracing::info!(worker = peer.id, target = peer.target, "connected");
                    links[i] = Some(link);
                }
                Err(cause) if is_final(&cause) => {
                    return Err(ConnectError::Refused {
                        id: peer.id.clone(),
                        target: peer.target.clone(),
                        cause,
                    });
                }
                Err(error) => {
                    tracing::debug!(worker = peer.id, %error, "no answer yet");
                    errors[i] = error.to_string();
                }
            }
        }
        let found = links.iter().flatten().count();
        if found >= enough {
            break;
        }
        if started.elapsed() >= within {
            let missing = peers.iter().zip(&links).zip(errors).filter(|((_, link), _)| link.is_none());
            let missing =
                missing.map(|((p, _), error)| format!("{} at {}: {error}", p.id, p.target)).collect();
            return Err(ConnectError::TooFew { found, wanted: enough, after: within, missing });
        }
        tokio::time::sleep(RETRY.min(within)).await;
    }
    let found = peers.iter().zip(links);
    Ok(found.filter_map(|(peer, link)| Some(Connected { id: peer.id.clone(), link: link? })).collect())
}

/// Whether trying again is of no use: everything but a machine or a worker that is not up yet.
fn is_final(error: &LinkError) -> bool {
    !matches!(error, LinkError::Io { .. } | LinkError::Lost { .. } | LinkError::HandshakeTimeout { .. })
}
