//! The header of a safetensors file.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use safetensors::SafeTensors;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::{CheckpointError, Tensor};
use crate::text_file::recognize;

/// The tensors of one safetensors file.
///
/// The checks are those of the safetensors crate (sizes, no holes, no overlaps, nothing after the last tensor), and
/// that no name stands twice.
pub(super) fn read(shard: &str, data: &Bytes) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    let damaged =
        |reason: String| CheckpointError::Shard { shard: shard.to_owned(), bytes: data.len() as u64, reason };
    let (header, metadata) = SafeTensors::read_metadata(data).map_err(|e| match recognize(data) {
        Some(found) => CheckpointError::NotAShard { shard: shard.to_owned(), found },
        None => damaged(explain(data, &e.to_string())),
    })?;
    let start = 8 + header;
    check_unique_keys(&data[8..start]).map_err(damaged)?;
    let slice = |Range { start: a, end: b }: Range<usize>| data.slice(start + a..start + b);
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let data = slice(info.data_offsets.0..info.data_offsets.1);
        (name, Tensor { dtype: info.dtype, shape: info.shape.clone(), data })
    });
    Ok(tensors.collect())
}

/// Adds to the crate's message the number that explains it.
fn explain(data: &[u8], reason: &str) -> String {
    let Some(length) = data.get(..8).and_then(|b| <[u8; 8]>::try_from(b).ok()).map(u64::from_le_bytes) else {
        return format!("{reason}: the file is shorter than the 8 bytes of its header length");
    };
    format!("{reason} (the first 8 bytes say that the header has {length} bytes)")
}

/// serde_json keeps the last of two equal keys; a header that has them is not to be trusted.
fn check_unique_keys(header: &[u8]) -> Result<(), String> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = std::collections::HashSet::new();
            while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                if let Some(twice) = seen.replace(key) {
                    return Err(serde::de::Error::custom(format!("the header lists {twice:?} twice")));
                }
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(header);
    json.deserialize_map(Keys).map_err(|e| e.to_string())
}
