//! Benches of kimi: `cargo bench -p kimi-benches --bench NAME`. Each is a program that prints a table.

use bytes::Bytes;
use kimi_quant::{FloatType, Format, FormatError, PackedMatrix};

/// Random weights of any size, cut from one block of random data, so that they cost no memory and no time.
pub struct RandomWeights {
    codes: Bytes,
    /// bf16 or f16 of small size and both signs, two bytes each.
    floats: Bytes,
}

impl RandomWeights {
    /// From `bytes` bytes of random data: a matrix's codes must fit.
    pub fn new(bytes: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let words = (0..bytes.div_ceil(8)).map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        });
        let codes: Bytes = words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>().into();
        // The upper byte keeps the sign; an exponent of 2^-7 (bf16) or 2^0 (f16).
        let small = |(i, byte): (usize, &u8)| if i % 2 == 0 { *byte } else { 0x3c | (byte & 0x80) };
        let floats = codes.iter().enumerate().map(small).collect::<Vec<u8>>().into();
        Self { codes, floats }
    }

    /// Some matrix; another one for another `seed`.
    ///
    /// # Errors
    /// [`FormatError`] if the format can't hold such rows.
    pub fn matrix(
        &self,
        rows: usize,
        cols: usize,
        format: Format,
        seed: usize,
    ) -> Result<PackedMatrix, FormatError> {
        let [weight, scales, biases] = format.row_bytes(cols)?;
        let cut = |from: &Bytes, bytes: usize, seed: usize| {
            let room = from.len().checked_sub(bytes).ok_or(FormatError::TooLarge { rows, cols })?;
            let start = ((seed * 7919 * 64) % (room + 1)) & !1;
            Ok::<_, FormatError>(from.slice(start..start + bytes))
        };
        let codes = if matches!(format, Format::Float(FloatType::F16 | FloatType::Bf16)) {
            &self.floats
        } else {
            &self.codes
        };
        let codes = cut(codes, weight * rows, seed)?;
        let (scales, biases) =
            (cut(&self.floats, scales * rows, seed)?, cut(&self.floats, biases * rows, seed + 1)?);
        PackedMatrix::new(rows, cols, format, codes, scales, biases)
    }

    /// `count` activations between -1 and 1.
    pub fn activations(&self, count: usize) -> Vec<f32> {
        (0..count).map(|i| f32::from(self.codes[i % 65521]) / 128.0 - 1.0).collect()
    }

    /// `[tokens, chosen]` ids below `experts`, distinct within a token.
    pub fn choices(&self, tokens: usize, chosen: usize, experts: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(tokens * chosen);
        let mut random = self.codes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        for _ in 0..tokens {
            let first = ids.len();
            while ids.len() < first + chosen.min(experts) {
                let mut id = random.next().unwrap_or_default() % experts as u32;
                while ids[first..].contains(&id) {
                    id = (id + 1) % experts as u32;
                }
                ids.push(id);
            }
        }
        ids
    }
}
