//! What the tests share: golden files and small random numbers.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

#[cfg(feature = "gpu")]
pub mod both;
#[cfg(feature = "gpu")]
pub mod device;

use std::path::PathBuf;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// One golden file, or `None` (with a line on stdout) where the shared folder is absent. An error where
/// `KIMI_REQUIRE_SHARED` is set.
pub fn golden(name: &str) -> Option<Vec<u8>> {
    let shared = std::env::var_os("KIMI_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = shared.join("oracle/golden").join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(e) => {
            let required = std::env::var_os("KIMI_REQUIRE_SHARED").is_some();
            assert!(!required, "{}: {e} (set KIMI_SHARED)", path.display());
            println!("skipped: {}: {e} (set KIMI_SHARED)", path.display());
            None
        }
    }
}

/// The tensors of a golden file.
pub struct Golden<'a>(pub SafeTensors<'a>);

impl Golden<'_> {
    pub fn view(&self, name: &str) -> TensorView<'_> {
        self.0.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.view(name).data().to_vec()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn i32s(&self, name: &str) -> Vec<i32> {
        self.bytes(name).chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// bfloat16 bytes of values that are bfloat16 already.
pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

/// Little-endian bytes.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The bytes at `offset` bytes past the start of an allocation: any alignment.
pub fn misaligned(bytes: &[u8], offset: usize) -> bytes::Bytes {
    let mut padded = vec![0xa5; offset];
    padded.extend_from_slice(bytes);
    bytes::Bytes::from(padded).slice(offset..)
}

/// A small generator of repeatable numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1..1.
    pub fn f32(&mut self) -> f32 {
        ((self.u64() >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.u64() >> 33) as usize % limit
    }

    pub fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.u64() >> 56) as u8).collect()
    }
}
