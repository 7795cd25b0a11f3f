//! The key of a cluster: 32 secret bytes that every machine of it has, and nobody else.

use std::{fmt, str::FromStr};

use zeroize::{Zeroize, Zeroizing};

/// What a key's text begins with: its form and that form's version.
const PREFIX: &str = "kimi-key-1:";
/// Bytes of the secret.
const KEY_BYTES: usize = 32;
/// Bytes of the checksum after it, which tells a typing error from another cluster's key.
const CHECK_BYTES: usize = 4;
/// Hexadecimal digits of a key's text.
const DIGITS: usize = 2 * (KEY_BYTES + CHECK_BYTES);

/// The secret that makes machines a cluster. Who has it reads and answers everything on the cluster's links.
///
/// Its text is `kimi-key-1:` and 72 hexadecimal digits: the secret and a checksum. Neither `Debug` nor an error shows it,
/// and its memory is cleared when it is dropped. Comparing takes the same time whatever differs.
#[derive(Clone)]
pub struct ClusterKey([u8; KEY_BYTES]);

/// The public name of a cluster: a hash of its key, which says nothing of the key. 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId([u8; 8]);

/// A text that is no key. It does not repeat the text, which may be nearly a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing there.
    #[error("it is empty, expected \"{PREFIX}\" and {DIGITS} hexadecimal digits; `kimi key new` makes a key")]
    Empty,
    /// Something else, or a key of another release.
    #[error("it does not begin with \"{PREFIX}\" ({characters} characters); `kimi key new` makes a key")]
    Form {
        /// Characters of the text.
        characters: usize,
    },
    /// Cut off, or more than a key.
    #[error("it has {found} digits after \"{PREFIX}\", expected {DIGITS}; copy the key again, all of it")]
    Length {
        /// Characters after the prefix.
        found: usize,
    },
    /// A character that is none of 0-9 and a-f.
    #[error("character {at} after \"{PREFIX}\" is no hexadecimal digit; copy the key again")]
    Digit {
        /// Its place, the first being 1.
        at: usize,
    },
    /// A digit was changed.
    #[error("its checksum is wrong: at least one digit was changed on the way; copy the key again")]
    Checksum,
}

impl ClusterKey {
    /// A new key from the operating system's source of random numbers.
    ///
    /// # Errors
    /// If the system has none to give.
    pub fn generate() -> std::io::Result<ClusterKey> {
        let mut key = ClusterKey([0; KEY_BYTES]);
        getrandom::fill(&mut key.0).map_err(std::io::Error::from)?;
        Ok(key)
    }

    /// The key as a text, for files and the environment. Whoever has it has the cluster.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + DIGITS));
        text.push_str(PREFIX);
        for byte in self.0.iter().chain(&checksum(&self.0)) {
            let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
            text.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        text
    }

    /// The cluster's public name.
    pub fn id(&self) -> ClusterId {
        let hash = Zeroizing::new(self.derive("kimi 2026 cluster id"));
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        ClusterId(id)
    }

    /// Another secret, for the one purpose that `context` names; it says nothing of this key.
    pub(crate) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

fn checksum(key: &[u8; KEY_BYTES]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key("kimi 2026 cluster key checksum", key);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl FromStr for ClusterKey {
    type Err = KeyError;

    /// Reads a key's text; white space around it and the case of its digits do not matter.
    fn from_str(text: &str) -> Result<ClusterKey, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        let form = || KeyError::Form { characters: text.chars().count() };
        let digits = text.strip_prefix(PREFIX).ok_or_else(form)?;
        if let Some(at) = digits.chars().position(|c| !c.is_ascii_hexdigit()) {
            return Err(KeyError::Digit { at: at + 1 });
        }
        if digits.len() != DIGITS {
            return Err(KeyError::Length { found: digits.len() });
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES + CHECK_BYTES]);
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        let mut key = ClusterKey([0; KEY_BYTES]);
        key.0.copy_from_slice(&bytes[..KEY_BYTES]);
        match checksum(&key.0) == bytes[KEY_BYTES..] {
            true => Ok(key),
            false => Err(KeyError::Checksum),
        }
    }
}

impl Drop for ClusterKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for ClusterKey {
    fn eq(&self, other: &ClusterKey) -> bool {
        // Hashes compare in constant time.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for ClusterKey {}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey(of cluster {})", self.id())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_as_its_key() {
        let key = ClusterKey::generate().unwrap();
        let text = key.to_text();
        assert_eq!(text.len(), PREFIX.len() + DIGITS);
        assert_eq!(text.parse::<ClusterKey>().unwrap(), key);
        let other = format!(" {PREFIX}{}\r\n", text[PREFIX.len()..].to_uppercase());
        assert_eq!(other.parse::<ClusterKey>().unwrap(), key);
        assert_ne!(ClusterKey::generate().unwrap(), key);
    }

    #[test]
    fn every_changed_digit_is_noticed() {
        let text = ClusterKey::generate().unwrap().to_text();
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(wrong.parse::<ClusterKey>().unwrap_err(), KeyError::Checksum, "{at}");
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        let text = ClusterKey::generate().unwrap().to_text();
        let parse = |text: &str| text.parse::<ClusterKey>().unwrap_err();
        assert_eq!(parse(" \n"), KeyError::Empty);
        assert_eq!(parse("hunter2"), KeyError::Form { characters: 7 });
        assert_eq!(parse(&text.replace("key-1", "key-2")), KeyError::Form { characters: text.len() });
        assert_eq!(parse(&text[..text.len() - 1]), KeyError::Length { found: DIGITS - 1 });
        assert_eq!(parse(&format!("{}00", *text)), KeyError::Length { found: DIGITS + 2 });
        let wrong = format!("{}x{}", &text[..20], &text[21..]);
        assert_eq!(parse(&wrong), KeyError::Digit { at: 20 - PREFIX.len() + 1 });
        assert_eq!(parse(&format!("{PREFIX}é")), KeyError::Digit { at: 1 });
        for error in [parse(&text[..40]), parse("hunter2"), parse(&wrong)] {
            let said = format!("{error} {error:?}");
            assert!(!said.contains("hunter2") && !said.contains(&text[11..20]), "{said}");
        }
    }

    #[test]
    fn neither_debug_nor_id_shows_the_key() {
        let key = ClusterKey::generate().unwrap();
        let (text, debug) = (key.to_text(), format!("{key:?}"));
        assert!(debug.contains(&key.id().to_string()), "{debug}");
        assert_eq!(key.id().to_string().len(), 16);
        assert!(!text.contains(&key.id().to_string()));
        assert!(!debug.contains(&text[PREFIX.len()..PREFIX.len() + 8]), "{debug}");
    }

    /// The id is announced by releases that must agree on it.
    #[test]
    fn the_id_of_a_key_stays() {
        assert_eq!(ClusterKey([7; KEY_BYTES]).id().to_string(), "f0912e15433dad5c");
    }
}
