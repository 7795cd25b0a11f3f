//! Who is connected, and who has to go when all places are taken.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long a connection may send a body before it counts as idle.
const BUSY_SENDING: Duration = Duration::from_secs(2);

/// What a connection is doing; what comes first is idler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It has sent no request yet, or all of its requests are answered.
    Quiet,
    /// It is sending a request's body.
    Sending,
    /// It waits for its answer, or takes it in.
    Answering,
}

/// All connections. A new one always finds a place while there is an idle one: that one is closed.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    max_per_address: usize,
    all: Mutex<HashMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    close: Arc<Notify>,
}

impl Connections {
    /// At most `max` connections, and `max_per_address` of one address.
    pub(super) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), max_per_address: max_per_address.max(1), all: Mutex::default() })
    }

    /// A place for a connection, if need be that of an idle one: of its own address if that has its share, else of the
    /// address with the most. `None` if all are busy.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let address = network(address);
        let mut all = self.lock();
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for entry in all.values() {
            *counts.entry(entry.address).or_default() += 1;
        }
        if counts.get(&address).is_some_and(|count| *count >= self.max_per_address) {
            close_idlest(&mut all, |entry| entry.address == address)?;
        } else if all.len() >= self.max {
            let max = counts.values().copied().max().unwrap_or(0);
            let of_max = |entry: &Entry| counts.get(&entry.address) == Some(&max);
            close_idlest(&mut all, of_max).or_else(|| close_idlest(&mut all, |_| true))?;
        }
        let (id, close) = (COUNT.fetch_add(1, Ordering::Relaxed), Arc::new(Notify::new()));
        all.insert(id, Entry { address, phase: Phase::Quiet, since: Instant::now(), close: close.clone() });
        drop(all);
        Some(Place(Arc::new(Inner { connections: self.clone(), id, close, asked: AtomicBool::new(false) })))
    }

    /// How many are quiet, sending, and answering.
    pub(super) fn count(&self) -> [usize; 3] {
        let all = self.lock();
        let of = |phase| all.values().filter(|entry| entry.phase == phase).count();
        [Phase::Quiet, Phase::Sending, Phase::Answering].map(of)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the place of the connection that has been idle for longest.
fn close_idlest(all: &mut HashMap<u64, Entry>, of: impl Fn(&Entry) -> bool) -> Option<()> {
    let idle = |entry: &Entry| match entry.phase {
        Phase::Quiet => true,
        Phase::Sending => entry.since.elapsed() >= BUSY_SENDING,
        Phase::Answering => false,
    };
    let candidates = all.iter().filter(|(_, entry)| idle(entry) && of(entry));
    let (&id, _) = candidates.min_by_key(|(_, entry)| (entry.phase, entry.since))?;
    all.remove(&id)?.close.notify_one();
    Some(())
}

/// Whose an address is: one machine has a whole network of IPv6 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))
        }
        address => address,
    }
}

/// A connection's place; free again when its last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: Arc<Connections>,
    id: u64,
    close: Arc<Notify>,
    asked: AtomicBool,
}

impl Place {
    /// Tells what the connection does now.
    pub(super) fn set(&self, phase: Phase) {
        self.0.asked.store(true, Ordering::Relaxed);
        if let Some(entry) = self.0.connections.lock().get_mut(&self.0.id) {
            (entry.phase, entry.since) = (phase, Instant::now());
        }
    }

    /// Whether a request has come.
    pub(super) fn has_asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// Waits until another connection gets the place.
    pub(super) async fn lost(&self) {
        self.0.close.notified().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_lost(place: &Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[test]
    fn the_idlest_goes() {
        let connections = Connections::new(3, 3);
        let places: Vec<_> = (0..3).map(|_| connections.admit(address(1)).unwrap()).collect();
        places[0].set(Phase::Answering);
        places[1].set(Phase::Quiet); // its second wait begins after the third one's first
        assert_eq!(connections.count(), [2, 0, 1]);
        let new = connections.admit(address(1)).unwrap();
        assert_eq!([0, 1, 2].map(|i| is_lost(&places[i])), [false, false, true]);
        new.set(Phase::Sending);
        assert!(connections.admit(address(1)).is_some());
        assert!(is_lost(&places[1]) && !is_lost(&places[0]) && !is_lost(&new));
    }

    #[test]
    fn who_is_busy_stays() {
        let connections = Connections::new(2, 2);
        let first = connections.admit(address(1)).unwrap();
        let second = connections.admit(address(2)).unwrap();
        first.set(Phase::Answering);
        second.set(Phase::Sending);
        assert!(connections.admit(address(3)).is_none());
        drop(first);
        assert!(connections.admit(address(3)).is_some());
        assert!(!is_lost(&second));
    }

    #[test]
    fn the_address_with_most_connections_gives_way() {
        let connections = Connections::new(4, 3);
        let oldest = connections.admit(address(1)).unwrap();
        let many: Vec<_> = (0..3).map(|_| connections.admit(address(2)).unwrap()).collect();
        let _other = connections.admit(address(3)).unwrap();
        assert!(!is_lost(&oldest) && is_lost(&many[0]));
        // Who has the share of one address takes the place of its own.
        let _more = connections.admit(address(2)).unwrap();
        assert!(!is_lost(&oldest) && is_lost(&many[1]));
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_eq!(of("::1"), IpAddr::from(Ipv6Addr::LOCALHOST));
    }
}
