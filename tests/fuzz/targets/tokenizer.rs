//! The tokenizer's files, and text for it. The input's first byte says what is any bytes: `tiktoken.model`,
//! `tokenizer_config.json`, or a text that must come back as it was.
#![no_main]

use std::sync::LazyLock;

use kimi_core::checkpoint::Checkpoint;
use kimi_core::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

static FILES: LazyLock<(Vec<u8>, Tokenizer)> = LazyLock::new(|| {
    let tiny = Checkpoint::kimi_tiny().expect("kimi-tiny opens");
    let ranks = tiny.file("tiktoken.model").expect("in memory").expect("kimi-tiny has a vocabulary").to_vec();
    let tokenizer = Tokenizer::new(&ranks, None).expect("kimi-tiny's vocabulary");
    (ranks, tokenizer)
});

/// A vocabulary of the single bytes.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let lines = FILES.0.split(|b| *b == b'\n').take(256);
    lines.collect::<Vec<_>>().join(&b'\n')
});

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => drop(Tokenizer::new(rest, None)),
        1 => {
            // Lines after a vocabulary that is whole.
            drop(Tokenizer::new(&[&BYTES[..], b"\n", rest].concat(), None));
        }
        2 => drop(Tokenizer::new(&BYTES, Some(rest))),
        _ => {
            let text = String::from_utf8_lossy(rest);
            let tokenizer = &FILES.1;
            for ids in [tokenizer.encode(&text), tokenizer.encode_with_special(&text)] {
                let ids = ids.expect("a short text can be encoded");
                assert_eq!(tokenizer.decode(&ids, false).expect("its own ids"), text);
            }
            assert!(tokenizer.encode(&text).expect("again").iter().all(|id| !tokenizer.is_control(*id)));
        }
    }
});
