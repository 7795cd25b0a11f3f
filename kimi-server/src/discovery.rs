//! `discovery.json`: the machines of a cluster, in the form of exo's manual discovery.
//!
//! ```json
//! { "peers": {
//!     "studio-1": { "address": "10.0.0.1", "port": 52416,
//!       "device_capabilities": { "model": "Mac Studio", "chip": "Apple M2 Ultra", "memory": 196608,
//!                                "flops": { "fp32": 26.98, "fp16": 53.96, "int8": 107.92 } } },
//!     "studio-2": { "address": "10.0.0.2", "port": 52416,
//!       "device_capabilities": { "model": "Mac Studio", "chip": "Apple M3 Ultra", "memory": 524288,
//!                                "flops": { "fp32": 57.0, "fp16": 114.0, "int8": 228.0 } } } } }
//! ```
//!
//! Every machine has the same file, with itself in it. `memory` is in MiB. `model`, `chip` and `flops` may be left
//! out and hold anything. `chip` says how fast the machine's memory is, if it is the name of one that kimi knows, and
//! `memory_bandwidth`, in GB/s, says it for others; `flops` is not used. A machine with several addresses may list more of them
//! as `addresses`: each is measured, and the best is used.

mod fields;

use std::path::{Path, PathBuf};

use kimi_core::plan::HumanBytes;
use kimi_core::plan::predict::{Rate, RateSource};
use kimi_core::text_file::{JsonError, from_json};
use serde_json::{Map, Value};

use crate::chips;
use crate::cluster::Wanted;
use crate::host::{Host, LookupError};
use fields::{Fields, Unique, shown};

/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// More memory than any machine has, in MiB (64 TiB): probably KiB or bytes.
const IMPOSSIBLE_MIB: u64 = 1 << 26;
/// More than any machine reads in a second, in GB.
const IMPOSSIBLE_BANDWIDTH: f64 = 1e6;
/// Addresses that a machine may have in the file.
const MAX_ADDRESSES: usize = 16;
/// Less memory than machines have that run large models, in MiB: probably GB.
const LITTLE_MIB: u64 = 2048;
/// More memory than machines usually have, in MiB: perhaps KiB.
const MUCH_MIB: u64 = 8 << 20;

/// The machines of a cluster, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// At least one; ids and addresses differ.
    pub peers: Vec<Peer>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its name.
    pub id: String,
    /// Where its worker is.
    pub host: Host,
    /// More addresses of it.
    pub others: Vec<Host>,
    /// Port of its worker.
    pub port: u16,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// How fast it reads that, if the file says so or names a known chip.
    pub rate: Option<Rate>,
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Not readable.
    #[error("can't read the discovery file {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// No JSON.
    #[error("the discovery file {path} {cause}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it is instead, or where it deviates.
        cause: JsonError,
    },
    /// Not of the right form.
    #[error("{path}: {reason}. Expected {{\"peers\": {{\"node-id\": {{\"address\": \"10.0.0.2\", \"port\": 52416, \"device_capabilities\": {{\"memory\": MiB}}}}}}}}", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// A node that the file does not have.
    #[error("node {id:?} is not among the peers ({}); every machine stands in the file, this one too. Check --node-id", known.join(", "))]
    UnknownNode {
        /// The node looked for.
        id: String,
        /// The peers.
        known: Vec<String>,
    },
}

impl Discovery {
    /// Reads a file. What is possible but unlikely is logged as a warning ([`Discovery::doubts`]).
    ///
    /// # Errors
    /// [`DiscoveryError`] names the file, the peer and the key.
    pub fn read(path: &Path) -> Result<Self, DiscoveryError> {
        let io = |cause| DiscoveryError::Io { path: path.to_owned(), cause };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_BYTES {
            return Err(io(std::io::Error::other(format!("{size} bytes, expected at most {MAX_BYTES}"))));
        }
        Self::from_bytes(path, &std::fs::read(path).map_err(io)?)
    }

    /// Reads the bytes of a file; `path` is its name for errors.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, DiscoveryError> {
        let root = from_json::<Unique>(bytes);
        let Unique(root) = root.map_err(|cause| DiscoveryError::Json { path: path.to_owned(), cause })?;
        let form = |reason| DiscoveryError::Form { path: path.to_owned(), reason };
        let discovery = Self::parse(&root).map_err(form)?;
        for doubt in discovery.doubts() {
            tracing::warn!("{}: {doubt}", path.display());
        }
        Ok(discovery)
    }

    fn parse(root: &Value) -> Result<Self, String> {
        let root = root.as_object().ok_or_else(|| format!("the file holds {}", shown(root)))?;
        let peers = root.get("peers").ok_or_else(|| match root.is_empty() {
            true => "\"peers\" is missing".to_owned(),
            false => format!("\"peers\" is missing; there are {}", fields::key_list(root)),
        })?;
        let peers = peers.as_object().ok_or_else(|| {
            format!("\"peers\" is {}, expected an object of peers by node id", shown(peers))
        })?;
        let mut found: Vec<Peer> = Vec::with_capacity(peers.len());
        for (id, value) in peers {
            let peer = Peer::parse(id, value).map_err(|e| format!("peer {id:?}: {e}"))?;
            for other in found.iter().filter(|other| other.port == peer.port) {
                if let Some(host) = other.hosts().find(|host| peer.hosts().any(|h| h == *host)) {
                    return Err(format!(
                        "peers {:?} and {id:?} have the same address {host} and port {}",
                        other.id, peer.port
                    ));
                }
            }
            found.push(peer);
        }
        match found.is_empty() {
            true => Err("\"peers\" is empty".to_owned()),
            false => Ok(Self { peers: found }),
        }
    }

    /// What is possible, but probably a mistake: a sentence each.
    pub fn doubts(&self) -> Vec<String> {
        self.peers.iter().filter_map(Peer::doubt).collect()
    }

    /// A peer by its name.
    ///
    /// # Errors
    /// [`DiscoveryError::UnknownNode`].
    pub fn peer(&self, id: &str) -> Result<&Peer, DiscoveryError> {
        let known = || self.peers.iter().map(|p| p.id.clone()).collect();
        let found = self.peers.iter().find(|p| p.id == id);
        found.ok_or_else(|| DiscoveryError::UnknownNode { id: id.to_owned(), known: known() })
    }

    /// The coordinator: `id` if given, else the machine with the least memory, the first of those.
    ///
    /// # Errors
    /// [`DiscoveryError::UnknownNode`].
    pub fn coordinator(&self, id: Option<&str>) -> Result<&Peer, DiscoveryError> {
        match (id, self.peers.iter().min_by_key(|p| p.memory_mib)) {
            (Some(id), _) => self.peer(id),
            (None, Some(least)) => Ok(least),
            (None, None) => self.peer(""),
        }
    }
}

impl Peer {
    fn parse(id: &str, value: &Value) -> Result<Self, String> {
        if id.is_empty() {
            return Err("a node id is empty".to_owned());
        }
        let peer = value.as_object().ok_or_else(|| format!("is {}, expected an object", shown(value)))?;
        let fields = Fields { path: "", object: peer };
        let host = |key: &str, address: &str| {
            address.parse::<Host>().and_then(Host::reachable).map_err(|error| {
                let right_form = error.meant.as_ref().map(|(host, port)| match port.or(fields.port()) {
                    Some(port) => format!("; the right form is {key:?}: {host:?}, \"port\": {port}"),
                    None => format!("; the right form is {key:?}: {host:?}"),
                });
                format!("{key} {error}{}", right_form.unwrap_or_default())
            })
        };
        let expected = "a host name or an IP address, such as \"10.0.0.2\"";
        let first = host("address", fields.text("address", expected)?)?;
        let others = fields.texts("addresses", MAX_ADDRESSES, "a list of at most 16 more addresses")?;
        let others = others.into_iter().map(|address| host("addresses", address));
        let mut others = others.collect::<Result<Vec<_>, _>>()?;
        others.retain(|other| *other != first);
        let port = fields.whole("port", "a whole number from 1 to 65535")?;
        let port = u16::try_from(port).ok().filter(|p| *p > 0);
        let port = port.ok_or_else(|| format!("port is {}, expected 1 to 65535", shown(&peer["port"])))?;
        let device =
            fields.object("device_capabilities", "an object with the machine's \"memory\" in MiB")?;
        Ok(Self {
            id: id.to_owned(),
            host: first,
            others,
            port,
            memory_mib: memory(device)?,
            rate: rate(device)?,
        })
    }

    fn doubt(&self) -> Option<String> {
        let Self { id, memory_mib: mib, .. } = self;
        let key =
            format!("peer {id:?}: device_capabilities.memory is {mib}, which is {}", HumanBytes(mib << 20));
        match *mib {
            ..LITTLE_MIB => Some(format!(
                "{key}, little for a machine. The unit is MiB; if GB are meant, {mib} GB are {} MiB",
                mib << 10
            )),
            MUCH_MIB.. => Some(format!(
                "{key}, much for a machine. The unit is MiB; if KiB are meant, {mib} KiB are {} MiB",
                mib >> 10
            )),
            _ => None,
        }
    }

    /// Its addresses.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        std::iter::once(&self.host).chain(&self.others)
    }

    /// Where its worker is, as sockets take it. Of several addresses, those whose network interface this machine does not
    /// have are left out.
    ///
    /// # Errors
    /// [`LookupError::Interface`]: that leaves none.
    pub fn wanted(&self) -> Result<Wanted, LookupError> {
        let mut targets = self.hosts().filter_map(|host| host.target(self.port).ok());
        let target = targets.next().map_or_else(|| self.host.target(self.port), Ok)?;
        Ok(Wanted { id: self.id.clone(), target, others: targets.collect() })
    }

    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }
}

/// How fast the machine reads its memory.
fn rate(device: &Map<String, Value>) -> Result<Option<Rate>, String> {
    let chip = device.get("chip").and_then(Value::as_str).and_then(chips::rate_of);
    let Some(value) = device.get("memory_bandwidth") else { return Ok(chip) };
    let gigabytes = value.as_f64().filter(|rate| *rate > 0.0 && *rate < IMPOSSIBLE_BANDWIDTH);
    let gigabytes = gigabytes.ok_or_else(|| {
        format!(
            "device_capabilities.memory_bandwidth is {}, expected how many GB the machine reads from its memory in a second, a \
             number such as 819",
            shown(value)
        )
    })?;
    let flops = chip.and_then(|chip| chip.flops);
    Ok(Some(Rate { bytes_per_second: gigabytes * 1e9, flops, source: RateSource::File }))
}

/// The machine's memory in MiB.
fn memory(device: &Map<String, Value>) -> Result<u64, String> {
    let expected = "the machine's memory in MiB, a whole number such as 524288 for 512 GB";
    let mib = Fields { path: "device_capabilities.", object: device }.whole("memory", expected)?;
    match mib {
        1..IMPOSSIBLE_MIB => Ok(mib),
        0 => Err(format!("device_capabilities.memory is 0, expected {expected}")),
        bytes if bytes >= 1 << 33 => Err(format!(
            "device_capabilities.memory is {bytes}, more than any machine has in MiB; bytes? {bytes} bytes are {} MiB",
            bytes >> 20
        )),
        kib => Err(format!(
            "device_capabilities.memory is {kib}, more than any machine has in MiB; KiB? {kib} KiB are {} MiB",
            kib >> 10
        )),
    }
}
