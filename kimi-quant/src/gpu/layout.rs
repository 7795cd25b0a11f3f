//! A batch on the device: rotations, cache slots, segments of attention and page tables, in one buffer that is written
//! once a batch.

use std::sync::{Arc, PoisonError};

use super::pool::Buffer;
use super::{Gpu, upload_words};
use crate::{BackendError, Rope, TokenLayout};

/// A token's positions are cut into at most so many segments. A batch of T tokens has at most T more.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// Words of a segment: token, first position, position behind its last, start of its page table.
const SEGMENT_WORDS: usize = 4;

/// One batch's layout on the device.
pub(crate) struct DeviceLayout {
    layout: TokenLayout,
    rope: Rope,
    /// Cosine and sine of each token's rotations, `[T, rope / 2, 2]`; then all that follows.
    pub(crate) words: Arc<Buffer>,
    /// Where the cache slot of each token begins, `[T]`.
    pub(crate) slots: usize,
    /// Where the first segment of each token begins, `[T + 1]`.
    pub(crate) firsts: usize,
    /// Where the segments begin, by token and position.
    pub(crate) segments: usize,
    /// Number of segments.
    pub(crate) segment_count: usize,
    /// Positions of the longest segment.
    pub(crate) segment_length: usize,
    /// Positions that all tokens attend to.
    pub(crate) positions: usize,
}

impl DeviceLayout {
    fn new(gpu: &Gpu, layout: &TokenLayout, rope: &Rope) -> Result<Self, BackendError> {
        let mut words = Vec::new();
        // Made here: shaders are imprecise at large angles.
        for &position in layout.positions() {
            for frequency in &rope.inv_freq {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                words.extend([cos.to_bits(), sin.to_bits()]);
            }
        }
        let slots = words.len();
        words.extend(layout.positions().iter().enumerate().map(|(t, &p)| {
            let (page, offset) = layout.slot(t, p as usize);
            (page * layout.page_tokens() + offset) as u32
        }));

        let positions = layout.positions().iter().map(|&p| p as usize + 1).sum();
        let length = segment_length(positions);
        let counts = layout.positions().iter().map(|&p| (p as usize + 1).div_ceil(length));
        let firsts = words.len();
        words.push(0);
        words.extend(counts.scan(0, |sum, count| {
            *sum += count as u32;
            Some(*sum)
        }));
        let segments = words.len();
        let segment_count = words.last().map_or(0, |&n| n as usize);
        let mut tables = Vec::with_capacity(layout.tables().len());
        let mut at = segments + SEGMENT_WORDS * segment_count;
        for table in layout.tables() {
            tables.push(at);
            at += table.len();
        }
        for (t, (&position, &sequence)) in layout.positions().iter().zip(layout.sequences()).enumerate() {
            let end = position as usize + 1;
            for start in (0..end).step_by(length) {
                let segment = [t, start, (start + length).min(end), tables[sequence as usize]];
                words.extend(segment.map(|n| n as u32));
            }
        }
        layout.tables().iter().for_each(|table| words.extend_from_slice(table));
        let (layout, rope) = (layout.clone(), rope.clone());
        let words = upload_words(gpu, &words)?;
        Ok(Self {
            layout,
            rope,
            words,
            slots,
            firsts,
            segments,
            segment_count,
            segment_length: length,
            positions,
        })
    }
}

/// Positions of a segment in a batch whose tokens attend to `positions` in all.
///
/// Chosen so that a batch of T tokens has at most T + [`MAX_SEGMENTS`] segments: their results stay small. Short contexts are
/// cut into half as many, since putting a segment together costs as much as some dozen positions.
fn segment_length(positions: usize) -> usize {
    positions.div_ceil(MAX_SEGMENTS).max(positions.div_ceil(MAX_SEGMENTS / 2).clamp(32, 64))
}

impl Gpu {
    /// The layout on the device; the last one is kept, for the next layer. Without `rope` any rotations will do.
    pub(crate) fn layout(
        &self,
        layout: &TokenLayout,
        rope: Option<&Rope>,
    ) -> Result<Arc<DeviceLayout>, BackendError> {
        let mut last = self.last_layout.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(found) if found.layout == *layout && rope.is_none_or(|rope| found.rope == *rope) => {
                Ok(found.clone())
            }
            _ => {
                let none = Rope { inv_freq: Vec::new(), mscale: 1.0 };
                let made = Arc::new(DeviceLayout::new(self, layout, rope.unwrap_or(&none))?);
                *last = Some(made.clone());
                Ok(made)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_SEGMENTS, segment_length};

    #[test]
    fn segments_stay_few() {
        let prompt: Vec<usize> = (1..=512).collect();
        let mixed = [&[131_072][..], &prompt, &[4097, 4098, 4099]].concat();
        for tokens in [&[1][..], &[1600], &[131_072], &[2000; 32], &prompt, &mixed] {
            let length = segment_length(tokens.iter().sum());
            let counts = tokens.iter().map(|positions| positions.div_ceil(length));
            assert!(counts.clone().all(|n| (1..=MAX_SEGMENTS).contains(&n)));
            assert!(counts.sum::<usize>() <= MAX_SEGMENTS + tokens.len());
        }
    }
}
