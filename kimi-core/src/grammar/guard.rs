//! What a grammar of JSON leaves open but must not go on for ever: digits, and nesting.
//!
//! A reader refuses a number beyond the largest float and nesting beyond some depth, and a weak model may well write such.
//! The guard follows the text byte by byte and takes away tokens that would go too far. Where the answer's tokens run out it
//! leaves only those that lead to the end, since a text that is cut short is worth nothing.

use llguidance::toktrie::SimpleVob;

use super::vocabulary::Vocabulary;

/// Deepest nesting of arrays and objects; serde_json reads up to 127.
const MAX_DEPTH: u32 = 64;
/// From this depth on, tokens that open something are looked at: a token may open several.
const WATCHED_DEPTH: u32 = MAX_DEPTH - 16;
/// Most digits before the point, and after it.
const MAX_DIGITS: u32 = 24;
/// Most digits of an exponent.
const MAX_EXPONENT: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between values.
    Between,
    String {
        escaped: bool,
    },
    /// In a number: digits since its begin, its point or its `e`.
    Number {
        digits: u32,
        exponent: bool,
    },
}

/// Where in a JSON text the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JsonGuard {
    place: Place,
    depth: u32,
}

impl JsonGuard {
    pub(crate) fn new() -> Self {
        Self { place: Place::Between, depth: 0 }
    }

    pub(crate) fn accept(&mut self, bytes: &[u8]) {
        self.follow(bytes);
    }

    /// Takes tokens away that go too far, unless none would be left.
    pub(crate) fn restrict(&self, vocabulary: &Vocabulary, mask: &mut SimpleVob, complete: bool) {
        let mut banned = Vec::new();
        let mut check = |id: u32| {
            if !self.clone().follow(vocabulary.trie().token(id)) {
                banned.push(id);
            }
        };
        if matches!(self.place, Place::Number { .. }) {
            mask.iter_set_entries(|id| check(id as u32));
        } else if self.depth >= WATCHED_DEPTH {
            vocabulary.openers.iter().copied().filter(|&id| mask.is_allowed(id)).for_each(&mut check);
        }
        if banned.is_empty() || (!complete && banned.len() == mask.num_set()) {
            return;
        }
        banned.into_iter().for_each(|id| mask.disallow_token(id));
    }

    /// Whether the nesting is to come back, before only what opens more is left to write.
    pub(crate) fn is_deep(&self) -> bool {
        self.depth >= WATCHED_DEPTH && !matches!(self.place, Place::String { .. })
    }

    /// Takes away tokens that don't lead to the end, where there are others.
    pub(crate) fn close(&self, vocabulary: &Vocabulary, mask: &mut SimpleVob) {
        let trie = vocabulary.trie();
        let mut keep = |wanted: &dyn Fn(&[u8]) -> bool| {
            let mut kept = vocabulary.none();
            mask.iter_set_entries(|id| {
                if wanted(trie.token(id as u32)) {
                    kept.allow_token(id as u32);
                }
            });
            let some = !kept.is_zero();
            if some {
                mask.set_from(&kept);
            }
            some
        };
        if let Place::String { escaped } = self.place {
            // Of the many tokens of a string only these are of interest.
            let mut kept = vocabulary.none();
            let quotes = vocabulary.quotes.iter().copied().filter(|&id| !escaped && mask.is_allowed(id));
            quotes.for_each(|id| kept.allow_token(id));
            if !kept.is_zero() {
                mask.set_from(&kept);
            }
            return;
        }
        let first = |bytes: &[u8]| bytes.iter().copied().find(|byte| !byte.is_ascii_whitespace());
        if keep(&|bytes| matches!(first(bytes), Some(b'}' | b']'))) {
            return;
        }
        let of_number =
            |byte: Option<u8>| matches!(byte, Some(b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
        if matches!(self.place, Place::Number { .. }) && keep(&|bytes| !of_number(bytes.first().copied())) {
            return;
        }
        keep(&|bytes| first(bytes).is_some());
        keep(&|bytes| !bytes.iter().any(|byte| matches!(byte, b'{' | b'[')));
    }

    /// Follows some text; `false` if it goes too far.
    fn follow(&mut self, bytes: &[u8]) -> bool {
        let mut within = true;
        for &byte in bytes {
            within &= self.step(byte);
        }
        within
    }

    fn step(&mut self, byte: u8) -> bool {
        match &mut self.place {
            Place::String { escaped } => {
                match byte {
                    _ if *escaped => *escaped = false,
                    b'\\' => *escaped = true,
                    b'"' => self.place = Place::Between,
                    _ => {}
                }
                true
            }
            Place::Number { digits, exponent } => match byte {
                b'0'..=b'9' => {
                    *digits += 1;
                    *digits <= if *exponent { MAX_EXPONENT } else { MAX_DIGITS }
                }
                b'.' => {
                    *digits = 0;
                    true
                }
                b'e' | b'E' => {
                    (*digits, *exponent) = (0, true);
                    true
                }
                b'+' | b'-' => true,
                _ => {
                    self.place = Place::Between;
                    self.step(byte)
                }
            },
            Place::Between => {
                match byte {
                    b'"' => self.place = Place::String { escaped: false },
                    b'0'..=b'9' => self.place = Place::Number { digits: 1, exponent: false },
                    b'-' => self.place = Place::Number { digits: 0, exponent: false },
                    b'{' | b'[' => {
                        self.depth += 1;
                        return self.depth <= MAX_DEPTH;
                    }
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follows(text: &str) -> bool {
        JsonGuard::new().follow(text.as_bytes())
    }

    #[test]
    fn digits_nesting_and_exponents_are_bounded() {
        assert!(follows(
            r#"{"a": [1, -2.5, 1e10, "]]{{ \" 99"], "b": "12345678901234567890123456789012345"}"#
        ));
        assert!(!follows(&"9".repeat(25)));
        assert!(follows(&format!("0.{}", "3".repeat(24))));
        assert!(!follows(&format!("0.{}", "3".repeat(25))));
        assert!(!follows("1e100"));
        assert!(follows(&"[".repeat(64)));
        assert!(!follows(&"[".repeat(65)));
    }
}
