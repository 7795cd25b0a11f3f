//! Finding workers that answer.

use std::time::{Duration, Instant};

use kimi_net::{Coordinator, LinkError};

use super::dialer::{Dialer, Wanted};
use super::routes::RouteError;

/// Pause between two rounds of trying.
const RETRY: Duration = Duration::from_millis(500);

/// A worker that has answered.
pub struct Connected {
    /// The worker.
    pub worker: Wanted,
    /// The link to it.
    pub link: Coordinator,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").field("worker", &self.worker).finish_non_exhaustive()
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
        cause: RouteError,
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

/// Connects to workers until at least `enough` have answered, and returns those that have, in their order.
///
/// # Errors
/// [`ConnectError`]: a worker that answers and refuses ends the search at once.
pub async fn connect(
    peers: &[Wanted],
    enough: usize,
    within: Duration,
    dialer: &Dialer,
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
            match dialer.link(peer).await {
                Ok(link) => {
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
                    if matches!(error, RouteError::NoAddress { .. }) && errors[i].is_empty() {
                        tracing::warn!("worker {}: {error}; waiting for it", peer.id);
                    }
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
    Ok(found.filter_map(|(peer, link)| Some(Connected { worker: peer.clone(), link: link? })).collect())
}

/// Whether trying again is of no use: everything but a machine or a worker that is not up yet.
fn is_final(error: &RouteError) -> bool {
    match error {
        RouteError::NoAddress { .. } => false,
        RouteError::OtherNode { .. } => true,
        RouteError::Link(error) => !matches!(
            error,
            LinkError::Io { .. } | LinkError::Lost { .. } | LinkError::HandshakeTimeout { .. }
        ),
    }
}
