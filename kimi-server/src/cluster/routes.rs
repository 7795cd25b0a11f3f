//! The ways to a worker: each of its addresses is measured, and the best one is taken that answers.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kimi_net::{Coordinator, LinkError, Trust, Tuning};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout_at};

use super::dialer::{Dialer, Wanted};
use super::look::{Question, Seen, look};

/// Addresses of a worker that are tried.
const MAX_ROUTES: usize = 16;

/// How long other addresses are waited for once one has answered.
pub(crate) const GRACE: Duration = Duration::from_millis(700);

/// Why there is no link to a worker.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RouteError {
    /// None of its names has an address.
    #[error("can't look up {target}: {cause}")]
    NoAddress {
        /// The name.
        target: String,
        /// What the system says.
        cause: String,
    },
    /// Another node is there.
    #[error(
        "the worker there calls itself {found:?}, expected {wanted:?}; give it --node-id {wanted}, or correct the id or \
         the address in the discovery file"
    )]
    OtherNode {
        /// The name looked for.
        wanted: String,
        /// Its name.
        found: String,
    },
    /// The link could not be made.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Connects to a worker by the best of its routes.
///
/// # Errors
/// [`RouteError`] of the best route, where several were tried.
pub(super) async fn connect(peer: &Wanted, dialer: &Dialer) -> Result<Coordinator, RouteError> {
    let mut ranked = resolve(peer).await?;
    if ranked.len() > 1 {
        let (seen, silent) = measure(&ranked, &dialer.trust, &dialer.node_id).await;
        let (ours, others): (Vec<_>, Vec<_>) = seen.into_iter().partition(|seen| seen.node_id == peer.id);
        if let Some(best) = ours.first() {
            let all: Vec<_> = ours.iter().map(describe).collect();
            tracing::warn!("worker {}: using {}; its routes are {}", peer.id, best.address, all.join(", "));
        }
        // Those that could not be measured come after: a link may fail for a moment. Other nodes are there for the message.
        let silent = silent.into_iter().map(|(address, _)| address);
        let address = |seen: &Seen| seen.address;
        ranked = ours.iter().map(address).chain(silent).chain(others.iter().map(address)).collect();
    }
    let mut first_error = None;
    for address in ranked {
        match connect_at(peer, address, dialer).await {
            Ok(link) => return Ok(link),
            Err(error) => _ = first_error.get_or_insert(error),
        }
    }
    Err(first_error.unwrap_or_else(|| no_address(peer, "it has no address")))
}

async fn connect_at(peer: &Wanted, address: SocketAddr, dialer: &Dialer) -> Result<Coordinator, RouteError> {
    let link = kimi_net::connect(address, &dialer.trust, &Tuning::default(), dialer.config()).await?;
    let found = link.peer().node_id.clone();
    if found != peer.id {
        link.close("another node was looked for").await;
        return Err(RouteError::OtherNode { wanted: peer.id.clone(), found });
    }
    Ok(link)
}

/// The addresses of a worker, those of its first target first.
pub(crate) async fn resolve(peer: &Wanted) -> Result<Vec<SocketAddr>, RouteError> {
    let (mut addresses, mut error) = (Vec::new(), None);
    for target in std::iter::once(&peer.target).chain(&peer.others) {
        match lookup_host(target.as_str()).await {
            Ok(found) => {
                for address in found.take(MAX_ROUTES) {
                    if !addresses.contains(&address) && addresses.len() < MAX_ROUTES {
                        addresses.push(address);
                    }
                }
            }
            Err(cause) => {
                let target = target.clone();
                error = error.or(Some(RouteError::NoAddress { target, cause: cause.to_string() }));
            }
        }
    }
    match addresses.is_empty() {
        true => Err(error.unwrap_or_else(|| no_address(peer, "it has no address"))),
        false => Ok(addresses),
    }
}

fn no_address(peer: &Wanted, cause: &str) -> RouteError {
    RouteError::NoAddress { target: peer.target.clone(), cause: cause.to_owned() }
}

/// Looks at all addresses at the same time, and returns them in the order of their answers. Once one has answered, the
/// others have `grace`: an address that leads nowhere would take seconds.
pub(crate) async fn look_at(
    addresses: &[SocketAddr],
    question: &Question,
    grace: Duration,
    trust: &Trust,
    node_id: &str,
) -> Vec<(SocketAddr, Result<Seen, LinkError>)> {
    let one = |address: SocketAddr| async move { (address, look(address, trust, node_id, question).await) };
    let mut looks: FuturesUnordered<_> = addresses.iter().copied().map(one).collect();
    let mut results: Vec<(SocketAddr, Result<Seen, LinkError>)> = Vec::with_capacity(addresses.len());
    let mut until = None;
    while let Some(next) = match until {
        None => looks.next().await,
        Some(until) => timeout_at(until, looks.next()).await.unwrap_or(None),
    } {
        if next.1.is_ok() && until.is_none() {
            until = Some(Instant::now() + grace);
        }
        results.push(next);
    }
    for address in addresses {
        if !results.iter().any(|(answered, _)| answered == address) {
            results.push((*address, Err(LinkError::HandshakeTimeout { after: grace })));
        }
    }
    results
}

/// Measures addresses: those that answer, best first, and those that do not.
pub(super) async fn measure(
    addresses: &[SocketAddr],
    trust: &Trust,
    node_id: &str,
) -> (Vec<Seen>, Vec<(SocketAddr, LinkError)>) {
    let (mut seen, mut silent) = (Vec::new(), Vec::new());
    for (address, result) in look_at(addresses, &Question::default(), GRACE, trust, node_id).await {
        match result {
            Ok(found) => seen.push(found),
            Err(error) => silent.push((address, error)),
        }
    }
    // Bandwidths one after another: routes may share a cable.
    if seen.len() > 1 {
        let question = Question { bandwidth: true, ..Question::default() };
        for route in &mut seen {
            if let Ok(measured) = look(route.address, trust, node_id, &question).await {
                *route = measured;
            }
        }
    }
    seen.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
    (seen, silent)
}

/// A route for people.
pub fn describe(seen: &Seen) -> String {
    let rate = seen.bandwidth.map(|b| format!(", {:.0} MB/s", b.to.min(b.from) / 1e6)).unwrap_or_default();
    format!("{} ({:.2} ms{rate})", seen.address, seen.round_trip.as_secs_f64() * 1e3)
}
