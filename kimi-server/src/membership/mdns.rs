//! Announcing and finding workers by multicast DNS.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use kimi_net::{ClusterId, Versions};
use mdns_sd::{
    DaemonEvent, IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo,
};

use super::record::{Record, RecordError};

/// The service as DNS-SD names it.
const SERVICE: &str = "_kimi._tcp.local.";
/// Workers that are looked at; anyone can announce any number.
const MAX_MEMBERS: usize = 32;
/// Addresses of a worker that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long to wait for more addresses, and more workers, once there are enough.
const SETTLE: Duration = Duration::from_millis(300);
/// Time for the last words of a worker that ends.
const GOODBYE: Duration = Duration::from_millis(500);

/// What kept multicast DNS from working.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The system.
    #[error("can't use multicast DNS: {0}")]
    Multicast(#[from] mdns_sd::Error),
    /// This node can't be announced.
    #[error("can't announce this worker: {0}; --node-id names it, --no-mdns keeps it quiet")]
    Record(#[from] RecordError),
}

/// A worker of this cluster, as it or somebody else announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it says of itself.
    pub record: Record,
    /// Where it may be: addresses of which some may not be reached from here.
    pub addresses: Vec<SocketAddr>,
}

/// How long to look.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// Without enough workers.
    pub within: Duration,
    /// With enough of them too: others may be slower to answer.
    pub at_least: Duration,
}

/// An announcement; it is taken back when this is dropped.
pub struct Announced {
    daemon: ServiceDaemon,
    name: String,
}

impl std::fmt::Debug for Announced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announced").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        // Those who listen drop it by themselves after a while if this is not heard.
        if let Ok(gone) = self.daemon.unregister(&self.name) {
            let _ = gone.recv_timeout(GOODBYE);
        }
        let _ = self.daemon.shutdown();
    }
}

/// Announces a worker that listens on an address; `None` for one that only this machine reaches.
///
/// # Errors
/// [`MembershipError`].
pub fn announce(record: &Record, listening: SocketAddr) -> Result<Option<Announced>, MembershipError> {
    if listening.ip().is_loopback() {
        return Ok(None);
    }
    let daemon = ServiceDaemon::new()?;
    // A label of DNS has 63 bytes at most. Clusters may have nodes of the same name.
    let instance =
        format!("{} {}", short(&record.node_id, 40, |_| true), short(&record.cluster, 8, |_| true));
    let host =
        short(&record.node_id.replace(['.', '_', ' '], "-"), 40, |c| c.is_ascii_alphanumeric() || c == '-');
    let host = format!("kimi-{host}-{}.local.", listening.port());
    let ip = listening.ip();
    let addresses = if ip.is_unspecified() { String::new() } else { ip.to_string() };
    let mut info = ServiceInfo::new(
        SERVICE,
        &instance,
        &host,
        addresses.as_str(),
        listening.port(),
        &record.pairs()[..],
    )?;
    if ip.is_unspecified() {
        let v4_only = ip.is_ipv4();
        let reachable = IfPredicate::new(move |interface| {
            !interface.is_loopback() && (interface.ip().is_ipv4() || !v4_only)
        });
        info.set_interfaces(vec![IfKind::Predicate(reachable)]);
        info = info.enable_addr_auto();
    }
    let name = info.get_fullname().to_owned();
    daemon.register(info)?;
    Ok(Some(Announced { daemon, name }))
}

/// Looks for workers of a cluster until `enough` says that there are, or the time is over.
///
/// # Errors
/// [`MembershipError::Multicast`].
pub fn find(
    cluster: ClusterId,
    wait: Wait,
    mut enough: impl FnMut(&[Member]) -> bool,
) -> Result<Vec<Member>, MembershipError> {
    let daemon = ServiceDaemon::new()?;
    let (events, errors) = (daemon.browse(SERVICE)?, daemon.monitor()?);
    let started = Instant::now();
    let (earliest, mut latest) = (started + wait.at_least.min(wait.within), started + wait.within);
    let mut found = Found { cluster: cluster.to_string(), by_name: HashMap::new() };
    let mut satisfied = false;
    loop {
        let event = events.recv_deadline(latest);
        match event {
            Ok(ServiceEvent::ServiceResolved(service)) => found.take(&service),
            Ok(ServiceEvent::ServiceRemoved(_, name)) => _ = found.by_name.remove(&name),
            Ok(_) => continue,
            Err(_) => break, // the time is over, or the daemon
        }
        if !satisfied && enough(&found.members()) {
            satisfied = true;
            latest = latest.min(earliest.max(Instant::now() + SETTLE));
        }
    }
    note_errors(&errors);
    let _ = daemon.shutdown(); // ends by itself where it can't be told
    Ok(found.members())
}

fn note_errors(events: &Receiver<DaemonEvent>) {
    for event in events.try_iter() {
        if let DaemonEvent::Error(error) = event {
            tracing::debug!(%error, "multicast DNS");
        }
    }
}

/// What was found so far, by the names of the announcements.
struct Found {
    cluster: String,
    by_name: HashMap<String, Member>,
}

impl Found {
    /// Takes in an announcement, if it is one of this cluster.
    fn take(&mut self, service: &ResolvedService) {
        let name = &service.fullname;
        let value = |key: &str| service.get_property_val(key).flatten().map(<[u8]>::to_vec);
        let record = match Record::parse(value) {
            Ok(record) => record,
            Err(error) => {
                return tracing::debug!(?name, %error, "ignored an announcement that is none of kimi's");
            }
        };
        let id = &record.node_id;
        if record.cluster != self.cluster {
            return tracing::debug!(
                id,
                theirs = record.cluster,
                ours = self.cluster,
                "ignored a worker of another cluster"
            );
        }
        if Versions::OURS.common(record.versions.0).is_none() {
            let (theirs, ours) = (record.versions.0, Versions::OURS);
            return tracing::debug!(
                id, %theirs, %ours, release = record.software,
                "ignored a worker that speaks other versions of the protocol; run the same release of kimi everywhere"
            );
        }
        let addresses = addresses(service.get_addresses().iter(), service.get_port());
        if addresses.is_empty() {
            return tracing::debug!(id, "ignored a worker without an address that can be reached");
        }
        if self.by_name.len() >= MAX_MEMBERS && !self.by_name.contains_key(name) {
            return tracing::debug!(id, "ignored a worker: there are {MAX_MEMBERS} already");
        }
        self.by_name.insert(name.clone(), Member { record, addresses });
    }

    /// The workers in the order of their ids, which differ.
    fn members(&self) -> Vec<Member> {
        let mut named: Vec<_> = self.by_name.iter().collect();
        named.sort_by(|(a, x), (b, y)| (&x.record.node_id, a).cmp(&(&y.record.node_id, b)));
        let mut members: Vec<Member> = named.into_iter().map(|(_, member)| member.clone()).collect();
        members.dedup_by(|again, first| {
            let same = again.record.node_id == first.record.node_id;
            if same {
                let (id, place) = (&again.record.node_id, &again.addresses);
                tracing::debug!(
                    id,
                    ?place,
                    "two workers have the same id; one is left out. Give it another --node-id"
                );
            }
            same
        });
        members
    }
}

/// The addresses that another machine can have, in order: those of IPv6 that hold on one link with their interface.
fn addresses<'a>(found: impl Iterator<Item = &'a ScopedIp>, port: u16) -> Vec<SocketAddr> {
    if port == 0 {
        return Vec::new();
    }
    let place = |ip: &ScopedIp| match ip {
        ScopedIp::V4(v4) => Some(SocketAddr::from((*v4.addr(), port))),
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            let interface = v6.scope_id().index;
            (interface != 0).then(|| SocketAddrV6::new(*v6.addr(), port, 0, interface).into())
        }
        ScopedIp::V6(v6) => Some(SocketAddr::from((*v6.addr(), port))),
        _ => None,
    };
    let mut list: Vec<_> = found.filter_map(place).filter(|address| usable(address.ip())).collect();
    list.sort_unstable();
    list.dedup();
    list.truncate(MAX_ADDRESSES);
    list
}

/// Whether another machine can have this address.
fn usable(ip: IpAddr) -> bool {
    let no_host = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_broadcast() || matches!(v4.octets()[0], 0 | 240..),
        IpAddr::V6(_) => false,
    };
    let ip = ip.to_canonical();
    !(no_host || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// At most `max` bytes of a text, of the characters that are kept.
fn short(text: &str, max: usize, kept: impl Fn(char) -> bool) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| kept(*c)) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn addresses_of_no_other_machine_are_left_out() {
        let texts = [
            "10.0.0.2",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "fd00::2",
            "::",
            "::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "fe80::1", // no interface: nobody can reach it
        ];
        let ips: Vec<ScopedIp> = texts.iter().map(|t| t.parse::<IpAddr>().unwrap().into()).collect();
        let list = addresses(ips.iter(), 7);
        assert_eq!(list, ["10.0.0.2:7".parse().unwrap(), "[fd00::2]:7".parse().unwrap()]);
        assert!(addresses(ips.iter(), 0).is_empty());
        let many: Vec<ScopedIp> = (0..200).map(|i| IpAddr::from(Ipv4Addr::new(10, 0, 0, i)).into()).collect();
        assert_eq!(addresses(many.iter(), 7).len(), MAX_ADDRESSES);
    }

    #[test]
    fn workers_on_loopback_are_not_announced() {
        let cluster = kimi_net::ClusterKey::generate().unwrap().id();
        let record = Record::new("w", 1 << 30, "cpu", super::super::Spoken(Versions::OURS), cluster).unwrap();
        for address in ["127.0.0.1:7", "[::1]:7"] {
            assert!(announce(&record, address.parse().unwrap()).unwrap().is_none());
        }
    }

    #[test]
    fn names_fit_a_label() {
        assert_eq!(short(&"é".repeat(40), 41, |_| true), "é".repeat(20));
        assert_eq!(short("a b.c", 40, |c| c.is_ascii_alphanumeric()), "abc");
    }
}
