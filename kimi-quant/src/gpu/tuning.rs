//! Sizes of the product kernel.

use super::device::Device;
use super::shader::Packing;

/// Sizes of the product kernel (shaders/product.wgsl).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Threads of a workgroup.
    pub workgroup: u32,
    /// Rows that a subgroup reads at once: more rows reuse the activations more and have more loads in flight.
    pub rows: u32,
    /// Rows that a subgroup reads in all, a multiple of `rows`: more of them use a workgroup's staged activations more
    /// often and leave fewer workgroups.
    pub block_rows: u32,
    /// Codes cut out of one shifted word: 1, 2 or 4. More save shifts and cost precision, a code's width in bits each.
    pub share: u32,
}

/// What a product is like.
pub(crate) struct Shape {
    pub(crate) packing: Packing,
    /// Rows of all workgroups together, over heads, pairs and tokens.
    pub(crate) rows: usize,
    pub(crate) pair: bool,
    pub(crate) tokens: u32,
}

/// Workgroups that keep a large GPU busy.
const ENOUGH_WORKGROUPS: usize = 100;

/// PCI vendor.
pub(crate) const NVIDIA: u32 = 0x10de;

impl Tuning {
    /// Chosen by format and shape.
    pub(crate) fn choose(device: &Device, given: Option<Tuning>, shape: &Shape) -> Self {
        let mut tuning = given.unwrap_or_else(|| Self::default_for(device, shape));
        let most = device.limits.max_compute_invocations_per_workgroup;
        tuning.workgroup = tuning.workgroup.min(most).min(1024).max(device.lanes);
        if shape.tokens > 1 {
            // Sums for every token: fewer rows, or they leave the registers.
            tuning.rows = tuning.rows.min(2);
            tuning.block_rows = tuning.block_rows.min(2);
        }
        if shape.packing.bits() >= 16 {
            tuning.rows = 1;
        }
        // Codes that share a word cost precision: eight bits of a float's 24 are given away, not more.
        tuning.share = tuning.share.min((8 / shape.packing.bits().max(1)) as u32).max(1);
        tuning.share = 1 << tuning.share.ilog2();
        tuning.block_rows = tuning.block_rows.max(tuning.rows).next_multiple_of(tuning.rows);
        tuning
    }

    fn default_for(device: &Device, shape: &Shape) -> Self {
        let bits = shape.packing.bits();
        let share = if bits == 2 { 4 } else { 2 };
        if device.lanes < 32 {
            return Self { workgroup: 64, rows: 1, block_rows: 1, share };
        }
        // Measured on an H100 (benches/gpu_matvec.rs --search). Elsewhere smaller workgroups: a compiler may refuse the
        // registers of 1024 threads.
        let workgroup = if device.info.vendor == NVIDIA { 1024 } else { 256 };
        let teams = (workgroup / device.lanes) as usize;
        let most = if bits >= 8 || shape.pair { 2 } else { 4 };
        let busy = |block: usize| shape.rows / (teams * block) >= ENOUGH_WORKGROUPS;
        let sizes = [(4, 8), (4, 4), (2, 2)].into_iter().filter(|(rows, _)| *rows <= most);
        let (rows, block_rows) = sizes.into_iter().find(|(_, b)| busy(*b as usize)).unwrap_or((1, 1));
        Self { workgroup, rows, block_rows, share }
    }
}

/// Tokens that a workgroup takes, of a batch of `tokens`.
pub(crate) fn tokens_at_once(tokens: usize) -> u32 {
    match tokens {
        0 | 1 => 1,
        2 => 2,
        3 | 4 => 4,
        _ => 8,
    }
}

/// Units of activations that fit the shared memory.
pub(crate) fn tile(device: &Device, packing: Packing, tokens: u32, workgroup: u32) -> u32 {
    let reduction = 4 * if device.subgroups { workgroup / device.lanes } else { workgroup };
    let room = device.limits.max_compute_workgroup_storage_size.min(48 << 10).saturating_sub(reduction + 64);
    let unit = tokens * (128 + 8 * packing.parts() as u32);
    (room / unit).clamp(1, packing.units() as u32)
}
