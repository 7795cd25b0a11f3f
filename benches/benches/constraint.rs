//! Masks of constrained answers over Kimi-K2's vocabulary of 163,840 tokens: the time of one token, and of making what they
//! need.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimi_core::grammar::{Form, Grammars};
use kimi_core::tokenizer::Tokenizer;
use serde_json::{Value, json};
use splintr_vocab_kimi::KIMI_VOCAB_PACKED;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let quick = std::env::args().any(|a| a == "--quick");
    let tokenizer = std::sync::Arc::new(Tokenizer::new(&vocabulary()?, None)?);
    let end = tokenizer.id_of("<|im_end|>").ok_or("no <|im_end|>")?;
    let grammars = Grammars::new(tokenizer.clone(), vec![end]);
    let (before, start) = (resident(), Instant::now());
    grammars.prepare()?;
    println!(
        "{} tokens: prepared in {:.2} s, {} MB",
        tokenizer.vocabulary_size(),
        start.elapsed().as_secs_f64(),
        (resident().saturating_sub(before)) >> 20
    );
    println!("{:<28} {:>12} {:>12} {:>12} {:>8}", "form", "compile us", "mean us", "max us", "tokens");
    for (name, schema, text) in cases() {
        let form = Form::Json(&schema);
        let start = Instant::now();
        drop(grammars.hold(&form)?);
        let compile = start.elapsed();
        let tokens = tokenizer.encode(&text)?;
        let (mut total, mut most, mut count) = (Duration::ZERO, Duration::ZERO, 0);
        for _ in 0..if quick { 1 } else { 20 } {
            let constraint = grammars.hold(&form)?;
            for &token in &tokens {
                let start = Instant::now();
                let mask = constraint.mask(&[]);
                let words = mask.words().ok_or("no mask")?;
                let taken = words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
                constraint.accept(token);
                let time = start.elapsed();
                if !taken {
                    return Err(format!("{name}: token {token} of {text} is not allowed").into());
                }
                (total, most, count) = (total + time, most.max(time), count + 1);
            }
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let mean = micros(total) / f64::from(count);
        println!(
            "{name:<28} {:>12.0} {mean:>12.1} {:>12.1} {:>8}",
            micros(compile),
            micros(most),
            tokens.len()
        );
    }
    Ok(())
}

/// Schemas, with an answer to each.
fn cases() -> Vec<(&'static str, Value, String)> {
    let object = json!({"type": "object"});
    let text = json!({"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}, "required": ["path", "content"]});
    let edit = json!({"type": "object", "properties": {"edits": {"type": "array", "items": {"type": "object", "properties": {"line": {"type": "integer", "minimum": 1}, "kind": {"enum": ["insert", "delete", "replace"]}, "text": {"type": ["string", "null"], "maxLength": 500}}, "required": ["line", "kind", "text"]}}}, "required": ["edits"]});
    let many: serde_json::Map<_, _> = (0..100)
        .map(|i| (format!("field_{i}"), json!({"type": "string", "pattern": "^[a-z]+( [a-z]+)*$"})))
        .collect();
    let many = json!({"type": "object", "properties": many});
    let tree = json!({"$defs": {"n": {"type": "object", "properties": {"v": {"type": "number"}, "c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "required": ["v", "c"]}}, "$ref": "#/$defs/n"});
    let prose =
        "The old keeper climbed the stairs of the lighthouse, lit the lamp, and looked out over the sea. "
            .repeat(4);
    vec![
        (
            "json_object",
            object,
            format!(r#"{{"a": [1, 2.5, true, null], "story": "{prose}", "b": {{"c": {{}}}}}}"#),
        ),
        ("write a file", text, format!(r#"{{"path": "src/main.rs", "content": "{prose}"}}"#)),
        (
            "edits",
            edit,
            format!(
                "{{\"edits\": [{}]}}",
                [r#"{"line": 120, "kind": "replace", "text": "let x = 1;"}"#; 8].join(", ")
            ),
        ),
        (
            "100 patterns",
            many,
            format!(
                "{{{}}}",
                (0..40).map(|i| format!(r#""field_{i}": "some words here""#)).collect::<Vec<_>>().join(", ")
            ),
        ),
        (
            "tree",
            tree,
            format!("{}{}{}", r#"{"v": 1, "c": ["#.repeat(10), r#"{"v": -2.25, "c": []}"#, "]}".repeat(10)),
        ),
    ]
}

/// Kimi's `tiktoken.model`, from the packed form of its crate: a magic word, a count, then rank, length and bytes of each.
fn vocabulary() -> Result<Vec<u8>, AnyError> {
    let mut rest = KIMI_VOCAB_PACKED.get(12..).ok_or("the packed vocabulary is cut short")?;
    let mut file = String::new();
    while !rest.is_empty() {
        let rank = leb128(&mut rest).ok_or("a rank is cut short")?;
        let length = leb128(&mut rest).ok_or("a length is cut short")?;
        let (token, tail) = rest.split_at_checked(length).ok_or("a token is cut short")?;
        rest = tail;
        file.push_str(&format!("{} {rank}\n", STANDARD.encode(token)));
    }
    Ok(file.into_bytes())
}

fn leb128(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in (0..28).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Bytes of memory that the process holds, where the system says; else 0.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
