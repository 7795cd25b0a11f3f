//! Suites of schemas from a file.

use kimi_core::grammar::Form;
use serde_json::Value;

use crate::sampler::{KIMI, check};

/// Every schema of the file that `KIMI_SCHEMAS` names, a JSON array, takes valid answers only.
#[test]
fn schemas_of_a_file() {
    let Some(path) = std::env::var_os("KIMI_SCHEMAS") else {
        println!("skipped: KIMI_SCHEMAS names no file");
        return;
    };
    let file = std::fs::read(path).unwrap();
    let schemas: Vec<Value> = serde_json::from_slice(&file).unwrap();
    let mut faults = Vec::new();
    let mut unfinished = 0;
    for (place, schema) in schemas.iter().enumerate() {
        for seed in 0..4 {
            match KIMI.write(&Form::Json(schema), seed) {
                Ok(Some(text)) => faults.extend(check(schema, &text).err().map(|e| format!("{place}: {e}"))),
                Ok(None) => unfinished += 1,
                Err(fault) => faults.push(format!("{place}: refused: {fault}: {schema}")),
            }
        }
    }
    println!("{} schemas, {unfinished} answers without an end", schemas.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
