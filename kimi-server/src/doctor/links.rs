//! The other machines: names, ports, interfaces, links, clocks, releases, checkpoints.

use std::io::ErrorKind;

use kimi_core::plan::HumanBytes;
use kimi_net::{Fingerprint, LinkError, ModelFiles};

use super::Finding;
use crate::cluster::{RouteError, describe};
use crate::network::is_own;
use crate::survey::{Route, Surveyed};

/// A clock that is further off makes logs hard to compare.
const SKEW_MICROS: i64 = 1_000_000;
/// A round trip above which every token is felt to wait, in seconds.
const SLOW_ROUND_TRIP: f64 = 5e-3;
/// Bytes a second below which a prompt's hidden states take longer to move than to compute.
const SLOW_LINK: f64 = 100e6;
/// Smallest packet that every IPv6 link carries; less breaks more than kimi.
const SMALL_MTU: u32 = 1280;

/// What was found of a node. `model` is its name and this machine's checkpoint of it, where one is asked about.
pub fn of_node(node: &Surveyed, model: Option<(&str, Fingerprint)>) -> Vec<Finding> {
    let reached = !node.routes.is_empty();
    let mut findings: Vec<_> =
        node.failed.iter().map(|(place, error)| unreached(place, error, reached)).collect();
    if let Some(best) = node.routes.first() {
        findings.push(link(best, node.routes.len()));
        findings.extend(interface(best));
        findings.push(clock(best));
        findings.push(version(&best.seen.software));
        findings.push(memory(best));
        findings.extend(model.map(|(name, ours)| checkpoint(name, ours, best.seen.status.model.as_ref())));
    }
    findings.into_iter().map(|finding| finding.of(&node.id)).collect()
}

/// A route that leads nowhere; with another one that does it is only slower.
fn unreached(place: &str, error: &RouteError, reached: bool) -> Finding {
    let port = place.rsplit(':').next().unwrap_or("52416");
    let found = format!("{place}: {error}");
    let (check, means, fix) = match error {
        RouteError::NoAddress { .. } => (
            "name",
            "the name has no address: the machine is off, on another network, or called otherwise",
            "write its IP address in the discovery file; `ping NAME` shows whether the system finds it".to_owned(),
        ),
        RouteError::OtherNode { wanted, .. } => (
            "name",
            "another node is at this address",
            format!("kimi worker --node-id {wanted}   (on that machine), or correct the discovery file"),
        ),
        RouteError::Link(LinkError::Io { kind: ErrorKind::ConnectionRefused, .. }) => (
            "port",
            "the machine answers, but no worker listens there",
            "kimi worker   (on that machine)".to_owned(),
        ),
        RouteError::Link(LinkError::Io { kind: ErrorKind::TimedOut, .. } | LinkError::HandshakeTimeout { .. }) => (
            "firewall",
            "nothing comes back: a firewall drops it, or nobody has this address",
            format!("let port {port} in there: `sudo ufw allow {port}/tcp` on Linux; on a Mac, System Settings, Network, Firewall"),
        ),
        RouteError::Link(LinkError::Io { .. }) => (
            "route",
            "no way leads there from this machine",
            "check the cable, and that both machines have addresses of one network (`ifconfig`, `ip addr`)".to_owned(),
        ),
        RouteError::Link(_) => (
            "link",
            "the worker is there, but the two do not come together",
            "the same key (`kimi key id` prints its public name) and the same release of kimi on both machines".to_owned(),
        ),
    };
    match reached {
        true => Finding::warn(check, found, format!("{means}; another way leads there")),
        false => Finding::fail(check, found, means),
    }
    .fix(fix)
}

fn link(best: &Route, routes: usize) -> Finding {
    let seen = &best.seen;
    let found = match routes {
        1 => describe(seen),
        n => format!("{}, the best of {n} routes", describe(seen)),
    };
    let slow = seen.bandwidth.is_some_and(|b| b.to.min(b.from) < SLOW_LINK);
    if seen.round_trip.as_secs_f64() > SLOW_ROUND_TRIP {
        Finding::warn("link", found, "each token waits for a round trip like this")
            .fix("use a cable: Thunderbolt or Ethernet, with its address in the discovery file")
    } else if slow {
        Finding::warn("link", found, "prompts move slowly: 512 tokens of Kimi-K2 are 15 MB each way")
            .fix("use a faster cable: Thunderbolt, or 10 gigabit Ethernet")
    } else {
        Finding::ok("link", found)
    }
}

fn interface(best: &Route) -> Option<Finding> {
    if is_own(best.seen.address.ip()) {
        return Some(Finding::ok("interface", "none: it is on this machine"));
    }
    let Some(interface) = &best.interface else {
        return Some(Finding::ok("interface", "unknown"));
    };
    let speed = match interface.megabits {
        Some(megabits) => format!("{} Gb/s", megabits as f64 / 1e3),
        None => "speed unknown".to_owned(),
    };
    let mtu = interface.mtu.map_or_else(|| "MTU unknown".to_owned(), |mtu| format!("MTU {mtu}"));
    let found = format!("{} ({}), {speed}, {mtu}", interface.name, interface.address);
    Some(if interface.wireless {
        Finding::warn("interface", format!("{found}, Wi-Fi"), "its delays are long and uneven")
            .fix("connect the machines with a cable")
    } else if interface.mtu.is_some_and(|mtu| mtu < SMALL_MTU) {
        Finding::warn("interface", found, "packets are small: a tunnel, or a wrong setting")
            .fix(format!("sudo ifconfig {} mtu 1500", interface.name))
    } else if interface.megabits.is_some_and(|megabits| megabits < 1000) {
        Finding::warn("interface", found, "slower than gigabit Ethernet: a bad cable or an old switch")
            .fix("change the cable or the switch")
    } else {
        Finding::ok("interface", found)
    })
}

fn clock(best: &Route) -> Finding {
    let ahead = best.seen.clock_ahead_micros;
    let (size, way) = (ahead.unsigned_abs() as f64 / 1e6, if ahead < 0 { "behind" } else { "ahead of" });
    match ahead.unsigned_abs() > SKEW_MICROS.unsigned_abs() {
        true => Finding::warn(
            "clock",
            format!("{size:.1} s {way} this machine's"),
            "nothing stops, but the logs of the two can't be compared",
        )
        .fix("sudo sntp -sS time.apple.com   (Mac); sudo timedatectl set-ntp true   (Linux)"),
        false => Finding::ok("clock", format!("{:.1} ms {way} this machine's", size * 1e3)),
    }
}

fn version(software: &str) -> Finding {
    let ours = concat!("kimi ", env!("CARGO_PKG_VERSION"));
    match software == ours {
        true => Finding::ok("version", software),
        false => Finding::warn(
            "version",
            format!("{software}, this machine has {ours}"),
            "they speak the same protocol, but were not tried together",
        )
        .fix("install the same release on all machines"),
    }
}

fn memory(best: &Route) -> Finding {
    let status = &best.seen.status;
    let (memory, free) = (HumanBytes(status.memory_bytes), HumanBytes(status.available_bytes));
    let holds =
        status.holding.as_ref().map(|h| format!(", {} of weights loaded", HumanBytes(h.weight_bytes)));
    Finding::ok("memory", format!("{memory} ({}), {free} free{}", status.device, holds.unwrap_or_default()))
}

fn checkpoint(name: &str, ours: Fingerprint, theirs: Option<&ModelFiles>) -> Finding {
    match theirs {
        Some(ModelFiles::Found(theirs)) if *theirs == ours => {
            Finding::ok("checkpoint", format!("{name} is the same (fingerprint {})", &ours.to_string()[..16]))
        }
        Some(ModelFiles::Found(theirs)) => Finding::fail(
            "checkpoint",
            format!(
                "{name} differs: fingerprint {} there, {} here",
                &theirs.to_string()[..16],
                &ours.to_string()[..16]
            ),
            "the worker will refuse its layers, and name the value or the tensor that differs",
        )
        .fix("bring the same files to both machines (rsync -a --checksum)"),
        Some(ModelFiles::Unusable(reason)) => {
            Finding::fail("checkpoint", reason.clone(), "the worker can't load its layers")
                .fix(format!("put {name} there, or start it with `kimi worker --default-model PATH`"))
        }
        None => Finding::warn("checkpoint", "the worker does not say", "it may be another one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::look::{Bandwidth, Seen};
    use crate::doctor::Level;
    use crate::network::Interface;
    use kimi_net::Status;
    use std::time::Duration;

    const OURS: Fingerprint = Fingerprint([7; 32]);

    fn route() -> Route {
        let status = Status { model: Some(ModelFiles::Found(OURS)), ..Status::default() };
        let seen = Seen {
            node_id: "b".into(),
            software: concat!("kimi ", env!("CARGO_PKG_VERSION")).into(),
            status,
            address: ([192, 0, 2, 77], 52416).into(),
            round_trip: Duration::from_micros(100),
            clock_ahead_micros: -1500,
            bandwidth: Some(Bandwidth { to: 1e9, from: 1e9 }),
        };
        let interface = Interface { name: "en5".into(), mtu: Some(1500), ..Interface::default() };
        Route { seen, interface: Some(interface) }
    }

    fn findings(change: impl Fn(&mut Route)) -> Vec<Finding> {
        let mut best = route();
        change(&mut best);
        let node = Surveyed {
            id: "b".into(),
            addresses: vec![best.seen.address],
            routes: vec![best],
            failed: vec![],
        };
        of_node(&node, Some(("k2", OURS)))
    }

    fn level(change: impl Fn(&mut Route), check: &str) -> Level {
        let findings = findings(change);
        findings.iter().find(|f| f.check == check).unwrap_or_else(|| panic!("{check}: {findings:?}")).level
    }

    #[test]
    fn a_good_node_is_good() {
        let findings = findings(|_| {});
        assert!(
            findings.iter().all(|f| f.level == Level::Ok && f.node.as_deref() == Some("b")),
            "{findings:?}"
        );
        assert!(findings.iter().any(|f| f.found.contains("1.5 ms behind")), "{findings:?}");
    }

    #[test]
    fn each_flaw_has_its_level_and_a_remedy() {
        let mtu = |mtu| move |r: &mut Route| r.interface.as_mut().unwrap().mtu = Some(mtu);
        assert_eq!(level(mtu(1200), "interface"), Level::Warn);
        assert_eq!(level(|r| r.interface.as_mut().unwrap().wireless = true, "interface"), Level::Warn);
        assert_eq!(level(|r| r.interface.as_mut().unwrap().megabits = Some(100), "interface"), Level::Warn);
        assert_eq!(level(|r| r.seen.round_trip = Duration::from_millis(20), "link"), Level::Warn);
        assert_eq!(level(|r| r.seen.bandwidth = Some(Bandwidth { to: 1e9, from: 1e6 }), "link"), Level::Warn);
        assert_eq!(level(|r| r.seen.clock_ahead_micros = 5_000_000, "clock"), Level::Warn);
        assert_eq!(level(|r| r.seen.software = "kimi 9.9.9".into(), "version"), Level::Warn);
        let other = Some(ModelFiles::Found(Fingerprint([8; 32])));
        assert_eq!(level(|r| r.seen.status.model = other.clone(), "checkpoint"), Level::Fail);
        let none = Some(ModelFiles::Unusable("nowhere".into()));
        assert_eq!(level(|r| r.seen.status.model = none.clone(), "checkpoint"), Level::Fail);
    }

    #[test]
    fn what_is_not_reached_is_told_apart() {
        let io = |kind: ErrorKind| {
            RouteError::Link(LinkError::Io { context: "cannot connect".into(), kind, detail: "x".into() })
        };
        let other = RouteError::OtherNode { wanted: "b".into(), found: "c".into() };
        let nowhere = RouteError::NoAddress { target: "b.local:7".into(), cause: "x".into() };
        for (error, check) in [
            (io(ErrorKind::ConnectionRefused), "port"),
            (io(ErrorKind::TimedOut), "firewall"),
            (io(ErrorKind::HostUnreachable), "route"),
            (other, "name"),
            (nowhere, "name"),
            (RouteError::Link(LinkError::NotEncrypted), "link"),
        ] {
            let failed = vec![("10.0.0.2:50051".to_owned(), error)];
            let node = Surveyed { id: "b".into(), addresses: vec![], routes: vec![], failed };
            let found = of_node(&node, None);
            assert_eq!((found.len(), found[0].level, found[0].check), (1, Level::Fail, check));
            assert!(found[0].fix.is_some() && !found[0].means.is_empty());
            // With another way there, it is no failure.
            let node = Surveyed { routes: vec![route()], ..node };
            assert!(of_node(&node, None).iter().all(|f| f.level != Level::Fail));
        }
    }
}
