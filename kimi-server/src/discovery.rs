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
//! out: kimi splits by bytes.

use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

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
    /// Host name or address of its worker.
    pub address: String,
    /// Port of its worker.
    pub port: u16,
    /// What it is.
    pub device: Device,
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Such as `Mac Studio`; not used.
    #[serde(default)]
    pub model: Option<String>,
    /// Such as `Apple M3 Ultra`; not used.
    #[serde(default)]
    pub chip: Option<String>,
    /// Memory in MiB.
    pub memory: u64,
    /// Arithmetic speed; not used.
    #[serde(default)]
    pub flops: Option<Flops>,
}

/// TFLOPS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// In 32-bit floats.
    pub fp32: f64,
    /// In 16-bit floats.
    pub fp16: f64,
    /// In 8-bit integers.
    pub int8: f64,
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

#[derive(Deserialize)]
struct PeersFile {
    peers: UniquePeers,
}

/// An object's entries in their order; a name that stands twice is an error, where JSON's last would win.
struct UniquePeers(Map<String, Value>);

impl<'de> Deserialize<'de> for UniquePeers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Map<String, Value>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of peers by node id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Map::new();
                while let Some((id, value)) = map.next_entry::<String, Value>()? {
                    if entries.contains_key(&id) {
                        return Err(A::Error::custom(format!("peer {id:?} stands twice")));
                    }
                    entries.insert(id, value);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Entries).map(Self)
    }
}

#[derive(Deserialize)]
struct PeerFile {
    address: String,
    port: u16,
    device_capabilities: Device,
}

impl Discovery {
    /// Reads a file.
    ///
    /// # Errors
    /// [`DiscoveryError`] names the file, the peer and the key.
    pub fn read(path: &Path) -> Result<Self, DiscoveryError> {
        let io = |cause| DiscoveryError::Io { path: path.to_owned(), cause };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_BYTES {
            return Err(io(std::io::Error::other(format!("{size} bytes, expected at most {MAX_BYTES}"))));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        Self::parse(&bytes).map_err(|reason| DiscoveryError::Form { path: path.to_owned(), reason })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let root: PeersFile = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let mut peers: Vec<Peer> = Vec::with_capacity(root.peers.0.len());
        for (id, value) in &root.peers.0 {
            let peer = Peer::parse(id, value).map_err(|e| format!("peer {id:?}: {e}"))?;
            if let Some(other) = peers.iter().find(|p| (&p.address, p.port) == (&peer.address, peer.port)) {
                return Err(format!(
                    "peers {:?} and {id:?} have the same address {}",
                    other.id,
                    peer.target()
                ));
            }
            peers.push(peer);
        }
        if peers.is_empty() { Err("\"peers\" is empty".to_owned()) } else { Ok(Self { peers }) }
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
        match (id, self.peers.iter().min_by_key(|p| p.device.memory)) {
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
        if !value.is_object() {
            return Err(format!("is {}, not an object", kind(value)));
        }
        let PeerFile { address, port, device_capabilities: device } =
            PeerFile::deserialize(value).map_err(|e| e.to_string())?;
        if address.trim().is_empty() || address.contains(char::is_whitespace) {
            return Err(format!("address is {address:?}, expected a host name or an address"));
        }
        if port == 0 {
            return Err("port is 0, expected 1 to 65535".to_owned());
        }
        if device.memory == 0 || device.memory > 1 << 30 {
            return Err(format!("memory is {}, expected the machine's memory in MiB", device.memory));
        }
        Ok(Self { id: id.to_owned(), address, port, device })
    }

    /// `address:port`, as sockets take it.
    pub fn target(&self) -> String {
        if self.address.contains(':') && !self.address.starts_with('[') {
            return format!("[{}]:{}", self.address, self.port);
        }
        format!("{}:{}", self.address, self.port)
    }

    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.device.memory << 20
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
