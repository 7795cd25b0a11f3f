//! What a worker says of itself in the TXT record of its announcement.
//!
//! | key | value |
//! |---|---|
//! | `id` | its node id |
//! | `mem` | bytes of memory that its process can have |
//! | `dev` | what it computes on, for people |
//! | `ver` | its release, for people |
//! | `proto` | the protocol versions that it speaks, `MIN-MAX` |
//! | `cluster` | the public name of its cluster: a hash of the key, never the key |

use std::borrow::Cow;

use kimi_net::{ClusterId, printable};

use super::Spoken;

/// Longest node id that is announced, in bytes.
pub const MAX_NODE_ID: usize = 63;
/// Longest description of a device, in bytes; more is cut off.
pub const MAX_DEVICE: usize = 120;
/// Longest release, in bytes.
const MAX_SOFTWARE: usize = 64;
/// More memory than a machine has: 64 TiB.
const IMPOSSIBLE_BYTES: u64 = 1 << 46;
/// Hexadecimal digits of a cluster's name.
const CLUSTER_DIGITS: usize = 16;

/// A worker's description of itself. From another machine it is a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its node id: 1 to [`MAX_NODE_ID`] bytes without control characters.
    pub node_id: String,
    /// Bytes of memory that its process can have.
    pub memory: u64,
    /// What it computes on, for people.
    pub device: String,
    /// Its release, for people.
    pub software: String,
    /// The protocol versions that it speaks.
    pub versions: Spoken,
    /// The public name of its cluster.
    pub cluster: String,
}

/// A record that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A key is not there.
    #[error("{key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value is not what it must be.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value, escaped and cut.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
}

impl Record {
    /// A record to announce, or why it can't be.
    ///
    /// # Errors
    /// [`RecordError`]: the node id is too long, or has characters that other terminals should not see.
    pub fn new(
        node_id: &str,
        memory: u64,
        device: &str,
        versions: Spoken,
        cluster: ClusterId,
    ) -> Result<Self, RecordError> {
        let device = if device.is_empty() { "unknown".into() } else { printable(device) };
        let record = Self {
            node_id: node_id.to_owned(),
            memory,
            device: cut(&device, MAX_DEVICE),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            versions,
            cluster: cluster.to_string(),
        };
        // What the others would refuse is refused here.
        Self::parse(|key| {
            let found = record.pairs().into_iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| value.into_bytes())
        })
    }

    /// The keys and values of the TXT record.
    pub fn pairs(&self) -> [(&'static str, String); 6] {
        [
            ("id", self.node_id.clone()),
            ("mem", self.memory.to_string()),
            ("dev", self.device.clone()),
            ("ver", self.software.clone()),
            ("proto", self.versions.to_string()),
            ("cluster", self.cluster.clone()),
        ]
    }

    /// Reads the values that `value` gives for keys. They come from anyone on the network.
    ///
    /// # Errors
    /// [`RecordError`] names the key.
    pub fn parse(value: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Self, RecordError> {
        let text = |key: &'static str, max: usize, expected: &'static str| {
            let bytes = value(key).ok_or(RecordError::Missing { key })?;
            let wrong = || RecordError::Value { key, found: shown(&bytes), expected };
            let text = std::str::from_utf8(&bytes).map_err(|_| wrong())?;
            let good = (1..=max).contains(&text.len()) && is_printable(text);
            if good { Ok(text.to_owned()) } else { Err(wrong()) }
        };
        let wrong = |key, found: &str, expected| {
            Err(RecordError::Value { key, found: shown(found.as_bytes()), expected })
        };

        let node_id = text("id", MAX_NODE_ID, "a name of 1 to 63 bytes without control characters")?;
        let bytes = "a number of bytes below 64 TiB";
        let memory = text("mem", 20, bytes)?;
        let memory = match memory.parse::<u64>() {
            Ok(n) if memory.bytes().all(|b| b.is_ascii_digit()) && (1..IMPOSSIBLE_BYTES).contains(&n) => n,
            _ => return wrong("mem", &memory, bytes),
        };
        let device = text("dev", MAX_DEVICE, "a text of 1 to 120 bytes without control characters")?;
        let software = text("ver", MAX_SOFTWARE, "a release such as 0.1.0")?;
        let range = "protocol versions such as 1-1";
        let spoken = text("proto", 11, range)?;
        let Ok(versions) = spoken.parse() else { return wrong("proto", &spoken, range) };
        let hash = "16 hexadecimal digits";
        let cluster = text("cluster", CLUSTER_DIGITS, hash)?;
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if cluster.len() != CLUSTER_DIGITS || !cluster.bytes().all(hex) {
            return wrong("cluster", &cluster, hash);
        }
        Ok(Self { node_id, memory, device, software, versions, cluster })
    }
}

/// Whether a text holds nothing that acts on a terminal.
fn is_printable(text: &str) -> bool {
    matches!(printable(text), Cow::Borrowed(_))
}

/// At most `max` bytes of a text.
fn cut(text: &str, max: usize) -> String {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

/// Bytes of anyone, for messages.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
    let text: String = start.chars().take(SHOWN).collect();
    let more = if bytes.len() > text.len() { ".." } else { "" };
    format!("\"{}\"{more} ({} bytes)", printable(&text), bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kimi_net::{ClusterKey, Versions};

    fn good() -> Record {
        let cluster = ClusterKey::generate().unwrap().id();
        Record::new("studio-1", 512 << 30, "Apple M3 Ultra (Metal)", Spoken(Versions::OURS), cluster).unwrap()
    }

    fn parse_with(key: &str, bytes: Option<&[u8]>) -> Result<Record, RecordError> {
        let pairs = good().pairs();
        Record::parse(|wanted| match wanted == key {
            true => bytes.map(<[u8]>::to_vec),
            false => pairs.iter().find(|(k, _)| *k == wanted).map(|(_, v)| v.clone().into_bytes()),
        })
    }

    #[test]
    fn a_record_comes_back_as_it_was_announced() {
        let record = good();
        let pairs = record.pairs();
        let value = |key: &str| Some(pairs.iter().find(|(k, _)| *k == key)?.1.clone().into_bytes());
        assert_eq!(Record::parse(value).unwrap(), record);
        // A TXT string, `key=value`, has at most 255 bytes (RFC 6763, 6.1).
        assert!(MAX_DEVICE.max(MAX_NODE_ID) + "cluster=".len() <= 255);
    }

    #[test]
    fn what_is_announced_is_cut_and_made_printable() {
        let cluster = ClusterKey::generate().unwrap().id();
        let new = |id: &str, device: &str| Record::new(id, 1 << 30, device, Spoken(Versions::OURS), cluster);
        let long = "é".repeat(200);
        assert_eq!(new("a", &long).unwrap().device, "é".repeat(60));
        assert_eq!(new("a", "x\u{1b}[31m").unwrap().device, "x\\u{1b}[31m");
        assert_eq!(new("a", "").unwrap().device, "unknown");
        for id in ["", "a\nb", &"x".repeat(64)] {
            let error = new(id, "cpu").unwrap_err().to_string();
            assert!(error.starts_with("id is"), "{error}");
        }
    }

    #[test]
    fn hostile_values_are_refused_by_their_key() {
        let many = vec![b'9'; 255];
        let cases: [(&str, &[&[u8]]); 6] = [
            ("id", &[b"", b"a\x1b[2Jb", b"a\nb", b"\xff\xfe", &[b'x'; 64], "a\u{202e}b".as_bytes(), b"a\0"]),
            ("mem", &[b"", b"0", b"-1", b"+5", b"1e9", b" 5", b"512 GB", b"70368744177664", &many, b"\xff"]),
            ("dev", &[b"", b"\x07", &[b'x'; 121], b"\xc3"]),
            ("ver", &[b"", b"1\r\n", &[b'1'; 65]]),
            ("proto", &[b"", b"1", b"1-", b"2-1", b"1-65536", b"a-b", b"+1-2", b"1-2-3", b"00000000001-1"]),
            (
                "cluster",
                &[b"", b"0123", b"0123456789ABCDEF", b"0123456789abcdeg", b"0123456789abcdef0", &many],
            ),
        ];
        for (key, values) in cases {
            let error = parse_with(key, None).unwrap_err();
            assert_eq!(error.to_string(), format!("{key} is missing"));
            for value in values {
                let error = parse_with(key, Some(value)).expect_err(key).to_string();
                assert!(error.starts_with(&format!("{key} is \"")), "{error}");
                assert!(error.len() < 400 && is_printable(&error), "{error:?}");
            }
        }
    }
}
