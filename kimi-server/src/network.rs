//! This machine's network interfaces: which one leads to an address, and what it is.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use serde::Serialize;

/// A network interface of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name, such as `en5` or `bridge0`.
    pub name: String,
    /// This machine's address on it.
    pub address: String,
    /// Largest packet, in bytes, where the system says.
    pub mtu: Option<u32>,
    /// Speed of its link in megabits a second, where the system says.
    pub megabits: Option<u64>,
    /// Whether it is a radio.
    pub wireless: bool,
}

/// The interface by which this machine reaches an address; nothing is sent.
pub fn interface_to(address: SocketAddr) -> Option<Interface> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(address).ok()?;
    let own = socket.local_addr().ok()?.ip().to_canonical();
    let name = name_of(own)?;
    let mut interface = describe(&name);
    interface.address = own.to_string();
    Some(interface)
}

/// Whether an address is one of this machine's own.
pub fn is_own(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback() || name_of(ip.to_canonical()).is_some()
}

#[cfg(unix)]
fn name_of(own: IpAddr) -> Option<String> {
    let list = nix::ifaddrs::getifaddrs().ok()?;
    list.into_iter().find_map(|entry| {
        let storage = entry.address?;
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let ip = v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))?;
        (ip.to_canonical() == own).then_some(entry.interface_name)
    })
}

#[cfg(not(unix))]
fn name_of(_: IpAddr) -> Option<String> {
    None
}

fn describe(name: &str) -> Interface {
    match cfg!(target_os = "macos") {
        true => from_ifconfig(name, &output("/sbin/ifconfig", &[name]).unwrap_or_default()),
        false => from_files(name, Path::new("/sys/class/net")),
    }
}

/// What a command prints, where it can be run.
pub(crate) fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(args).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From Linux's files of an interface.
fn from_files(name: &str, root: &Path) -> Interface {
    let folder = root.join(name);
    let number = |file: &str| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<i64>().ok();
    Interface {
        name: name.to_owned(),
        mtu: number("mtu").and_then(|mtu| u32::try_from(mtu).ok()),
        // Virtual interfaces say -1, or nothing.
        megabits: number("speed").and_then(|speed| u64::try_from(speed).ok()).filter(|speed| *speed > 0),
        wireless: folder.join("wireless").exists() || folder.join("phy80211").exists(),
        ..Interface::default()
    }
}

/// From what macOS's `ifconfig` says of an interface. Thunderbolt bridges and Wi-Fi name no speed.
fn from_ifconfig(name: &str, text: &str) -> Interface {
    let after = |key: &str| text.split_once(key)?.1.split_whitespace().next();
    let media = text.lines().find_map(|line| line.trim().strip_prefix("media:")).unwrap_or_default();
    let megabits = media.split(['(', ' ', ')']).find_map(|word| {
        let (digits, rest) = word.split_at(word.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let number: f64 = digits.parse().ok()?;
        if rest.starts_with("Gbase") {
            Some((number * 1e3) as u64)
        } else {
            (rest.starts_with("base") && number >= 10.0).then_some(number as u64)
        }
    });
    Interface {
        name: name.to_owned(),
        mtu: after("mtu ").and_then(|mtu| mtu.parse().ok()),
        megabits,
        // An Ethernet port says which kind it is; Wi-Fi only that it chooses by itself.
        wireless: media.trim() == "autoselect" && !name.starts_with("bridge"),
        ..Interface::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn loopback_is_found() {
        let interface = interface_to(([127, 0, 0, 1], 9).into()).expect("there is no loopback interface");
        assert!(interface.name.starts_with("lo") && interface.address == "127.0.0.1", "{interface:?}");
        assert!(interface.mtu.is_none_or(|mtu| mtu >= 1280), "{interface:?}");
        assert!(is_own([127, 0, 0, 1].into()) && !is_own([192, 0, 2, 77].into()));
    }

    #[test]
    fn linux_says_what_an_interface_is() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, file: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join(file), text).unwrap();
        };
        write("eth0", "speed", "10000\n");
        write("eth0", "mtu", "9000\n");
        write("wlan0", "speed", "-1\n");
        std::fs::create_dir_all(root.path().join("wlan0/wireless")).unwrap();
        let eth = from_files("eth0", root.path());
        assert_eq!((eth.megabits, eth.mtu, eth.wireless), (Some(10_000), Some(9000), false));
        let wlan = from_files("wlan0", root.path());
        assert_eq!((wlan.megabits, wlan.mtu, wlan.wireless), (None, None, true));
        assert_eq!(from_files("none", root.path()).megabits, None);
    }

    #[test]
    fn macos_says_what_an_interface_is() {
        let text = |media: &str| {
            format!(
                "en0: flags=8863<UP,BROADCAST> mtu 1500\n\toptions=50b\n\tmedia: {media}\n\tstatus: active\n"
            )
        };
        for (name, media, megabits, wireless) in [
            ("en0", "autoselect (10Gbase-T <full-duplex>)", Some(10_000), false),
            ("en0", "autoselect (2.5Gbase-T <full-duplex,flow-control>)", Some(2500), false),
            ("en0", "autoselect (1000baseT <full-duplex>)", Some(1000), false),
            ("en1", "autoselect", None, true),
            ("en5", "autoselect <full-duplex>", None, false),
            ("bridge0", "<unknown type>", None, false),
        ] {
            let interface = from_ifconfig(name, &text(media));
            let found = (interface.megabits, interface.wireless, interface.mtu);
            assert_eq!(found, (megabits, wireless, Some(1500)), "{media}");
        }
        assert_eq!(from_ifconfig("en9", ""), Interface { name: "en9".into(), ..Interface::default() });
    }
}
