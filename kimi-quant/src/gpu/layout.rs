//! Positions, page tables and rotations of a batch on the device, uploaded once a batch.

use std::sync::{Arc, PoisonError};

use super::pool::Buffer;
use super::{Gpu, upload_words};
use crate::{BackendError, Rope, TokenLayout};

/// One batch's layout on the device.
#[derive(Clone)]
pub(crate) struct DeviceLayout {
    layout: TokenLayout,
    /// Position and start of the page table of each token, `[T, 2]`.
    pub(crate) tokens: Arc<Buffer>,
    /// All page tables, one after another.
    pub(crate) tables: Arc<Buffer>,
    /// Cache slot of each token, `[T]`.
    pub(crate) slots: Arc<Buffer>,
    /// Cosine and sine of each token's rotations, `[T, rope / 2, 2]`.
    turns: Option<(Rope, Arc<Buffer>)>,
}

impl DeviceLayout {
    fn new(gpu: &Gpu, layout: &TokenLayout) -> Result<Self, BackendError> {
        let mut starts = Vec::with_capacity(layout.tables().len());
        let mut tables = Vec::new();
        for table in layout.tables() {
            starts.push(tables.len() as u32);
            tables.extend_from_slice(table);
        }
        let tokens = layout.positions().iter().zip(layout.sequences());
        let tokens: Vec<u32> = tokens.flat_map(|(p, s)| [*p, starts[*s as usize]]).collect();
        let slots = layout.positions().iter().enumerate().map(|(t, &p)| {
            let (page, offset) = layout.slot(t, p as usize);
            (page * layout.page_tokens() + offset) as u32
        });
        Ok(Self {
            layout: layout.clone(),
            tokens: upload_words(gpu, &tokens)?,
            tables: upload_words(gpu, &tables)?,
            slots: upload_words(gpu, &slots.collect::<Vec<_>>())?,
            turns: None,
        })
    }
}

impl Gpu {
    /// The layout on the device; the last one is kept, for the next layer.
    pub(crate) fn layout(&self, layout: &TokenLayout) -> Result<DeviceLayout, BackendError> {
        let mut last = self.last_layout.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(found) if found.layout == *layout => Ok(found.clone()),
            _ => {
                let made = DeviceLayout::new(self, layout)?;
                *last = Some(made.clone());
                Ok(made)
            }
        }
    }

    /// Cosines and sines of the layout's rotations. They are made here: shaders are imprecise at large angles.
    pub(crate) fn turns(&self, layout: &TokenLayout, rope: &Rope) -> Result<Arc<Buffer>, BackendError> {
        let device_layout = self.layout(layout)?;
        if let Some((found, buffer)) = &device_layout.turns
            && found == rope
        {
            return Ok(buffer.clone());
        }
        let mut words = Vec::with_capacity(layout.len() * rope.inv_freq.len() * 2);
        for &position in layout.positions() {
            for frequency in &rope.inv_freq {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                words.extend([cos.to_bits(), sin.to_bits()]);
            }
        }
        let buffer = upload_words(self, &words)?;
        let mut last = self.last_layout.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = last.as_mut().filter(|kept| kept.layout == *layout) {
            kept.turns = Some((rope.clone(), buffer.clone()));
        }
        Ok(buffer)
    }
}
