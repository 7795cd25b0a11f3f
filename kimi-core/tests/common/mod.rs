//! What several of these tests need: Kimi-K2's vocabulary, a tiny one, and the shared material.
#![allow(dead_code, reason = "not every test needs every helper")]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../material/mod.rs"]
mod material;

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimi_core::tokenizer::Tokenizer;
use splintr_vocab_kimi::KIMI_VOCAB_PACKED;

/// A file of the shared material, or `None` (with a line that says so) where it is absent.
pub(crate) fn shared(path: &str) -> Option<Vec<u8>> {
    Some(std::fs::read(material::shared(path)?).expect("a file of the shared material"))
}

/// Kimi-K2's tokenizer.
pub(crate) fn k2() -> &'static Tokenizer {
    static K2: OnceLock<Tokenizer> = OnceLock::new();
    K2.get_or_init(|| Tokenizer::new(&k2_file(), None).expect("Kimi-K2's vocabulary"))
}

/// Kimi-K2's `tiktoken.model`, from the packed form in which its crate holds it: a magic word, the number of
/// tokens (u32), then for each its rank and length (LEB128) and its bytes.
pub(crate) fn k2_file() -> Vec<u8> {
    let mut rest = KIMI_VOCAB_PACKED.strip_prefix(b"SPLNTRV1").expect("the packed vocabulary's magic word");
    let (count, tail) = rest.split_first_chunk::<4>().expect("the number of tokens");
    rest = tail;
    let mut file = String::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let rank = leb128(&mut rest);
        let length = leb128(&mut rest);
        let (token, tail) = rest.split_at(length);
        rest = tail;
        file.push_str(&format!("{} {rank}\n", STANDARD.encode(token)));
    }
    assert!(rest.is_empty());
    file.into_bytes()
}

fn leb128(bytes: &mut &[u8]) -> usize {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a number");
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// A vocabulary of the 256 bytes and three longer tokens: `in`, ` the`, `ing`.
pub(crate) fn tiny_file() -> Vec<u8> {
    let tokens = (0..=255u8).map(|b| vec![b]).chain([b"in".to_vec(), b" the".to_vec(), b"ing".to_vec()]);
    let lines: Vec<String> =
        tokens.enumerate().map(|(rank, token)| format!("{} {rank}", STANDARD.encode(token))).collect();
    lines.join("\n").into_bytes()
}
