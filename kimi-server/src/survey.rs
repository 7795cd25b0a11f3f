//! Who is in the cluster, and how well each is reached: what `kimi nodes` and `kimi doctor` look at.

use std::net::SocketAddr;

use futures_util::future::join_all;
use kimi_net::Trust;

use crate::cluster::look::{Question, Seen, look};
use crate::cluster::routes::{GRACE, look_at, resolve};
use crate::cluster::{RouteError, Wanted};
use crate::network::{Interface, interface_to};

/// A node that was looked for.
#[derive(Debug, Clone)]
pub struct Surveyed {
    /// Its name, by the file or its announcement.
    pub id: String,
    /// Its addresses; none where its name has none.
    pub addresses: Vec<SocketAddr>,
    /// Its routes, best first; those to other nodes are not among them.
    pub routes: Vec<Route>,
    /// What did not lead to it, and why.
    pub failed: Vec<(String, RouteError)>,
}

/// A way to a node.
#[derive(Debug, Clone)]
pub struct Route {
    /// What was seen there.
    pub seen: Seen,
    /// This machine's interface that leads there.
    pub interface: Option<Interface>,
}

/// Looks at all nodes; `model` names files that they are to look at, or is empty.
pub async fn survey(nodes: &[Wanted], model: &str, trust: &Trust, node_id: &str) -> Vec<Surveyed> {
    let mut found = join_all(nodes.iter().map(|node| find(node, model, trust, node_id))).await;
    // Bandwidths one after another: links may share a port.
    let question = Question { bandwidth: true, ..Question::default() };
    for node in &mut found {
        for route in &mut node.routes {
            if let Ok(measured) = look(route.seen.address, trust, node_id, &question).await {
                route.seen.bandwidth = measured.bandwidth;
                route.seen.round_trip = route.seen.round_trip.min(measured.round_trip);
            }
        }
        node.routes.sort_by(|a, b| a.seen.cost().total_cmp(&b.seen.cost()));
    }
    found
}

/// Every address of a node at the same time: one that does not answer takes seconds.
async fn find(node: &Wanted, model: &str, trust: &Trust, node_id: &str) -> Surveyed {
    let mut surveyed =
        Surveyed { id: node.id.clone(), addresses: Vec::new(), routes: Vec::new(), failed: Vec::new() };
    match resolve(node).await {
        Ok(addresses) => surveyed.addresses = addresses,
        Err(error) => surveyed.failed.push((node.target.clone(), error)),
    }
    let question = Question { model: model.to_owned(), bandwidth: false };
    let results = look_at(&surveyed.addresses, &question, GRACE, trust, node_id).await;
    for (address, result) in results {
        match result {
            Ok(seen) if seen.node_id != node.id => {
                let error = RouteError::OtherNode { wanted: node.id.clone(), found: seen.node_id };
                surveyed.failed.push((address.to_string(), error));
            }
            Ok(seen) => surveyed.routes.push(Route { interface: interface_to(address), seen }),
            Err(error) => surveyed.failed.push((address.to_string(), error.into())),
        }
    }
    // An address of one link was heard on another one too; that it leads nowhere there is no fault.
    let reached = !surveyed.routes.is_empty();
    let on_one_link = |place: &str| place.starts_with("[fe80:");
    surveyed.failed.retain(|(place, _)| !(reached && on_one_link(place)));
    surveyed
}
