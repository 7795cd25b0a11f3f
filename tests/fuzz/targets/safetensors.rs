//! A shard and an index of any bytes, beside kimi-tiny's config. The input is cut at its last line feed: the index, if there
//! is one, comes after it.
#![no_main]

use bytes::Bytes;
use kimi_core::checkpoint::Checkpoint;
use kimi_core::plan::ModelBytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let config = Checkpoint::kimi_tiny().expect("kimi-tiny opens").file("config.json").expect("in memory");
    let config = config.expect("kimi-tiny has a config");
    let cut = input.iter().rposition(|b| *b == b'\n').unwrap_or(input.len());
    let (shard, index) = input.split_at(cut);
    let mut files = vec![("config.json", config), ("model.safetensors", Bytes::copy_from_slice(shard))];
    if let Some(index) = index.get(1..) {
        files.push(("model.safetensors.index.json", Bytes::copy_from_slice(index)));
    }
    if let Ok(checkpoint) = Checkpoint::from_memory("fuzz", files) {
        // Every tensor lies within the file, and what the model needs is looked for.
        let read: usize = checkpoint.tensors().map(|(_, t)| t.data.len()).sum();
        assert!(read <= shard.len(), "{read} bytes of tensors in {} of the file", shard.len());
        let _ = ModelBytes::of(&checkpoint);
        let _ = checkpoint.fingerprint();
    }
});
