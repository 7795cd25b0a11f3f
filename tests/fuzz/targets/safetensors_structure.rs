//! A checkpoint whose header is well-formed JSON with kimi-tiny's names and any types, shapes and offsets: it gets past the
//! parser, to the code that makes matrices of tensors.
#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::ModelBytes;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

#[derive(Debug, Arbitrary)]
struct File {
    /// Changes of kimi-tiny's tensors, by their number in the order of names.
    changes: Vec<(u16, Change)>,
    /// Changes of the config's numbers, by their number.
    config: Vec<(u8, u32)>,
}

#[derive(Debug, Arbitrary)]
enum Change {
    Leave,
    Dtype(u8),
    Dimension(u8, u32),
    Rank(u8),
    Rename(u16),
    Offset(i16),
    /// The dimensions as they are, and data that fits them in another type.
    Consistent(u8, u8),
}

const DTYPES: [(&str, usize); 12] = [
    ("U32", 4), ("BF16", 2), ("F16", 2), ("F32", 4), ("U8", 1), ("F8_E4M3", 1), ("I32", 4), ("I8", 1), ("BOOL", 1),
    ("F64", 8), ("I64", 8), ("F8_E5M2", 1),
];

struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    bytes: u64,
    shift: i64,
}

fuzz_target!(|file: File| {
    let tiny = Checkpoint::kimi_tiny().expect("kimi-tiny opens");
    let mut entries: Vec<Entry> = tiny
        .tensors()
        .map(|(name, t)| {
            let dtype = t.dtype.to_string();
            let dtype = DTYPES.iter().find(|(d, _)| *d == dtype).map_or("U32", |(d, _)| d);
            let shape = t.shape.iter().map(|&n| n as u64).collect();
            Entry { name: name.to_owned(), dtype, shape, bytes: t.data.len() as u64, shift: 0 }
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = entries.iter().map(|e| e.name.clone()).collect();
    let count = entries.len();
    for (at, change) in file.changes.into_iter().take(64) {
        let entry = &mut entries[usize::from(at) % count];
        match change {
            Change::Leave => {}
            Change::Dtype(d) => entry.dtype = DTYPES[usize::from(d) % DTYPES.len()].0,
            Change::Dimension(i, n) => {
                let rank = entry.shape.len().max(1);
                if let Some(d) = entry.shape.get_mut(usize::from(i) % rank) {
                    *d = n.into();
                }
            }
            Change::Rank(n) => entry.shape.resize(usize::from(n % 6), 1),
            Change::Rename(other) => entry.name = names[usize::from(other) % count].clone(),
            Change::Offset(by) => entry.shift = by.into(),
            Change::Consistent(d, factor) => {
                let (dtype, size) = DTYPES[usize::from(d) % DTYPES.len()];
                entry.dtype = dtype;
                if let Some(last) = entry.shape.last_mut() {
                    *last = *last * u64::from(factor % 9) / 4;
                }
                entry.bytes = entry.shape.iter().fold(size as u64, |a, b| a.saturating_mul(*b)).min(1 << 20);
            }
        }
    }
    let mut header = Map::new();
    let mut end = 0u64;
    for entry in &entries {
        let start = end.saturating_add_signed(entry.shift);
        end = start.saturating_add(entry.bytes);
        let value = json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]});
        header.insert(entry.name.clone(), value);
    }
    let header = Value::Object(header).to_string();
    let mut shard = (header.len() as u64).to_le_bytes().to_vec();
    shard.extend_from_slice(header.as_bytes());
    shard.resize(shard.len() + end.min(32 << 20) as usize, 1);

    let config = tiny.file("config.json").expect("in memory").expect("kimi-tiny has a config");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    if let Some(config) = config.as_object_mut() {
        let keys: Vec<String> = config.iter().filter(|(_, v)| v.is_number()).map(|(k, _)| k.clone()).collect();
        for (at, n) in file.config.into_iter().take(4) {
            config[&keys[usize::from(at) % keys.len()]] = (n % 100_000).into();
        }
        // Numbers of layers and experts are loops: keep them short.
        for (key, most) in [("num_hidden_layers", 64), ("n_routed_experts", 64)] {
            let n = config[key].as_u64().unwrap_or(1).min(most);
            config[key] = n.into();
        }
    }
    let files = [("config.json", Bytes::from(config.to_string())), ("model.safetensors", Bytes::from(shard))];
    if let Ok(checkpoint) = Checkpoint::from_memory("fuzz", files) {
        let _ = ModelBytes::of(&checkpoint);
        let _ = checkpoint.fingerprint();
    }
});
