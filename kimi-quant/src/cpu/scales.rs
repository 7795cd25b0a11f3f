//! Scales and biases of a few rows, as f32, and their way to the lanes of a block.

use std::ops::Range;

use super::codec::{Codec, Scaling};
use super::dequant::{e4m3, e8m0};
use super::simd::{LINE, MAX_LANES, Simd};
use crate::{FloatType, Format, PackedMatrix};

/// Scales and biases of a few rows, and a vector of padding.
///
/// Short rows are read at once: one of 512 columns has eight groups, too few to be worth a loop of their own.
pub(crate) struct Parameters<S: Simd> {
    scales: Vec<f32>,
    biases: Vec<f32>,
    /// See [`Self::take_zeros`]; integers, in every byte.
    #[cfg(target_arch = "x86_64")]
    zeros: Vec<f32>,
    /// Groups a row has.
    groups: usize,
    /// From a row's values to the next one's.
    stride: usize,
    /// From a row to the one whose parameters are asked of the memory with its own.
    ahead: usize,
    places: S::Places,
    /// Of a block's number, to the left and to the right: its first group.
    shifts: [u32; 2],
}

impl<S: Simd> Parameters<S> {
    /// For `rows` rows at once, which ask for those of rows so many ahead, or of those that come next.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    pub(crate) unsafe fn new<C: Codec<S = S>>(m: &PackedMatrix, rows: usize, ahead: Option<usize>) -> Self {
        // SAFETY: passed on.
        unsafe { Self::with_padding::<C>(m, rows, ahead, C::CODES, 0) }
    }

    /// For blocks of other lanes, `width` columns each; the last one may be filled up with lanes of zeros.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    pub(crate) unsafe fn of_lanes<C: Codec<S = S>>(
        m: &PackedMatrix,
        rows: usize,
        ahead: Option<usize>,
        width: usize,
    ) -> Self {
        // SAFETY: passed on.
        unsafe { Self::with_padding::<C>(m, rows, ahead, width, MAX_LANES) }
    }

    /// For one block of `rows` rows, each `lanes` lanes of `width` columns, the last of which may be lanes of zeros.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    pub(crate) unsafe fn of_rows<C: Codec<S = S>>(
        m: &PackedMatrix,
        rows: usize,
        ahead: Option<usize>,
        lanes: usize,
        width: usize,
    ) -> Self {
        let groups = m.format().groups(m.cols());
        // SAFETY: passed on.
        unsafe {
            Self::with_padding::<C>(
                m,
                rows,
                ahead,
                width,
                (lanes * width / m.format().group()).saturating_sub(groups),
            )
        }
    }

    /// With so many zeros after each row.
    #[inline(always)]
    unsafe fn with_padding<C: Codec<S = S>>(
        m: &PackedMatrix,
        rows: usize,
        ahead: Option<usize>,
        width: usize,
        padding: usize,
    ) -> Self {
        let (group, block) = (m.format().group(), S::LANES * width);
        let groups = if C::SCALING == Scaling::None { 0 } else { m.format().groups(m.cols()) };
        let stride = groups + padding;
        let values = rows * stride + MAX_LANES;
        let biases = if C::SCALING == Scaling::Affine { values } else { 0 };
        let mut lanes = [0; MAX_LANES];
        if group < block {
            for (i, place) in lanes.iter_mut().enumerate() {
                *place = (i * width / group) as i32;
            }
        }
        Self {
            scales: vec![0.0; values],
            biases: vec![0.0; biases],
            #[cfg(target_arch = "x86_64")]
            zeros: Vec::new(),
            groups,
            stride,
            ahead: ahead.unwrap_or_else(|| rows_ahead(rows, m.weight().len() / m.rows().max(1))),
            // SAFETY: passed on.
            places: unsafe { S::places(&lanes) },
            shifts: [(block / group).max(1).ilog2(), (group / block).max(1).ilog2()],
        }
    }

    /// The first group of a block.
    #[inline(always)]
    fn first(&self, block: usize) -> usize {
        block << self.shifts[0] >> self.shifts[1]
    }

    /// Reads rows of `m`, at least one and at most as many as [`Self::new`] was told, into the slots from 0 on.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    pub(crate) unsafe fn read<C: Codec<S = S>>(&mut self, m: &PackedMatrix, rows: Range<usize>) {
        let gapless = m.format().scale_rows() == 1 && self.stride == self.groups;
        // SAFETY: passed on.
        unsafe {
            if gapless && self.groups < MAX_LANES {
                return self.read_to::<C>(0, m, rows);
            }
            for (slot, row) in rows.enumerate() {
                self.read_to::<C>(slot, m, row..row + 1);
            }
        }
    }

    /// Reads row `row` of `m` into `slot`.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    pub(crate) unsafe fn read_row<C: Codec<S = S>>(&mut self, slot: usize, m: &PackedMatrix, row: usize) {
        // SAFETY: passed on.
        unsafe { self.read_to::<C>(slot, m, row..row + 1) }
    }

    /// Reads rows whose parameters follow each other without a gap, in `m` and here.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    unsafe fn read_to<C: Codec<S = S>>(&mut self, slot: usize, m: &PackedMatrix, rows: Range<usize>) {
        if C::SCALING == Scaling::None {
            return;
        }
        let all = |first: usize, last: usize| m.scale_range(first).start..m.scale_range(last).end;
        // Those of later rows: they are all needed at once.
        let next = all(rows.start + self.ahead, rows.end - 1 + self.ahead);
        for bytes in [m.scales(), m.biases()].into_iter().filter(|bytes| !bytes.is_empty()) {
            for line in next.clone().step_by(LINE) {
                // SAFETY: passed on.
                unsafe { S::prefetch(bytes.as_ptr().wrapping_add(line)) }
            }
        }
        let to = slot * self.stride..slot * self.stride + rows.len() * self.groups;
        self.take::<C>(m, all(rows.start, rows.end - 1), to);
    }

    /// Puts what `m` has at `from` to `to`.
    #[inline(always)]
    fn take<C: Codec<S = S>>(&mut self, m: &PackedMatrix, from: Range<usize>, to: Range<usize>) {
        // Biases lie as scales do.
        let scales = &mut self.scales[to.clone()];
        // A kernel of one kind of formats has no code of the other: this is in each of them, several times.
        if C::SCALING == Scaling::Affine {
            if let Format::Affine { scales: t, .. } | Format::Int4 { scales: t, .. } = m.format() {
                read_floats(t, &m.scales()[from.clone()], scales);
                let biases = &mut self.biases[to];
                if m.biases().is_empty() {
                    biases.iter_mut().zip(scales).for_each(|(b, s)| *b = -8.0 * *s);
                } else {
                    read_floats(t, &m.biases()[from], biases);
                }
            }
        } else if let Format::Fp8 { scales: t } = m.format() {
            read_floats(t, &m.scales()[from], scales);
            scales.iter_mut().for_each(|s| *s *= m.global_scale());
        } else {
            let pairs = scales.iter_mut().zip(&m.scales()[from]);
            if m.format() == Format::Nvfp4 {
                pairs.for_each(|(s, &b)| *s = m.global_scale() * e4m3(b));
            } else {
                pairs.for_each(|(s, &b)| *s = m.global_scale() * e8m0(b));
            }
        }
    }

    /// Takes each group's zero point off the biases of the first `rows` rows that were read: the integer code, up to
    /// `largest`, whose weight is nearest to zero. Scales that are large beside the weights leave nothing large behind
    /// then.
    ///
    /// # Safety
    /// The machine has the instruction set and fused multiply-adds; the rows were read, of a codec that has biases.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn take_zeros(&mut self, rows: usize, largest: f32) {
        self.zeros.resize(self.scales.len(), 0.0);
        let groups = rows * self.stride;
        let (zeros, biases, scales) =
            (&mut self.zeros[..groups], &mut self.biases[..groups], &self.scales[..groups]);
        for ((zero, bias), &scale) in zeros.iter_mut().zip(biases).zip(scales) {
            let exact = -*bias / scale;
            // In this form a maximum and a minimum of vectors. A scale of zero, or none that is a number, has 0.
            let exact = if exact > 0.0 { exact } else { 0.0 };
            let exact = if exact < largest { exact } else { largest };
            // 2^23 more leaves no bit for a fraction: the lowest bits are the integer.
            let whole = exact + 8_388_608.0;
            *bias = (whole - 8_388_608.0).mul_add(scale, *bias);
            *zero = f32::from_bits((whole.to_bits() & 0xff) * 0x0101_0101);
        }
    }

    /// Zero points of the lanes of block `block`, integers in every byte.
    ///
    /// # Safety
    /// As for [`Simd`]; a row with that block was read into `slot` and its zero points were taken.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn zeros(&self, slot: usize, block: usize) -> S::V {
        // SAFETY: a block's groups lie in a row, and a vector of padding follows the last.
        unsafe { S::pick(self.zeros.as_ptr().add(slot * self.stride + self.first(block)), self.places) }
    }

    /// Scales of the lanes of block `block`.
    ///
    /// # Safety
    /// As for [`Simd`]; a row with that block was read into `slot`, of a codec that has scales.
    #[inline(always)]
    pub(crate) unsafe fn scales(&self, slot: usize, block: usize) -> S::V {
        // SAFETY: a block's groups lie in a row, and a vector of padding follows the last.
        unsafe { S::pick(self.scales.as_ptr().add(slot * self.stride + self.first(block)), self.places) }
    }

    /// Biases of the groups from `group` on, then zeros.
    ///
    /// # Safety
    /// As for [`Simd`]; a row with that group was read into `slot`, of a codec that has biases.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn biases(&self, slot: usize, group: usize) -> S::V {
        // SAFETY: so many of the row's biases are there.
        unsafe {
            let from = self.biases.as_ptr().add(slot * self.stride + group);
            match self.groups - group {
                // The next row's would be multiplied with zeros, but they may be infinite.
                few @ ..MAX_LANES => S::load_first(from, few),
                _ => S::load(from),
            }
        }
    }

    /// Biases of the lanes of block `block`.
    ///
    /// # Safety
    /// As for [`Self::scales`], of a codec that has biases.
    #[inline(always)]
    pub(crate) unsafe fn picked_biases(&self, slot: usize, block: usize) -> S::V {
        // SAFETY: as for scales.
        unsafe { S::pick(self.biases.as_ptr().add(slot * self.stride + self.first(block)), self.places) }
    }

    /// Scales and biases of the lanes of block `block`.
    ///
    /// # Safety
    /// As for [`Simd`]; a row with that block was read into `slot`.
    #[inline(always)]
    pub(crate) unsafe fn lanes<C: Codec<S = S>>(&self, slot: usize, block: usize) -> (S::V, S::V) {
        // SAFETY: passed on.
        unsafe {
            let scale = match C::SCALING {
                Scaling::None => S::splat(1.0),
                _ => self.scales(slot, block),
            };
            let bias = match C::SCALING {
                Scaling::Affine => self.picked_biases(slot, block),
                _ => S::splat(0.0),
            };
            (scale, bias)
        }
    }
}

/// The distance in rows at which to ask the memory for more, for rows of `row_bytes` of which `rows` are read at once: those
/// that come next, or where that is too soon to be of use, some later ones.
#[inline(always)]
pub(crate) fn rows_ahead(rows: usize, row_bytes: usize) -> usize {
    const MIN_BYTES: usize = 4 << 10;
    rows * MIN_BYTES.div_ceil((rows * row_bytes).max(1))
}

#[inline(always)]
fn read_floats(t: FloatType, bytes: &[u8], out: &mut [f32]) {
    let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b) as u32);
    match t {
        FloatType::Bf16 => out.iter_mut().zip(halves()).for_each(|(v, h)| *v = f32::from_bits(h << 16)),
        FloatType::F16 => out.iter_mut().zip(halves()).for_each(|(v, h)| *v = f16(h)),
        FloatType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            out.iter_mut().zip(words).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
    }
}

/// The value of a half's bits, in steps that the compiler makes vectors of.
#[inline(always)]
fn f16(half: u32) -> f32 {
    let magnitude = half & 0x7fff;
    // The exponent is 112 too small; infinities and NaNs keep theirs of ones.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | (half & 0x8000) << 16)
}
