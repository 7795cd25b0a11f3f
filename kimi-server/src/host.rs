//! Where a machine is reached: a host name, or an IP address with the network interface that it needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use tokio::net::lookup_host;

/// Longest host name, and longest part of one between dots (RFC 1035).
const MAX_NAME: (usize, usize) = (253, 63);

/// A host, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name that the system looks up, in lower case.
    Name(String),
    /// An address.
    Ip(IpAddr),
    /// An IPv6 address that holds on one interface, such as `fe80::1%bridge0`.
    Zoned(Ipv6Addr, Zone),
}

/// An interface of the machine that uses the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Zone {
    /// By its number.
    Index(u32),
    /// By its name, such as `bridge0`.
    Name(String),
}

/// A text that is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} {reason}")]
pub struct HostError {
    /// The text.
    pub given: String,
    /// What is wrong with it, and what would do.
    pub reason: String,
    /// The host and the port that were probably meant.
    pub meant: Option<(String, Option<u16>)>,
}

/// A host whose address is not known on this machine.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// An interface that this machine does not have.
    #[error(
        "{host} is reached through interface {zone}, which this machine does not have; it has {}. The name after % is that of \
         an interface of the machine that connects", known.join(", ")
    )]
    Interface {
        /// The host.
        host: Host,
        /// The interface looked for.
        zone: Zone,
        /// The interfaces there are.
        known: Vec<String>,
    },
    /// A name that has no address.
    #[error("can't look up the address of {host}: {cause}")]
    Name {
        /// The host.
        host: Host,
        /// What the system says.
        cause: String,
    },
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Zoned(ip, zone) => write!(f, "{ip}%{zone}"),
        }
    }
}

impl std::str::FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let wrong = |reason: String| HostError { given: text.to_owned(), reason, meant: None };
        if text.is_empty() {
            return Err(wrong("is empty; write a host name or an IP address".to_owned()));
        }
        if text.contains(char::is_whitespace) {
            return Err(wrong("has a space in it".to_owned()));
        }
        if let Some(error) = written_as_more(text) {
            return Err(error);
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bare.is_some() || text.contains(':') || text.contains('%') {
            return ip_v6(text, bare.unwrap_or(text)).map_err(wrong);
        }
        if ends_in_number(text) {
            let ip: Ipv4Addr = text.parse().map_err(|_| wrong(NOT_IP_V4.to_owned()))?;
            return Ok(Self::Ip(ip.into()));
        }
        check_name(text).map_err(wrong)?;
        Ok(Self::Name(text.to_lowercase()))
    }
}

const NOT_IP_V4: &str =
    "is no IPv4 address; those are four numbers from 0 to 255 without leading zeros, such as 10.0.0.2";

/// A text that holds more than a host: a port, a URL, a user, a network, a path.
fn written_as_more(text: &str) -> Option<HostError> {
    let wrong = |reason: &str, host: &str, port| {
        let meant = host.parse::<Host>().is_ok().then(|| (host.to_owned(), port));
        Some(HostError { given: text.to_owned(), reason: reason.to_owned(), meant })
    };
    if let Some((_, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = split_port(authority.rsplit('@').next().unwrap_or_default());
        return wrong("is a URL; write the host alone", host, port);
    }
    if let Some((_, host)) = text.rsplit_once('@') {
        let (host, port) = split_port(host);
        return wrong("has a user in it; write the host alone", host, port);
    }
    if let Some((host, rest)) = text.split_once('/') {
        let network = rest.parse::<u8>().is_ok() && host.parse::<IpAddr>().is_ok();
        let reason = match network {
            true => "is a network; write the machine's own address, without /",
            false => "has a path in it; write the host alone",
        };
        let (host, port) = split_port(host);
        return wrong(reason, host, port);
    }
    if text.contains('\\') {
        return wrong("has a path in it; write the host alone", "", None);
    }
    if text.contains(',') || text.contains(';') {
        return wrong(
            "is a list; write one address",
            text.split([',', ';']).next().unwrap_or_default(),
            None,
        );
    }
    let (host, port) = split_port(text);
    let has_port = host.len() < text.len();
    if has_port {
        wrong("has a port in it; write the host alone, and the port by itself", host, port)
    } else {
        None
    }
}

/// Takes `:port` off a host. More than one colon without brackets is IPv6, which has none.
fn split_port(text: &str) -> (&str, Option<u16>) {
    if let Some((host, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return (host, port.parse().ok());
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') && !text.starts_with('[') => (host, port.parse().ok()),
        _ => (text, None),
    }
}

fn ip_v6(text: &str, bare: &str) -> Result<Host, String> {
    let (address, zone) = match bare.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (bare, None),
    };
    let Ok(ip) = address.parse::<Ipv6Addr>() else {
        let is_v4 = address.parse::<Ipv4Addr>().is_ok();
        return Err(match (is_v4, zone) {
            (true, Some(_)) => {
                "names an interface, which only IPv6 addresses need; leave % and what follows out"
            }
            (true, None) => "is an IPv4 address in brackets; leave them out",
            _ if text.contains(':') => "is no IPv6 address, such as fd00::2 or fe80::1%bridge0",
            _ => "is no host name and no address",
        }
        .to_owned());
    };
    let Some(zone) = zone else { return Ok(Host::Ip(IpAddr::V6(ip).to_canonical())) };
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    let encoded = zone.strip_prefix("25").filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()));
    if let Some(interface) = encoded {
        return Err(format!("has %25 where % is meant; write {ip}%{interface}"));
    }
    match zone.parse() {
        Ok(0) => Err("names interface 0, which is none".to_owned()),
        Ok(index) => Ok(Host::Zoned(ip, Zone::Index(index))),
        Err(_) if zone.is_empty() || !zone.chars().all(known) => {
            Err(format!("has no name of an interface after %, such as {ip}%bridge0"))
        }
        Err(_) => Ok(Host::Zoned(ip, Zone::Name(zone.to_owned()))),
    }
}

/// Whether a name is read as an IPv4 address everywhere: its last part is a number (WHATWG URL, 3.5).
fn ends_in_number(text: &str) -> bool {
    let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    hex.is_some_and(|h| h.chars().all(|c| c.is_ascii_hexdigit()))
        || (!last.is_empty() && last.chars().all(|c| c.is_ascii_digit()))
}

fn check_name(text: &str) -> Result<(), String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let known = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    if let Some(c) = name.chars().find(|c| !known(*c) && *c != '.') {
        return Err(format!("is no host name and no address: {c:?} can't be in one"));
    }
    let good = |part: &str| {
        !part.is_empty() && part.len() <= MAX_NAME.1 && !part.starts_with('-') && !part.ends_with('-')
    };
    match name.len() <= MAX_NAME.0 && name.split('.').all(good) {
        true => Ok(()),
        false => {
            Err("is no host name: the parts between its dots have 1 to 63 letters, digits and -".to_owned())
        }
    }
}

impl Host {
    /// Refuses what no machine can be reached at: the addresses of none and of many, and those that need an interface
    /// and name none.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn reachable(self) -> Result<Self, HostError> {
        let reason = match &self {
            Self::Name(_) => return Ok(self),
            Self::Ip(ip) if ip.is_unspecified() => {
                "stands for all addresses of a machine; write one at which the others reach it, such as 10.0.0.2"
            }
            Self::Ip(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                "is an address that holds on one link; name the interface too, such as fe80::1%bridge0 (`ifconfig` lists them)"
            }
            Self::Ip(ip) if ip.is_multicast() => "is a multicast address, which no machine has as its own",
            Self::Ip(IpAddr::V4(ip)) if *ip == Ipv4Addr::BROADCAST => {
                "is the broadcast address, which no machine has as its own"
            }
            Self::Ip(IpAddr::V4(ip)) if matches!(ip.octets()[0], 0 | 240..) => {
                "is in a reserved range, from which no machine has an address"
            }
            Self::Zoned(ip, _) if ip.is_multicast() || ip.is_unspecified() => {
                "is an address that no machine has as its own"
            }
            _ => return Ok(self),
        };
        Err(HostError { given: self.to_string(), reason: reason.to_owned(), meant: None })
    }

    /// `host:port` as sockets take it; the interface, where there is one, as its number on this machine.
    ///
    /// # Errors
    /// [`LookupError::Interface`].
    pub fn target(&self, port: u16) -> Result<String, LookupError> {
        Ok(match self {
            Self::Name(name) => format!("{name}:{port}"),
            Self::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
            Self::Zoned(ip, zone) => {
                let interfaces = interfaces();
                let found = interfaces.iter().find(|(index, name)| match zone {
                    Zone::Index(wanted) => index == wanted,
                    Zone::Name(wanted) => name == wanted,
                });
                let index = match (found, zone) {
                    (Some((index, _)), _) => *index,
                    (None, Zone::Index(index)) if interfaces.is_empty() => *index, // the system does not list them
                    _ => {
                        let known =
                            interfaces.iter().map(|(index, name)| format!("{name} ({index})")).collect();
                        return Err(LookupError::Interface { host: self.clone(), zone: zone.clone(), known });
                    }
                };
                SocketAddrV6::new(*ip, port, 0, index).to_string()
            }
        })
    }

    /// The first address of the host.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn lookup(&self, port: u16) -> Result<SocketAddr, LookupError> {
        let failed = |cause: String| LookupError::Name { host: self.clone(), cause };
        let mut addresses = lookup_host(self.target(port)?).await.map_err(|e| failed(e.to_string()))?;
        addresses.next().ok_or_else(|| failed("it has none".to_owned()))
    }
}

/// Numbers and names of this machine's network interfaces.
#[cfg(unix)]
fn interfaces() -> Vec<(u32, String)> {
    let listed = match nix::net::if_::if_nameindex() {
        Ok(listed) => listed,
        Err(error) => {
            tracing::debug!(%error, "can't list the network interfaces");
            return Vec::new();
        }
    };
    listed.iter().map(|i| (i.index(), i.name().to_string_lossy().into_owned())).collect()
}

#[cfg(not(unix))]
fn interfaces() -> Vec<(u32, String)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> HostError {
        text.parse::<Host>().and_then(Host::reachable).expect_err(text)
    }

    #[test]
    fn hosts_are_read_as_they_are_meant() {
        for (text, shown) in [
            ("10.0.2.2", "10.0.2.2"),
            ("127.0.0.1", "127.0.0.1"),
            ("169.254.7.9", "169.254.7.9"),
            ("::1", "::1"),
            ("[fd00::2]", "fd00::2"),
            ("FD00:0:0::2", "fd00::2"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fe80::1%bridge0", "fe80::1%bridge0"),
            ("[fe80::1%en5]", "fe80::1%en5"),
            ("fe80::1%4", "fe80::1%4"),
            ("Studio-2.local", "studio-2.local"),
            ("studio_2", "studio_2"),
            ("m3", "m3"),
            ("host.example.com.", "host.example.com."),
            ("10.example", "10.example"),
        ] {
            let host = text.parse::<Host>().and_then(Host::reachable);
            assert_eq!(host.map(|h| h.to_string()).as_deref(), Ok(shown), "{text}");
        }
    }

    #[test]
    fn more_than_a_host_says_what_was_meant() {
        for (text, part, host, port) in [
            ("127.0.0.1:50052", "port", "127.0.0.1", Some(50052)),
            ("[fd00::2]:50052", "port", "fd00::2", Some(50052)),
            ("[fe80::1%en0]:1", "port", "fe80::1%en0", Some(1)),
            ("studio.local:50052", "port", "studio.local", Some(50052)),
            ("studio.local:http", "port", "studio.local", None),
            ("http://10.0.2.2", "URL", "10.0.2.2", None),
            ("https://me:pw@studio.local:8080/v1?x#y", "URL", "studio.local", Some(8080)),
            ("tcp://[fd00::2]:9", "URL", "fd00::2", Some(9)),
            ("me@10.0.2.2", "user", "10.0.2.2", None),
            ("me@studio.local:22", "user", "studio.local", Some(22)),
            ("10.0.2.2/24", "network", "10.0.2.2", None),
            ("fd00::2/64", "network", "fd00::2", None),
            ("10.0.2.2:5/v1", "path", "10.0.2.2", Some(5)),
            ("10.0.2.2,10.0.3.2", "list", "10.0.2.2", None),
        ] {
            let error = refused(text);
            assert!(error.reason.contains(part), "{error}");
            assert_eq!(error.meant, Some((host.to_owned(), port)), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for (text, part) in [
            ("", "empty"),
            (" 10.0.2.2", "space"),
            ("10.0.2.300", "IPv4"),
            ("10.0.2", "IPv4"),
            ("10.0.2.1.5", "IPv4"),
            ("10.0.2.2.", "IPv4"),
            ("010.0.2.2", "leading zeros"),
            ("42", "IPv4"),
            ("0x7f.0.0.0x1", "IPv4"),
            ("fd00::2::1", "IPv6"),
            ("fd00:::2", "IPv6"),
            ("[10.0.2.2]", "brackets"),
            ("[studio]", "no host name"),
            ("10.0.2.2%en0", "only IPv6"),
            ("fe80::1%", "interface"),
            ("fe80::1%0", "interface"),
            ("fe80::1%a b", "space"),
            ("fe80::1%25en0", "write fe80::1%en0"),
            ("fe80::1", "fe80::1%bridge0"),
            ("0.0.0.0", "all addresses"),
            ("::", "all addresses"),
            ("224.0.0.251", "multicast"),
            ("ff02::1%en0", "no machine"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("0.0.0.1", "reserved"),
            ("240.1.2.3", "reserved"),
            ("/Users/me", "path"),
            ("C:\\models", "path"),
            ("studio..local", "dots"),
            ("-studio", "dots"),
            ("<ip>", "'<'"),
            ("10.0.2.*", "'*'"),
            ("*", "'*'"),
            (&"a".repeat(64), "dots"),
        ] {
            let error = refused(text);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn an_interface_of_this_machine_becomes_its_number() {
        let Some((index, name)) = interfaces().into_iter().next() else {
            return eprintln!("skipped: this machine lists no network interface");
        };
        let host = |text: String| text.parse::<Host>().unwrap();
        let expected = format!("[fe80::1%{index}]:7");
        assert_eq!(host(format!("fe80::1%{name}")).target(7).unwrap(), expected);
        assert_eq!(host(format!("fe80::1%{index}")).target(7).unwrap(), expected);
        let error = host("fe80::1%nosuch9".to_owned()).target(7).unwrap_err().to_string();
        assert!(error.contains("nosuch9") && error.contains(&format!("{name} ({index})")), "{error}");
        assert_eq!(host("[::1]".to_owned()).target(7).unwrap(), "[::1]:7");
        assert_eq!(host("Studio.local".to_owned()).target(7).unwrap(), "studio.local:7");
    }
}
